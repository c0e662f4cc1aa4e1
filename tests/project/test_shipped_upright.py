"""The shipped model of orientation over HTTP, on digits that another library has turned: SciPy, cubic, +-60 degrees."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from benchmarks import turned_digits
from service.settings import Settings
from tests.server import running_server
from tests.training.conftest import MNIST
from training.config import MnistData

STORE = Path(__file__).parents[2] / "model_store"
DIGITS = 1000
MEDIAN_LIMIT, MEAN_LIMIT, FLIPS_LIMIT = 0.6, 1.5, 0.7  # degrees, degrees, % over 90 degrees
READ_LIMIT, PSNR_LIMIT = 96, 20  # of canonical pictures: % read right; decibels between a digit's and its turned copy's


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    if not (STORE / turned_digits.MODEL).is_dir():
        pytest.skip(f"needs the model {turned_digits.MODEL}")
    with running_server(Settings(model_store=STORE)) as url, httpx.Client(base_url=url, timeout=60) as opened:
        yield opened


@pytest.fixture(scope="module")
def found(client: httpx.Client) -> dict[str, float]:
    if not MNIST.is_file():
        pytest.skip(f"needs MNIST as {MNIST}")
    return turned_digits.digits(client, MnistData(source="mnist", path=MNIST), DIGITS)


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
