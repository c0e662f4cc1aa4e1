"""Readers of turned digits beside each other: `python -m benchmarks.readers --json results/readers.json`.

A plain CNN without augmentation and with it, and the canonicaliser over C_n, each trained on MNIST's 55,000 for as many
steps. Errors (%) on upright pictures and on pictures turned by U(+-60) and U(+-90) degrees; for the canonicaliser the
median error of its angle between a picture and the same one turned. Its angles are multiples of 360/n, so that error
cannot fall below a quarter of that.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training import datasets
from training.config import MnistData
from training.datasets import LabelledImages
from training.evaluation.pose_measures import wrapped_degrees
from training.evaluation.probes import fit_classifier, predict, seeded, small_cnn
from training.evaluation.scores import percent
from training.evaluation.views import observe, rotation_matrices
from training.lie import resample
from training.turned import move, similarity, uniform

RANGE = 90.0  # degrees, of the turns in training
CHUNK = 250


class Turned(nn.Module):
    """Pictures [N,C,S,S] each turned by U(+-degrees) in training, as they are in evaluation."""

    def __init__(self, degrees: float) -> None:
        super().__init__()
        self.degrees = degrees

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return images
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        angle = uniform(len(images), math.radians(self.degrees), generator)
        return move(images, similarity(angle).to(images.device))


class LiftedReader(nn.Module):
    """Logits of the class read from the best of n copies of the picture, turned back by 0, 360/n, ... degrees:
    [N,C,S,S] -> [N,K]

    An energy net shared by the copies scores each, and a CNN reads the best one (Kaba et al. 2023, with the discrete
    group C_n): whatever the energy net learns, a turn by 360/n degrees changes nothing but the order of the copies.
    """

    angles: Tensor

    def __init__(self, channels: int, side: int, num_classes: int, copies: int) -> None:
        super().__init__()
        self.register_buffer("angles", 360.0 * torch.arange(copies) / copies)
        self.energy = small_cnn(channels, side, 1)
        self.reader = small_cnn(channels, side, num_classes)

    def scores(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Energies [N,n], the highest the best, and the copies [N,n,C,S,S]."""
        count, copies = len(images), len(self.angles)
        matrices = rotation_matrices(self.angles).to(images.device).repeat(count, 1, 1)
        flat = resample(images.repeat_interleave(copies, 0), matrices)
        return self.energy(flat).view(count, copies), flat.view(count, copies, *images.shape[1:])

    def forward(self, images: Tensor) -> Tensor:
        energies, copies = self.scores(images)
        soft = torch.softmax(energies, 1)
        best = torch.zeros_like(soft).scatter(1, energies.argmax(1, keepdim=True), 1.0)
        weights = best + soft - soft.detach()  # the best copy alone, with the gradient of the mixture
        return self.reader((weights[:, :, None, None, None] * copies).sum(1))

    def degrees(self, images: Tensor) -> Tensor:
        """The turn that the best copy undoes: [N]"""
        return self.angles[self.scores(images)[0].argmax(1)]


def fit_reader(network: nn.Module, images: Tensor, labels: Tensor, degrees: float, steps: int, seed: int) -> nn.Module:
    """Train on upright pictures uint8 [N,C,S,S], each turned anew by U(+-degrees); `network` itself comes back."""
    with seeded(seed):
        generator = torch.Generator().manual_seed(seed)
        fit_classifier(nn.Sequential(Turned(degrees), network), images, labels, steps=steps, generator=generator)
    return network


def angles(count: int, limit: float, seed: int) -> Tensor:
    return (2 * torch.rand(count, generator=torch.Generator().manual_seed(seed)) - 1) * limit


@torch.no_grad()
def degrees_found(network: LiftedReader, images: Tensor) -> Tensor:
    return torch.cat([network.degrees(part) for part in torch.split(images, CHUNK)])


def measured(network: nn.Module, data: LabelledImages, seed: int) -> dict[str, float]:
    upright = data.images.float() / 255
    found = {}
    for limit in (0.0, 60.0, 90.0):
        turn = angles(len(data), limit, seed)
        shown = observe(upright, rotation_matrices(turn)) if limit else upright
        found[f"error_{limit:g}"] = percent((predict(network, shown) != data.labels).numpy())
        if isinstance(network, LiftedReader) and limit == 60:
            moved = degrees_found(network, shown) - degrees_found(network, upright)
            found["median_degrees_60"] = float(wrapped_degrees(moved - turn).abs().median())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000, help="of 128 pictures each")
    parser.add_argument("--copies", type=int, default=16, help="n of C_n")
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--limit", type=int, help="measure on so many pictures only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    splits = datasets.load(MnistData(source="mnist"))
    data = splits.parts[chosen.split]
    data = data.subset(torch.arange(min(chosen.limit or len(data), len(data))))
    channels, side, classes = splits.input.channels, splits.input.height, len(splits.class_names)
    with seeded(chosen.seed):
        readers: dict[str, tuple[nn.Module, float]] = {
            "plain CNN": (small_cnn(channels, side, classes), 0.0),
            "CNN with augmentation": (small_cnn(channels, side, classes), RANGE),
            f"canonicaliser over C_{chosen.copies}": (LiftedReader(channels, side, classes, chosen.copies), RANGE),
        }
    rows: list[dict[str, Any]] = []
    for name, (network, degrees) in readers.items():
        began = time.process_time()
        fit_reader(network, splits.train.images, splits.train.labels, degrees, chosen.steps, chosen.seed)
        minutes = (time.process_time() - began) / 60
        parameters = sum(parameter.numel() for parameter in network.parameters())
        rows.append({"reader": name, "parameters": parameters, "cpu_minutes": minutes} | measured(network, data, 1))
        print(
            ", ".join(
                f"{key} {value:.2f}" if isinstance(value, float) else str(value) for key, value in rows[-1].items()
            )
        )
    if chosen.json:
        protocol = {"split": chosen.split, "n": len(data), "steps": chosen.steps, "seed": chosen.seed}
        chosen.json.write_text(json.dumps({"protocol": protocol, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
