"""MCE-VAE and other VAEs of turned digits beside each other: the figures of its paper, with numbers.

    python -m benchmarks.vaes beta-VAE=runs/plain-vae-mnist-se2-1 MCE-VAE=runs/mcevae-mnist-se2-paper-1 --output vaes

Fig. 4 (loss.png): the reconstruction of the objective, one draw of the latents, against the epoch; in training the mean
over the epoch's steps, on the validation pictures the model as it is then. Fig. 5 (maps.png): t-SNE of z_c, of a VAE
without it z, and what the clusters of each model get right. canonical.png: what each decodes without the transform. All
pictures are from the validation split, turned and moved at random within the range of the training.
"""

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from training.errors import TrainingError
from training.evaluation.plots import grid_figure, one_a_class, save, scatter_on
from training.evaluation.pose_figures import t_sne
from training.evaluation.pose_models import LatentModel, canonicals, clusters, latents
from training.evaluation.views import limits_of, observe
from training.mixture import matched_accuracy
from training.run import LoadedRun, load_run, read_metrics

MAPPED = 2000  # pictures of a map
COLUMNS = 3


def losses(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Epochs and nats an image: {train, validation}."""
    found: dict[str, dict[int, list[float]]] = {"train": defaultdict(list), "validation": defaultdict(list)}
    for row in read_metrics(run):
        name = "reconstruction" if row["split"] == "train" else "reconstruction_drawn"
        found[row["split"]][math.ceil(row["epoch"] - 1e-3)].append(row[name])
    return {split: [(epoch, fmean(values)) for epoch, values in epochs.items()] for split, epochs in found.items()}


def loss_figure(models: list[dict[str, Any]]) -> Figure:
    figure = Figure((9, 4), layout="constrained")
    for position, split in enumerate(("train", "validation"), 1):
        axes = figure.add_subplot(1, 2, position)
        for model in models:
            axes.plot(*zip(*model[split], strict=True), marker="o", ms=3, lw=1.5, label=model["name"])
        axes.set_title(split, fontsize=11)
        axes.set_xlabel("epoch")
        axes.set_ylabel("reconstruction, nats")
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def map_figure(
    models: list[dict[str, Any]], points: list[np.ndarray], labels: Tensor, names: tuple[str, ...]
) -> Figure:
    rows = math.ceil(len(models) / COLUMNS)
    figure = Figure((3.6 * COLUMNS, 3.8 * rows + 0.4), layout="constrained")
    for position, (model, of_model) in enumerate(zip(models, points, strict=True), 1):
        axes = figure.add_subplot(rows, COLUMNS, position)
        scatter_on(axes, of_model, labels, names)
        axes.set_title(model["name"], fontsize=11)
        axes.set_xlabel(f"clusters: {model['clustering']:.1f} %")
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(names), markerscale=3, frameon=False
    )
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN", help="finished runs on the same data")
    parser.add_argument("--output", type=Path, required=True, help="folder of the PNG files")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    runs: dict[str, LoadedRun] = {}
    for name, _, folder in (text.partition("=") for text in chosen.runs):
        try:
            runs[name] = load_run(Path(folder))
        except TrainingError as error:
            parser.error(str(error))
    first = next(iter(runs.values()))
    data, limits = first.splits().validation, limits_of(first.config.model)
    shown = observe(data.images.float() / 255, limits.draw(len(data), chosen.seed))
    mapped = torch.randperm(len(data), generator=torch.Generator().manual_seed(chosen.seed))[:MAPPED]
    columns = torch.cat(one_a_class(data, 1, chosen.seed))
    models, points, rows = [], [], {"input": shown[columns]}
    for name, run in runs.items():
        if limits_of(run.config.model) != limits:
            parser.error(f"{name} was not trained on pictures of {limits}")
        model = cast(LatentModel, run.model)
        right = 100 * matched_accuracy(clusters(model, shown).argmax(1), data.labels)
        models.append({"name": name, "clustering": right, **losses(run.folder)})
        points.append(t_sne(latents(model, shown[mapped])[0], chosen.seed))
        rows[name] = canonicals(model, shown[columns]).canonical
    figures = {
        "loss": loss_figure(models),
        "maps": map_figure(models, points, data.labels[mapped], data.class_names),
        "canonical": grid_figure(list(rows.values()), list(rows), "decoded without the transform"),
    }
    for title, figure in figures.items():
        save(figure, chosen.output / f"{title}.png")
    if chosen.json:
        protocol = {"split": "validation", "n": len(data), "range": str(limits), "seed": chosen.seed}
        chosen.json.write_text(json.dumps({"protocol": protocol, "models": models}, indent=2) + "\n")


if __name__ == "__main__":
    main()
