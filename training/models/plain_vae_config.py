"""What a configuration file says of the VAEs that MCE-VAE is compared with; training/models/plain_vae.py explains."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from training.models.config_checks import ModelSection

__all__ = ["PlainVAEConfig"]


class PlainVAEConfig(ModelSection):
    """Three baselines on the data of MCE-VAE's recipe `paper`, alike but for what becomes of the transform."""

    metrics: ClassVar[tuple[str, ...]] = ("reconstruction", "mse", "kl", "reconstruction_drawn")
    supervised: ClassVar[bool] = False

    kind: Literal["plain_vae"]
    method: Literal["beta", "spatial", "affine"]
    group: Literal["SO2", "SE2"] = "SO2"
    z_dim: int = Field(16, ge=1, description="dimensions of z")
    beta: float = Field(1.0, gt=0, description="weight of the KL of z")
    clusters: int = Field(10, ge=1, description="k of k-means on z after training")
    rotation_degrees: float = Field(90.0, ge=0, le=180, description="training images are turned once by U(+-this)")
    shift: float = Field(0.25, ge=0, le=0.5, description="and, in SE2, moved once by U(+-this) of the side")
    pose_seed: int = Field(0, ge=0, lt=2**32, description="of these one-off transforms")
