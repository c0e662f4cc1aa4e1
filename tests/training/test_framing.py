"""Frames and canvases of pictures that are to be turned."""

import pytest
import torch

from contract.manifest import InputSpec, Preprocessing
from training import datasets
from training.config import DigitsData
from training.datasets import LabelledImages, Splits
from training.errors import DataError
from training.framing import ink_radius, turning_frame


def ring(side: int, radius: float, at: tuple[float, float]) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(float(side)), torch.arange(float(side)), indexing="ij")
    distance = torch.hypot(x - at[0], y - at[1])
    return (255 * ((distance - radius).abs() < 0.8)).byte()[None, None]


def splits(images: torch.Tensor, preprocessing: Preprocessing) -> Splits:
    data = LabelledImages(images, torch.zeros(len(images), dtype=torch.int64), ("a",))
    side = images.shape[-1]
    return Splits("made", data, data, data, InputSpec(channels=1, height=side, width=side), preprocessing)


def test_the_circle_holds_the_ink_wherever_it_is() -> None:
    images = torch.cat([ring(40, 10, (19.5, 19.5)), ring(40, 10, (14, 22))])
    data = splits(images, Preprocessing(polarity="light", fit="mass", margin=0.1)).train
    assert ink_radius(data, dark=False) == pytest.approx(10.5, abs=0.5)


@pytest.mark.parametrize("polarity", ["light", "dark"])
def test_a_box_becomes_a_circle_of_the_same_size(polarity: str) -> None:
    images = ring(40, 10, (19.5, 19.5))
    images = 255 - images if polarity == "dark" else images
    frame = turning_frame(splits(images, Preprocessing(polarity=polarity, fit="box", margin=0.1)))  # type: ignore[arg-type]
    assert frame.fit == "circle" and frame.polarity == polarity
    # The circle of 10.5 pixels takes up 40 * (1 / 2 - margin).
    assert 40 * (0.5 - frame.margin) == pytest.approx(10.5, abs=0.5)


def test_a_frame_that_looks_for_no_ink_stays() -> None:
    for preprocessing in (
        Preprocessing(polarity="none", fit="image", margin=0.0),
        Preprocessing(polarity="none", fit="box", margin=0.1),
        Preprocessing(polarity="light", fit="circle", margin=0.2),
    ):
        assert turning_frame(splits(ring(40, 10, (20, 20)), preprocessing)) == preprocessing


def test_a_canvas_has_the_pictures_in_its_middle() -> None:
    plain = datasets.load(DigitsData(source="digits"))
    wide = datasets.load(DigitsData(source="digits", canvas=16))
    assert wide.input == InputSpec(channels=1, height=16, width=16)
    for name, part in wide.parts.items():
        assert torch.equal(part.images[:, :, 4:12, 4:12], plain.parts[name].images)
        assert int(part.images.sum()) == int(plain.parts[name].images.sum())
    # Eight of sixteen pixels: a quarter on either side.
    assert (plain.preprocessing.margin, wide.preprocessing.margin) == (0.0, 0.25)
    with pytest.raises(DataError, match="canvas 6 is smaller than 8"):
        datasets.load(DigitsData(source="digits", canvas=6))
    with pytest.raises(DataError, match="needs light ink on a dark ground"):
        splits(ring(40, 10, (20, 20)), Preprocessing(polarity="dark", fit="box", margin=0.0)).on_canvas(50)
