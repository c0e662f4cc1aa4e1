"""Prometheus histograms whose `observe` is an append to a list.

prometheus-client takes a lock and walks the buckets for every value; five values a request were a tenth of the whole
time of a small picture. Here values are sorted into buckets a few thousand at a time, and at every scrape.
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
    """One label set's values. `observe` and `fold` belong to one thread, the event loop's."""

    __slots__ = ("_bounds", "_new", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = np.asarray(bounds)
        self._new: list[float] = []
        self.counts = np.zeros(len(bounds) + 1, dtype=np.int64)
        self.total = 0.0

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
        values = np.asarray(self._new)
        values = values[np.isfinite(values)]
        self._new = []
        places = np.searchsorted(self._bounds, values, side="left")
        self.counts += np.bincount(places, minlength=len(self.counts))
        self.total += float(values.sum())


class Histogram(Collector):
    """A family of series under one name."""

    def __init__(
        self, name: str, text: str, labels: Sequence[str], bounds: Sequence[float], registry: CollectorRegistry
    ) -> None:
        self._name = name
        self._text = text
        self._labels = tuple(labels)
        self._bounds = tuple(bounds)
        self._series: dict[tuple[str, ...], Series] = {}
        registry.register(self)

    def series(self, *values: str) -> Series:
        """The series of a label set, made where it is the first of its values."""
        series = self._series.get(values)
        return self._series.setdefault(values, Series(self._bounds)) if series is None else series

    def remove(self, *values: str) -> None:
        """Report this label set no more; whoever still holds its series observes for nobody."""
        self._series.pop(values, None)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        bounds = [floatToGoString(bound) for bound in (*self._bounds, math.inf)]  # type: ignore[no-untyped-call]
        for values, series in list(self._series.items()):  # a model that is being loaded may add one
            series.fold()
            cumulative = np.cumsum(series.counts).tolist()
            family.add_metric(values, list(zip(bounds, cumulative, strict=True)), series.total)
        yield family

    def describe(self) -> Iterator[HistogramMetricFamily]:
        yield HistogramMetricFamily(self._name, self._text, labels=self._labels)
