"""The short loop in which the small networks beside a model are trained (the models' own is training/fit.py)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["minimise"]


def minimise(
    optimiser: torch.optim.Optimizer,
    steps: int,
    loss: Callable[[int], Tensor],
    *,
    warm_up: int = 1,
    clip: float | None = None,
) -> None:
    """Minimise loss(step) in so many steps, the optimiser's learning rate falling to 0 along half a cosine.

    Args:
        warm_up: steps over which the rate rises at first.
        clip: the gradient's largest norm; None: any.
    """
    (group,) = optimiser.param_groups
    rate = group["lr"]
    for step in range(steps):
        group["lr"] = rate * min(1.0, (step + 1) / warm_up) * (1 + math.cos(math.pi * step / steps)) / 2
        value = loss(step)
        optimiser.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(group["params"], clip)
        optimiser.step()
