"""Our histograms against prometheus-client's own."""

import numpy as np
import prometheus_client
from prometheus_client import CollectorRegistry, generate_latest

from service.histograms import Histogram, Registry

BOUNDS = (0.001, 0.01, 0.1, 1.0)


def lines(registry: CollectorRegistry) -> dict[str, float]:
    text = generate_latest(registry).decode()
    pairs = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in pairs if "_created" not in name}


def test_agrees_with_prometheus_client() -> None:
    ours, theirs = Registry(), CollectorRegistry()
    histogram = Histogram("taken_seconds", "Text.", ("stage",), BOUNDS, ours)
    reference = prometheus_client.Histogram("taken_seconds", "Text.", ("stage",), buckets=BOUNDS, registry=theirs)
    values = np.random.default_rng(0).lognormal(-3, 3, 10_000).tolist()
    for value in [*BOUNDS, 0.0, *values]:
        for stage in ("a", "b"):
            histogram.series(stage).observe(value)
            reference.labels(stage).observe(value)
    ours.fold()
    got, expected = lines(ours), lines(theirs)
    assert got.keys() == expected.keys()
    np.testing.assert_allclose([got[name] for name in expected], list(expected.values()), rtol=1e-12)


def test_a_series_without_values_is_all_zero() -> None:
    registry = Registry()
    Histogram("taken_seconds", "Text.", ("stage",), BOUNDS, registry).series("a")
    assert set(lines(registry).values()) == {0.0}
