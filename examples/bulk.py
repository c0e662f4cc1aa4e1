"""Classify a folder of pictures with Ray Data and a model folder alone, without the service:

    python -m venv .bench/bulk && .bench/bulk/bin/pip install --requirement examples/bulk.txt
    .bench/bulk/bin/python -m examples.bulk draw pictures --count 50000
    .bench/bulk/bin/python -m examples.bulk classify pictures answers
    .bench/bulk/bin/python -m examples.bulk classify pictures answers-after-a-kill --kill-one

Pictures are rows of Parquet files: `name` and `data`, the bytes of an image file. They go through the service's own
decoding and framing (contract/), and the answers, rows of Parquet files too, are those of `/classify`; what is no
picture has a `problem` instead. A worker that dies is started again by Ray, and what it had not finished is done again;
`--kill-one` kills one with SIGKILL in the middle. `draw` makes pictures that anybody can make: scikit-learn's digits,
each turned, scaled and shifted at random, 28 x 28 PNG; their names begin with the class.
"""

import argparse
import json
import os
import platform
import signal
import threading
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
from PIL import Image

from contract.manifest import read_verified, versions
from contract.picture import open_picture
from contract.picture_header import PictureError
from contract.preprocess import prepare

ROOT = Path(__file__).resolve().parents[1]
SIDE = 28
BATCH = 256
BLOCK = 2048  # pictures
WORKER = b"ray::MapWorker(MapBatches(Classifier))"  # as Ray names the process

Rows = dict[str, Any]
"""Columns of a batch, arrays of equal length."""


class Classifier:
    """Made once in every worker; takes rows with `name` and `data`, and gives them their answers."""

    def __init__(self, folder: Path) -> None:
        manifest, files = read_verified(folder)  # every file by its digest
        self._input, self._preprocessing, self._labels = manifest.input, manifest.preprocessing, manifest.labels
        options = onnxruntime.SessionOptions()
        # One worker a core: neither the runtime's own threads nor those of OpenCV, which finds the ink.
        options.intra_op_num_threads = 1
        cv2.setNumThreads(1)
        graph = files[manifest.graphs["classify"].file]
        self._session = onnxruntime.InferenceSession(graph, options, providers=onnxruntime.get_available_providers())

    def __call__(self, rows: Rows) -> Rows:
        size = (self._input.channels, self._input.height, self._input.width)
        images = np.zeros((len(rows["data"]), *size), np.float32)
        problems = []
        for image, data in zip(images, rows["data"], strict=True):
            try:
                image[...] = prepare(open_picture(data).pixels, self._input, self._preprocessing).image
                problems.append("")
            except PictureError as error:
                problems.append(str(error))
        names = ["embedding", "probabilities", "novelty"]
        embedding, probabilities, novelty = self._session.run(names, {"image": images})
        good = np.array([not problem for problem in problems])
        return {
            "name": rows["name"],
            "problem": problems,
            "label": np.where(good, np.array(self._labels)[probabilities.argmax(axis=1)], ""),
            "probability": np.where(good, probabilities.max(axis=1), np.nan),
            "novelty": np.where(good, novelty, np.nan),
            "embedding": np.where(good[:, None], embedding, np.nan),
        }


