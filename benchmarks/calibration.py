"""The calibration error of a model on scikit-learn's digits, beside what so few images allow.

    python -m benchmarks.calibration model_store/equivae-digits/1

A calibration error in bins is never zero on a finite set: bins of a few images are off by chance. What a model has that
is exactly as sure as it should be is found by drawing the labels from the model's own probabilities.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnxruntime

from training.datasets.digits import load
from training.evaluation.scores import expected_calibration_error

DRAWS = 1000


def by_chance(probabilities: np.ndarray, seed: int = 0) -> np.ndarray:
    """Calibration errors [DRAWS] of labels that are drawn from probabilities [N,K]."""
    generator = np.random.default_rng(seed)
    cumulated = probabilities.cumsum(1)
    cumulated[:, -1] = 1  # float32 rounding must not leave a draw without a label
    draws = ((cumulated > generator.random((len(probabilities), 1))).argmax(1) for _ in range(DRAWS))
    return np.array([expected_calibration_error(probabilities, labels) for labels in draws])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a version folder of a model of scikit-learn's digits")
    folder = parser.parse_args().folder
    session = onnxruntime.InferenceSession(folder / "classify.onnx", providers=["CPUExecutionProvider"])
    splits = load(0)
    print("| split | images | calibration error | of a calibrated model: mean (5 to 95 %) |\n|---|---|---|---|")
    for name, data in (("validation", splits.validation), ("test", splits.test)):
        (probabilities,) = session.run(["probabilities"], {"image": data.images.float().numpy() / 255})
        error = expected_calibration_error(probabilities, data.labels.numpy())
        chance = by_chance(probabilities)
        low, high = np.quantile(chance, [0.05, 0.95])
        print(f"| {name} | {len(data)} | {error:.4f} | {chance.mean():.4f} ({low:.4f} to {high:.4f}) |")


if __name__ == "__main__":
    main()
