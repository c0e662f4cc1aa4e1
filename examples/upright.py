"""Asks a running service which way a picture is turned and draws its answer beside the upright picture:

python examples/upright.py examples/turned-3.jpg docs/upright.png
"""

import argparse
import json
import math
from base64 import b64decode
from contextlib import closing
from http.client import HTTPConnection
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from PIL import Image, ImageDraw, ImageFont, ImageOps

HEIGHT = 450  # pixels of the figure's pictures
GAP, CAPTION = 24, 64
LINE, TEXT = (208, 58, 40), (40, 40, 40)


def ask(address: str, picture: bytes, query: str = "") -> dict[str, Any]:
    """The answer of `/canonicalize` for one picture."""
    try:
        with closing(HTTPConnection(address)) as connection:
            connection.request("POST", f"/canonicalize{query}", picture, {"Content-Type": "application/octet-stream"})
            response = connection.getresponse()
            answer: dict[str, Any] = json.loads(response.read())
    except OSError as error:
        raise SystemExit(f"{address} does not answer: {error}") from None
    if response.status != 200:
        raise SystemExit(f"{answer['title']}: {answer['detail']}")
    return answer


def to_pixels(transform: dict[str, Any], x: float, y: float) -> tuple[float, float]:
    """A point of the canonical frame (-1 to 1, y down) in the picture that was sent: frame times matrix."""
    for matrix in (transform["matrix"], transform["frame"]):
        x, y = (row[0] * x + row[1] * y + row[2] for row in matrix)
    return x, y


def in_colour(picture: Image.Image) -> Image.Image:
    """Mode RGB; 16 bits a pixel lose their lower half, where Pillow's own way would make all but the darkest white."""
    if picture.mode.startswith("I"):
        picture = picture.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    return picture.convert("RGB")


def draw_answer(picture: Image.Image, transform: dict[str, Any]) -> Image.Image:
    """The canonical frame on the picture, an arrow to where its top has gone, an arc of the angle from the vertical."""
    drawn = in_colour(picture)
    draw = ImageDraw.Draw(drawn)
    width = max(2, drawn.height // 150)
    corners = [to_pixels(transform, x, y) for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1))]
    draw.line(corners, fill=LINE, width=width)
    centre, top = to_pixels(transform, 0, 0), to_pixels(transform, 0, -1)
    draw.line([centre, top], fill=LINE, width=2 * width)
    reach = 0.7 * math.dist(centre, top)
    draw.line([centre, (centre[0], centre[1] - 1.1 * reach)], fill=LINE, width=width)
    box = (centre[0] - reach, centre[1] - reach, centre[0] + reach, centre[1] + reach)
    angle = transform["rotation_degrees"]  # Pillow's angles grow clockwise from the right
    draw.arc(box, -90 - max(angle, 0), -90 - min(angle, 0), fill=LINE, width=width)
    return drawn


def figure(picture: Image.Image, answer: dict[str, Any]) -> Image.Image:
    if answer["input"]["orientation_applied"]:
        picture = ImageOps.exif_transpose(picture)
    upright = Image.open(BytesIO(b64decode(answer["upright"]["data"])))
    transform = answer["transform"]
    panels = draw_answer(picture, transform), in_colour(upright)
    small = [panel.resize((round(panel.width * HEIGHT / panel.height), HEIGHT)) for panel in panels]
    deviation = transform["uncertainty"]["rotation_degrees"]
    found = f"rotation_degrees {transform['rotation_degrees']:+.1f}, uncertainty {deviation:.1f}"
    captions, font = (f"as sent: {found}", "upright"), ImageFont.load_default(20)
    widths = [max(panel.width, math.ceil(font.getlength(text))) for panel, text in zip(small, captions, strict=True)]
    sheet = Image.new("RGB", (sum(widths) + 3 * GAP, HEIGHT + CAPTION + GAP), "white")
    draw, left = ImageDraw.Draw(sheet), GAP
    for panel, caption, width in zip(small, captions, widths, strict=True):
        sheet.paste(panel, (left, GAP))
        draw.text((left, GAP + HEIGHT + 14), caption, fill=TEXT, font=font)
        left += width + GAP
    return sheet


def service_address(text: str) -> str:
    try:
        parts = urlsplit(text if "//" in text else f"//{text}")
        _ = parts.port  # of another port than a number this is the error
        if parts.scheme not in ("", "http") or not parts.hostname or parts.username or parts.path.strip("/"):
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither host:port nor http://host:port") from None
    return parts.netloc


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path)
    parser.add_argument("to", type=Path, help="the figure, PNG")
    parser.add_argument(
        "--address", type=service_address, default="127.0.0.1:8000", help="of the service, as host:port or a URL"
    )
    parser.add_argument("--query", default="", help="such as ?model=upright-text&expand=false")
    chosen = parser.parse_args()
    data = chosen.picture.read_bytes()
    answer = ask(chosen.address, data, chosen.query)
    figure(Image.open(BytesIO(data)), answer).save(chosen.to, optimize=True)


if __name__ == "__main__":
    main()
