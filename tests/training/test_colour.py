"""Digits in colour over photographs: what is drawn, that the parts share no ground, and who is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from training import datasets
from training.config import DigitsData
from training.datasets import Splits
from training.datasets.colour import CONTRAST, _colour_apart_from, _drawn, over_photographs
from training.errors import DataError


def load(seed: int | None, labels: int | None = None) -> Splits:
    return datasets.load(DigitsData(source="digits", canvas=12, photograph_seed=seed, labels=labels))


def test_every_picture_is_its_digit_over_a_part_of_a_photograph() -> None:
    grey, colour = load(None), load(3)
    assert colour.name == "digits over photographs"
    assert (colour.input.channels, colour.input.height) == (3, 12)
    for name, part in colour.parts.items():
        assert torch.equal(part.labels, grey.parts[name].labels)
        assert part.images.shape == (len(part), 3, 12, 12)
    ink, picture = grey.train.images.float() / 255, colour.train.images.float()
    rows = (ink == 1).any(-1).any(-1)[:, 0]  # some digits have no pixel of full ink
    solid, bare, picture = ink[rows] == 1, ink[rows] == 0, picture[rows]
    strokes = (picture * solid).sum((2, 3)) / solid.sum((2, 3))
    assert float(((picture - strokes[..., None, None]).abs() * solid).max()) < 1e-3  # one colour a stroke
    ground = (picture * bare).sum((2, 3)) / bare.sum((2, 3))
    assert float((strokes - ground).norm(dim=1).min()) > CONTRAST / 2
    assert len(strokes.round().unique(dim=0)) > 0.9 * len(strokes)


def test_pictures_follow_their_seed() -> None:
    one, again, other = load(1), load(1), load(2)
    assert one.digest == again.digest != other.digest


def test_parts_have_ground_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    thirds = np.repeat(np.arange(3, dtype=np.uint8) * 100, 40)
    photograph = np.tile(thirds[None, :, None], (60, 1, 3))
    monkeypatch.setattr("training.datasets.colour.load_sample_images", lambda: type("", (), {"images": [photograph]}))
    splits = load(0)
    ground = {name: part.images[:, :, 0, 0].unique().tolist() for name, part in splits.parts.items()}
    assert ground == {"train": [0], "validation": [100], "test": [200]}


def test_unlabelled_pictures_are_drawn_too() -> None:
    splits = load(0, labels=40)
    assert splits.train.unlabelled is not None and splits.train.unlabelled.shape[1:] == (3, 12, 12)


def test_outliers_are_drawn_too() -> None:
    grey = load(None)
    outliers = torch.zeros(2, 1, 12, 12, dtype=torch.uint8)
    parts = {"train": replace(grey.train, outliers=outliers), "validation": replace(grey.validation, outliers=outliers)}
    alone, beside = over_photographs(grey, 0), over_photographs(replace(grey, **parts), 0)
    for name in parts:
        drawn = beside.parts[name]
        assert drawn.outliers is not None and drawn.outliers.shape == (2, 3, 12, 12)
        assert len(drawn.outliers.unique(dim=0)) == 2  # each over its own ground
        assert torch.equal(drawn.images, alone.parts[name].images)


def test_nothing_is_drawn_where_there_is_no_ink() -> None:
    photograph = np.random.default_rng(0).integers(0, 256, (12, 12, 3)).astype(np.float32)
    (picture,) = _drawn(np.zeros((1, 1, 12, 12), np.uint8), [photograph], np.random.default_rng(1))
    assert np.array_equal(picture, photograph.transpose(2, 0, 1))


def test_a_stroke_stands_out() -> None:
    rng, ground = np.random.default_rng(0), np.full(3, 128, np.float32)
    assert all(np.linalg.norm(_colour_apart_from(ground, rng) - ground) >= CONTRAST for _ in range(200))


def test_colour_pictures_are_refused() -> None:
    with pytest.raises(DataError, match="needs light grey strokes"):
        over_photographs(load(0), 0)
