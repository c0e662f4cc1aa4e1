"""The models in git, as they are served: small enough, honest about themselves, right over HTTP."""

import base64
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from contract.manifest import Manifest, verify
from training import datasets
from training.config import DigitsData, MnistData
from training.datasets.colour import over_photographs
from training.datasets.images import Splits
from training.evaluation.pages import draw_page

STORE = Path(__file__).parents[2] / "model_store"
FOLDERS = sorted(folder for model in STORE.iterdir() for folder in model.iterdir())
MOST_BYTES = 8 * 1024 * 1024
BATCH = 100  # pages of a deadline, on a slow machine too
# Largest share of wrong answers that is accepted of each shipped model on the test digits it is asked about here.
PLAIN_DIGITS, PLAIN_LIMIT = 3000, 0.007
PAGE_DIGITS, PAGE_LIMIT, PAGE_SIDE = 300, 0.012, 300
SMALL_DIGITS_LIMIT = 0.02
COLOUR_DIGITS, COLOUR_LIMIT = 300, 0.03


@pytest.fixture(params=FOLDERS, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def manifest(request: pytest.FixtureRequest) -> Manifest:
    return verify(request.param)


def test_a_shipped_model_is_whole_and_small(manifest: Manifest) -> None:
    assert sum(file.size for file in manifest.files.values()) < MOST_BYTES
    served = {
        "equivae": {"embed", "classify", "recombine"},
        "mcevae": {"transform", "canonicalize"},
        "symmetry": {"transform", "augment"},
    }
    assert served[manifest.kind] <= set(manifest.graphs)
    for capability, error in manifest.parity.items():
        assert error < (2e-4 if capability == "classify" else 1e-4)  # distances may be of a thousand, in float32
    assert manifest.training["parameters"] < 1_000_000
    assert manifest.data["digest"] and manifest.metrics and manifest.licence


@pytest.fixture(scope="module")
def client(shipped: httpx.Client) -> httpx.Client:
    return shipped


def png(pixels: NDArray[np.uint8]) -> str:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode()


def classify(
    client: httpx.Client, model: str, pictures: Iterable[NDArray[np.uint8]], name: Callable[[dict], str]
) -> list[str]:
    """The answers' field for each picture, asked for in JSON batches."""
    encoded = [{"data": png(picture)} for picture in pictures]
    found = []
    for start in range(0, len(encoded), BATCH):
        body = json.dumps({"images": encoded[start : start + BATCH]})
        headers = {"content-type": "application/json"}
        response = client.post("/classify", params={"model": model}, content=body, headers=headers)
        assert response.status_code == 200, response.text
        found += [name(result) for result in response.json()["results"]]
    return found


def wrong_share(client: httpx.Client, model: str, pictures: Iterable[NDArray[np.uint8]], labels: list[str]) -> float:
    found = classify(client, model, pictures, lambda result: result["label"])
    return float(np.mean([one != other for one, other in zip(found, labels, strict=True)]))


def test_held_out_small_digits_over_http(client: httpx.Client) -> None:
    held_out = datasets.load(DigitsData(source="digits")).test
    assert held_out is not None
    labels = [held_out.class_names[label] for label in held_out.labels.tolist()]
    pictures = list(held_out.images[:, 0].numpy())
    assert wrong_share(client, "equivae-digits", pictures, labels) <= SMALL_DIGITS_LIMIT


@pytest.fixture(scope="module")
def mnist(mnist_folder: Path) -> Splits:
    return datasets.load(MnistData(source="mnist", path=mnist_folder))


@pytest.fixture(scope="module")
def mnist_test(mnist: Splits) -> tuple[NDArray[np.uint8], list[str]]:
    test = mnist.test
    assert test is not None
    return test.images[:, 0].numpy(), [test.class_names[label] for label in test.labels.tolist()]


def test_held_out_digits_in_colour_over_http(client: httpx.Client, mnist: Splits) -> None:
    assert mnist.test is not None
    few = replace(
        mnist,
        train=mnist.train.subset(torch.arange(1)),
        validation=mnist.validation.subset(torch.arange(1)),
        test=mnist.test.subset(torch.arange(COLOUR_DIGITS)),
    )
    test = over_photographs(few, 0).test
    assert test is not None
    labels = [test.class_names[label] for label in test.labels.tolist()]
    pictures = list(test.images.permute(0, 2, 3, 1).contiguous().numpy())
    assert wrong_share(client, "equivae-mnist-colour", pictures, labels) <= COLOUR_LIMIT


def test_held_out_mnist_digits_over_http(client: httpx.Client, mnist_test: tuple[NDArray[np.uint8], list[str]]) -> None:
    images, labels = mnist_test
    share = wrong_share(client, "equivae-mnist", list(images[:PLAIN_DIGITS]), labels[:PLAIN_DIGITS])
    assert share <= PLAIN_LIMIT


def test_held_out_mnist_digits_as_dark_ink_on_a_page_over_http(
    client: httpx.Client, mnist_test: tuple[NDArray[np.uint8], list[str]]
) -> None:
    images, labels = mnist_test
    rng = np.random.default_rng(0)
    pages = [draw_page(image, PAGE_SIDE, PAGE_SIDE, rng) for image in images[:PAGE_DIGITS]]
    assert wrong_share(client, "equivae-mnist", pages, labels[:PAGE_DIGITS]) <= PAGE_LIMIT


def test_a_blank_a_ring_and_a_checkerboard_in_the_models_frame_are_novel(client: httpx.Client) -> None:
    rows, columns = np.indices((28, 28))
    radius = np.hypot(rows - 13.5, columns - 13.5)
    pictures = {
        "blank": np.zeros((28, 28), np.uint8),
        "white": np.full((28, 28), 255, np.uint8),
        **{f"ring of {size}": np.where(abs(radius - size) < 1.2, 255, 0).astype(np.uint8) for size in (6, 8, 9.5, 12)},
        "checkerboard": (((rows // 2 + columns // 2) % 2) * 255).astype(np.uint8),
    }
    novel = classify(client, "equivae-mnist", pictures.values(), lambda result: str(result["novelty"]["is_novel"]))
    assert dict(zip(pictures, novel, strict=True)) == dict.fromkeys(pictures, "True")
