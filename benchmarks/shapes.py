"""Which simple shapes a model of digits takes for known: single circles, and checkerboards of few fields.

    python -m benchmarks.shapes model_store/equivae-mnist/2

The rings of the evaluation (training/negatives.py) are two or three within each other, since one may well be a zero.
Its checkerboards fill the model's frame; these are pictures of several sizes, framed as the service frames them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnxruntime

from contract.manifest import Manifest, read_manifest
from contract.preprocess import prepare
from training.measures import NOVEL

RADII = np.arange(2, 13.1, 0.5)  # pixels of 28
WIDTHS = np.arange(1, 4.1, 0.5)
SIDES = (28, 64, 300, 1000)  # pixels of the picture
FIELDS = (2, 3, 4, 5, 6, 8)  # a side


def circles(side: int, smooth: bool) -> np.ndarray:
    """[len(RADII), len(WIDTHS), 1, side, side] in [0,1]: light lines on dark, about the middle."""
    place = (np.arange(side) + 0.5) * 28 / side - 14
    off = np.abs(np.hypot(place[:, None], place) - RADII[:, None, None, None])
    inside = WIDTHS[:, None, None] / 2 - off
    return (np.clip(inside + 0.5, 0, 1) if smooth else inside > 0)[:, :, None].astype(np.float32)


def boards(manifest: Manifest) -> np.ndarray:
    """[N,1,H,W]: checkerboards that fill a picture, either colour first, as the model sees them."""
    framed = []
    for side in SIDES:
        for fields in FIELDS:
            place = np.arange(side) * fields // side
            for first in (0, 1):
                pixels = ((place[:, None] + place + first) % 2 * 255).astype(np.uint8)
                framed.append(prepare(pixels, manifest.input, manifest.preprocessing).image)
    return np.stack(framed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a version folder of a model that classifies grey pictures")
    folder = parser.parse_args().folder
    manifest = read_manifest(folder)
    session = onnxruntime.InferenceSession(folder / "classify.onnx", providers=["CPUExecutionProvider"])
    side = manifest.input.height
    kinds = {
        "crisp circles": circles(side, smooth=False),
        "smooth circles": circles(side, smooth=True),
        "boards": boards(manifest),
    }
    for kind, pictures in kinds.items():
        flat = pictures.reshape(-1, 1, side, side)
        probabilities, novelty = session.run(["probabilities", "novelty"], {"image": flat})
        known = novelty <= NOVEL
        labels = sorted({manifest.labels[k] for k in probabilities[known].argmax(1)})
        print(f"{kind}: {known.sum()} of {len(flat)} are known{', read as ' if labels else ''}{', '.join(labels)}")
        if kind != "boards" and known.any():
            radii = np.repeat(RADII, len(WIDTHS))[known]
            print(f"  of radius {radii.min()} to {radii.max()} pixels of 28")


if __name__ == "__main__":
    main()
