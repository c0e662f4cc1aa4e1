"""Readers of turned digits beside each other: `python -m benchmarks.readers --json results/readers.json`.

A plain CNN without augmentation and with it, and the canonicaliser over C_n (training/orientation/readers.py), each
trained on MNIST's 55,000 for as many steps. Errors (%) on upright pictures and on pictures turned by U(+-60) and
U(+-90) degrees; for the canonicaliser the median error of its angle between a picture and the same one turned. Its
angles are multiples of 360/n, so that error cannot fall below a quarter of that.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training import datasets
from training.config import MnistData
from training.datasets import LabelledImages
from training.orientation.measures import wrapped_degrees
from training.orientation.readers import LiftedReader, fit_reader
from training.orientation.views import observe, rotation_matrices
from training.probes import predict, seeded, small_cnn
from training.scores import percent

RANGE = 90.0  # degrees, of the turns in training
CHUNK = 250


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
