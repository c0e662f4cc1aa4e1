"""What is measured on a trained EquiVAE: each function takes the model and a split and returns plain numbers.

The model is in evaluation mode and calibrated. Pictures go through it in chunks, on the device where it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from training.datasets import LabelledImages
from training.distances import squared_distances
from training.evaluation import negatives
from training.evaluation.classification import CHUNK, NOVEL, Served, chunks, serve
from training.evaluation.probes import Judge, predict
from training.evaluation.scores import auroc, percent
from training.latent import kl_per_dimension
from training.models.equivae import EquiVAE
from training.models.equivae_few import FewLabelEquiVAE

__all__ = [
    "Encoded",
    "elbo_predictions",
    "elbo_terms",
    "encode",
    "hidden_mean_error",
    "intended_prior_samples",
    "intended_swaps",
    "novelty",
    "recombine_images",
]


@dataclass(frozen=True)
class Encoded:
    """The hidden units of f_inv [N,hidden], r = f_inv(x) [N,D] and v = mu(r, x) [N,V], each image with its own r, as
    `recombine` serves it; on the CPU.
    """

    hidden: Tensor
    r: Tensor
    v: Tensor


@torch.no_grad()
def encode(model: EquiVAE, images: Tensor) -> Encoded:
    """Images [N,C,H,W], uint8 or in [0,1]."""
    parts = []
    for chunk in chunks(images, model):
        hidden = model.body(chunk)
        r = model.head(hidden)
        parts.append([value.cpu() for value in (hidden, r, model.posterior(r, chunk)[0])])
    return Encoded(*(torch.cat(column) for column in zip(*parts, strict=True)))


@torch.no_grad()
def classifier_error(model: FewLabelEquiVAE, data: LabelledImages) -> float:
    """Error (%) of argmax q(y|x)."""
    predicted = torch.cat([model.logits(chunk).argmax(1).cpu() for chunk in chunks(data.images, model)])
    return percent((predicted != data.labels).numpy())


@torch.no_grad()
def hidden_mean_error(model: EquiVAE, train: Encoded, train_labels: Tensor, data: Encoded, labels: Tensor) -> float:
    """Error (%) where a class's r_y is the head on the class's mean hidden units, the other reading of Eq. 2."""
    means = torch.stack([train.hidden[train_labels == k].mean(0) for k in range(model.num_classes)])
    prototypes = model.head(means.to(model.classes.prototypes.device)).cpu()
    nearest = torch.cat([squared_distances(r, prototypes).argmin(1) for r in torch.split(data.r, CHUNK)])
    return percent((nearest != labels).numpy())


@torch.no_grad()
def elbo_terms(model: EquiVAE, data: LabelledImages, seed: int) -> tuple[float, list[float]]:
    """Mean reconstruction and mean KL of every dimension of v, in nats an image (Eq. 4).

    r_y is the prototype of the true class; one draw of v for the reconstruction.
    """
    generator = torch.Generator().manual_seed(seed)
    nats, kl = 0.0, torch.zeros(model.config.v_dim)
    for chunk, labels in zip(chunks(data.images, model), torch.split(data.labels, CHUNK), strict=True):
        r = model.classes.prototypes[labels.to(chunk.device)]
        mean, log_variance = model.posterior(r, chunk)
        noise = torch.randn(mean.shape, generator=generator).to(mean.device)
        v = mean + torch.exp(0.5 * log_variance) * noise
        nats += float(model.reconstruction(chunk, r, v).sum())
        kl += kl_per_dimension(mean, log_variance).sum(0).cpu()
    return nats / len(data), (kl / len(data)).tolist()


@torch.no_grad()
def elbo_predictions(model: EquiVAE, data: LabelledImages, class_shares: Tensor, seed: int) -> np.ndarray:
    """argmax_y of the ELBO [N]: every class tried as y, one draw of v with the same noise for all of them (Eq. 4)."""
    generator = torch.Generator().manual_seed(seed)
    predictions = []
    for chunk in chunks(data.images, model):
        noise = torch.randn((len(chunk), model.config.v_dim), generator=generator).to(chunk.device)
        features = model.posterior.body(chunk)
        scores = []
        for prototype, prior in zip(model.classes.prototypes, torch.log(class_shares).tolist(), strict=True):
            r = prototype.expand(len(chunk), -1)
            mean, log_variance = model.posterior.given(features, r)
            v = mean + torch.exp(0.5 * log_variance) * noise
            kl = kl_per_dimension(mean, log_variance).sum(1)
            scores.append(prior - model.reconstruction(chunk, r, v) - kl)
        predictions.append(torch.stack(scores, 1).argmax(1).cpu())
    return torch.cat(predictions).numpy()


# --- what the decoder makes, judged by an independent CNN ------------------------------------------------------------


@torch.no_grad()
def recombine_images(model: EquiVAE, r: Tensor, v: Tensor) -> Tensor:
    """[N,D], [N,V] -> pictures [N,C,H,W] on the CPU."""
    device = model.classes.prototypes.device
    pairs = zip(torch.split(r, CHUNK), torch.split(v, CHUNK), strict=True)
    return torch.cat([model.decode(own_r.to(device), own_v.to(device)).cpu() for own_r, own_v in pairs])


def intended_prior_samples(model: EquiVAE, class_means: Tensor, judge: Judge, count: int, seed: int) -> float:
    """Share (%) of decode(r_y, v), v ~ N(0,I), that the judge takes for y; `count` in all, every class equally often.

    class_means: r_y [K,D], by the paper those of the validation images (Fig. 4)
    """
    labels = torch.arange(count) % model.num_classes
    v = torch.randn((count, model.config.v_dim), generator=torch.Generator().manual_seed(seed))
    images = recombine_images(model, class_means.cpu()[labels], v)
    return percent((predict(judge.network, images) == labels).numpy())


def intended_swaps(model: EquiVAE, encoded: Encoded, labels: Tensor, judge: Judge, seed: int) -> float:
    """Share (%) of decode(r(content), v(style)) that the judge takes for the content's class; every image, of two at
    least, is content once and style once, of a random other image.
    """
    count = len(labels)
    shift = 1 + int(torch.randint(count - 1, (1,), generator=torch.Generator().manual_seed(seed)))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    style = torch.empty_like(order)
    style[order] = order.roll(shift)
    images = recombine_images(model, encoded.r, encoded.v[style])
    return percent((predict(judge.network, images) == labels).numpy())


# --- novelty ----------------------------------------------------------------------------------------------------------


def novelty(
    model: EquiVAE, served: Served, outliers: Tensor | None, count: int, seed: int
) -> dict[str, dict[str, float]]:
    """Novelty of the data, as it is served, against its own `outliers` uint8 [O,C,H,W], where it has any, and `count`
    pictures of each kind that belongs to no class.

    Returns:
        "known": false_alarms (%); every kind: auroc, caught (%), the share that is called novel; "all": auroc against
        photographs, textures and noise together.
    """
    known = served.novelty
    result = {"known": {"false_alarms": percent(known > NOVEL)}}
    scores = {kind: serve(model, negatives.draw(kind, model.input, count, seed)).novelty for kind in negatives.KINDS}
    if outliers is not None:
        scores["outliers"] = serve(model, outliers).novelty
    for kind in scores:
        result[kind] = {"auroc": auroc(known, scores[kind]), "caught": percent(scores[kind] > NOVEL)}
    together = np.concatenate([scores[kind] for kind in ("photographs", "textures", "noise")])
    result["all"] = {"auroc": auroc(known, together), "caught": percent(together > NOVEL)}
    return result
