"""What the figures of all models share: rows of pictures, maps of points, and how a file is written."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from training.datasets import LabelledImages
from training.errors import TrainingError
from training.files import make_folder, write_atomically

INSTALL = "python -m pip install --constraint constraints.txt --editable '.[figures]'"

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ModuleNotFoundError as error:
    raise TrainingError(f"figures need matplotlib, of the extra figures: {INSTALL}") from error

__all__ = [
    "ACCENT",
    "CLASSES_SHOWN",
    "INSTALL",
    "SECOND",
    "TILE_PIXELS",
    "Figure",
    "grid_figure",
    "one_a_class",
    "save",
    "scatter",
    "scatter_on",
    "show",
    "tiles",
]

CLASSES_SHOWN = 10
ACCENT, SECOND = "#1f5fa8", "#c4581c"
TILE_PIXELS = 64
GAP_PIXELS = 6
LABEL_INCHES = 0.09  # a letter of a row's name


def save(figure: Figure, path: Path) -> None:
    """Write a PNG that names no software or time, so that equal figures are equal files.

    Raises:
        RunError: it cannot be written; what was there stays.
    """
    make_folder(path.parent)
    png = BytesIO()
    with matplotlib.rc_context({"font.family": "DejaVu Sans"}):
        figure.savefig(png, format="png", dpi=100, metadata={"Software": None})
    write_atomically(path, png.getvalue())


def one_a_class(data: LabelledImages, count: int, seed: int) -> list[Tensor]:
    """For each of the first classes, `count` random image indices (fewer where the class has fewer)."""
    generator = torch.Generator().manual_seed(seed)
    shown = data.by_class[:CLASSES_SHOWN]
    return [members[torch.randperm(len(members), generator=generator)[:count]] for members in shown]


def tiles(rows: list[Tensor]) -> np.ndarray:
    """Rows of images [M,C,S,S] in [0,1] -> one picture [H,W,C], tiles enlarged smoothly and set apart by white gaps.

    One-channel pictures come out inverted, as ink on paper, with a pixel of paper around them: strokes that reach the
    edge of the frame would end as if cut.
    """
    if rows[0].shape[1] == 1:
        rows = [F.pad(row, [1] * 4) for row in rows]
    scale = max(1, TILE_PIXELS // rows[0].shape[-1])
    lines = []
    for row in rows:
        large = F.interpolate(row, scale_factor=scale, mode="bicubic").clamp(0, 1)
        shown = 1 - large if large.shape[1] == 1 else large
        padded = F.pad(shown, [GAP_PIXELS // 2] * 4, value=1.0)
        lines.append(torch.cat(list(padded), 2))
    return torch.cat(lines, 1).permute(1, 2, 0).numpy()


def show(axes: Axes, picture: np.ndarray) -> None:
    """A picture [H,W,C] in [0,1], C 1 or 3, without axes."""
    axes.imshow(picture if picture.shape[2] == 3 else picture[..., 0], cmap="gray", vmin=0, vmax=1)
    axes.set_axis_off()


def _row_labels(axes: Axes, names: list[str], picture: np.ndarray) -> None:
    step = picture.shape[0] / len(names)
    for index, name in enumerate(names):
        # A class may be called a$b$, which is no formula.
        axes.text(
            -10, (index + 0.5) * step, name, ha="right", va="center", fontsize=11, color="#444444", parse_math=False
        )


def grid_figure(rows: list[Tensor], names: list[str], title: str) -> Figure:
    """Named rows of equally many images [M,C,S,S] in [0,1], as `tiles` has them."""
    picture = tiles(rows)
    height = 8 * picture.shape[0] / picture.shape[1]
    figure = Figure((8 + LABEL_INCHES * max(map(len, names)), height + 0.5), layout="constrained")
    axes = figure.add_subplot()
    show(axes, picture)
    _row_labels(axes, names, picture)
    axes.set_title(title, fontsize=11, color="#444444")
    return figure


def scatter(points: np.ndarray, labels: Tensor, names: tuple[str, ...], title: str) -> Figure:
    """Points [N,2], coloured by class."""
    figure = Figure((6.4, 6), layout="constrained")
    axes = figure.add_subplot()
    scatter_on(axes, points, labels, names)
    axes.set_title(title, fontsize=11)
    legend = axes.legend(markerscale=3, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def scatter_on(axes: Axes, points: np.ndarray, labels: Tensor, names: tuple[str, ...]) -> None:
    """Points [N,2], coloured by their labels [N], which index `names`."""
    colours = matplotlib.colormaps["tab10" if len(names) <= 10 else "tab20"]
    for label, name in enumerate(names):
        mine = (labels == label).numpy()
        axes.scatter(points[mine, 0], points[mine, 1], s=5, color=colours(label % colours.N), label=name, linewidths=0)
    axes.set_xticks([])
    axes.set_yticks([])
