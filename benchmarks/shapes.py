"""Which pictures of no digit models of digits take for known: circles, rings, checkerboards of few fields, blanks, and
the evaluation's photographs, textures and noise at other sizes than the model's own.

    python -m benchmarks.shapes model_store/equivae-mnist/4 model_store/equivae-digits/1 \
        model_store/equivae-mnist-100labels/3 model_store/equivae-mnist-colour/2 --json results/shapes.json

The evaluation (training/evaluation/negatives.py) draws in the model's own frame, which passes as it is, and its rings
are two or three circles within each other, since one may well be a zero. Most pictures here are larger, and come to the
model as a request's do: by the contract's `prepare`, which enlarges a small shape to the size of a digit. The mean
novelty of a kind is the AUROC of novelty against known pictures, since theirs is even over [0, 1].
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
from PIL import Image, ImageDraw, ImageFilter

from contract.manifest import InputSpec, Manifest, read_manifest
from contract.preprocess import prepare
from training.evaluation.classification import NOVEL
from training.evaluation.negatives import draw

FRAME_RADII = np.arange(2, 13.1, 0.5)  # 28ths of the frame's side
FRAME_WIDTHS = np.arange(1, 4.1, 0.5)
SIDES = (40, 64, 100, 300, 600, 1000)  # pixels of the page, as the next two
RADII = (4, 5, 6, 8, 10, 12, 16, 20, 30, 60, 100, 200, 400)
WIDTHS = (1, 2, 3, 4, 6, 8, 16, 32, 64)
MARGIN = 4  # pixels of paper around the largest circle of a page, at the least
OVERSAMPLING = 8  # for smooth edges
FIELDS = (2, 3, 4, 5, 6, 8)  # a side
LEVELS = range(0, 256, 15)
ENLARGED = (100, 200)  # pixels of the side of the evaluation's kinds
OF_EACH = 300


class Shape(NamedTuple):
    kind: str
    pixels: np.ndarray  # uint8 [H,W], or [H,W,3]
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
    """As a drawing program makes them, dark on light and light on dark, and as a camera sees them: blurred."""
    sizes = [(s, r, w) for s in SIDES for r in RADII for w in WIDTHS if w < r and 2 * (r + MARGIN) <= s]
    for side, radius, width in sizes:
        for paper in (255, 0):
            for circles, kind in ((1, "circles"), (2, "rings"), (3, "rings")):
                if width * circles > radius // 2 and circles > 1:
                    continue  # no paper between them
                crisp, smooth = (drawn(side, radius, width, paper, circles, scale) for scale in (1, OVERSAMPLING))
                blurred = smooth.filter(ImageFilter.GaussianBlur(max(0.6, radius / 12)))
                for name, page in (("crisp", crisp), ("smooth", smooth), ("blurred", blurred)):
                    yield Shape(f"{kind} on pages, {name}", np.asarray(page), radius, width)


def drawn(side: int, radius: int, width: int, paper: int, circles: int, scale: int) -> Image.Image:
    """A page with so many circles within each other, at equal distances; drawn `scale` times as large and reduced."""
    page = Image.new("L", (side * scale, side * scale), paper)
    for index in range(circles):
        outer = radius * (circles - index) // circles
        near, far = (side // 2 - outer) * scale, (side // 2 + outer) * scale
        ImageDraw.Draw(page).ellipse((near, near, far, far), outline=255 - paper, width=width * scale)
    return page.reduce(scale)


def enlarged(spec: InputSpec) -> Iterator[Shape]:
    """The kinds of the evaluation in its own size, and as pictures of other sizes."""
    for kind in ("photographs", "textures", "noise", "rings"):
        for side in (spec.height, *ENLARGED):
            pictures = draw(kind, spec.model_copy(update={"height": side, "width": side}), OF_EACH)
            for picture in (255 * pictures).round().byte().permute(0, 2, 3, 1).numpy():
                name = f"the evaluation's {kind}, " + ("in the frame" if side == spec.height else f"{side} pixels")
                yield Shape(name, picture.squeeze(2) if picture.shape[2] == 1 else picture)


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
    shapes = [*frame_circles(side), *page_circles(), *boards(side), *blanks(side), *enlarged(manifest.input)]
    images = np.stack([prepare(shape.pixels, manifest.input, manifest.preprocessing).image for shape in shapes])
    probabilities, novelty = session.run(["probabilities", "novelty"], {"image": images})
    labels = [manifest.labels[best] for best in probabilities.argmax(1)]
    found: dict[str, dict[str, Any]] = {}
    for kind, count in Counter(shape.kind for shape in shapes).items():
        own = [index for index, shape in enumerate(shapes) if shape.kind == kind]
        known = [index for index in own if novelty[index] <= NOVEL]
        found[kind] = {"drawn": count, "known": len(known), "novelty": round(float(novelty[own].mean()), 4)}
        found[kind]["labels"] = counted(labels[index] for index in known)
        if "circles" in kind or "rings on" in kind:
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
