"""What the models answer, as distributions: when the pictures change, these move before anybody complains."""

from collections.abc import Mapping

import numpy as np

from service.engine import Array
from service.histograms import Histogram, Registry

_NOVELTY = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
_DEGREES = tuple(float(edge) for edge in range(-150, 181, 30))
_MODEL = ("model", "version")


class Drift:
    """Histograms of novelty and of estimated rotation, a model. Called on the event loop."""

    def __init__(self, registry: Registry) -> None:
        self._novelty = Histogram(
            "equipoise_novelty_score",
            "Share of validation pictures of its class that lie nearer than a picture; like training: uniform.",
            _MODEL,
            _NOVELTY,
            registry,
        )
        self._rotation = Histogram(
            "equipoise_rotation_degrees",
            "Estimated rotation of a picture in the model's frame, counter-clockwise.",
            _MODEL,
            _DEGREES,
            registry,
        )
        self._known: set[tuple[str, int]] = set()

    def know(self, model: str, version: int) -> None:
        """A version from now on until it is forgotten."""
        self._known.add((model, version))

    def observe(self, model: str, version: int, outputs: Mapping[str, Array]) -> None:
        """Take in what a graph answered, arrays [n, ...] by name; nothing of a version that is forgotten, whose last
        run may end after everybody has left it.
        """
        if (model, version) not in self._known:
            return
        if (novelty := outputs.get("novelty")) is not None:
            self._novelty.series(model, str(version)).extend(novelty.tolist())
        if (matrix := outputs.get("matrix")) is not None:
            degrees = np.degrees(np.arctan2(matrix[:, 0, 1], matrix[:, 0, 0]))
            self._rotation.series(model, str(version)).extend(degrees.tolist())

    def forget(self, model: str, version: int) -> None:
        self._known.discard((model, version))
        for family in (self._novelty, self._rotation):
            family.remove(model, str(version))
