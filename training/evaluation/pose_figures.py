"""Figures of a model that estimates a pose: what it makes of pictures, its clusters, its error against the angle."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.manifold import TSNE
from torch import Tensor

from training.datasets import LabelledImages
from training.evaluation import pose_baselines as baselines
from training.evaluation import pose_measures as measures
from training.evaluation.plots import ACCENT, SECOND, Figure, grid_figure, one_a_class, scatter
from training.evaluation.pose_models import LatentModel, PoseModel, canonicals, clusters, latents, poses
from training.evaluation.views import Limits, limits_of, observe, rotation_matrices
from training.lie import inverse, resample
from training.run import LoadedRun
from training.turned import FLIP_DEGREES

__all__ = ["pose_figures", "t_sne"]

TSNE_IMAGES = 2000
MEMBERS = 4  # pictures shown of every cluster
BIN_DEGREES = 10


def pose_figures(run: LoadedRun, data: LabelledImages, seed: int) -> dict[str, Figure]:
    """Every figure, by name; of a model without latents, those that need none; `clusters` where there are several."""
    assert isinstance(run.model, PoseModel)
    model, limits = run.model, limits_of(run.model.config)
    figures = {
        "pictures": pictures(model, data, limits, seed),
        "angles": error_against_angle(model, data, limits, seed),
    }
    if isinstance(model, LatentModel):
        generator = torch.Generator().manual_seed(seed)
        some = data.subset(torch.randperm(len(data), generator=generator)[:TSNE_IMAGES])
        shown = observe(some.images.float() / 255, limits.draw(len(some), seed))
        if (assigned := clusters(model, shown).argmax(1)).unique().numel() > 1:
            figures["clusters"] = cluster_means(model, shown, assigned)
        points = t_sne(latents(model, shown)[0], seed)
        figures["tsne-z_c"] = scatter(points, some.labels, data.class_names, "t-SNE of z_c")
    return figures


def pictures(model: PoseModel, data: LabelledImages, limits: Limits, seed: int) -> Figure:
    """Rows input, reconstruction, upright truth, rectified, canonical; one column a class, turned at random."""
    chosen = torch.cat(one_a_class(data, 1, seed))
    upright = data.images[chosen].float() / 255
    known = limits.draw(len(upright), seed)
    shown = upright if data.turns is not None else observe(upright, known)
    seen = canonicals(model, shown)
    rows = {"input": shown}
    if isinstance(model, LatentModel):
        rows["reconstruction"] = resample(seen.canonical, inverse(seen.pose.matrix), padding="border")
    if data.turns is None:
        rows["upright"] = upright
    rows["rectified"] = seen.rectified
    if isinstance(model, LatentModel):
        rows["canonical"] = seen.canonical
    title = f"{'supervised' if model.config.supervised else 'unsupervised'}, {model.config.group}"
    return grid_figure(list(rows.values()), list(rows), title)


def error_against_angle(model: PoseModel, data: LabelledImages, limits: Limits, seed: int) -> Figure:
    """Median and 90 % quantile of the rotation's error, and the share of flips, over the true angle."""
    upright = data.images.float() / 255
    if data.turns is not None:
        known, shown = rotation_matrices(torch.rad2deg(data.turns)), upright
    else:
        known = limits.draw(len(data), seed)
        shown = observe(upright, known)
    before = baselines.identity(upright) if model.config.supervised else poses(model, upright).matrix
    found = measures.error_matrices(before, poses(model, shown).matrix, known)
    errors, angles = measures.rotation_errors(found).numpy(), measures.rotation_degrees(known).numpy()
    edges = np.linspace(-limits.degrees, limits.degrees, max(1, round(2 * limits.degrees / BIN_DEGREES)) + 1)
    width = edges[1] - edges[0]
    which = np.clip(np.digitize(angles, edges) - 1, 0, len(edges) - 2)
    filled = [index for index in range(len(edges) - 1) if (which == index).any()]
    middles = edges[filled] + width / 2
    figure = Figure((8, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for share, name, style in ((0.5, "median", "-"), (0.9, "90 % quantile", "--")):
        values = [float(np.quantile(errors[which == index], share)) for index in filled]
        axes.plot(middles, values, style, color=ACCENT, label=name)
    axes.set_xlabel("true angle, degrees")
    axes.set_ylabel("error, degrees")
    axes.set_yscale("log")
    bottom, top = np.log10(axes.get_ylim())
    axes.set_ylim(10 ** np.floor(bottom), 10 ** np.ceil(top))  # whole decades, so that their ends have numbers
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    flips = axes.twinx()
    shares = [100 * float((errors[which == index] > FLIP_DEGREES).mean()) for index in filled]
    flips.bar(middles, shares, width=0.8 * width, color=SECOND, alpha=0.3, label="over 90 degrees")
    flips.set_ylabel("over 90 degrees, %")
    kind = "absolute" if model.config.supervised else "relative"
    axes.set_title(f"{kind} error of the rotation", fontsize=11)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def cluster_means(model: LatentModel, shown: Tensor, assigned: Tensor) -> Figure:
    """One column a cluster: the decoder's picture of its mean z_c and z, and some members as they are shown."""
    cluster, rest = latents(model, shown)
    columns = []
    for index in range(int(assigned.max()) + 1):
        members = torch.nonzero(assigned == index).flatten()
        if not len(members):
            continue
        with torch.no_grad():
            mean = model.decode(cluster[members].mean(0, keepdim=True), rest[members].mean(0, keepdim=True))
        columns.append(torch.cat([mean, shown[members[torch.arange(MEMBERS) % len(members)]]]))
    rows = list(torch.stack(columns).unbind(1))
    return grid_figure(rows, ["mean, decoded", *[""] * MEMBERS], "clusters: the decoded mean, and members as shown")


def t_sne(features: Tensor, seed: int) -> np.ndarray:
    """The map of the invariant embeddings of turned pictures: [N,D] -> [N,2]"""
    perplexity = min(30.0, (len(features) - 1) / 3)
    points: np.ndarray = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(
        features.double().numpy()
    )
    return points