def draw(rows: Rows) -> Rows:
    """One picture for every `id`; the same id is always the same picture."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    names, data = [], []
    for number in rows["id"]:
        random = np.random.default_rng(number)
        digit = number % len(digits.target)
        angle, size, (x, y) = random.uniform(-0.25, 0.25), random.uniform(2.4, 3.1), random.uniform(-1.5, 1.5, 2)
        linear = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) / size
        offset = np.array([4, 4]) - linear @ (np.array([x, y]) + SIDE / 2)
        small = Image.fromarray((digits.images[digit] * 15.9).astype(np.uint8))
        matrix = np.column_stack([linear, offset]).ravel().tolist()
        drawn = small.transform((SIDE, SIDE), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
        file = BytesIO()
        drawn.save(file, "PNG")
        names.append(f"{digits.target[digit]}-{number}")
        data.append(file.getvalue())
    return {"name": names, "data": data}


def start_ray(workers: int) -> None:
    import ray

    # One more reads and writes; workers that hold all would wait for it for ever. A cluster has its own cores, and Ray
    # refuses to be told of others.
    machine = {"address": "local", "num_cpus": workers + 1, "include_dashboard": False}
    place = {} if "RAY_ADDRESS" in os.environ else machine
    ray.init(log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}}, **place)
    ray.data.DataContext.get_current().enable_progress_bars = False


def draw_all(options: argparse.Namespace) -> None:
    import ray

    make_folder(options.pictures)
    start_ray(options.workers)
    ids = ray.data.range(options.count, override_num_blocks=-(-options.count // BLOCK))
    ids.map_batches(draw, batch_size=BATCH).write_parquet(str(options.pictures))
    print(f"{options.pictures}: {options.count:,} pictures")


def classify_all(options: argparse.Namespace) -> None:
    import ray

    folder = options.model_store / options.model
    version = versions(folder)[-1]
    folder /= str(version)
    make_folder(options.answers)
    start_ray(options.workers)
    pictures = ray.data.read_parquet(str(options.pictures)).select_columns(["name", "data"])
    # blocks small enough that all workers have some, and that little is done again when one dies
    answers = pictures.repartition(target_num_rows_per_block=BLOCK).map_batches(
        Classifier,
        fn_constructor_args=[folder],
        batch_size=BATCH,
        compute=ray.data.ActorPoolStrategy(size=options.workers),
        num_cpus=1,
    )
    killer = threading.Thread(target=kill_one, args=[options.answers], daemon=True)
    if options.kill_one:
        killer.start()
    start = time.monotonic()
    answers.write_parquet(str(options.answers))
    seconds = time.monotonic() - start
    if options.kill_one and killer.is_alive():
        raise SystemExit("error: it was over before a worker could be killed: take more pictures")
    found = {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "workers": options.workers}
    found |= {"model": options.model, "version": version, "killed": int(options.kill_one), "seconds": round(seconds, 1)}
    found |= compare(options.pictures, options.answers)
    rate = found["pictures"] / seconds
    print(f"{found['pictures']:,} pictures, each answered once, in {seconds:.1f} s: {rate:,.0f} a second")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def kill_one(answers: Path) -> None:
    """SIGKILL to a worker once the first answers are written."""
    while not list(answers.glob("*.parquet")):
        time.sleep(0.05)
    pid = next(int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cmdline") if is_worker(path))
    os.kill(pid, signal.SIGKILL)
    print(f"killed worker {pid}")


def is_worker(path: Path) -> bool:
    try:
        return path.read_bytes().startswith(WORKER)
    except OSError:  # it has ended
        return False


def compare(pictures: Path, answers: Path) -> dict[str, float]:
    """How many pictures there are and which share has the label in its name; each has exactly one answer."""
    from pyarrow import parquet

    asked = parquet.read_table(pictures, columns=["name"])["name"].to_pylist()
    answered = parquet.read_table(answers, columns=["name", "label"]).to_pylist()
    if sorted(asked) != sorted(row["name"] for row in answered):
        raise SystemExit(f"error: {len(asked):,} pictures, {len(answered):,} answers, or not the same ones")
    right = sum(row["name"].partition("-")[0] == row["label"] for row in answered)
    return {"pictures": len(asked), "label_as_named": round(right / len(asked), 4)}


def make_folder(path: Path) -> None:
    if path.exists():
        raise SystemExit(f"error: {path} is there already: choose another folder, or remove it")
    path.mkdir(parents=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="one a core")
    commands = parser.add_subparsers(required=True)
    drawing = commands.add_parser("draw")
    drawing.add_argument("pictures", type=Path)
    drawing.add_argument("--count", type=int, default=50_000)
    drawing.set_defaults(run=draw_all)
    classifying = commands.add_parser("classify")
    classifying.add_argument("pictures", type=Path)
    classifying.add_argument("answers", type=Path)
    classifying.add_argument("--model-store", type=Path, default=ROOT / "model_store")
    classifying.add_argument("--model", default="equivae-mnist")
    classifying.add_argument("--kill-one", action="store_true")
    classifying.add_argument("--json", type=Path)
    classifying.set_defaults(run=classify_all)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
