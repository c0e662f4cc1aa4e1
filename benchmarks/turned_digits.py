"""What a running service answers for digits that another library has turned: `python -m benchmarks.turned_digits`.

Test digits of MNIST, drawn by a seed, are sent to /canonicalize as they are and turned by SciPy (cubic) by U(+-60)
degrees; /classify reads the canonical pictures of the turned ones. A photograph in colour, 1200 x 900, and its copy
turned by Pillow are made upright and compared; so are two photographs and copies turned by +-10 to +-60 degrees, with
corners of three colours, on a canvas that grows and on one that does not. The service has to run already, as after
`make serve`.
"""

import argparse
import base64
import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from contract import geometry
from training import datasets
from training.config import MnistData

MODEL, READER = "mcevae-mnist-so2", "equivae-mnist"
EXAMPLES = Path(__file__).parents[1] / "examples"
PHOTOGRAPHS = "turned-3.jpg", "page-3.jpg"
FILLS = {"median": None, "black": (0, 0, 0), "white": (255, 255, 255)}
ANGLES = *range(-60, 0, 10), *range(10, 61, 10)
ALIKE = 0.9  # correlation of two upright photographs
BATCH = 250  # pictures a request
RADIUS = 200  # pixels of a photograph about the centre of its ink that are compared


def encode(picture: Image.Image) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def decode(picture: dict[str, Any]) -> NDArray[np.uint8]:
    return np.asarray(Image.open(BytesIO(base64.b64decode(picture["data"]))))


def ask(client: httpx.Client, path: str, model: str, pictures: list[NDArray[np.uint8]]) -> list[dict[str, Any]]:
    """One answer a picture, from JSON batches."""
    data = [{"data": base64.b64encode(encode(Image.fromarray(pixels))).decode()} for pixels in pictures]
    answers: list[dict[str, Any]] = []
    for start in range(0, len(data), BATCH):
        response = client.post(path, params={"model": model}, json={"images": data[start : start + BATCH]})
        response.raise_for_status()
        answers += response.json()["results"]
    return answers


def turned(pixels: NDArray[np.uint8], degrees: float) -> NDArray[np.uint8]:
    """Turned counter-clockwise as seen."""
    values = ndimage.rotate(pixels.astype(np.float64), degrees, reshape=False, order=3)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def digits(client: httpx.Client, data: MnistData, count: int, seed: int = 0) -> dict[str, float]:
    """Errors of the relative angle in degrees, shares in %, decibels between the two canonical pictures of a digit."""
    test = datasets.load(data).test
    assert test is not None
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(test))[:count]
    angles = rng.uniform(-60, 60, len(chosen))
    plain = list(test.images[:, 0].numpy()[chosen])
    copies = [turned(pixels, degrees) for pixels, degrees in zip(plain, angles, strict=True)]
    answers = [ask(client, "/canonicalize", MODEL, pictures) for pictures in (plain, copies)]
    pairs = [(one, other) for one, other in zip(*answers, strict=True) if "problem" not in one | other]
    figures = {"digits": len(chosen), "answered": len(pairs)}
    if len(pairs) < len(chosen):
        return figures
    before, after = (np.array([answer["transform"]["rotation_degrees"] for answer in part]) for part in answers)
    errors = np.abs((after - before - angles + 180) % 360 - 180)
    squares = [
        np.mean((decode(one["canonical"]) / 255 - decode(other["canonical"]) / 255) ** 2) for one, other in pairs
    ]
    read = ask(client, "/classify", READER, [decode(answer["canonical"]) for answer in answers[1]])
    labels = [test.class_names[label] for label in test.labels[chosen].tolist()]
    right = [one["label"] == label for one, label in zip(read, labels, strict=True)]
    return figures | {
        "median": float(np.median(errors)),
        "mean": float(errors.mean()),
        "over_90_percent": 100 * float((errors > 90).mean()),
        "canonical_psnr": float(10 * np.log10(1 / np.mean(squares))),
        "read_right_percent": 100 * float(np.mean(right)),
    }


