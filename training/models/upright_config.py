"""What a configuration file says of an upright model under `model:`; training/models/upright.py says what it means."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from training.models.config_checks import ModelSection, Size, check_circle, check_kernel, check_strides
from training.models.lifted_config import LiftedConfig

__all__ = ["ConvolutionalConfig", "PolarConfig", "UprightConfig"]


class PolarConfig(ModelSection):
    """Circular convolutions on the polar map about the frame's middle (training/models/polar.py)."""

    kind: Literal["polar"]
    radii: int = Field(32, ge=2)
    angles: int = Field(256, ge=32, multiple_of=2, description="samples a circle; the posterior has half as many bins")
    width: int = Field(96, ge=4)
    kernel: int = Field(5, ge=3, le=9)
    dilations: tuple[Size, ...] = Field((1, 2, 4, 8, 2, 1), min_length=1)

    @model_validator(mode="after")
    def _within_the_circle(self) -> PolarConfig:
        check_circle(self.kernel, self.dilations, self.angles)
        return self


class ConvolutionalConfig(ModelSection):
    """Convolutions on the frame as it is: equivariant to no turn, so that it sees what lies along the frame's axes."""

    kind: Literal["convolutional"]
    bins: int = Field(180, ge=16, description="of the circle")
    filters: tuple[Size, ...] = (32, 64, 64, 96, 96)
    strides: tuple[Size, ...] = (1, 2, 1, 2, 1)
    kernel: int = Field(3, ge=3, le=9)

    @model_validator(mode="after")
    def _consistent(self) -> ConvolutionalConfig:
        check_strides(self.filters, self.strides)
        check_kernel(self.kernel)
        return self


class UprightConfig(ModelSection):
    """The model and the changes of its training pictures: always the whole circle, and always told which way is up."""

    metrics: ClassVar[tuple[str, ...]] = ("rotation_error", "rotation_median", "rotation_flips")
    supervised: ClassVar[bool] = True
    rotation_degrees: ClassVar[float] = 180.0
    shift: ClassVar[float] = 0.0

    kind: Literal["upright"]
    group: Literal["SO2"] = "SO2"
    extractor: Annotated[LiftedConfig | PolarConfig | ConvolutionalConfig, Field(discriminator="kind")]
    target_degrees: float = Field(3.0, gt=0, le=30, description="width of the posterior that training aims at")
    quarters: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of the pictures of known turn that are turned by quarters only, so unblurred",
    )
    nuisance_scale: float = Field(0.1, ge=0, lt=1, description="random scale of the others, 1 +- this")
    nuisance_shift: float = Field(0.02, ge=0, le=0.5, description="and their random shift, as a share of the side")
    rotnet_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="of the pictures, which then have to be upright, drawn as RotNet does: black and white, in a size "
        "that depends on the angle",
    )
    outlier_share: float = Field(0.05, ge=0, le=1, description="pictures without an orientation, a share of the batch")
    modes: int = Field(4, ge=1, le=8, description="rotations served, best first")
