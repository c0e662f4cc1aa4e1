"""What bringing a photograph upright costs, by stage: `python -m benchmarks.upright model_store/<model> ...`.

CPU seconds of one thread, so that what else runs on the machine plays no part; the least of several runs. The picture
is a JPEG of 12 megapixels with soft detail and grain, and dark strokes on it, turned by 30 degrees.
"""

import argparse
import json
import time
from collections.abc import Callable
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


def photograph(width: int = 4000, height: int = 3000) -> bytes:
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
    file = BytesIO()
    Image.fromarray(drawn).save(file, "JPEG", quality=92)
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
    """Seconds of every stage, for the grown canvas and for one of the picture's own size."""
    manifest = read_manifest(folder)
    _, engines = read_version(folder, [EngineOptions(threads=1, max_batch=1, inline_seconds=1.0)])
    (engine,) = engines["canonicalize"]
    data, limits = photograph(), PictureLimits()

    decode, item = least(
        lambda: images.to_input(images.accept(data, limits), manifest, Options(), keep_original=True), repeats
    )
    infer, outputs = least(lambda: engine.run([item.image[None]]), repeats)
    found = dict(zip(engine.output_names, outputs, strict=True))
    rows = []
    for name, options in (("grown", UprightOptions()), ("own size", UprightOptions(expand=False))):

        def made(options: UprightOptions = options) -> Any:
            assert item.original is not None
            canvas = upright.plan(item.original, item.frame, found["matrix"][0], options, limits.pixels)
            return upright.make(item.original, canvas, options, "image/jpeg", strict=False)

        both, picture = least(made, repeats)
        share = picture.warp_seconds / (picture.warp_seconds + picture.encode_seconds)
        times = {"decode": decode, "infer": infer, "warp": both * share, "encode": both * (1 - share)}
        size = [picture.canvas.width, picture.canvas.height]
        rows.append({"model": folder.parent.name, "canvas": name, "size": size, "megabytes": len(data) / 1e6} | times)
    return rows


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
