"""What a configuration file says of MCE-VAE's recipe `paper`; training/models/mcevae_paper.py says what it means."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from training.models.config_checks import ModelSection

__all__ = ["MCEVAEPaperConfig"]


class MCEVAEPaperConfig(ModelSection):
    """Group, supervision and data as in the reference code; its widths are fixed, so that there is one such model."""

    metrics: ClassVar[tuple[str, ...]] = ("reconstruction", "mse", "kl", "reconstruction_drawn")

    kind: Literal["mcevae_paper"]
    group: Literal["SO2", "SE2"] = "SO2"
    supervised: bool = Field(False, description="the upright image is the canonical image's target")
    clusters: int = Field(10, ge=1, description="n_C, dimensions of z_c, and the k of k-means after training")
    content_prior: Literal["mixture", "gaussian"] = Field("mixture", description="of z_c; gaussian: N(0,I)")
    style_dim: int = Field(3, ge=1, description="dimensions of z")
    transforms: int = Field(25, ge=1, description="random M a step in the invariance term; unsupervised only")
    rotation_degrees: float = Field(90.0, ge=0, le=180, description="training images are turned once by U(+-this)")
    shift: float = Field(0.25, ge=0, le=0.5, description="and, in SE2, moved once by U(+-this) of the side")
    pose_seed: int = Field(0, ge=0, lt=2**32, description="of these one-off transforms")
