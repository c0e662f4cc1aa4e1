"""What a configuration file says of an MCE-VAE under `model:`; training/models/mcevae.py says what it means."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from training.augment_config import AugmentConfig
from training.models.config_checks import ModelSection, Size, check_circle, check_strides
from training.models.lifted_config import LiftedConfig

DISTORTION = {
    "rotation_degrees": 12,
    "shear_degrees": 15,
    "scale": 0.15,
    "shift": 0.05,
    "elastic": 1.0,
    "elastic_cells": 4,
}

__all__ = ["DecoderConfig", "EncoderConfig", "MCEVAEConfig", "PoseConfig"]


class PoseConfig(ModelSection):
    """The polar net of the rotation, and where it looks."""

    kind: Literal["polar"] = "polar"
    centre: Literal["ink", "frame"] = Field(
        default="ink",
        description="ink: the centroid of what differs from the background; frame: the middle of the picture",
    )
    reach: float = Field(default=1.0, gt=0, le=1, description="radius that is looked at, as a share of half the side")
    radii: int = Field(default=16, ge=2)
    angles: int = Field(
        default=128, ge=16, multiple_of=2, description="samples a circle; the posterior has half as many bins"
    )
    width: int = Field(default=96, ge=4)
    kernel: int = Field(default=5, ge=3, le=9)
    dilations: tuple[Size, ...] = Field(default=(1, 2, 4, 8, 2, 1), min_length=1)

    @model_validator(mode="after")
    def _within_the_circle(self) -> PoseConfig:
        check_circle(self.kernel, self.dilations, self.angles)
        return self


def kind(pose: Any) -> str:
    """Of a net of the rotation, or of its section, where polar need not be said. Errors name this function.

    Not filled in before the check: what a validator has touched is no longer JSON, whose lists pass for tuples.
    """
    return str(pose.get("kind", "polar") if isinstance(pose, dict) else getattr(pose, "kind", "polar"))


class EncoderConfig(ModelSection):
    """The convolutions that read z_c and z from the rectified picture, then one dense layer of `hidden` units."""

    filters: tuple[Size, ...] = (32, 64, 64, 64)
    strides: tuple[Size, ...] = (2, 1, 2, 2)
    hidden: int = Field(default=128, ge=1)

    @model_validator(mode="after")
    def _one_stride_a_filter(self) -> EncoderConfig:
        check_strides(self.filters, self.strides)
        return self


class DecoderConfig(ModelSection):
    """Two dense layers to a map of a quarter of the side, then two doublings."""

    hidden: int = Field(default=128, ge=1)
    filters: tuple[Size, Size, Size] = (24, 32, 16)


class MCEVAEConfig(ModelSection):
    """The model, the transforms of its training pictures, and its objective."""

    kind: Literal["mcevae"]
    group: Literal["SO2", "SE2", "SIM2"] = "SO2"
    supervised: bool = Field(default=False, description="the training pictures are upright, and the model is told so")
    rotation_degrees: float = Field(default=90, gt=0, le=180, description="training pictures are turned by U(+-this)")
    shift: float = Field(default=0.0, ge=0, le=0.5, description="and moved by U(+-this), as a share of the side")
    scale: float = Field(default=0.0, ge=0, lt=1, description="and scaled by exp U(+-this) (SIM2)")
    frame_spread_degrees: float = Field(
        default=8.0,
        gt=0,
        le=45,
        description="how sharply rotation_degrees ends: upright pictures themselves lean this much",
    )
    nuisance_scale: float = Field(
        default=0.1, ge=0, lt=1, description="random scale that is no part of the pose, 1 +- this"
    )
    nuisance_shift: float = Field(
        default=0.025, ge=0, le=0.5, description="the same of the shift, as a share of the side"
    )
    binary_share: float = Field(
        default=0.0, ge=0, le=1, description="of the training views, shown in black and white, cut at a random grey"
    )
    turn_seed: int = Field(
        default=0, ge=0, lt=2**63, description="seed of the one unknown turn that every training picture has"
    )
    background: Literal["zero", "border"] = Field(
        default="zero", description="border: mean of the outer ring of a picture"
    )
    window: int | None = Field(
        default=None, ge=8, description="side of the part that z_c and z are read from; null: all"
    )
    modes: int = Field(default=4, ge=1, le=8, description="rotations served, best first")

    clusters: int = Field(default=10, ge=1, description="components of the prior of z_c; 1: one Gaussian")
    cluster_dim: int | None = Field(default=None, ge=1, description="dimensions of z_c; null: as many as clusters")
    separation: float = Field(default=4.0, gt=0, description="distance of the components' means from the origin")
    z_dim: int = Field(default=16, ge=1)
    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"

    pose: Annotated[
        Annotated[PoseConfig, Tag("polar")] | Annotated[LiftedConfig, Tag("lifted")], Discriminator(kind)
    ] = PoseConfig()
    encoder: EncoderConfig = EncoderConfig()
    decoder: DecoderConfig = DecoderConfig()

    pose_weight: float = Field(default=20.0, ge=0, description="of the loss on the rotation's posterior")
    relative_weight: float = Field(default=1.0, ge=0, description="a degree of difference between two views' rotations")
    invariance_weight: float = Field(default=0.5, ge=0, description="on the squared difference of two views' z_c and z")
    assignment_weight: float = Field(default=40.0, ge=0, description="on the mutual information of two views' clusters")
    distortion: AugmentConfig = Field(
        default=AugmentConfig.model_validate(DISTORTION),
        description="of one of the two pictures that assignment_weight compares",
    )
    outlier_share: float = Field(default=0.06, ge=0, le=1, description="pictures without orientation, of the batch")
    outlier_weight: float = Field(default=2.0, ge=0, description="on how far from flat their posteriors are")
    outliers_as_content: float = Field(
        default=0.0, ge=0, le=1, description="share of them that come as the content of a page does"
    )
    # From the start they cost more than they gave: after as many steps the loss of tau was 0.50 instead of 0.43.
    outliers_from: float = Field(default=0.7, ge=0, le=1, description="share of the training after which they count")

    @property
    def metrics(self) -> tuple[str, ...]:
        """What a validation measures; how far an angle is from the true one, where that is known."""
        absolute = ("rotation_error", "rotation_median", "rotation_flips") if self.supervised else ()
        relative = ("rotation_error_60", "rotation_median_60", "rotation_flips_60")
        return (*absolute, *relative, "reconstruction", "kl", "clustering", "active_dims")

    @model_validator(mode="after")
    def _consistent(self) -> MCEVAEConfig:
        if not self.supervised and self.rotation_degrees > 150:
            raise ValueError(
                "without supervision rotation_degrees must stay below 150: the range alone says what is up"
            )
        if self.group == "SO2" and self.shift:
            raise ValueError("group SO2 has no shift: use SE2, or nuisance_shift")
        if self.group != "SIM2" and self.scale:
            raise ValueError(f"group {self.group} has no scale: use SIM2, or nuisance_scale")
        if self.group != "SO2" and self.pose.centre == "frame":
            raise ValueError(f"group {self.group} takes the shift from the ink: pose.centre must be ink")
        if self.cluster_dim is not None and self.cluster_dim < self.clusters and self.clusters > 1:
            raise ValueError(f"{self.clusters} clusters need as many dimensions of z_c, not {self.cluster_dim}")
        return self
