"""What a running service answers for digits that another library has turned: `python -m benchmarks.turned_digits`.

Test digits of MNIST, drawn by a seed, are sent to /canonicalize as they are and turned by SciPy (cubic) by U(+-60)
degrees; /classify reads the canonical pictures of the turned ones. A photograph in colour, 1200 x 900, and its copy
turned by Pillow are made upright and compared. The service has to run already, as after `make serve`.
"""

import argparse
import base64
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from training import datasets
from training.config import MnistData

MODEL, READER = "mcevae-mnist-so2", "equivae-mnist"
PHOTOGRAPH = Path(__file__).parents[1] / "examples" / "turned-3.jpg"
BATCH = 250  # pictures a request
HALF = 300  # of the side of the square that is compared of two upright photographs, in pixels


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
    """Of the two upright pictures: modes, sizes, the angles found in them, correlation of what is about the ink."""
    paper = Image.open(PHOTOGRAPH).convert("RGB").resize((1200, 900), Image.Resampling.LANCZOS)
    ground = tuple(int(value) for value in np.median(np.asarray(paper).reshape(-1, 3), axis=0))
    copy = paper.rotate(-25, resample=Image.Resampling.BICUBIC, expand=True, fillcolor=ground)
    uprights, again = [], []
    for picture in (paper, copy):
        headers = {"content-type": "image/png", "accept": "image/png"}
        response = client.post("/canonicalize", params={"model": MODEL}, content=encode(picture), headers=headers)
        response.raise_for_status()
        uprights.append(Image.open(BytesIO(response.content)))
        headers = {"content-type": "image/png"}
        answer = client.post("/transform", params={"model": MODEL}, content=response.content, headers=headers)
        again.append(answer.raise_for_status().json()["rotation_degrees"])
    parts = [_around_ink(255 - np.asarray(upright.convert("L"), dtype=np.float64)) for upright in uprights]
    return {
        "modes": [upright.mode for upright in uprights],
        "short_sides": [min(upright.size) for upright in uprights],
        "rotation_degrees": again,
        "correlation": float(np.corrcoef(*(part.ravel() for part in parts))[0, 1]),
    }


def _around_ink(ink: NDArray[np.float64]) -> NDArray[np.float64]:
    """The square about the ink's centroid, without the shaded paper; the two canvases are of different sizes."""
    ink = np.clip(ink - 170, 0, None)
    down, across = (int(round(value)) for value in ndimage.center_of_mass(ink))
    return np.pad(ink, HALF)[down : down + 2 * HALF, across : across + 2 * HALF]


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
        }
    text = json.dumps(found, indent=2)
    print(text)
    if chosen.json:
        chosen.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
