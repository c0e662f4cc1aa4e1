"""Data efficiency of an exported model of rotations: python -m training.symmetry_experiments.efficiency MODEL_FOLDER

The data are MNIST as the model has seen it, every picture turned once. `classifier`: a CNN on few labels, its pictures
as they are, turned by hand over the range that made the data, or under A A(x)^-1 with A drawn from p(eta|x^). `vae`: a
VAE on a part of the pictures with the same three, held to the reconstruction of unseen ones; the third is AugVAE of the
later paper. Beside them stands what the model itself makes of the same unseen pictures.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contract.manifest import read_verified
from training import datasets
from training.config import restore_config
from training.datasets import LabelledImages
from training.evaluation.views import observe, rotation_matrices
from training.latent import kl_per_dimension, sample
from training.lie import inverse, resample
from training.minimise import minimise
from training.models.symmetry_config import SymmetryConfig
from training.networks import ConvBody, DenseDecoder, dense, he_initialise
from training.symmetry_experiments.common import keep
from training.turned import uniform

CHUNK, BATCH = 250, 128
LABELS, PICTURES = (100, 1000, 10_000), (12_500, 25_000, 50_000)
LATENT = 20

Augmentation = Callable[[Tensor, Tensor, torch.Generator], Tensor]
"""Pictures [B,C,S,S] and their rows -> what is trained on."""


def seen(data: LabelledImages, degrees: float, seed: int) -> Tensor:
    """Every picture once turned by U(+-degrees): [N,C,S,S]"""
    angles = torch.rad2deg(uniform(len(data), math.radians(degrees), torch.Generator().manual_seed(seed)))
    return observe(data.images.float() / 255, rotation_matrices(angles))


class Exported:
    """A model folder with its data: the range of its turns, and what its graphs make of pictures [N,C,S,S]."""

    def __init__(self, folder: Path) -> None:
        manifest, files = read_verified(folder)
        config = restore_config(manifest.training["config"])
        assert isinstance(config.model, SymmetryConfig)
        self.degrees, self.samples = config.model.rotation_degrees, config.model.samples
        self.data, self.digest = config.data, manifest.data["digest"]
        self.drawer, self.finder = (
            onnxruntime.InferenceSession(files[manifest.graphs[name].file], providers=["CPUExecutionProvider"])
            for name in ("augment", "canonicalize")
        )

    def draw(self, pictures: Tensor, seed: int) -> Tensor:
        """Matrices of `samples` plausible variants of each: [N,S,2,3]"""
        source = torch.Generator().manual_seed(seed)
        parts = []
        for part in torch.split(pictures, CHUNK):
            noise = torch.randn(len(part), self.samples, 1, generator=source)
            parts += self.drawer.run(["matrices"], {"image": part.numpy(), "noise": noise.numpy()})
        return torch.cat([torch.from_numpy(part) for part in parts])

    def rebuild(self, pictures: Tensor) -> Tensor:
        """The prototype of each under the transform found."""
        parts = []
        for part in torch.split(pictures, CHUNK):
            found = self.finder.run(["canonical", "matrix"], {"image": part.numpy()})
            prototype, matrix = map(torch.from_numpy, found)
            parts.append(resample(prototype, inverse(matrix)))
        return torch.cat(parts)


def augmentations(degrees: float, matrices: Tensor) -> dict[str, Augmentation]:
    """By name: none, turns by U(+-degrees), and for row i of the data one of the matrices [N,S,2,3][i]."""

    def none(pictures: Tensor, rows: Tensor, source: torch.Generator) -> Tensor:
        return pictures

    def by_hand(pictures: Tensor, rows: Tensor, source: torch.Generator) -> Tensor:
        angles = torch.rad2deg(uniform(len(pictures), math.radians(degrees), source))
        return observe(pictures, rotation_matrices(angles))

    def plausible(pictures: Tensor, rows: Tensor, source: torch.Generator) -> Tensor:
        chosen = torch.randint(matrices.shape[1], rows.shape, generator=source)
        return resample(pictures, matrices[rows, chosen], "bicubic").clamp(0, 1)

    return {"none": none, "by_hand": by_hand, "plausible": plausible}


class _Classifier(nn.Module):
    def __init__(self, channels: int, side: int, classes: int) -> None:
        super().__init__()
        self.body = ConvBody(channels, side, (16, 32, 64), (2, 2, 2), 3, norm=True)
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(self.body.out_features, classes))
        he_initialise(self)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.head(self.body(pictures))


class _VAE(nn.Module):
    """Dense layers, a Gaussian likelihood of one deviation."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), *dense(channels * side**2, 256, 128), nn.Linear(128, 2 * LATENT))
        self.decoder = DenseDecoder(LATENT, channels, side, (128, 256))
        self.log_sigma = nn.Parameter(torch.full((), -1.0))

    def forward(self, pictures: Tensor, source: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encoder(pictures).chunk(2, 1)
        log_variance = log_variance.clamp(-10, 10)
        z = mean if source is None else sample(mean, log_variance, source)
        return torch.sigmoid(self.decoder(z)), mean, log_variance

    def loss(self, pictures: Tensor, source: torch.Generator) -> Tensor:
        rebuilt, mean, log_variance = self(pictures, source)
        sigma = self.log_sigma.clamp(-4, 1)
        nats = 0.5 * ((rebuilt - pictures) * torch.exp(-sigma)) ** 2 + sigma
        return (nats.flatten(1).sum(1) + kl_per_dimension(mean, log_variance).sum(1)).mean()


def _fit(network: nn.Module, steps: int, loss: Callable[[int], Tensor]) -> None:
    minimise(torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=1e-3), steps, loss)
    network.eval()


