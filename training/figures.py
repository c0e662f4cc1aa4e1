"""The paper's figures of a finished run, as PNG: embeddings, prior samples, interpolations, swaps, ELBO curves.

All pictures come from the validation split. UMAP (Fig. 3) needs umap-learn from the extra `figures`.
"""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from training.checkpoint import make_folder
from training.datasets import LabelledImages
from training.errors import TrainingError
from training.evaluate import elbo_curves
from training.measures import Encoded, encode, recombine_images
from training.models.equivae import EquiVAE
from training.run import LoadedRun, load_run

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ModuleNotFoundError as error:
    raise TrainingError("figures need matplotlib: pip install 'equipoise[figures]'") from error

__all__ = ["draw_figures"]

CLASSES_SHOWN = 10
COLUMNS = 10
UMAP_IMAGES = 3000
COMPLEMENTS = 5  # m of Fig. 3
ACCENT = "#1f5fa8"
TILE_PIXELS = 64
GAP_PIXELS = 6


def draw_figures(run: Path, output: Path, seed: int = 0, console: Console | None = None) -> list[Path]:
    """Draw every figure into the folder `output`; the paths written.

    Raises:
        TrainingError: the run is not finished, its data is not there, or `output` is no folder.
    """
    console = console or Console()
    loaded = load_run(run)
    model = loaded.equivae()
    splits = loaded.splits()
    make_folder(output)
    data = splits.validation
    encoded = encode(model, data.images)
    means = model.class_means(data)
    figures = {
        "prior-samples": prior_samples(model, means, data.class_names, seed),
        "interpolation": interpolation(model, data, encoded, means, seed),
        "swap-grid": swap_grid(model, data, encoded, seed),
        "elbo": curves(loaded),
    }
    if importlib.util.find_spec("umap") is None:
        console.print("without UMAP: umap-learn is not installed (pip install 'equipoise[figures]')", markup=False)
    else:
        chosen = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:UMAP_IMAGES]
        some = data.subset(chosen)
        means_of_five, labels = pooled_embeddings(model, some, COMPLEMENTS, seed)
        figures["umap-r"] = umap(means_of_five, labels, data.class_names, f"r, m = {COMPLEMENTS}", seed)
        figures["umap-v"] = umap(encoded.v[chosen], some.labels, data.class_names, "v", seed)
    paths = []
    for name, figure in figures.items():
        path = output / f"{name}.png"
        save(figure, path)
        paths.append(path)
    return paths


def save(figure: Figure, path: Path) -> None:
    """Write a PNG that names no software or time, so that equal figures are equal files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"font.family": "DejaVu Sans"}):
        figure.savefig(path, dpi=100, metadata={"Software": None})


# --- pictures of pictures --------------------------------------------------------------------------------------------


def _one_a_class(data: LabelledImages, count: int, seed: int) -> list[Tensor]:
    """For each of the first classes, `count` random image indices (fewer where the class has fewer)."""
    generator = torch.Generator().manual_seed(seed)
    shown = data.by_class[:CLASSES_SHOWN]
    return [members[torch.randperm(len(members), generator=generator)[:count]] for members in shown]


def _tiles(rows: list[Tensor]) -> np.ndarray:
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


def _show(axes: Axes, picture: np.ndarray) -> None:
    axes.imshow(picture if picture.shape[2] == 3 else picture[..., 0], cmap="gray", vmin=0, vmax=1)
    axes.set_axis_off()


def _row_labels(axes: Axes, names: list[str], picture: np.ndarray) -> None:
    step = picture.shape[0] / len(names)
    for index, name in enumerate(names):
        axes.text(-10, (index + 0.5) * step, name, ha="right", va="center", fontsize=11, color="#444444")


def _grid_figure(rows: list[Tensor], names: list[str], title: str) -> Figure:
    picture = _tiles(rows)
    height = 8 * picture.shape[0] / picture.shape[1]
    figure = Figure((8, height + 0.5), layout="constrained")
    axes = figure.add_subplot()
    _show(axes, picture)
    _row_labels(axes, names, picture)
    axes.set_title(title, fontsize=11, color="#444444")
    return figure


def prior_samples(model: EquiVAE, means: Tensor, names: tuple[str, ...], seed: int) -> Figure:
    """decode(r_y, v), v ~ N(0,I): one row a class, r_y the mean over the validation class (Fig. 4)."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for r in means[:CLASSES_SHOWN]:
        v = torch.randn((COLUMNS, model.config.v_dim), generator=generator)
        rows.append(recombine_images(model, r.expand(COLUMNS, -1), v))
    return _grid_figure(rows, list(names[:CLASSES_SHOWN]), "v drawn from the prior, r the mean of the class")


