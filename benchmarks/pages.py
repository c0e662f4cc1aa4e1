"""How well digits survive on a page: validation digits drawn as photographs, scans and boards, read back, classified.

    python -m benchmarks.pages model_store/equivae-mnist/4 [--json results/pages.json]

Every kind of page differs from one digit to the next (size, place, light, grain) by the digit's index alone. The error
stands beside that of the same digits as the data set has them.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import onnxruntime
from PIL import Image, ImageFilter

from contract.manifest import read_manifest
from contract.picture import open_picture
from contract.preprocess import prepare
from training.config import DigitsData, MnistData
from training.datasets import LabelledImages, load
from training.evaluation.classification import NOVEL

Digit = npt.NDArray[np.uint8]
Plane = npt.NDArray[np.float32]
Generator = np.random.Generator

DATA = {"digits": DigitsData(source="digits"), "mnist": MnistData(source="mnist")}


def ink(digit: Digit, generator: Generator, height: int, width: int, low: float, high: float) -> Plane:
    """[height,width] in 0..1: the digit's frame takes `low` to `high` of the shorter side, anywhere on the page."""
    side = int(generator.integers(round(low * min(height, width)), round(high * min(height, width)) + 1))
    left, top = int(generator.integers(0, width - side + 1)), int(generator.integers(0, height - side + 1))
    page = np.zeros((height, width), np.float32)
    enlarged = Image.fromarray(np.pad(digit, 1)).resize((side, side), Image.Resampling.BICUBIC)
    page[top : top + side, left : left + side] = np.asarray(enlarged, np.float32) / 255
    return page


def light(generator: Generator, height: int, width: int) -> Plane:
    """[height,width] up to 1: a slope of 30 % in some direction and a vignette of 20 %."""
    x, y = np.linspace(-1, 1, width, dtype=np.float32)[None, :], np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    angle = generator.uniform(0, 2 * np.pi)
    level = 1 + 0.3 * (np.cos(angle) * x + np.sin(angle) * y) - 0.2 * (x**2 + y**2)
    return np.asarray(level / level.max(), np.float32)


def grain(generator: Generator, height: int, width: int, deviation: float) -> Plane:
    return generator.standard_normal((height, width), dtype=np.float32) * np.float32(deviation)