def photograph(client: httpx.Client) -> dict[str, Any]:
    """Of a photograph and its copy, both made upright: modes, sizes, the angles found in them, correlation."""
    paper = opened(PHOTOGRAPHS[0])
    pictures = paper, copy_of(paper, -25, "median", True)
    uprights = [upright(client, picture)[0] for picture in pictures]
    again = []
    for picture in uprights:
        headers = {"content-type": "image/png"}
        answer = client.post("/transform", params={"model": MODEL}, content=encode(picture), headers=headers)
        again.append(answer.raise_for_status().json()["rotation_degrees"])
    return {
        "modes": [picture.mode for picture in uprights],
        "short_sides": [min(picture.size) for picture in uprights],
        "rotation_degrees": again,
        "correlation": correlations(client, PHOTOGRAPHS[0], [(-25, "median", True)])[0],
    }


def corners(client: httpx.Client) -> list[dict[str, Any]]:
    """For every photograph, colour of the corners and kind of canvas: how many copies come out alike."""
    kinds = [(fill, expand) for fill in FILLS for expand in (True, False)]
    rows = []
    for name in PHOTOGRAPHS:
        copies = [(degrees, *kind) for kind in kinds for degrees in ANGLES]
        found = dict(zip(copies, correlations(client, name, copies), strict=True))
        for fill, expand in kinds:
            values = [found[degrees, fill, expand] for degrees in ANGLES]
            alike = sum(value >= ALIKE for value in values)
            row = {"photograph": name, "fill": fill, "expand": expand, "alike": alike, "of": len(values)}
            rows.append(row | {"least": min(values)})
    return rows


def correlations(client: httpx.Client, name: str, copies: Sequence[tuple[float, str, bool]]) -> list[float]:
    """Of what lies about the ink in the upright photograph and in upright copies, each (degrees, fill, expand)."""
    paper = opened(name)
    dark = np.clip(85.0 - np.asarray(paper.convert("L")), 0, None)
    ink = np.array(ndimage.center_of_mass(dark))[::-1] + 0.5
    reference = about(ink, *upright(client, paper))
    found = []
    for degrees, fill, expand in copies:
        copy = copy_of(paper, degrees, fill, expand)
        place = geometry.apply(geometry.rotation(degrees), ink - np.array(paper.size) / 2) + np.array(copy.size) / 2
        found.append(float(np.corrcoef(reference, about(place, *upright(client, copy)))[0, 1]))
    return found


def opened(name: str) -> Image.Image:
    return Image.open(EXAMPLES / name).convert("RGB").resize((1200, 900), Image.Resampling.LANCZOS)


def copy_of(paper: Image.Image, degrees: float, fill: str, expand: bool) -> Image.Image:
    """Turned counter-clockwise as seen."""
    median = tuple(int(value) for value in np.median(np.asarray(paper).reshape(-1, 3), axis=0))
    return paper.rotate(degrees, Image.Resampling.BICUBIC, expand=expand, fillcolor=FILLS[fill] or median)


def upright(client: httpx.Client, picture: Image.Image) -> tuple[Image.Image, Any]:
    """The upright picture, and the matrix from its pixels to those of `picture`."""
    headers = {"content-type": "image/png", "accept": "image/png"}
    response = client.post("/canonicalize", params={"model": MODEL}, content=encode(picture), headers=headers)
    response.raise_for_status()
    return Image.open(BytesIO(response.content)), json.loads(response.headers["x-upright-matrix"])


def about(place: NDArray[np.float64], upright: Image.Image, matrix: Any) -> NDArray[np.float64]:
    """Brightness [n] within RADIUS of what is at `place`, in pixels from the corner, of the picture that was turned."""
    across, down = np.rint(geometry.apply(geometry.inverse(matrix), place - 0.5)).astype(int)
    grey = np.pad(np.asarray(upright.convert("L"), np.float64), 2 * RADIUS, mode="edge")
    y, x = np.ogrid[-RADIUS : RADIUS + 1, -RADIUS : RADIUS + 1]
    square = grey[down + RADIUS : down + 3 * RADIUS + 1, across + RADIUS : across + 3 * RADIUS + 1]
    return square[x**2 + y**2 <= RADIUS**2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="of the running service")
    parser.add_argument("--count", type=int, default=10_000, help="test digits")
    parser.add_argument("--json", type=Path, help="where the figures go, too")
    chosen = parser.parse_args()
    with httpx.Client(base_url=chosen.url, timeout=60) as client:
        found = {
            "model": MODEL,
            "digits": digits(client, MnistData(source="mnist"), chosen.count),
            "photograph": photograph(client),
            "corners": corners(client),
        }
    text = json.dumps(found, indent=2)
    print(text)
    if chosen.json:
        chosen.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