def interpolation(model: EquiVAE, data: LabelledImages, encoded: Encoded, means: Tensor, seed: int) -> Figure:
    """Between the v of two real images of one class, r the class mean; they stand at either end (Fig. 5a)."""
    rows, names = [], []
    for label, pair in enumerate(_one_a_class(data, 2, seed)):
        if len(pair) < 2:
            continue
        share = torch.linspace(0, 1, COLUMNS - 2)[:, None]
        v = torch.lerp(encoded.v[pair[0]][None], encoded.v[pair[1]][None], share)
        between = recombine_images(model, means[label].expand(len(v), -1), v)
        ends = data.images[pair].float() / 255
        rows.append(torch.cat([ends[:1], between, ends[1:]]))
        names.append(data.class_names[label])
    return _grid_figure(rows, names, "two images (first and last) and the way between them in v, r fixed")


def swap_grid(model: EquiVAE, data: LabelledImages, encoded: Encoded, seed: int) -> Figure:
    """decode(r of the row's image, v of the column's image), the images themselves along the edges (Fig. 5b)."""
    pairs = _one_a_class(data, 2, seed)
    content, style = (torch.stack([members[which % len(members)] for members in pairs]) for which in (0, 1))
    swaps = _tiles([recombine_images(model, r.expand(len(style), -1), encoded.v[style]) for r in encoded.r[content]])
    originals = data.images.float() / 255
    top, left = _tiles([originals[style]]), _tiles(list(torch.split(originals[content], 1)))
    between = TILE_PIXELS // 4
    picture = np.ones(
        (top.shape[0] + between + swaps.shape[0], left.shape[1] + between + swaps.shape[1], swaps.shape[2])
    )
    picture[: top.shape[0], -top.shape[1] :] = top
    picture[-left.shape[0] :, : left.shape[1]] = left
    picture[-swaps.shape[0] :, -swaps.shape[1] :] = swaps
    margin = 34  # pixels for the captions, above and to the left
    height, width = picture.shape[0] + margin, picture.shape[1] + margin
    figure = Figure((width / 100, height / 100))
    _show(figure.add_axes((margin / width, 0, 1 - margin / width, 1 - margin / height)), picture)
    caption: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 12, "color": ACCENT}
    middle = 1 - swaps.shape[1] / width / 2, swaps.shape[0] / height / 2
    figure.text(middle[0], 1 - margin / height / 2, "style: v of these pictures", **caption)
    figure.text(margin / width / 2, middle[1], "content: r of these pictures", rotation=90, **caption)
    return figure


# --- curves and maps -------------------------------------------------------------------------------------------------


def curves(run: LoadedRun) -> Figure:
    """The ELBO's two terms over the epochs, training and validation."""
    figure = Figure((9, 3.6), layout="constrained")
    terms = {"reconstruction": "log p(x|r,v)", "minus_kl": "-KL[q(v|r,x) || p(v)]"}
    for position, (term, name) in enumerate(terms.items(), 1):
        axes = figure.add_subplot(1, 2, position)
        for split, values in elbo_curves(run.folder).items():
            style: dict[str, Any] = {"color": ACCENT if split == "train" else "#c4581c", "lw": 1.5}
            axes.plot(
                values["epoch"], values[term], label=split, marker="o" if len(values["epoch"]) < 20 else "", **style
            )
        axes.set_xlabel("epoch")
        axes.set_ylabel(f"{name}, nats")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    return figure


@torch.no_grad()
def pooled_embeddings(model: EquiVAE, data: LabelledImages, m: int, seed: int) -> tuple[Tensor, Tensor]:
    """r of every image with m - 1 random others of its class: hidden units averaged, then the head (Eq. 2, App. B).

    Returns:
        r [N,D] and labels [N], class after class
    """
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.cat([model.body(chunk.float() / 255) for chunk in torch.split(data.images, 500)])
    pooled, labels = [], []
    for label, members in enumerate(data.by_class):
        others = torch.rand((len(members), len(members)), generator=generator).fill_diagonal_(2).argsort(1, True)[:, :m]
        pooled.append(model.head(hidden[members[others]].mean(1)))
        labels.append(torch.full((len(members),), label))
    return torch.cat(pooled), torch.cat(labels)


def umap(features: Tensor, labels: Tensor, names: tuple[str, ...], title: str, seed: int) -> Figure:
    """UMAP of features [N,D], coloured by class (Fig. 3)."""
    with warnings.catch_warnings():
        # It says on import and at every seeded call that it runs on one thread.
        warnings.simplefilter("ignore")
        from umap import UMAP

        neighbours = min(15, len(features) - 1)
        points = UMAP(n_neighbors=neighbours, random_state=seed).fit_transform(features.numpy())
    figure = Figure((6.4, 6), layout="constrained")
    axes = figure.add_subplot()
    colours = matplotlib.colormaps["tab10" if len(names) <= 10 else "tab20"]
    for label, name in enumerate(names):
        mine = (labels == label).numpy()
        axes.scatter(points[mine, 0], points[mine, 1], s=5, color=colours(label % colours.N), label=name, linewidths=0)
    axes.set_title(f"UMAP of {title}", fontsize=11)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.legend(markerscale=3, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
