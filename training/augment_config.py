"""The `augment` section of a configuration. Without torch: a mistake in a configuration is said at once."""

from __future__ import annotations

from pydantic import Field

from training.models.config_checks import ModelSection

__all__ = ["AugmentConfig"]


class AugmentConfig(ModelSection):
    """Ranges of the random changes; every value is drawn uniformly in +- the range, once an image."""

    rotation_degrees: float = Field(0.0, ge=0, le=180)
    shear_degrees: float = Field(0.0, ge=0, lt=60)
    scale: float = Field(0.0, ge=0, lt=1, description="each axis by its own factor in 1 +- scale")
    shift: float = Field(0.0, ge=0, le=0.5, description="share of the side")
    elastic: float = Field(0.0, ge=0, description="standard deviation of the displacement in pixels")
    elastic_cells: int = Field(4, ge=2, description="knots of the displacement field a side")
    contrast: float = Field(0.0, ge=0, lt=1, description="grey values to the power of exp(+-contrast)")
    colours: float = Field(0.0, ge=0, le=1, description="share of the images whose channels are shuffled and negated")
    erase: float = Field(0.0, ge=0, le=1, description="share of the images that lose a random square")
    unchanged: float = Field(0.0, ge=0, lt=1, description="share of the images that are left as they are")

    def stronger(self) -> AugmentConfig:
        """Every range twice as wide, as far as it may be; half of the images lose a square, none stays as it is."""
        return AugmentConfig(
            rotation_degrees=min(2 * self.rotation_degrees, 180),
            shear_degrees=min(2 * self.shear_degrees, 45),
            scale=min(2 * self.scale, 0.5),
            shift=min(2 * self.shift, 0.5),
            elastic=2 * self.elastic,
            elastic_cells=self.elastic_cells,
            contrast=min(2 * self.contrast, 0.9),
            colours=self.colours,
            erase=0.5,
            unchanged=0,
        )
