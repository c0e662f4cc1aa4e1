"""The papers' figures of a finished run, as PNG; all of its pictures come from the validation split."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from training.evaluation.equivae_figures import equivae_figures
from training.evaluation.plots import save
from training.evaluation.pose_figures import pose_figures
from training.files import make_folder
from training.models.registry import KINDS
from training.run import load_run

__all__ = ["draw_figures"]


def draw_figures(run: Path, output: Path, seed: int = 0, console: Console | None = None) -> list[Path]:
    """Draw every figure into the folder `output`; the paths written.

    Raises:
        TrainingError: the run is not finished, its data is not there, or `output` is no folder or cannot be written.
    """
    console = console or Console()
    loaded = load_run(run)
    splits = loaded.splits()
    make_folder(output)
    if KINDS[loaded.config.model.kind].family == "equivae":
        figures = equivae_figures(loaded, splits.validation, seed, console)
    else:
        figures = pose_figures(loaded, splits.validation, seed)
    paths = []
    for name, figure in figures.items():
        path = output / f"{name}.png"
        save(figure, path)
        paths.append(path)
    return paths
