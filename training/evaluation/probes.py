"""Classifiers trained beside a model to judge it: on its embeddings, on its architecture, and independent of it.

Each is trained on the training split with AdamW and one cosine cycle, is a function of its seed, and is never selected
by any score: what comes out after the last step counts.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F

from training.datasets import LabelledImages, Splits
from training.files import serialise, write_atomically
from training.minimise import minimise
from training.models.equivae import EquiVAE

__all__ = [
    "Judge",
    "as_float",
    "benchmark_cnn",
    "fit_classifier",
    "independent_cnn",
    "linear_probe_accuracy",
    "neural_head",
    "predict",
    "seeded",
    "small_cnn",
]

log = logging.getLogger(__name__)

CHUNK = 500  # inputs a forward pass where no gradient is kept
JUDGE_FILE = "judge.pt"
JUDGE_BATCH = 128
JUDGE_STEPS = 1200
JUDGE_EPOCHS = 20  # upper limit, unless JUDGE_LEAST_STEPS needs more; on scikit-learn's digits 60 make it no better
JUDGE_LEAST_STEPS = 200  # of a hundred pictures, twenty epochs are twenty steps


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Initial weights and dropout masks inside follow from the seed; the process's own random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def as_float(inputs: Tensor) -> Tensor:
    """Pixels uint8 [...] -> [0,1]; features as they are."""
    return inputs.float() / 255 if inputs.dtype == torch.uint8 else inputs


def fit_classifier(
    network: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    steps: int,
    generator: torch.Generator,
    batch: int = 128,
    rate: float = 2e-3,
) -> nn.Module:
    """Minimise the cross-entropy of `network`'s logits [B,K]; it comes back in evaluation mode.

    Args:
        inputs: uint8 pixels [N,C,H,W] or float features [N,D], on the network's device.
        labels: int64 [N]
    """
    optimiser = torch.optim.AdamW(network.parameters(), rate, weight_decay=1e-2, fused=True)

    def loss(step: int) -> Tensor:
        chosen = torch.randint(len(labels), (min(batch, len(labels)),), generator=generator).to(inputs.device)
        return F.cross_entropy(network(as_float(inputs[chosen])), labels[chosen])

    network.train()
    minimise(optimiser, steps, loss, warm_up=50)
    return network.eval()


@torch.no_grad()
def predict(network: nn.Module, inputs: Tensor) -> Tensor:
    """The likeliest class of every input, int64 [N] on the CPU."""
    device = next(network.parameters()).device
    return torch.cat([network(as_float(chunk.to(device))).argmax(1).cpu() for chunk in torch.split(inputs, CHUNK)])


def _dropout_head(width: int, num_classes: int) -> nn.Sequential:
    """The paper's neural classifier, App. B: dropout dense 128 and 64. The rate is not stated: 0.5."""
    return nn.Sequential(
        nn.Linear(width, 128),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(128, 64),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(64, num_classes),
    )


def neural_head(embeddings: Tensor, labels: Tensor, num_classes: int, seed: int, steps: int = 3000) -> nn.Module:
    """Dropout dense layers on frozen f_inv(x) [N,D] (Table 1, "neural network classifier")."""
    with seeded(seed):
        head = _dropout_head(embeddings.shape[1], num_classes).to(embeddings.device)
        scaled = nn.Sequential(_Standardise(embeddings), head)
        return fit_classifier(scaled, embeddings, labels, steps=steps, generator=torch.Generator().manual_seed(seed))


class _Standardise(nn.Module):
    """Zero mean and unit deviation over the training features: the scale of r is the model's own choice."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", features.mean(0))
        self.register_buffer("deviation", features.std(0).clamp_min(1e-6))

    def forward(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.deviation


def benchmark_cnn(model: EquiVAE, train: LabelledImages, seed: int, epochs: int) -> nn.Module:
    """f_inv's body with new weights and two dropout layers, trained on the label alone (Table 1, "benchmark")."""
    device = model.classes.prototypes.device
    with seeded(seed):
        body = EquiVAE(model.config, model.input, model.num_classes).body
        network = nn.Sequential(body, _dropout_head(model.config.encoder.hidden, model.num_classes)).to(device)
        return fit_classifier(
            network,
            train.images.to(device),
            train.labels.to(device),
            steps=epochs * math.ceil(len(train) / 128),
            generator=torch.Generator().manual_seed(seed),
        )


def linear_probe_accuracy(train: Tensor, train_labels: Tensor, features: Tensor, labels: Tensor) -> float:
    """Accuracy in % of a logistic regression on standardised features [N,D]: how much class they give away linearly."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    probe.fit(np.asarray(train), np.asarray(train_labels))
    return 100 * float(probe.score(np.asarray(features), np.asarray(labels)))


# --- the independent judge of generated pictures ---------------------------------------------------------------------


@dataclass(frozen=True)
class Judge:
    """A classifier that shares neither weights nor architecture with the model it judges.

    validation_error: its own error on the validation split, %: its verdicts are no better than that.
    """

    network: nn.Module
    validation_error: float


def small_cnn(channels: int, side: int, num_classes: int) -> nn.Sequential:
    """3x3 convolutions with batch norm; pictures of 16 pixels and more are halved at once and once again."""
    first = 2 if side >= 16 else 1
    layers: list[nn.Module] = []
    widths = [channels, 32, 64, 64]
    for inputs, outputs, stride in zip(widths, widths[1:], (first, 1, 2), strict=False):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    features = 64 * math.ceil(math.ceil(side / first) / 2) ** 2
    layers += [nn.Flatten(), nn.Dropout(0.3), nn.Linear(features, 128), nn.ReLU(), nn.Linear(128, num_classes)]
    return nn.Sequential(*layers)


def independent_cnn(run: Path, splits: Splits, seed: int = 0, steps: int = JUDGE_STEPS) -> Judge:
    """Train the judge on the training split, or take it from the run's folder where an earlier call left it."""
    spec = splits.input
    steps = min(steps, max(JUDGE_LEAST_STEPS, JUDGE_EPOCHS * math.ceil(len(splits.train) / JUDGE_BATCH)))
    with seeded(seed):
        network = small_cnn(spec.channels, spec.height, len(splits.class_names))
    recipe = f"{splits.digest} {seed} {steps} {network}"
    made_of = hashlib.sha256(recipe.encode()).hexdigest()
    cached = run / JUDGE_FILE
    state = _read_judge(cached)
    if state.get("made_of") == made_of:
        network.load_state_dict(state["weights"])
        return Judge(network.eval(), state["validation_error"])
    log.info("training the independent CNN: %d steps", steps)
    with seeded(seed):
        generator = torch.Generator().manual_seed(seed)
        fit_classifier(
            network, splits.train.images, splits.train.labels, steps=steps, generator=generator, batch=JUDGE_BATCH
        )
    wrong = predict(network, splits.validation.images) != splits.validation.labels
    error = 100 * float(wrong.float().mean())
    state = {"made_of": made_of, "validation_error": error, "weights": network.state_dict()}
    write_atomically(cached, serialise(state))
    return Judge(network, error)


def _read_judge(path: Path) -> dict[str, Any]:
    """What an earlier call left; nothing where there is none, or it is damaged: then it is made anew."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a damaged file fails in as many ways as it has bytes
        return {}
    return state if isinstance(state, dict) and state.keys() >= {"made_of", "validation_error", "weights"} else {}
