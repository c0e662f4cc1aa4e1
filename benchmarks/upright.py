"""What bringing a photograph upright costs, by stage: `python -m benchmarks.upright model_store/<model> ...`.

CPU seconds of one thread, so that what else runs on the machine plays no part; the least of several runs. The picture
is a JPEG of 12 megapixels with soft detail and grain, and dark strokes on it, turned by 30 degrees; and the same as a
PNG with transparency, a hole in one corner.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
from PIL import Image

from contract.manifest import read_manifest, versions
from contract.picture_header import PictureLimits
from service import images, upright
from service.engine import EngineOptions
from service.model_folder import read_version
from service.queries import Options, UprightOptions

Result = TypeVar("Result")


def photograph(width: int = 4000, height: int = 3000) -> Image.Image:
    random = np.random.default_rng(0)
    coarse = random.uniform(150, 230, (height // 50, width // 50, 3)).astype(np.float32)
    page = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    page += random.normal(0, 2, page.shape).astype(np.float32)
    drawn = np.clip(page, 0, 255).astype(np.uint8)
    middle, turn = np.array([width / 2, height / 2]), np.radians(30)
    across, down = np.array([np.cos(turn), -np.sin(turn)]), np.array([np.sin(turn), np.cos(turn)])
    for one, other in (((-600, 400), (0, -500)), ((0, -500), (600, 400)), ((-300, 0), (300, 0))):
        ends = [tuple(int(v) for v in middle + x * across + y * down) for x, y in (one, other)]
        cv2.line(drawn, ends[0], ends[1], (30, 35, 60), 90)
    return Image.fromarray(drawn)


def encoded(picture: Image.Image, kind: str) -> bytes:
    file = BytesIO()
    if kind == "JPEG":
        picture.save(file, kind, quality=92)
    else:
        alpha = Image.new("L", picture.size, 255)
        alpha.paste(0, (0, 0, picture.width // 6, picture.height // 5))
        transparent = picture.copy()
        transparent.putalpha(alpha)
        transparent.save(file, kind)
    return file.getvalue()


def least(work: Callable[[], Result], repeats: int) -> tuple[float, Result]:
    """CPU seconds of this process, and what the work gives."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        result = work()
        seconds.append(time.process_time() - start)
    return min(seconds), result


def measured(folder: Path, repeats: int) -> list[dict[str, Any]]:
    """Seconds of every stage, by kind of picture, for the grown canvas and for one of the picture's own size."""
    manifest = read_manifest(folder)
    _, engines = read_version(folder, [EngineOptions(threads=1, max_batch=1, inline_seconds=1.0)])
    (engine,) = engines["canonicalize"]
    limits, picture = PictureLimits(), photograph()

    def rows_of(kind: str, before: str) -> Iterator[dict[str, Any]]:
        data = encoded(picture, kind)
        decode, item = least(
            lambda: images.to_input(images.accept(data, limits), manifest, Options(), keep_original=True), repeats
        )
        infer, outputs = least(lambda: engine.run([item.image[None]]), repeats)
        found = dict(zip(engine.output_names, outputs, strict=True))
        for name, options in (("grown", UprightOptions()), ("own size", UprightOptions(expand=False))):

            def made(options: UprightOptions = options) -> upright.Upright:
                assert item.original is not None
                canvas = upright.plan(item.original, item.frame, found["matrix"][0], options, limits.pixels)
                return upright.make(item.original, canvas, options, f"image/{kind.lower()}", strict=False)

            both, drawn = least(made, repeats)
            share = drawn.warp_seconds / (drawn.warp_seconds + drawn.encode_seconds)
            times = {"decode": decode, "infer": infer, "warp": both * share, "encode": both * (1 - share)}
            size = [drawn.canvas.width, drawn.canvas.height]
            row = {"model": folder.parent.name, "canvas": before + name, "size": size, "megabytes": len(data) / 1e6}
            yield row | times

    return [*rows_of("JPEG", ""), *rows_of("PNG", "RGBA as PNG, ")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", help="folders of models that can canonicalize: <store>/<model>")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where the figures go, too")
    chosen = parser.parse_args()
    newest = [model / str(versions(model)[-1]) for model in chosen.models]
    rows = [row for folder in newest for row in measured(folder, chosen.repeats)]
    text = json.dumps(rows, indent=2)
    print(text)
    if chosen.json:
        chosen.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
