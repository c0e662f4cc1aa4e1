"""Asking for poses and upright pictures, and the turned wedge that is sent."""

import base64
from io import BytesIO
from typing import Any

import httpx
from PIL import Image

from tests.service.tiny_pose import pointer

PAPER, INK = (236, 228, 210), (40, 50, 130)


def encode(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def ask(client: httpx.Client, picture: Image.Image | bytes, query: str = "", path: str = "/canonicalize") -> Any:
    body = picture if isinstance(picture, bytes) else encode(picture)
    response = client.post(f"{path}{query}", content=body, headers={"content-type": "image/png"})
    assert response.status_code == 200, response.text
    return response.json()


def refused(
    client: httpx.Client, picture: Image.Image | bytes, query: str = "", **headers: str
) -> tuple[int, str, str]:
    body = picture if isinstance(picture, bytes) else encode(picture)
    response = client.post(f"/canonicalize{query}", content=body, headers={"content-type": "image/png"} | headers)
    problem = response.json()
    return response.status_code, problem["type"].rpartition(":")[2], problem["detail"]


def upright_of(answer: Any) -> Image.Image:
    picture = Image.open(BytesIO(base64.b64decode(answer["upright"]["data"])))
    assert picture.size == (answer["upright"]["width"], answer["upright"]["height"])
    assert Image.MIME[picture.format] == answer["upright"]["media_type"]
    return picture


def turned(degrees: float, **drawn: Any) -> Image.Image:
    """A wedge on paper, drawn upright and turned counter-clockwise by Pillow, paper behind it."""
    drawn = {"ink": INK, "paper": PAPER, "mode": "RGB"} | drawn
    picture = pointer(**drawn)
    return picture.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=drawn["paper"])


def difference(one: float, other: float) -> float:
    """Degrees, the short way round."""
    return abs((one - other + 180) % 360 - 180)
