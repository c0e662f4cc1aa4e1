"""Calibration errors by chance are those of probabilities that hold."""

import numpy as np
import pytest

from benchmarks.calibration import by_chance


def test_calibration_error_by_chance_is_that_of_calibrated_probabilities() -> None:
    sure = np.full((1000, 2), [0.9, 0.1])
    # One bin of 1,000 images: the mean absolute deviation of a share of 0.9, sqrt(2 / pi * 0.9 * 0.1 / 1000).
    assert by_chance(sure).mean() == pytest.approx(0.00757, rel=0.1)
    assert by_chance(np.array([[1.0, 0.0]] * 50)).max() == 0
