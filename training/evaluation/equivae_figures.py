"""The paper's figures of an EquiVAE: embeddings, samples, swaps, ELBO curves.

All pictures come from the validation split. Embeddings of two dimensions are shown as they are, others by UMAP
(Fig. 3), which needs umap-learn from the extra `figures`.
"""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from training.datasets import LabelledImages
from training.evaluation.classification import Mistake, mistakes, serve
from training.evaluation.equivae import elbo_curves
from training.evaluation.equivae_measures import Encoded, encode, recombine_images
from training.evaluation.plots import (
    ACCENT,
    CLASSES_SHOWN,
    INSTALL,
    SECOND,
    TILE_PIXELS,
    Figure,
    grid_figure,
    one_a_class,
    scatter,
    show,
    tiles,
)
from training.models.equivae import EquiVAE
from training.run import LoadedRun

__all__ = ["equivae_figures"]

COLUMNS = 10
MAPPED_IMAGES = 3000
COMPLEMENTS = 5  # m of Fig. 3
MISTAKES = 4 * COLUMNS


def equivae_figures(run: LoadedRun, data: LabelledImages, seed: int, console: Console) -> dict[str, Figure]:
    """Every figure of an EquiVAE, by name; `interpolation` needs a class with two images, `mistakes` one mistake."""
    model = run.equivae()
    encoded = encode(model, data.images)
    means = model.class_means(data)
    figures = {
        "prior-samples": prior_samples(model, means, data.class_names, seed),
        "swap-grid": swap_grid(model, data, encoded, seed),
        "elbo": curves(run),
    }
    if wrong := mistakes(serve(model, data.images), data.labels.numpy()):
        figures["mistakes"] = read_wrongly(data, wrong[:MISTAKES])
    if any(len(members) > 1 for members in data.by_class[:CLASSES_SHOWN]):
        figures["interpolation"] = interpolation(model, data, encoded, means, seed)
    chosen = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:MAPPED_IMAGES]
    some = data.subset(chosen)
    means_of_five, labels = pooled_embeddings(model, some, COMPLEMENTS, seed)
    maps = {"r": (means_of_five, labels, f"r, m = {COMPLEMENTS}"), "v": (encoded.v[chosen], some.labels, "v")}
    for name, (features, classes, title) in maps.items():
        if features.shape[1] == 2:
            figures[f"plane-{name}"] = scatter(features.numpy(), classes, data.class_names, title)
        elif importlib.util.find_spec("umap") is not None:
            figures[f"umap-{name}"] = umap(features, classes, data.class_names, title, seed)
        else:
            console.print(f"no UMAP of {name}: umap-learn is not installed ({INSTALL})", markup=False)
    return figures


# --- pictures of pictures --------------------------------------------------------------------------------------------


def prior_samples(model: EquiVAE, means: Tensor, names: tuple[str, ...], seed: int) -> Figure:
    """decode(r_y, v), v ~ N(0,I): one row a class, r_y the mean over the validation class (Fig. 4)."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for r in means[:CLASSES_SHOWN]:
        v = torch.randn((COLUMNS, model.config.v_dim), generator=generator)
        rows.append(recombine_images(model, r.expand(COLUMNS, -1), v))
    return grid_figure(rows, list(names[:CLASSES_SHOWN]), "v drawn from the prior, r the mean of the class")


def interpolation(model: EquiVAE, data: LabelledImages, encoded: Encoded, means: Tensor, seed: int) -> Figure:
    """Between the v of two real images of one class, r the class mean; they stand at either end (Fig. 5a)."""
    rows, names = [], []
    for label, pair in enumerate(one_a_class(data, 2, seed)):
        if len(pair) < 2:
            continue
        share = torch.linspace(0, 1, COLUMNS - 2)[:, None]
        v = torch.lerp(encoded.v[pair[0]][None], encoded.v[pair[1]][None], share)
        between = recombine_images(model, means[label].expand(len(v), -1), v)
        ends = data.images[pair].float() / 255
        rows.append(torch.cat([ends[:1], between, ends[1:]]))
        names.append(data.class_names[label])
    return grid_figure(rows, names, "two images (first and last) and the way between them in v, r fixed")


def swap_grid(model: EquiVAE, data: LabelledImages, encoded: Encoded, seed: int) -> Figure:
    """decode(r of the row's image, v of the column's image), the images themselves along the edges (Fig. 5b)."""
    pairs = one_a_class(data, 2, seed)
    content, style = (torch.stack([members[which % len(members)] for members in pairs]) for which in (0, 1))
    swaps = tiles([recombine_images(model, r.expand(len(style), -1), encoded.v[style]) for r in encoded.r[content]])
    originals = data.images.float() / 255
    top, left = tiles([originals[style]]), tiles(list(torch.split(originals[content], 1)))
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
    show(figure.add_axes((margin / width, 0, 1 - margin / width, 1 - margin / height)), picture)
    # Smaller beside few classes, whose tiles are less long than the words.
    size = min(12.0, min(swaps.shape[:2]) / 14)
    caption: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": size, "color": ACCENT}
    middle = 1 - swaps.shape[1] / width / 2, swaps.shape[0] / height / 2
    figure.text(middle[0], 1 - margin / height / 2, "style: v of these", **caption)
    figure.text(margin / width / 2, middle[1], "content: r of these", rotation=90, **caption)
    return figure


def read_wrongly(data: LabelledImages, wrong: list[Mistake]) -> Figure:
    """The surest mistakes, each with its class, what it is read as, and the probability of that."""
    columns = min(COLUMNS, len(wrong))
    rows = -(-len(wrong) // columns)
    figure = Figure((1.1 * max(columns, 3), 1.4 * rows + 0.4), layout="constrained")
    cells = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in cells:
        axes.set_axis_off()
    for axes, mistake in zip(cells, wrong, strict=False):
        show(axes, tiles([data.images[mistake.place : mistake.place + 1].float() / 255]))
        names = f"{data.class_names[mistake.label]} as {data.class_names[mistake.read_as]}"
        axes.set_title(f"{names}\n{mistake.probability:.2f}", fontsize=7, parse_math=False)
    figure.suptitle(f"read wrongly: the {len(wrong)} surest", fontsize=11, color="#444444")
    return figure


# --- curves and maps -------------------------------------------------------------------------------------------------


def curves(run: LoadedRun) -> Figure:
    """The ELBO's two terms over the epochs, training and validation."""
    figure = Figure((9, 3.6), layout="constrained")
    terms = {"reconstruction": "log p(x|r,v)", "minus_kl": "-KL[q(v|r,x) || p(v)]"}
    for position, (term, name) in enumerate(terms.items(), 1):
        axes = figure.add_subplot(1, 2, position)
        for split, values in elbo_curves(run.folder).items():
            style: dict[str, Any] = {"color": ACCENT if split == "train" else SECOND, "lw": 1.5}
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
    return scatter(points, labels, names, f"UMAP of {title}")
