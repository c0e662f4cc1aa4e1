"""The `augment` section of a configuration. Without torch: a mistake in a configuration is said at once."""

from __future__ import annotations

from pydantic import Field

from training.models.config_checks import ModelSection

__all__ = ["AugmentConfig"]


class AugmentConfig(ModelSection):
    """Ranges of the random changes; every value is drawn uniformly in +- the range, once an image."""

    rotation_degrees: float = Field(0.0, ge=0, le=180, description="turned by U(+-this)")
    shear_degrees: float = Field(0.0, ge=0, lt=60, description="slanted by U(+-this)")
    scale: float = Field(0.0, ge=0, lt=1, description="each axis by its own factor in 1 +- scale")
    shift: float = Field(0.0, ge=0, le=0.5, description="share of the side")
    elastic: float = Field(0.0, ge=0, description="standard deviation of the displacement in pixels")
    elastic_cells: int = Field(4, ge=2, description="knots of the displacement field a side")
    blur: float = Field(0.0, ge=0, le=1, description="share of the images that are out of focus")
    coarse: float = Field(0.0, ge=0, le=1, description="share of the images that come from few pixels, enlarged")
    contrast: float = Field(0.0, ge=0, lt=1, description="grey values to the power of exp(+-contrast)")
    colours: float = Field(0.0, ge=0, le=1, description="share of the images whose channels are shuffled and negated")
    strokes: float = Field(
        0.0, ge=0, le=1, description="share of the images that a stray line crosses, as bright as their brightest pixel"
    )
    erase: float = Field(0.0, ge=0, le=1, description="share of the images that lose a random square")
    unchanged: float = Field(0.0, ge=0, lt=1, description="share of the images that are left as they are")

    def stronger(self) -> AugmentConfig:
        """Every range twice as wide, up to a limit; half of the images at least lose a square, none stays as it is."""
        limits = {"rotation_degrees": 180.0, "shear_degrees": 45.0, "scale": 0.5, "shift": 0.5, "contrast": 0.9}
        wider = {name: max(getattr(self, name), min(2 * getattr(self, name), most)) for name, most in limits.items()}
        rest = {"elastic": 2 * self.elastic, "erase": max(self.erase, 0.5), "unchanged": 0.0}
        return self.model_copy(update=wider | rest)
