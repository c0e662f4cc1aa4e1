"""Which single circles a model of digits takes for known: drawn at every radius and width, crisp and smooth.

    python -m benchmarks.circles model_store/equivae-mnist/1

The rings of the evaluation (training/negatives.py) are two or three within each other, since one may well be a zero.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnxruntime

from contract.manifest import read_manifest
from training.measures import NOVEL

RADII = np.arange(2, 13.1, 0.5)  # pixels of 28
WIDTHS = np.arange(1, 4.1, 0.5)


def circles(side: int, smooth: bool) -> np.ndarray:
    """[len(RADII), len(WIDTHS), 1, side, side] in [0,1]: light lines on dark, about the middle."""
    place = (np.arange(side) + 0.5) * 28 / side - 14
    off = np.abs(np.hypot(place[:, None], place) - RADII[:, None, None, None])
    inside = WIDTHS[:, None, None] / 2 - off
    return (np.clip(inside + 0.5, 0, 1) if smooth else inside > 0)[:, :, None].astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a version folder of a model that classifies grey pictures")
    folder = parser.parse_args().folder
    manifest = read_manifest(folder)
    session = onnxruntime.InferenceSession(folder / "classify.onnx", providers=["CPUExecutionProvider"])
    for smooth in (False, True):
        pictures = circles(manifest.input.height, smooth)
        flat = pictures.reshape(-1, *pictures.shape[2:])
        probabilities, novelty = session.run(["probabilities", "novelty"], {"image": flat})
        known = novelty <= NOVEL
        radii = np.repeat(RADII, len(WIDTHS))[known]
        labels = sorted({manifest.labels[k] for k in probabilities[known].argmax(1)})
        print(f"{'smooth' if smooth else 'crisp'} circles: {known.sum()} of {len(flat)} are known")
        if len(radii):
            print(f"  of radius {radii.min()} to {radii.max()} pixels of 28, read as {', '.join(labels)}")


if __name__ == "__main__":
    main()
