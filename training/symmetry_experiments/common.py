"""What the experiments share: a model trained on a handful of pictures, and how their numbers are kept."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from contract.manifest import InputSpec
from training.evaluation.views import rotation_matrices
from training.files import write_atomically
from training.graphs import digit_pictures
from training.minimise import minimise
from training.models.symmetry import Symmetry
from training.models.symmetry_config import SymmetryConfig
from training.turned import move

__all__ = ["SIDE", "fitted", "keep", "one_digit", "turned"]

SIDE = 28
SMALL: dict[str, Any] = {
    "kind": "symmetry",
    "z_dim": 4,
    "encoder": {"radii": 12, "angles": 96, "width": 32, "kernel": 3, "dilations": (1, 2), "hidden": 32},
    "decoder": {"hidden": 48, "filters": (8, 16, 8)},
    "flow": {"features": (32, 8), "hidden": (32,), "bins": 12, "transforms": 2},
    "anchor": 0.0,
}


def one_digit(name: int, symmetric: bool = False) -> Tensor:
    """A digit of scikit-learn's, 28 x 28; `symmetric`: the mean of it and of it upside down: [1,1,S,S]"""
    picture = digit_pictures(InputSpec(channels=1, height=SIDE, width=SIDE), 10)[name : name + 1]
    return (picture + picture.flip(2, 3)) / 2 if symmetric else picture


def turned(picture: Tensor, degrees: Tensor) -> Tensor:
    """One picture [1,C,S,S] at each angle [N]: [N,C,S,S]"""
    return move(picture.expand(len(degrees), -1, -1, -1), rotation_matrices(degrees), mode="bicubic")


def fitted(
    views: Tensor,
    steps: int,
    seed: int,
    sigma: float,
    change: Callable[[Symmetry], None] = lambda model: None,
    **config: Any,
) -> Symmetry:
    """A small model trained on all of a few views [N,1,S,S] at every step.

    Args:
        sigma: deviation of a pixel, held fixed: learned from so few views it falls until interpolation tells the angle.
    """
    torch.manual_seed(seed)
    model = Symmetry(
        SymmetryConfig.model_validate({**SMALL, **config}), InputSpec(channels=1, height=SIDE, width=SIDE), 1
    )
    change(model)
    model.log_sigma.requires_grad_(False).fill_(math.log(sigma))
    generator = torch.Generator().manual_seed(seed)
    batch = {"views": views.repeat(math.ceil(12 / len(views)), 1, 1, 1)}
    optimiser = torch.optim.AdamW(model.parameters(), 5e-3)
    minimise(optimiser, steps, lambda step: model.loss(batch, generator, step / steps)["loss"], clip=100)
    return model.eval()


def keep(path: Path, name: str, figures: dict[str, Any]) -> None:
    """Write one experiment's numbers into a JSON file beside those of the others."""
    found = json.loads(path.read_text()) if path.exists() else {}
    found[name] = figures
    write_atomically(path, (json.dumps(found, indent=2, sort_keys=True) + "\n").encode())