def jpeg(page: Plane, quality: int) -> bytes:
    file = BytesIO()
    Image.fromarray(np.clip(page, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=quality)
    return file.getvalue()


def png(page: Plane) -> bytes:
    file = BytesIO()
    Image.fromarray(np.clip(page, 0, 255).astype(np.uint8)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def clean_page(digit: Digit, generator: Generator) -> bytes:
    return png(245 - 220 * ink(digit, generator, 300, 300, 0.35, 0.75))


def photograph(digit: Digit, generator: Generator, height: int = 3000, width: int = 4000) -> bytes:
    page = (225 - 185 * ink(digit, generator, height, width, 0.2, 0.7)) * light(generator, height, width)
    return jpeg(page + grain(generator, height, width, 6), 80)


def small_photograph(digit: Digit, generator: Generator) -> bytes:
    return photograph(digit, generator, 600, 800)


def grainy_photograph(digit: Digit, generator: Generator) -> bytes:
    page = (225 - 185 * ink(digit, generator, 600, 800, 0.25, 0.8)) * light(generator, 600, 800)
    return jpeg(page + grain(generator, 600, 800, 20), 60)


def faint_pencil(digit: Digit, generator: Generator) -> bytes:
    page = (225 - 60 * ink(digit, generator, 600, 800, 0.25, 0.8)) * light(generator, 600, 800)
    return jpeg(page + grain(generator, 600, 800, 4), 80)


def shadow_across(digit: Digit, generator: Generator) -> bytes:
    angle, offset = generator.uniform(0, 2 * np.pi), generator.uniform(-150, 150)
    y, x = np.mgrid[:600, :800]
    distance = (x - 400) * np.cos(angle) + (y - 300) * np.sin(angle) - offset
    page = (235 - 185 * ink(digit, generator, 600, 800, 0.33, 0.75)) * (1 - 0.4 / (1 + np.exp(-distance / 25)))
    return jpeg(page + grain(generator, 600, 800, 4), 80)


def chalk_board(digit: Digit, generator: Generator) -> bytes:
    page = (40 + 170 * ink(digit, generator, 600, 800, 0.25, 0.8)) * light(generator, 600, 800)
    return jpeg(page + grain(generator, 600, 800, 6), 80)


def scan_with_dark_edge_and_specks(digit: Digit, generator: Generator) -> bytes:
    page = 245 - 200 * ink(digit, generator, 600, 450, 0.4, 0.9)
    page[: int(generator.integers(2, 12))] = 20
    page[:, -int(generator.integers(2, 12)) :] = 20
    for x, y, side in zip(*(generator.integers(0, top, 12) for top in (440, 590, 6)), strict=True):
        page[y : y + side, x : x + side] = 30
    return png(page)


def _sheet(digit: Digit, generator: Generator) -> Plane:
    """A page in a camera's light, as it lies on a desk: [450,600]."""
    return 225 - 185 * ink(digit, generator, 450, 600, 0.3, 0.7)


def _photographed(scene: Plane, generator: Generator) -> bytes:
    return jpeg(scene * light(generator, *scene.shape) + grain(generator, *scene.shape, 5), 80)


def sheet_on_a_desk(digit: Digit, generator: Generator) -> bytes:
    """The whole sheet is seen, turned by up to 8 degrees and from a slant; the desk is darker than half the paper."""
    corners = np.array([(0, 0), (600, 0), (600, 450), (0, 450)], np.float32)
    angle = np.deg2rad(generator.uniform(-8, 8))
    turn = np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))], np.float32)
    seen = (corners - (300, 225)) @ turn * np.float32(generator.uniform(0.8, 1.05)) + (400, 300)
    seen += generator.uniform(-25, 25, (4, 2))
    matrix = cv2.getPerspectiveTransform(corners, seen.astype(np.float32))
    desk = float(generator.uniform(25, 110))
    scene = cv2.warpPerspective(
        _sheet(digit, generator), matrix, (800, 600), borderMode=cv2.BORDER_CONSTANT, borderValue=desk
    )
    return _photographed(scene, generator)


def desk_beside(digit: Digit, generator: Generator) -> bytes:
    """The desk is seen along one or two edges of the picture, by up to a quarter of it."""
    sheet, desk = _sheet(digit, generator), float(generator.uniform(25, 110))
    beside, below = int(generator.integers(30, 150)), int(generator.integers(30, 110)) * int(generator.integers(0, 2))
    across, down = ((beside, 0), (0, beside))[int(generator.integers(0, 2))], (below, 0)
    scene = np.pad(sheet, (down, across), constant_values=desk)
    return _photographed(scene, generator)


def in_a_printed_box(digit: Digit, generator: Generator) -> bytes:
    """A box of a form: a black frame about the digit, which does not touch it."""
    side = int(generator.integers(160, 400))
    page = np.full((600, 800), 245, np.float32)
    left, top, width = (
        int(generator.integers(20, 780 - side)),
        int(generator.integers(20, 580 - side)),
        int(generator.integers(2, 8)),
    )
    page[top : top + side, left : left + side] = 40
    inner = side - 2 * width
    page[top + width : top + width + inner, left + width : left + width + inner] = 245 - 200 * ink(
        digit, generator, inner, inner, 0.6, 0.95
    )
    return jpeg(page + grain(generator, 600, 800, 3), 85)


def cut_to_the_ink(digit: Digit, generator: Generator) -> bytes:
    page = np.asarray(Image.fromarray(np.pad(digit, 1)).resize((300, 300), Image.Resampling.BICUBIC), np.float32)
    rows, columns = np.flatnonzero(page.max(axis=1) > 76), np.flatnonzero(page.max(axis=0) > 76)
    return png(250 - page[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] * (240 / 255))


