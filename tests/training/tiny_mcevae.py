"""A very small MCE-VAE, and known moves of pictures."""

import math
from typing import Any

import torch

from contract.manifest import InputSpec
from training.models.mcevae import MCEVAE
from training.models.mcevae_config import MCEVAEConfig
from training.turned import similarity, uniform

SMALL: dict[str, Any] = {
    "kind": "mcevae",
    "group": "SE2",
    "rotation_degrees": 75,
    "shift": 0.15,
    "nuisance_shift": 0.0,
    "window": 10,
    "z_dim": 4,
    "modes": 2,
    "pose": {"reach": 0.6, "radii": 6, "angles": 64, "width": 24, "dilations": [1, 2, 4]},
    "encoder": {"filters": [8, 16], "strides": [2, 2], "hidden": 32},
    "decoder": {"hidden": 32, "filters": [8, 8, 8]},
}

LIFTED = {"kind": "lifted", "centre": "ink", "reach": 2.1, "bins": 64, "filters": [16, 32, 32], "strides": [2, 2, 1]}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moves(count: int, degrees: float, shift: float) -> torch.Tensor:
    """Random turns and shifts (normalised units) as matrices [count,2,3]."""
    return similarity(uniform(count, math.radians(degrees), seeded()), uniform(count, shift, seeded(1), columns=2))


def make(side: int = 16, channels: int = 1, **changes: Any) -> MCEVAE:
    torch.manual_seed(0)
    config = MCEVAEConfig.model_validate({**SMALL, **changes})
    return MCEVAE(config, InputSpec(channels=channels, height=side, width=side), 10).eval()
