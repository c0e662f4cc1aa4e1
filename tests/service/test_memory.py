"""What a request holds: room for it in the budget, what is said where there never is enough, and real memory."""

import asyncio
import base64
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pytest

from benchmarks import memory
from service import inference
from service.inference import Inference
from service.settings import Settings
from tests.server import running_server
from tests.service import tiny, tiny_pose
from tests.service.tiny import encode

MIB = 2**20
MAX_PIXELS = 250_000


def noise(side: int) -> bytes:
    """A file as long as its pixels are."""
    return encode(np.random.default_rng(0).integers(0, 256, (side, side), np.uint8))


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Of a service with 20 MB for everything."""
    store = tmp_path_factory.mktemp("memory")
    tiny_pose.write(store, augment=True)
    settings = Settings(model_store=store, max_pixels=MAX_PIXELS, max_body_bytes=8_000_000, queue_bytes=20_000_000)
    with (
        running_server(settings) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=60) as opened,
    ):
        yield opened


def accepted_bytes(client: httpx.Client) -> float:
    lines = client.get("/metrics").text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("equipoise_accepted_bytes ")))


@pytest.mark.parametrize(
    ("path", "side", "count", "status"),
    [
        # Kept from decoding to drawing: 4 bytes a pixel of all but one, beside 3 of that one, and the body.
        ("/canonicalize?expand=false", 500, 15, 200),
        ("/canonicalize?expand=false", 500, 17, 413),
        # Drawn with transparency: 8 bytes a pixel of one and 4 of each other one, beside the pictures and the body.
        ("/canonicalize?expand=false&fill=transparent", 500, 12, 200),
        ("/canonicalize?expand=false&fill=transparent", 500, 13, 413),
        # Drawn: 4 bytes a pixel of one variant and 2 of each other one, beside the pictures and the body.
        ("/augment?n=4", 250, 31, 200),
        ("/augment?n=4", 250, 33, 413),
    ],
)
def test_what_never_fits_beside_its_own_body_is_refused_for_good(
    client: httpx.Client, path: str, side: int, count: int, status: int
) -> None:
    """429 would have clients come back for ever to a service that is idle."""
    answer = client.post(path, files=[("images", noise(side))] * count)
    assert answer.status_code == status, answer.text[:300]
    if status == 413:
        problem = answer.json()
        assert problem["type"] == "urn:equipoise:problem:too-many-pixels"
        assert "the limit is 20,000,000" in problem["detail"] and "send fewer pictures" in problem["detail"]
    assert accepted_bytes(client) == 0


class Body(bytes):
    """One that tells when nobody holds it any more."""

    gone = False

    def __del__(self) -> None:
        Body.gone = True


def _in_json(data: bytes) -> dict[str, str]:
    return {"data": base64.b64encode(data).decode()}


def _protocol(data: bytes, binary: bool) -> dict[str, Any]:
    part = struct.pack("<I", len(data)) + data
    given = {"parameters": {"binary_data_size": len(part)}} if binary else {"data": [_in_json(data)["data"]]}
    head = json.dumps({"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES"} | given]}).encode()
    headers = {"inference-header-content-length": str(len(head))}
    return {"content": head + part, "headers": headers} if binary else {"content": head}


@pytest.mark.parametrize("tail", [0, 100_000], ids=["on the event loop", "by the pool"])
@pytest.mark.parametrize(
    ("path", "request_of"),
    [
        ("/classify", lambda data: {"files": [("images", data)] * 2}),
        ("/classify", lambda data: {"json": {"images": [_in_json(data)]}}),
        ("/recombine", lambda data: {"files": {"content": data, "style": data}}),
        ("/recombine", lambda data: {"json": {"content": _in_json(data), "style": _in_json(data)}}),
        ("/canonicalize", lambda data: {"files": [("images", data)]}),
        ("/augment", lambda data: {"json": {"images": [_in_json(data)]}}),
        ("/v2/models/tiny.embed/infer", lambda data: _protocol(data, binary=False)),
        ("/v2/models/tiny.embed/infer", lambda data: _protocol(data, binary=True)),
    ],
)
def test_a_body_is_let_go_of_once_it_is_read(
    able_url: str, monkeypatch: pytest.MonkeyPatch, path: str, request_of: Callable[[bytes], dict[str, Any]], tail: int
) -> None:
    """The budget counts it once: its pictures must not be held beside it."""
    read_body, prepare = inference.read_body, Inference.prepare
    found: list[bool] = []

    async def read(receive: Any) -> bytes:
        body = Body(await read_body(receive))
        Body.gone = False
        return body

    async def prepared(self: Inference, *arguments: Any, **named: Any) -> Any:
        for _ in range(200):  # a thread may hold what it has just done for a moment
            if Body.gone:
                break
            await asyncio.sleep(0.01)
        found.append(Body.gone)
        return await prepare(self, *arguments, **named)

    loads = orjson.loads
    monkeypatch.setattr("orjson.loads", lambda text: loads(bytes(text)))  # which takes no other class
    monkeypatch.setattr(inference, "read_body", read)
    monkeypatch.setattr(Inference, "prepare", prepared)
    answer = httpx.post(f"{able_url}{path}", **request_of(tiny.png() + bytes(tail)), trust_env=False, timeout=20)
    assert answer.status_code == 200, answer.text
    assert found == [True]


@pytest.mark.parametrize("name", ["one picture", "a form of 8", "JSON of 8"])
def test_a_process_with_a_full_queue_takes_no_more_than_the_rule_says(tmp_path: Path, name: str) -> None:
    tiny.write(tmp_path)
    settings = Settings(model_store=tmp_path, max_pixels=10**6, max_body_bytes=8 * MIB, queue_bytes=80 * MIB)
    (found,) = memory.run(settings, [case for case in memory.CASES if case.name == name], "tiny")
    assert found["statuses"]["200"] == found["clients"] == 13, found
    allowed = found["needed_mib"] - memory.BESIDE // MIB
    assert found["most_mib"] - found["before_mib"] <= allowed + 16, found  # with what lies free between the rest
