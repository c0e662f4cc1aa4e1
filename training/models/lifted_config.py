"""What a configuration file says of the lifted net of the rotation; training/models/lifted.py says what it means."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from training.models.config_checks import ModelSection, Size, check_kernel, check_strides

__all__ = ["LiftedConfig"]


class LiftedConfig(ModelSection):
    """One convolutional net on the picture along its main axis, both ways up."""

    kind: Literal["lifted"]
    centre: Literal["frame", "ink"] = Field("frame", description="what it looks about: ink is the ink's centroid")
    reach: float | None = Field(
        None,
        gt=0,
        description="half the width of what it sees, in root mean square radii of the ink, whose size then does not "
        "matter; null: the frame",
    )
    bins: int = Field(128, ge=16, multiple_of=2, description="of the circle; each way up reads half of them")
    filters: tuple[Size, ...] = (16, 32, 32, 64, 64, 96, 96)
    strides: tuple[Size, ...] = (2, 2, 1, 2, 1, 2, 1)
    kernel: int = Field(3, ge=3, le=9)
    jitter_degrees: float = Field(15.0, ge=0, le=45, description="training turns the main axis by U(+-this)")
    stretch: float = Field(0.2, ge=0, lt=1, description="and the letters' width and height by exp U(+-this) each")
    slant_degrees: float = Field(12.0, ge=0, le=45, description="and slants them by U(+-this)")
    shift: float = Field(0.03, ge=0, le=0.5, description="and shifts them by U(+-this), as a share of the side")

    @model_validator(mode="after")
    def _consistent(self) -> LiftedConfig:
        check_strides(self.filters, self.strides)
        check_kernel(self.kernel)
        return self
