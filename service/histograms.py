"""Prometheus histograms whose `observe` is an append to a list.

prometheus-client takes a lock and walks the buckets for every value; five values a request were a tenth of the whole
time of a small picture. Here values are sorted into buckets a few thousand at a time, and before every scrape.
"""

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

_FOLD_AT = 4096


class Series:
    """One label set's values. `observe` and `fold` belong to one thread, the event loop's; any may read `folded`: how
    many there are in each bucket, and their sum.
    """

    __slots__ = ("_bounds", "_new", "folded")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = np.asarray(bounds)
        self._new: list[float] = []
        self.folded = np.zeros(len(bounds) + 1, dtype=np.int64), 0.0

    def observe(self, value: float) -> None:
        self._new.append(value)
        if len(self._new) >= _FOLD_AT:
            self.fold()

    def extend(self, values: Iterable[float]) -> None:
        self._new.extend(values)
        if len(self._new) >= _FOLD_AT:
            self.fold()

    def fold(self) -> None:
        """Sort what was observed into buckets; a value equal to a bound is below it, one that is not finite is lost."""
        if not self._new:
            return
        values = np.asarray(self._new)
        values = values[np.isfinite(values)]
        self._new = []
        counts, total = self.folded
        places = np.searchsorted(self._bounds, values, side="left")
        self.folded = counts + np.bincount(places, minlength=len(counts)), total + float(values.sum())


class Histogram(Collector):
    """A family of series under one name."""

    def __init__(
        self, name: str, text: str, labels: Sequence[str], bounds: Sequence[float], registry: "Registry"
    ) -> None:
        self._name = name
        self._text = text
        self._labels = tuple(labels)
        self._bounds = tuple(bounds)
        self._series: dict[tuple[str, ...], Series] = {}
        registry.register(self)
        registry.histograms.append(self)

    def series(self, *values: str) -> Series:
        """The series of a label set, made where it is the first of its values."""
        series = self._series.get(values)
        return self._series.setdefault(values, Series(self._bounds)) if series is None else series

    def remove(self, *values: str) -> None:
        """Report this label set no more; whoever still holds its series observes for nobody."""
        self._series.pop(values, None)

    def fold(self) -> None:
        for series in list(self._series.values()):  # a model that is being loaded may add one
            series.fold()

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """What was folded, in any thread."""
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        bounds = [floatToGoString(bound) for bound in (*self._bounds, math.inf)]  # type: ignore[no-untyped-call]
        for values, series in list(self._series.items()):  # the event loop and a model that is being loaded may add one
            counts, total = series.folded
            family.add_metric(values, list(zip(bounds, np.cumsum(counts).tolist(), strict=True)), total)
        yield family

    def describe(self) -> Iterator[HistogramMetricFamily]:
        yield HistogramMetricFamily(self._name, self._text, labels=self._labels)


class Registry(CollectorRegistry):
    """A registry that knows its histograms. What it collects takes milliseconds, which may be those of another thread
    once `fold` was called in the one that observes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.histograms: list[Histogram] = []

    def fold(self) -> None:
        for histogram in self.histograms:
            histogram.fold()
