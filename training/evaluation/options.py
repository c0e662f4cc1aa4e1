"""What an evaluation is asked to measure; the command line reads its defaults here, before PyTorch is imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from training.errors import ConfigError

__all__ = ["Options", "Split"]

Split = Literal["validation", "test"]


@dataclass(frozen=True)
class Options:
    """What is measured.

    seed: of the classifiers trained here and of all that is drawn; the run's own is in the report.
    limit: about how many images of the split are measured, the first ones of every class. None measures them all. It
    shortens nothing else: what is trained here is trained as long, a held-out class is looked for in the whole split,
    and as much is drawn. One exception: the VAE beside a model of poses gets ten times `limit` training images.
    given: names of the options that somebody asked for: one that the model has no use for is refused.

    Of an EquiVAE: samples: prior samples, and negatives of each kind. benchmark_epochs: 0 leaves the benchmark CNN out.
    photographs: 12-megapixel pages to read, where the data is light strokes; 0 leaves them out.
    held_out: classes for each of which a model without it is trained, for held_out_epochs or as long as the run itself.

    Of a model of poses: classifier: folder of a served model that reads the upright pictures; None: a CNN trained here.
    """

    split: Split = "validation"
    seed: int = 0
    samples: int = 1000
    benchmark_epochs: int = 20
    photographs: int = 100
    held_out: tuple[str, ...] = ()
    held_out_epochs: int | None = None
    limit: int | None = None
    classifier: Path | None = None
    given: frozenset[str] = frozenset()

    def refuse(self, kind: str, *names: str) -> None:
        """Say which of these options somebody asked for in vain.

        Raises:
            ConfigError: there is one; a model of this kind does not read them.
        """
        for name in names:
            if name in self.given:
                raise ConfigError(f"evaluate: --{name.replace('_', '-')} does not apply to a model of kind {kind}")

    @property
    def fitted(self) -> str:
        """Where the constants of calibration come from: what they make of their own images says less than of others."""
        return "fitted on these images" if self.split == "validation" else "fitted on the validation split"
