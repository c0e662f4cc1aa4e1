"""Scores of predictions: calibration, separation, shares in per cent."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import roc_auc_score

__all__ = ["auroc", "expected_calibration_error", "percent"]


def percent(flags: np.ndarray) -> float:
    """Share of true entries of a boolean array, in per cent."""
    return 100 * float(np.mean(flags))


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over equally wide bins of confidence, weighted by their counts.

    Naeini et al. 2015, as Guo et al. 2017 (eq. 3) use it: confidence is the largest probability.

    Args:
        probabilities: [N,K], rows sum to 1
        labels: [N]
    Returns:
        in [0,1]
    """
    confidence = probabilities.max(1)
    correct = probabilities.argmax(1) == labels
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(bin_of, confidence, bins) - np.bincount(bin_of, correct, bins)
    return float(np.abs(gaps).sum() / len(labels))


def auroc(known: np.ndarray, novel: np.ndarray) -> float:
    """Probability that a novel picture scores higher than a known one, ties counted half."""
    truth = np.r_[np.zeros(len(known)), np.ones(len(novel))]
    return float(roc_auc_score(truth, np.r_[known, novel]))
