"""The mark to reach: an ASGI app without any framework that runs what arrived in one turn of the event loop together.

DECODER chooses between `pillow`, `opencv` and `ours`, the service's own way through Pillow's decoder. Nothing else is
checked, counted or limited.
"""

import asyncio
import os
from typing import Any

import numpy as np
import orjson

from benchmarks.peers.classifier import BATCH, Classifier

classifier = Classifier()
decode = classifier.decode
if os.environ.get("DECODER") == "opencv":
    import cv2

    def decode(picture: bytes) -> Any:
        pixels = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_GRAYSCALE)
        return pixels[None].astype(np.float32) / 255
elif os.environ.get("DECODER") == "ours":
    from contract.picture import open_picture

    def decode(picture: bytes) -> Any:
        return open_picture(picture).pixels[None].astype(np.float32) / 255


waiting: list[tuple[Any, asyncio.Future[Any]]] = []


def run() -> None:
    """Everything that has arrived, as batches."""
    taken = waiting[:]
    waiting.clear()
    for start in range(0, len(taken), BATCH):
        batch = taken[start : start + BATCH]
        for (_, done), answer in zip(batch, classifier.judge([image for image, _ in batch]), strict=True):
            done.set_result(answer)


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()
    if not waiting:
        loop.call_soon(run)
    waiting.append((decode(body), done))
    content = orjson.dumps(await done)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})
