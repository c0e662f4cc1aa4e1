"""The average of the weights over the steps, which is what is validated and kept."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

__all__ = ["Average"]


class Average(torch.nn.Module):
    """Exponential moving average of weights and buffers, so that batch norm's statistics fit the averaged weights.

    The decay rises as (1 + n) / (10 + n) to its value: the first steps are forgotten even in a short run. Counters
    are taken over as they are.
    """

    n_averaged: Tensor

    def __init__(self, module: torch.nn.Module, decay: float) -> None:
        super().__init__()
        self.module = copy.deepcopy(module)
        self.register_buffer("n_averaged", torch.tensor(0))
        self.decay = decay
        # A run changes its tensors but never replaces them; to walk through both modules for them at every step, as
        # torch's AveragedModel does, takes a tenth of a small model's step.
        both = [[tensor.detach() for tensor in (*m.parameters(), *m.buffers())] for m in (self.module, module)]
        pairs = list(zip(*both, strict=True))
        self._averaged, self._current = zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)
        self._others = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Take the module's present state in."""
        n = int(self.n_averaged)
        decay = min(self.decay, (1 + n) / (10 + n)) if n else 0.0
        torch._foreach_lerp_(self._averaged, self._current, 1 - decay)
        for own, other in self._others:
            own.copy_(other)
        self.n_averaged += 1
