"""The shipped model of orientation over HTTP, on digits that another library has turned: SciPy, cubic, +-60 degrees."""

import base64
import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from service.settings import Settings
from tests.server import running_server
from tests.training.conftest import MNIST
from training import datasets
from training.config import MnistData

STORE = Path(__file__).parents[2] / "model_store"
MODEL, READER = "mcevae-mnist-so2", "equivae-mnist"
DIGITS, BATCH = 1000, 250
MEDIAN_LIMIT, MEAN_LIMIT, FLIPS_LIMIT = 0.6, 1.5, 0.007  # degrees, degrees, share over 90 degrees
READ_SHARE, PEAK_RATIO = (
    0.96,
    20.0,
)  # of canonical pictures: read right; decibels between a digit's and its turned copy's


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    if not (STORE / MODEL).is_dir():
        pytest.skip(f"needs the model {MODEL}")
    with running_server(Settings(model_store=STORE)) as url, httpx.Client(base_url=url, timeout=60) as opened:
        yield opened


def encode(pixels: NDArray[np.uint8]) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def decode(picture: dict[str, Any]) -> NDArray[np.uint8]:
    return np.asarray(Image.open(BytesIO(base64.b64decode(picture["data"]))))


def ask(client: httpx.Client, path: str, model: str, pictures: list[NDArray[np.uint8]]) -> list[dict[str, Any]]:
    """One answer a picture, from JSON batches."""
    data = [{"data": base64.b64encode(encode(pixels)).decode()} for pixels in pictures]
    answers: list[dict[str, Any]] = []
    for start in range(0, len(data), BATCH):
        body = json.dumps({"images": data[start : start + BATCH]})
        headers = {"content-type": "application/json"}
        response = client.post(path, params={"model": model}, content=body, headers=headers)
        assert response.status_code == 200, response.text
        answers += response.json()["results"]
    return answers


def turned(pixels: NDArray[np.uint8], degrees: float) -> NDArray[np.uint8]:
    """Turned counter-clockwise as seen."""
    values = ndimage.rotate(pixels.astype(np.float64), degrees, reshape=False, order=3)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def answers(client: httpx.Client) -> dict[str, Any]:
    """Test digits, drawn by a seed, as they are and turned, with what the service says of both."""
    if not MNIST.is_file():
        pytest.skip(f"needs MNIST as {MNIST}")
    test = datasets.load(MnistData(source="mnist", path=MNIST)).test
    assert test is not None
    rng = np.random.default_rng(0)
    chosen = rng.permutation(len(test))[:DIGITS]
    angles = rng.uniform(-60, 60, DIGITS)
    plain = list(test.images[:, 0].numpy()[chosen])
    moved = [turned(pixels, degrees) for pixels, degrees in zip(plain, angles, strict=True)]
    return {
        "angles": angles,
        "labels": [test.class_names[label] for label in test.labels[chosen].tolist()],
        "plain": ask(client, "/canonicalize", MODEL, plain),
        "turned": ask(client, "/canonicalize", MODEL, moved),
    }


def test_every_request_is_answered(answers: dict[str, Any]) -> None:
    for part in ("plain", "turned"):
        assert len(answers[part]) == DIGITS
        assert not [answer for answer in answers[part] if "problem" in answer]


def test_the_angle_follows_the_turn(answers: dict[str, Any]) -> None:
    found = [
        np.array([answer["transform"]["rotation_degrees"] for answer in answers[part]]) for part in ("turned", "plain")
    ]
    errors = np.abs((found[0] - found[1] - answers["angles"] + 180) % 360 - 180)
    assert np.median(errors) <= MEDIAN_LIMIT
    assert errors.mean() <= MEAN_LIMIT
    assert (errors > 90).mean() <= FLIPS_LIMIT


def test_canonical_pictures_agree(answers: dict[str, Any]) -> None:
    pairs = zip(answers["plain"], answers["turned"], strict=True)
    squares = [
        np.mean((decode(one["canonical"]) / 255 - decode(other["canonical"]) / 255) ** 2) for one, other in pairs
    ]
    assert 10 * np.log10(1 / np.mean(squares)) >= PEAK_RATIO


def test_canonical_pictures_are_read_right(client: httpx.Client, answers: dict[str, Any]) -> None:
    pictures = [decode(answer["canonical"]) for answer in answers["turned"]]
    read = ask(client, "/classify", READER, pictures)
    assert np.mean([one["label"] == label for one, label in zip(read, answers["labels"], strict=True)]) >= READ_SHARE


def test_a_photograph_and_its_turned_copy_come_out_alike(client: httpx.Client) -> None:
    """1200 x 900 in colour: dark ink on paper, about 40 degrees to the left as it is and 15 as a copy."""
    paper = Image.open(STORE.parent / "examples" / "turned-3.jpg").convert("RGB").resize((1200, 900), Image.LANCZOS)
    ground = tuple(int(value) for value in np.median(np.asarray(paper).reshape(-1, 3), axis=0))
    copy = paper.rotate(-25, resample=Image.Resampling.BICUBIC, expand=True, fillcolor=ground)
    uprights = []
    for picture in (paper, copy):
        buffer = BytesIO()
        picture.save(buffer, "PNG", compress_level=1)
        response = client.post(
            "/canonicalize",
            params={"model": MODEL},
            content=buffer.getvalue(),
            headers={"content-type": "image/png", "accept": "image/png"},
        )
        assert response.status_code == 200, response.text
        upright = Image.open(BytesIO(response.content))
        assert upright.mode == "RGB" and min(upright.size) >= 900
        uprights.append(255 - np.asarray(upright.convert("L"), dtype=np.float64))
    assert correlation(*(around_ink(ink) for ink in uprights)) >= 0.9


def around_ink(ink: NDArray[np.float64], half: int = 300) -> NDArray[np.float64]:
    """The square about the centroid of the ink, without the shaded paper; the canvases are of different sizes."""
    ink = np.clip(ink - 170, 0, None)
    down, across = (int(round(value)) for value in ndimage.center_of_mass(ink))
    padded = np.pad(ink, half)
    return padded[down : down + 2 * half, across : across + 2 * half]


def correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])