def blurred(digit: Digit, generator: Generator, pixels: int = 1) -> bytes:
    """By so many pixels of the digit's own 28: a photograph out of focus."""
    page = Image.fromarray(255 - np.pad(digit, digit.shape[0] // 2)).resize((560, 560), Image.Resampling.BICUBIC)
    return png(np.asarray(page.filter(ImageFilter.GaussianBlur(pixels * 280 / 28)), np.float32))


def few_pixels(digit: Digit, generator: Generator) -> bytes:
    """10 pixels for the digit's frame."""
    page = Image.fromarray(255 - np.pad(digit, digit.shape[0] // 2))
    return png(np.asarray(page.resize((20, 20), Image.Resampling.BOX), np.float32))


KINDS: dict[str, tuple[Callable[[Digit, Generator], bytes], float]] = {  # with the share of the digits that is drawn
    "clean page, 300 x 300": (clean_page, 1.0),
    "photograph, 4000 x 3000": (photograph, 0.1),
    "photograph, 800 x 600": (small_photograph, 0.4),
    "grainy photograph": (grainy_photograph, 0.4),
    "faint pencil": (faint_pencil, 0.4),
    "shadow across": (shadow_across, 0.4),
    "chalk board": (chalk_board, 0.4),
    "scan, dark edge, specks": (scan_with_dark_edge_and_specks, 0.4),
    "sheet on a dark desk": (sheet_on_a_desk, 0.2),
    "desk along the edges": (desk_beside, 0.2),
    "in a printed box": (in_a_printed_box, 0.2),
    "cut to the ink": (cut_to_the_ink, 0.4),
    "out of focus": (blurred, 0.4),
    "far out of focus": (partial(blurred, pixels=2), 0.4),
    "few pixels": (few_pixels, 0.4),
}


def measure(folder: Path, digits: LabelledImages, count: int) -> dict[str, dict[str, Any]]:
    """For every kind of page how many were drawn, the errors in percent, plain and from the page, and the share of the
    latter that is called novel; each is also printed, with the time to read one.
    """
    manifest = read_manifest(folder)
    session = onnxruntime.InferenceSession(folder / manifest.graphs["classify"].file)

    def judged(images: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Whether each is read wrongly, and whether it is called novel."""
        probabilities, novelty = session.run(["probabilities", "novelty"], {"image": images})
        return np.asarray(probabilities.argmax(axis=1) != labels[: len(images)]), np.asarray(novelty > NOVEL)

    pictures, labels = digits.images.numpy(), digits.labels.numpy()
    plain, _ = judged((pictures[:count] / 255).astype(np.float32))
    print(f"{'':26}{'n':>6}{'plain %':>10}{'page %':>10}{'more':>8}{'novel %':>10}{'ms':>8}")
    rows = {}
    for name, (draw, share) in KINDS.items():
        number = max(1, round(share * len(plain)))
        images, seconds = [], 0.0
        for index in range(number):
            data = draw(pictures[index, 0], np.random.default_rng(index))
            start = time.perf_counter()
            images.append(prepare(open_picture(data).pixels, manifest.input, manifest.preprocessing).image)
            seconds += time.perf_counter() - start
        wrong, novel = judged(np.stack(images))
        shares = {"plain": plain[:number], "page": wrong, "novel": novel}
        rows[name] = row = {"drawn": number} | {key: round(100 * each.mean(), 4) for key, each in shares.items()}
        print(
            f"{name:26}{number:6}{row['plain']:10.2f}{row['page']:10.2f}{row['page'] - row['plain']:+8.2f}"
            f"{row['novel']:10.2f}{1000 * seconds / number:8.1f}",
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a version folder of a model trained on the digits or mnist data")
    parser.add_argument("--count", type=int, default=5000, help="validation digits, of which slow kinds take a share")
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    options = parser.parse_args()
    name = str(read_manifest(options.model).data["name"])
    rows = measure(options.model, load(DATA[name]).validation, options.count)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
