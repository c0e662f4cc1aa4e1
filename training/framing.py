"""How a model of orientation wants its pictures framed: by a circle that turns with the ink."""

from __future__ import annotations

import torch

from contract.manifest import Preprocessing
from training.datasets import LabelledImages, Splits

__all__ = ["ink_radius", "turning_frame"]

IMAGES = 5000
MOST_INK = 0.99  # of the ink lies in the circle, as contract/preprocess.py has it


def turning_frame(splits: Splits) -> Preprocessing:
    """The data set's own framing, where that does not look for ink; else the circle that its training pictures have.

    An upright box around the ink changes its size with the angle, and would tell it or distort it.
    """
    preprocessing = splits.preprocessing
    if preprocessing.fit not in ("mass", "box") or preprocessing.polarity == "none":
        return preprocessing
    images = splits.train.subset(torch.arange(min(IMAGES, len(splits.train))))
    share = ink_radius(images, dark=preprocessing.polarity == "dark") / splits.input.height
    return preprocessing.model_copy(update={"fit": "circle", "margin": max(0.0, 0.5 - share)})


def ink_radius(data: LabelledImages, dark: bool) -> float:
    """Mean over the pictures of the radius, in pixels, of the circle about the centroid that holds 99 % of the ink."""
    ink = (data.images.float() / 255).mean(1)
    ink = 1 - ink if dark else ink
    height, width = ink.shape[1:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    mass = ink.sum((1, 2)).clamp_min(1e-6)[:, None, None]
    centre_x, centre_y = ((ink * axis).sum((1, 2), keepdim=True) / mass for axis in (x, y))
    distance = torch.hypot(x - centre_x, y - centre_y).flatten(1)
    order = distance.argsort(1)
    held = ink.flatten(1).gather(1, order).cumsum(1) / mass[:, 0]
    last = (held < MOST_INK).sum(1).clamp_max(height * width - 1)
    return float(distance.gather(1, order).gather(1, last[:, None]).mean())
