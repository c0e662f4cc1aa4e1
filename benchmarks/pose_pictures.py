"""Several models of poses beside each other, in one picture: what each makes of a digit of every class, and its t-SNE.

    python -m benchmarks.pose_pictures runs/mcevae-digits-so2 runs/mcevae-digits-se2 --output docs/mcevae-digits.png

One row a run: at the left the rows input, reconstruction, upright truth, rectified and canonical of `training figures`,
at the right the map of z_c. All pictures are from the validation split, turned and moved at random within the range of
the training.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from training.evaluation.pose_figures import pose_figures
from training.run import load_run

SHOWN = ("pictures", "tsne-z_c")


def drawn(figure: Figure) -> NDArray[np.uint8]:
    """[H,W,3]"""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def beside(pictures: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """In a row, all of the first one's height, on white."""
    height = pictures[0].shape[0]
    scaled = [Image.fromarray(picture) for picture in pictures]
    scaled = [one.resize((one.width * height // one.height, height), Image.Resampling.LANCZOS) for one in scaled]
    return np.concatenate([np.asarray(one) for one in scaled], 1)


def below(rows: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    return np.concatenate(padded, 0)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of finished runs of models with latents")
    parser.add_argument("--output", type=Path, required=True, help="the PNG")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    rows = []
    for folder in chosen.runs:
        run = load_run(folder)
        figures = pose_figures(run, run.splits().validation, chosen.seed)
        rows.append(beside([drawn(figures[name]) for name in SHOWN]))
    Image.fromarray(below(rows)).save(chosen.output, optimize=True)


if __name__ == "__main__":
    main()
