"""The shipped model of orientation over HTTP, on digits that another library has turned: SciPy, cubic, +-60 degrees."""

import json
from pathlib import Path

import httpx
import numpy as np
import pytest

from benchmarks import turned_digits
from contract.manifest import read_manifest
from service.settings import load_settings
from tests.contract.pictures import ring
from training.config import MnistData

STORE = Path(__file__).parents[2] / "model_store"
DIGITS = 300
UNSURE = {  # degrees, at least and at most: of what the model knows to be possible
    "mcevae-mnist-so2": (45, 60),
    "mcevae-mnist-se2": (45, 60),
    "mcevae-mnist-upright": (100, 105),
    "upright-text": (100, 110),
    "symmetry-mnist": (5, 20),
    "symmetry-letters": (12, 50),
}
MEDIAN_LIMIT, MEAN_LIMIT, FLIPS_LIMIT = 0.6, 1.5, 0.7  # degrees, degrees, % over 90 degrees
READ_LIMIT, PSNR_LIMIT = 96, 20  # of canonical pictures: % read right; decibels between a digit's and its turned copy's


@pytest.fixture(scope="module")
def client(shipped: httpx.Client) -> httpx.Client:
    return shipped


@pytest.fixture(scope="module")
def found(client: httpx.Client, mnist_folder: Path) -> dict[str, float]:
    return turned_digits.digits(client, MnistData(source="mnist", path=mnist_folder), DIGITS)


def test_the_default_is_the_most_exact_mce_vae() -> None:
    """By the mean relative error at +-60 degrees on validation digits."""
    cards = [read_manifest(folder) for folder in STORE.glob("mcevae-*/*")]
    errors = {card.name: card.metrics["validation"]["rotation_error_60"] for card in cards}
    settings, best = load_settings({}), min(errors, key=errors.__getitem__)
    assert settings.default_canonicalize == settings.default_transform == best


def test_every_request_is_answered(found: dict[str, float]) -> None:
    assert found["answered"] == found["digits"] == DIGITS


def test_the_angle_follows_the_turn(found: dict[str, float]) -> None:
    assert found["median"] <= MEDIAN_LIMIT
    assert found["mean"] <= MEAN_LIMIT
    assert found["over_90_percent"] <= FLIPS_LIMIT


def test_canonical_pictures_agree(found: dict[str, float]) -> None:
    assert found["canonical_psnr"] >= PSNR_LIMIT


def test_canonical_pictures_are_read_right(found: dict[str, float]) -> None:
    assert found["read_right_percent"] >= READ_LIMIT


def test_a_photograph_and_its_turned_copy_come_out_alike(client: httpx.Client) -> None:
    """1200 x 900 in colour: dark ink on paper, about 40 degrees to the left as it is and 15 as a copy."""
    pair = turned_digits.photograph(client)
    assert pair["modes"] == ["RGB", "RGB"] and min(pair["short_sides"]) >= 900
    assert pair["correlation"] >= 0.9
    assert max(map(abs, pair["rotation_degrees"])) < 1  # upright already


@pytest.mark.parametrize("name", turned_digits.PHOTOGRAPHS)
def test_the_corners_that_a_turn_has_filled_do_not_matter(client: httpx.Client, name: str) -> None:
    copies = [(-40 if expand else 20, fill, expand) for fill in turned_digits.FILLS for expand in (True, False)]
    alike = turned_digits.correlations(client, name, copies)
    assert min(alike) >= turned_digits.ALIKE, dict(zip(copies, alike, strict=True))


@pytest.mark.parametrize(("model", "degrees"), UNSURE.items())
def test_how_unsure_a_model_is_where_nothing_is_up(
    client: httpx.Client, model: str, degrees: tuple[float, float]
) -> None:
    """Dark on paper, larger than the model's frame. Any angle: 104; of a range of +-90 degrees alone: 52."""
    noise = np.random.default_rng(1).integers(0, 256, (200, 200))
    rings = [
        255 - 255 * ring(side, share * side, side / 10) for side in (20, 22, 30, 60, 200) for share in (0.3, 0.4, 0.49)
    ]
    pictures = [np.full((200, 200), 230), *rings, noise]
    for answer in turned_digits.ask(client, "/transform", model, [picture.astype(np.uint8) for picture in pictures]):
        assert degrees[0] <= answer["uncertainty"]["rotation_degrees"] <= degrees[1]


@pytest.mark.parametrize(
    ("model", "least"), [("mcevae-mnist-so2", 40), ("mcevae-mnist-se2", 40), ("mcevae-mnist-upright", 80)]
)
def test_small_noise_has_no_way_up(client: httpx.Client, model: str, least: float) -> None:
    noises = [np.random.default_rng(seed).integers(0, 256, (20, 20)).astype(np.uint8) for seed in range(20)]
    for answer in turned_digits.ask(client, "/transform", model, noises):
        assert answer["uncertainty"]["rotation_degrees"] >= least


@pytest.mark.parametrize("model", ["mcevae-mnist-so2", "mcevae-mnist-se2"])
def test_a_blank_page_does_not_grow_however_often_it_is_sent(client: httpx.Client, model: str) -> None:
    page = np.full((200, 300), 255, np.uint8)
    (answer,) = turned_digits.ask(client, "/canonicalize", model, [page])
    upright = answer["upright"]
    assert (upright["width"], upright["height"], upright["matrix"]) == (300, 200, [[1, 0, 0], [0, 1, 0]])


def test_every_model_of_poses_is_asked() -> None:
    manifests = [json.loads(path.read_text()) for path in STORE.glob("*/*/manifest.json")]
    assert {manifest["name"] for manifest in manifests if "transform" in manifest["graphs"]} == set(UNSURE)
