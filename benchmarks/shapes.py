"""Which simple shapes models of digits take for known: single circles, checkerboards of few fields, and blanks.

    python -m benchmarks.shapes model_store/equivae-mnist/3 model_store/equivae-digits/1 \
        model_store/equivae-mnist-100labels/2 model_store/equivae-mnist-colour/2 --json results/shapes.json

The rings of the evaluation (training/evaluation/negatives.py) are two or three within each other, since one may well be
a zero, and all of its shapes are drawn in the model's own frame, which passes as it is. Most here are drawn on larger
pages and come to the model as a request's picture does: by the contract's `prepare`, which enlarges a small shape to
the size of a digit.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw

from contract.manifest import Manifest, read_manifest
from contract.preprocess import prepare
from training.evaluation.classification import NOVEL

FRAME_RADII = np.arange(2, 13.1, 0.5)  # 28ths of the frame's side
FRAME_WIDTHS = np.arange(1, 4.1, 0.5)
SIDES = (40, 64, 100, 300, 600, 1000)  # pixels of the page, as the next two
RADII = (4, 5, 6, 8, 10, 12, 16, 20, 30, 60, 100, 200, 400)
WIDTHS = (1, 2, 3, 4, 6, 8, 16, 32, 64)
MARGIN = 4  # pixels of paper around the largest circle of a page, at the least
OVERSAMPLING = 8  # for smooth edges
FIELDS = (2, 3, 4, 5, 6, 8)  # a side
LEVELS = range(0, 256, 15)


class Shape(NamedTuple):
    kind: str
    pixels: np.ndarray  # uint8 [H,W]
    radius: float = 0.0  # of a circle, in pixels of the page or 28ths of the frame, as the next
    width: float = 0.0


def frame_circles(side: int) -> Iterator[Shape]:
    """Light lines on dark about the middle of the model's frame."""
    place = (np.arange(side) + 0.5) * 28 / side - 14
    distance = np.hypot(place[:, None], place)
    for radius in FRAME_RADII:
        for width in FRAME_WIDTHS:
            inside = width / 2 - abs(distance - radius)
            yield Shape("circles in the frame, crisp", np.where(inside > 0, 255, 0).astype(np.uint8), radius, width)
            smooth = 255 * np.clip(inside + 0.5, 0, 1)
            yield Shape("circles in the frame, smooth", smooth.round().astype(np.uint8), radius, width)


def page_circles() -> Iterator[Shape]:
    """As a drawing program makes them, dark on light and light on dark."""
    sizes = [(s, r, w) for s in SIDES for r in RADII for w in WIDTHS if w < r and 2 * (r + MARGIN) <= s]
    for name, scale in (("crisp", 1), ("smooth", OVERSAMPLING)):
        for side, radius, width in sizes:
            for paper in (255, 0):
                page = Image.new("L", (side * scale, side * scale), paper)
                near, far = (side // 2 - radius) * scale, (side // 2 + radius) * scale
                ImageDraw.Draw(page).ellipse((near, near, far, far), outline=255 - paper, width=width * scale)
                yield Shape(f"circles on pages, {name}", np.asarray(page.reduce(scale)), radius, width)


def boards(frame: int) -> Iterator[Shape]:
    """Checkerboards, either colour first: they fill the picture, or stand in the middle of twice as large a page."""
    for side in (frame, *SIDES):
        for fields in FIELDS:
            place = np.arange(side) * fields // side
            for first in (0, 1):
                board = ((place[:, None] + place + first) % 2 * 255).astype(np.uint8)
                yield Shape("checkerboards that fill the picture", board)
                yield Shape("checkerboards on pages", np.pad(board, side // 2, constant_values=255))


def blanks(frame: int) -> Iterator[Shape]:
    for side in (frame, *SIDES):
        for level in LEVELS:
            yield Shape("blanks", np.full((side, side), level, np.uint8))


def judged(manifest: Manifest, session: onnxruntime.InferenceSession) -> dict[str, dict[str, Any]]:
    """Of every kind of shape how many are drawn, and how many are not called novel, by label, radius and width."""
    side = manifest.input.height
    shapes = [*frame_circles(side), *page_circles(), *boards(side), *blanks(side)]
    images = np.stack([prepare(shape.pixels, manifest.input, manifest.preprocessing).image for shape in shapes])
    probabilities, novelty = session.run(["probabilities", "novelty"], {"image": images})
    labels = [manifest.labels[best] for best in probabilities.argmax(1)]
    found: dict[str, dict[str, Any]] = {}
    for kind, drawn in Counter(shape.kind for shape in shapes).items():
        known = [index for index, shape in enumerate(shapes) if shape.kind == kind and novelty[index] <= NOVEL]
        found[kind] = {"drawn": drawn, "known": len(known)}
        found[kind]["labels"] = counted(labels[index] for index in known)
        if "circles" in kind:
            found[kind]["radii"] = counted(f"{shapes[index].radius:g}" for index in known)
            found[kind]["widths"] = counted(f"{shapes[index].width:g}" for index in known)
    return found


def counted(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items(), key=lambda pair: float(pair[0])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+", help="version folders of models that classify digits")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    figures = {}
    for folder in arguments.folders:
        manifest = read_manifest(folder)
        session = onnxruntime.InferenceSession(folder / "classify.onnx", providers=["CPUExecutionProvider"])
        found = figures[f"{manifest.name}/{manifest.version}"] = judged(manifest, session)
        for kind, figure in found.items():
            read_as = ", ".join(f"{count} as {label}" for label, count in figure["labels"].items())
            print(f"{manifest.name}, {kind}: {figure['known']} of {figure['drawn']} known{read_as and ': '}{read_as}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
