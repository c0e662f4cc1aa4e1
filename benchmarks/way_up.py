"""What the looks of a digit alone tell of its way up: `python -m benchmarks.way_up --digit 1`.

Training digits of MNIST, cropped to their ink, so that neither their place nor what resampling does to them tells,
as they are and turned by exactly half a circle; a sixth is held out. Printed: the share that a logistic regression and
a small dense net tell right.
"""

from __future__ import annotations

import argparse

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier

from training import datasets
from training.config import MnistData


def cropped(image: np.ndarray) -> np.ndarray:
    """The ink of [28,28] as [20,20]: at the top, between the sides."""
    rows, columns = (np.flatnonzero(image.any(axis)) for axis in (1, 0))
    ink = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = ink.shape
    left = (20 - width) // 2
    out = np.zeros((20, 20), np.float32)
    out[:height, left : left + width] = ink
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--digit", type=int, default=1)
    digit = parser.parse_args().digit
    train = datasets.load(MnistData(source="mnist")).train
    images = train.images[train.labels == digit, 0].numpy() / 255
    ways = [np.stack([cropped(np.rot90(image, turn)).ravel() for image in images]) for turn in (0, 2)]
    held_out = len(images) // 6
    fitted, measured = (
        np.concatenate([way[part] for way in ways]) for part in (slice(held_out, None), slice(None, held_out))
    )
    for reader in (LogisticRegression(max_iter=300), MLPClassifier((64,), max_iter=25, alpha=1e-3, random_state=0)):
        reader.fit(fitted, np.repeat([0, 1], len(fitted) // 2))
        right = reader.score(measured, np.repeat([0, 1], len(measured) // 2))
        print(f"{type(reader).__name__}: {100 * right:.1f} % of {len(measured):,} right")


if __name__ == "__main__":
    main()
