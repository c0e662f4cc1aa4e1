"""Figures of a trained model of rotations: python -m training.symmetry_experiments.card RUN

What of the poster's headline and third conjecture needs real digits: predicted against applied angle, one prototype an
orbit, modes by class, and the likelihood of the angle under densities that see less of the prototype. Densities are
fitted to the posteriors of training pictures, all with the same steps; figures are drawn of the split that is measured.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training.datasets import LabelledImages
from training.evaluation.plots import ACCENT, Figure, grid_figure, save
from training.evaluation.pose_measures import orbit_errors, psnr
from training.evaluation.report import describe
from training.evaluation.views import even_degrees, observe, rotation_matrices
from training.flow import PoseFlow, WrappedNormal
from training.lie import inverse, resample
from training.minimise import minimise
from training.models.symmetry import Symmetry
from training.networks import dense
from training.rotation import wrapped
from training.run import load_run
from training.symmetry_experiments.common import keep
from training.turned import FLIP_DEGREES, uniform

CHUNK = 250
ORBIT_MEMBERS = 36
ORBITS = 200
SAME = 0.1  # of the mean difference between prototypes of two pictures: a prototype that differs by less is the same
FITTED, STEPS, BATCH, DRAWS = 8000, 600, 256, 8  # training pictures, steps of each density, pictures a step, angles
PLAIN_SECOND = 0.2  # weight of a second mode that counts


class _Density(nn.Module):
    """p(eta|x^) of its own features, as the model has them."""

    def __init__(self, kind: str, model: Symmetry) -> None:
        super().__init__()
        flow = model.config.flow
        side, width = model.input.height, flow.features[-1]
        self.features = dense(model.input.channels * side**2, *flow.features)
        self.density: nn.Module = (
            WrappedNormal(width, flow.hidden)
            if kind == "gaussian"
            else PoseFlow(1, width if kind == "flow" else 0, flow.hidden, flow.bins, flow.transforms)
        )

    def log_prob(self, prototypes: Tensor, angles: Tensor) -> Tensor:
        """Prototypes [N,C,S,S], angles [K,N] -> [K,N] in nats"""
        found: Tensor = self.density.log_prob(self.features(prototypes.flatten(1)), angles[..., None])  # type: ignore[operator]
        return found


class _Seen:
    """Pictures turned as in training, their prototypes and posteriors."""

    @torch.no_grad()
    def __init__(self, model: Symmetry, data: LabelledImages, degrees: float, seed: int) -> None:
        source = torch.Generator().manual_seed(seed)
        self.labels = data.labels
        self.upright = data.images.float() / 255
        self.turn = torch.rad2deg(uniform(len(data), math.radians(degrees), source))
        self.pictures = observe(self.upright, rotation_matrices(self.turn))
        prototypes, posteriors, poses = [], [], []
        for chunk in torch.split(self.pictures, CHUNK):
            prototype = model.prototype(model.embed(chunk))
            prototypes.append(prototype)
            posteriors.append(model.posterior(chunk, prototype))
            poses.append(model.pose_about(chunk, prototype))
        self.prototypes, self.posterior = torch.cat(prototypes), torch.cat(posteriors)
        self.matrix, self.weights = (
            torch.cat([getattr(pose, name) for pose in poses]) for name in ("matrix", "weights")
        )
        self.angle = torch.cat([pose.coefficients[:, 0] for pose in poses])

    def draw(self, count: int, angles: Tensor, source: torch.Generator) -> Tensor:
        """Angles of the posteriors, even within a bin: [count,N]"""
        bins = torch.multinomial(self.posterior, count, replacement=True, generator=source).T
        width = 2 * math.pi / len(angles)
        return angles[bins] + width * (torch.rand(bins.shape, generator=source) - 0.5)


def likelihoods(model: Symmetry, train: _Seen, seen: _Seen, seed: int) -> dict[str, float]:
    """Mean log p(eta|x^) over the posteriors of `seen`, nats, eta in radians."""
    source = torch.Generator().manual_seed(seed)
    eta = seen.draw(DRAWS, model.angles, source)
    found = {"uniform": -math.log(2 * math.pi)}
    targets = train.draw(DRAWS, model.angles, source)
    for kind in ("gaussian", "shared", "flow"):
        torch.manual_seed(seed)
        density = _Density(kind, model)

        def loss(step: int, density: _Density = density) -> Tensor:
            rows = torch.randint(len(train.prototypes), (BATCH,), generator=source)
            return -density.log_prob(train.prototypes[rows], targets[:, rows]).mean()

        minimise(torch.optim.AdamW(density.parameters(), 3e-3), STEPS, loss)
        with torch.no_grad():
            found[kind] = float(density.log_prob(seen.prototypes, eta).mean())
    return found


@torch.no_grad()
def orbits(model: Symmetry, upright: Tensor) -> dict[str, float]:
    """Prototypes of the same picture at even angles of the whole circle."""
    known = rotation_matrices(even_degrees(180, ORBIT_MEMBERS))
    prototypes, floor, rectified = [], [], []
    for picture in upright:
        shown = observe(picture.expand(ORBIT_MEMBERS, -1, -1, -1), known)
        prototype = model.prototype(model.embed(shown))
        prototypes.append(prototype)
        rectified.append(resample(shown, model.pose_about(shown, prototype).matrix))
        floor.append(resample(shown, known))
    members = torch.stack(prototypes)
    first = members[:, 0]
    between = (first - first.roll(1, 0)).pow(2).flatten(1).mean(1).mean()
    farthest = (members - members.mean(1, keepdim=True)).pow(2).flatten(2).mean(2).amax(1)
    return {
        "orbits": float(len(upright)),
        "one_prototype_share": 100 * float((farthest < SAME * between).float().mean()),
        **{
            f"orbit_psnr_{name}": psnr(float(orbit_errors(torch.stack(parts))[0].mean()))
            for name, parts in (("prototype", prototypes), ("rectified", rectified), ("floor", floor))
        },
    }


def _angles(model: Symmetry, seen: _Seen, path: Path) -> dict[str, float]:
    """Found in the picture as turned less found in it upright, against the turn."""
    with torch.no_grad():
        upright = torch.cat([model.pose(part).coefficients[:, 0] for part in torch.split(seen.upright, CHUNK)])
    predicted = torch.rad2deg(wrapped(seen.angle - upright))
    error = torch.rad2deg(wrapped(seen.angle - upright - torch.deg2rad(seen.turn))).abs()
    figure = Figure((5, 4.6), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(seen.turn[:1000], predicted[:1000], ".", ms=2, color=ACCENT)
    axes.set_xlabel("applied, degrees")
    axes.set_ylabel("predicted, degrees")
    save(figure, path)
    spread = torch.rad2deg(wrapped(upright)).abs()
    return {
        "angle_error_mean": float(error.mean()),
        "angle_error_median": float(error.median()),
        "angle_flips_percent": 100 * float((error > FLIP_DEGREES).float().mean()),
        "upright_found_within_45_percent": 100 * float((spread < 45).float().mean()),
    }


def measure(run: Path, split: str, limit: int | None, seed: int, figures: Path) -> dict[str, Any]:
    """All numbers of a finished run on (the first `limit` pictures of) a split; two figures go into a folder."""
    loaded = load_run(run)
    model, splits = loaded.model, loaded.splits()
    assert isinstance(model, Symmetry)
    data = splits.parts[split]
    if limit is not None:
        data = data.subset(torch.arange(min(limit, len(data))))
    degrees = model.config.rotation_degrees
    seen = _Seen(model, data, degrees, seed)
    train = _Seen(model, splits.train.subset(torch.arange(min(FITTED, len(splits.train)))), degrees, seed + 1)
    rebuilt = resample(seen.prototypes, inverse(seen.matrix))
    known = likelihoods(model, train, seen, seed)
    second = seen.weights[:, 1] > PLAIN_SECOND
    with torch.no_grad():
        turns = rotation_matrices(even_degrees(degrees, 9))
        shown = [observe(seen.upright[row : row + 1].expand(9, -1, -1, -1), turns) for row in range(4)]
        rows = []
        for pictures in shown:
            prototype = model.prototype(model.embed(pictures))
            back = resample(prototype, inverse(model.pose_about(pictures, prototype).matrix))
            rows += [pictures, back, prototype]
    save(grid_figure(rows, ["shown", "rebuilt", "prototype"] * 4, "four orbits"), figures / "orbits.png")
    return {
        **describe(loaded),
        "split": split,
        "n": len(data),
        "seed": seed,
        "reconstruction_mse": float((rebuilt - seen.pictures).pow(2).mean()),
        **_angles(model, seen, figures / "angles.png"),
        **orbits(model, seen.upright[:ORBITS]),
        "log_likelihood_of_eta": known,
        "flow_better_by_nats_than": {name: known["flow"] - value for name, value in known.items() if name != "flow"},
        "second_mode_percent": {
            name: 100 * float(second[seen.labels == index].float().mean())
            for index, name in enumerate(data.class_names)
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--limit", type=int, help="pictures at most (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path("results/symmetry-mnist.json"))
    parser.add_argument("--figures", type=Path, default=Path("runs/symmetry-card"))
    options = parser.parse_args()
    found = measure(options.run, options.split, options.limit, options.seed, options.figures)
    keep(options.json, options.split, found)
    print(found)


if __name__ == "__main__":
    main()
