"""What `classify` answers, of an EquiVAE and of an MCE-VAE whose data has classes, and its scores.

The model is in evaluation mode and calibrated. Pictures go through it in chunks, on the device where it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.datasets import LabelledImages
from training.evaluation.probes import as_float
from training.evaluation.scores import expected_calibration_error, percent
from training.models.equivae import EquiVAE
from training.models.mcevae import MCEVAE

__all__ = ["CHUNK", "NOVEL", "Served", "chunks", "class_scores", "listed", "mistakes", "serve", "serve_embeddings"]

CHUNK = 500
NOVEL = 0.99  # a score above this is called novel


@dataclass(frozen=True)
class Served:
    """What `classify` answers: embedding [N,D], distances [N,K], probabilities [N,K], novelty [N]."""

    embedding: np.ndarray
    distances: np.ndarray
    probabilities: np.ndarray
    novelty: np.ndarray


def chunks(images: Tensor, model: EquiVAE | MCEVAE) -> Iterator[Tensor]:
    """[N,C,H,W], uint8 or in [0,1] -> float chunks in [0,1] on the model's device."""
    for chunk in torch.split(images, CHUNK):
        yield as_float(chunk.to(next(model.parameters()).device))


@torch.no_grad()
def serve(model: EquiVAE | MCEVAE, images: Tensor) -> Served:
    """Images [N,C,H,W], uint8 or in [0,1]; of a calibrated model that knows the means of its classes."""
    parts = [[value.cpu().numpy() for value in model.classify(chunk)] for chunk in chunks(images, model)]
    return Served(*(np.concatenate(column) for column in zip(*parts, strict=True)))


@torch.no_grad()
def serve_embeddings(model: EquiVAE, embeddings: Tensor) -> Served:
    """`serve` of pictures whose embeddings [N,D] are known."""
    device = model.classes.prototypes.device
    parts = [(own, *model.classes(own.to(device))) for own in torch.split(embeddings, CHUNK)]
    return Served(*(torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)))


def class_scores(served: Served, labels: np.ndarray) -> dict[str, float]:
    """Error (%) by distance to the class means and the calibration of the served probabilities, of labels [N]."""
    own = served.probabilities[np.arange(len(labels)), labels]
    return {
        "error": percent(served.distances.argmin(1) != labels),
        "ece": expected_calibration_error(served.probabilities, labels),
        "nll": float(-np.log(np.maximum(own, 1e-12)).mean()),
    }


@dataclass(frozen=True)
class Mistake:
    """A picture that is read wrongly: its place among those measured, its class and the one it is read as, the
    probability of the latter, and its novelty.
    """

    place: int
    label: int
    read_as: int
    probability: float
    novelty: float


def mistakes(served: Served, labels: np.ndarray) -> list[Mistake]:
    """Of labels [N], the surest first."""
    read_as = served.distances.argmin(1)
    wrong = np.flatnonzero(read_as != labels)
    probabilities = served.probabilities[wrong, read_as[wrong]]
    columns = (wrong, labels[wrong], read_as[wrong], probabilities, served.novelty[wrong])
    found = [Mistake(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]
    return sorted(found, key=lambda mistake: -mistake.probability)


def listed(found: list[Mistake], data: LabelledImages) -> list[dict[str, Any]]:
    """Mistakes with names: of the classes, and of the picture where it was read from a file of its own."""
    return [
        {
            "picture": mistake.place if data.files is None else data.files[mistake.place],
            "class": data.class_names[mistake.label],
            "read_as": data.class_names[mistake.read_as],
            "probability": round(mistake.probability, 4),
            "novelty": round(mistake.novelty, 4),
        }
        for mistake in found
    ]
