"""What `benchmarks.uncertainty` draws has no way up, and its figures are of the pictures that have content."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.uncertainty import KINDS, OF_EACH, Generator, Pixels, capitals, digits, drawn, measured
from contract.manifest import InputSpec, Manifest, Preprocessing


def pose_model(data: str = "mnist") -> Manifest:
    """As much of a manifest as is asked for."""
    spec = InputSpec(channels=1, height=28, width=28)
    framing = Preprocessing(polarity="light", fit="circle", margin=0.1)
    return cast(Manifest, SimpleNamespace(input=spec, preprocessing=framing, data={"name": data}))


class Deviations:
    """A session whose answers are given, in radians."""

    def __init__(self, *radians: float) -> None:
        self.answer = np.array(radians, np.float32)[:, None]

    def run(self, names: list[str], inputs: dict[str, NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        assert names == ["coefficients_std"] and inputs["image"].shape == (len(self.answer), 1, 28, 28)
        return [self.answer]


@pytest.mark.parametrize("side", [20, 28, 200])
def test_a_circle_lies_inside_and_has_no_axis(side: int) -> None:
    for seed in range(20):
        ink = KINDS["circles"](side, np.random.default_rng(seed)).astype(float)
        assert ink.max() > 200 and ink[[0, -1]].max() == ink[:, [0, -1]].max() == 0
        place = np.indices(ink.shape).reshape(2, -1)
        least, most = np.linalg.eigvalsh(np.cov(place, aweights=ink.ravel()))
        assert least > 0.95 * most  # of 20 pixels the grid shows


def test_clouds_are_smooth_and_of_full_contrast() -> None:
    picture = KINDS["soft clouds"](200, np.random.default_rng(0)).astype(int)
    assert (picture.min(), picture.max()) == (0, 255)
    assert abs(np.diff(picture)).max() < 20 < abs(np.diff(KINDS["white noise"](200, np.random.default_rng(0)))).max()


def test_figures_are_degrees_of_what_has_content() -> None:
    circle: Pixels = KINDS["circles"](64, np.random.default_rng(0))
    session: Any = Deviations(*np.radians([50, 10, 19.9]))
    found = measured([circle, np.full_like(circle, 200), circle, circle], pose_model(), session)
    assert found == {"drawn": 4, "with_content": 3, "least": 10.0, "median": 19.9, "sure": 2}
    blank: Any = None  # a model is not asked
    assert measured([np.full_like(circle, 200)], pose_model(), blank) == {"drawn": 1, "with_content": 0}


@pytest.mark.parametrize("draw", [digits, capitals])
def test_what_a_model_knows_lies_dark_and_whole_on_its_page(draw: Callable[[Generator], Iterator[Pixels]]) -> None:
    pictures = list(draw(np.random.default_rng(0)))
    assert len(pictures) == OF_EACH
    for page in pictures:
        assert page.min() < 50 and min(page[[0, -1]].min(), page[:, [0, -1]].min()) == 255


def test_a_model_of_text_is_shown_text() -> None:
    *unknown, (kind, lines) = drawn(pose_model("text"))
    assert kind == "with a way up" and len(lines) == OF_EACH
    assert len({page.shape for page in lines}) > 10  # crops are as large as their text
    assert "circles, in the frame" in dict(unknown)