def classifier_error(
    pictures: Tensor, labels: Tensor, change: Augmentation, test: tuple[Tensor, Tensor], steps: int, seed: int
) -> float:
    """Error in % of a CNN on `test` (pictures, labels)."""
    torch.manual_seed(seed)
    source = torch.Generator().manual_seed(seed)
    network = _Classifier(pictures.shape[1], pictures.shape[3], int(labels.max()) + 1)

    def loss(step: int) -> Tensor:
        rows = torch.randint(len(pictures), (BATCH,), generator=source)
        return F.cross_entropy(network(change(pictures[rows], rows, source)), labels[rows])

    _fit(network, steps, loss)
    with torch.no_grad():
        found = torch.cat([network(part).argmax(1) for part in torch.split(test[0], 1000)])
    return 100 * float((found != test[1]).float().mean())


def vae_error(pictures: Tensor, change: Augmentation, test: Tensor, steps: int, seed: int) -> float:
    """Mean squared error of the reconstruction of `test`, pixels in [0,1]."""
    torch.manual_seed(seed)
    source = torch.Generator().manual_seed(seed)
    network = _VAE(pictures.shape[1], pictures.shape[3])

    def loss(step: int) -> Tensor:
        rows = torch.randint(len(pictures), (BATCH,), generator=source)
        return network.loss(change(pictures[rows], rows, source), source)

    _fit(network, steps, loss)
    with torch.no_grad():
        return float(torch.cat([(network(part, None)[0] - part).pow(2) for part in torch.split(test, 1000)]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a version's folder of a model of kind symmetry")
    parser.add_argument("--what", choices=("classifier", "vae"), nargs="+", default=["classifier", "vae"])
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--steps", type=int, default=1000, help="of each network (default: 1000)")
    parser.add_argument("--sizes", type=int, nargs="+", help="labels, or pictures (default: as the papers have them)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path("results/symmetry-efficiency.json"))
    options = parser.parse_args()
    model = Exported(options.model)
    degrees, splits = model.degrees, datasets.load(model.data)
    if splits.digest != model.digest:
        parser.error(f"the data set {splits.name} is not the one that {options.model} was trained on")
    data = splits.parts[options.split]
    test = seen(data, degrees, options.seed + 1)
    for what in options.what:
        for size in options.sizes or (LABELS if what == "classifier" else PICTURES):
            part = splits.train.subset(torch.arange(size))
            pictures = seen(part, degrees, options.seed)
            matrices = model.draw(pictures, options.seed)
            found = {
                name: classifier_error(pictures, part.labels, change, (test, data.labels), options.steps, options.seed)
                if what == "classifier"
                else vae_error(pictures, change, test, options.steps, options.seed)
                for name, change in augmentations(degrees, matrices).items()
            }
            if what == "vae":
                found["model"] = float(F.mse_loss(model.rebuild(test), test))
            protocol = {"split": options.split, "n": len(data), "steps": options.steps, "seed": options.seed}
            keep(options.json, f"{what}_{size}", {**protocol, **found})
            print(what, size, found, flush=True)


if __name__ == "__main__":
    main()
