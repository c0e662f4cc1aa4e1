"""Grey digits made colour pictures: strokes of a random colour over a random part of a photograph.

The two photographs are scikit-learn's samples, so nothing is downloaded. Each part of the data set has its own third of
their width, and its own stream of random numbers: what is measured lies over ground that training has not seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images

from contract.manifest import InputSpec, Preprocessing
from training.datasets.images import LabelledImages, Splits
from training.errors import DataError

__all__ = ["over_photographs"]

PARTS = 3  # training, validation, test
REDUCED = 2  # photographs at half size: a window of 28 pixels holds more than one leaf
CONTRAST = 90  # least distance of a stroke's colour from the mean colour of its ground, of at most 441


def over_photographs(splits: Splits, seed: int) -> Splits:
    """Light grey pictures [N,1,S,S] -> colour pictures [N,3,S,S], the grey level as the stroke's opacity.

    Raises:
        DataError: the pictures are not light strokes on a dark ground, or larger than a part of a photograph.
    """
    if splits.preprocessing.polarity != "light" or splits.input.channels != 1:
        raise DataError(f"{splits.name}: over_photographs needs light grey strokes on a dark ground")
    photographs = [
        np.asarray(Image.fromarray(pixels).reduce(REDUCED), np.float32) for pixels in load_sample_images().images
    ]
    largest = min(min(pixels.shape[0], pixels.shape[1] // PARTS) for pixels in photographs)
    if splits.input.height > largest:
        raise DataError(f"{splits.name}: photographs have room for {largest} x {largest} pixels at most")

    def coloured(part: LabelledImages, index: int) -> LabelledImages:
        ground = [np.array_split(pixels, PARTS, axis=1)[index] for pixels in photographs]
        rng = np.random.default_rng((seed, index))
        return part.mapped(lambda images: torch.from_numpy(_drawn(images.numpy(), ground, rng)))

    return replace(
        splits,
        name=f"{splits.name} over photographs",
        train=coloured(splits.train, 0),
        validation=coloured(splits.validation, 1),
        test=None if splits.test is None else coloured(splits.test, 2),
        input=InputSpec(channels=3, height=splits.input.height, width=splits.input.width),
        preprocessing=Preprocessing(polarity="none", fit="image", margin=0.0),
    )


def _drawn(
    ink: NDArray[np.uint8], photographs: Sequence[NDArray[np.float32]], rng: np.random.Generator
) -> NDArray[np.uint8]:
    """uint8 [N,1,S,S] -> uint8 [N,3,S,S]"""
    side = ink.shape[-1]
    pictures = np.empty((len(ink), 3, side, side), np.uint8)
    for picture, opacity in zip(pictures, ink[:, 0].astype(np.float32)[:, None] / 255, strict=True):
        photograph = photographs[int(rng.integers(len(photographs)))]
        top, left = (rng.integers(size - side + 1) for size in photograph.shape[:2])
        ground = photograph[top : top + side, left : left + side].transpose(2, 0, 1)
        stroke = _colour_apart_from(ground.mean((1, 2)), rng)
        picture[:] = np.round(ground * (1 - opacity) + stroke[:, None, None] * opacity)
    return pictures


def _colour_apart_from(ground: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """A random colour [3], `CONTRAST` or more from the ground's: less than half of the cube is nearer."""
    while True:
        colour = rng.uniform(0, 255, 3).astype(np.float32)
        if np.linalg.norm(colour - ground) >= CONTRAST:
            return colour
