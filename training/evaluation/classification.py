"""What `classify` answers, of an EquiVAE and of an MCE-VAE whose data has classes, and its scores.

The model is in evaluation mode and calibrated. Pictures go through it in chunks, on the device where it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from training.evaluation.probes import as_float
from training.evaluation.scores import expected_calibration_error, percent
from training.models.equivae import EquiVAE
from training.models.mcevae import MCEVAE

__all__ = ["CHUNK", "NOVEL", "Served", "chunks", "class_scores", "serve"]

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


def class_scores(served: Served, labels: np.ndarray) -> dict[str, float]:
    """Error (%) by distance to the class means and the calibration of the served probabilities, of labels [N]."""
    own = served.probabilities[np.arange(len(labels)), labels]
    return {
        "error": percent(served.distances.argmin(1) != labels),
        "ece": expected_calibration_error(served.probabilities, labels),
        "nll": float(-np.log(np.maximum(own, 1e-12)).mean()),
    }
