"""What a configuration file says of a symmetry-transformation model; training/models/symmetry.py and
training/models/symmetry_two_stage.py say what it means.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from training.models.config_checks import ModelSection, Size, check_circle
from training.models.mcevae_config import DecoderConfig

__all__ = ["FlowConfig", "PolarEncoderConfig", "SymmetryConfig", "TwoStageConfig"]


class PolarEncoderConfig(ModelSection):
    """Polar sampling about the middle of the picture and circular convolutions over the angle."""

    radii: int = Field(default=16, ge=2)
    angles: int = Field(default=128, ge=16, multiple_of=2, description="samples a circle; the posterior's bins")
    width: int = Field(default=64, ge=4)
    kernel: Literal[3, 5, 7, 9] = 5
    dilations: tuple[Size, ...] = Field(default=(1, 2, 4, 8, 2, 1), min_length=1)
    hidden: int = Field(default=128, ge=1, description="units between the pooled features and z")

    @model_validator(mode="after")
    def _within_the_circle(self) -> PolarEncoderConfig:
        check_circle(self.kernel, self.dilations, self.angles)
        return self


class FlowConfig(ModelSection):
    """p(eta|x^): dense features of the prototype, then splines."""

    features: tuple[Size, Size] = Field(default=(64, 32), description="widths of the dense layers on the prototype")
    hidden: tuple[Size, ...] = (64, 64)
    bins: int = Field(default=12, ge=2, description="knots a spline")
    transforms: int = Field(default=3, ge=1, description="splines in a row")


class SymmetryConfig(ModelSection):
    """The poster's ELBO for rotations."""

    metrics: ClassVar[tuple[str, ...]] = (
        "relative_error_60",
        "relative_median_60",
        "relative_flips_60",
        "elbo",
        "reconstruction",
        "kl_eta",
        "kl_z",
        "active_dims",
    )

    kind: Literal["symmetry"]
    group: Literal["SO2"] = "SO2"
    supervised: Literal[False] = False
    rotation_degrees: float = Field(default=45, ge=0, le=180, description="training pictures are turned by U(+-this)")
    shift: Literal[0] = 0
    turn_seed: int = Field(
        default=0, ge=0, lt=2**63, description="seed of the one unknown turn that every training picture has"
    )
    modes: int = Field(default=4, ge=1, le=8, description="rotations served, best first")
    samples: int = Field(default=16, ge=1, description="S of augment.onnx: transforms drawn a run")

    z_dim: int = Field(default=24, ge=1)
    prior: Literal["flow", "shared", "gaussian"] = Field(
        default="flow",
        description="p(eta|x^): the flow, the flow without x^, or one wrapped Gaussian from x^ (no variants)",
    )
    encoder: PolarEncoderConfig = PolarEncoderConfig()
    decoder: DecoderConfig = DecoderConfig()
    flow: FlowConfig = FlowConfig()

    anchor: float = Field(
        default=8.0, ge=0, description="concentration of the von Mises density that stands for p(eta|x^) at first"
    )
    anchored: float = Field(default=0.3, ge=0, lt=1, description="share of the steps until the flow stands for itself")
    temperature: float = Field(
        default=8.0, ge=1, description="of the posterior at the first step; 1 when anchored ends"
    )
    kl_warmup: float = Field(default=0.1, ge=0, le=1, description="share of the steps over which KL(z) rises to 1")


class TwoStageConfig(ModelSection):
    """The later paper's two stages, for groups up to affine: self-supervised inference, then the flow."""

    metrics: ClassVar[tuple[str, ...]] = (
        "relative_error_60",
        "relative_median_60",
        "relative_flips_60",
        "canonical_mse",
        "flow",
        "flow_consistency",
    )

    kind: Literal["symmetry_two_stage"]
    group: Literal["SO2", "SE2", "AFF5"] = "SE2"
    supervised: Literal[False] = False
    rotation_degrees: float = Field(default=45, ge=0, le=180, description="training pictures are turned by U(+-this)")
    shift: float = Field(default=0.0, ge=0, le=0.5, description="and moved by U(+-this), as a share of the side")
    scale: float = Field(default=0.0, ge=0, lt=1, description="and each axis scaled by exp U(+-this)")
    turn_seed: int = Field(
        default=0, ge=0, lt=2**63, description="seed of the one unknown transform of every training picture"
    )
    modes: int = Field(default=4, ge=1, le=8, description="rotations served, best first")
    samples: int = Field(default=16, ge=1, description="S of augment.onnx: transforms drawn a run")

    encoder: PolarEncoderConfig = PolarEncoderConfig()
    scale_filters: tuple[Size, ...] = Field(
        default=(16, 32, 32), description="strided convolutions that read the scales"
    )
    flow: FlowConfig = FlowConfig()

    ssl_space: Literal["pixels", "coefficients"] = Field(
        default="pixels", description="where the first stage's loss compares: pictures, or the transforms themselves"
    )
    ssl_samples: int = Field(default=5, ge=2, description="random transforms of a picture in the first stage")
    ssl_shift: float = Field(default=0.125, ge=0, le=0.5, description="their shift, as a share of the side")
    ssl_scale: float = Field(default=0.25, ge=0, lt=1, description="their scale, of the logarithm")
    invertibility: float = Field(default=0.1, ge=0, description="weight of what a picture loses on its way and back")
    blur: float = Field(default=3.0, ge=0, description="deviation, pixels, of the blur at the first step")
    blurred: float = Field(default=0.01, ge=0, lt=1, description="share of the steps until it has gone")
    first_stage: float = Field(default=0.6, gt=0, lt=1, description="share of the steps before the flow's turn")
    recanonicalised: int = Field(default=5, ge=2, description="prototypes of one picture in the second stage")
    consistency: float = Field(default=1.0, ge=0, description="weight of the difference of their log densities")
    sigma: float = Field(default=0.15, gt=0, description="deviation of a pixel, for the weights of the modes")

    @model_validator(mode="after")
    def _moves_of_the_group(self) -> TwoStageConfig:
        if self.group == "SO2" and self.shift:
            raise ValueError("group SO2 has no shift: use SE2 or AFF5")
        if self.group != "AFF5" and self.scale:
            raise ValueError(f"group {self.group} has no scale: use AFF5")
        return self
