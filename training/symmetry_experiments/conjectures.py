"""The poster's conjectures on its own cases: python -m training.symmetry_experiments.conjectures

1. p(eta|x^) and q(eta|x) have to be flexible: an '8' that is seen at 0 and +-30 degrees lies at its angle or upside
   down, with equal weight, a '2' at one angle alone, and what stands in their place as one Gaussian is worse.
2. The encoder's range of invariance decides the number of prototypes: the same '2' over 60 degrees, an encoder that is
   the mean over turns within +-rho / 2 of a plain one.
3. p(eta|x^) has to depend on the prototype: the flow of the first, without it.

The pictures are two of scikit-learn's digits, the '8' made exactly symmetric.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training.evaluation.plots import ACCENT, SECOND, Figure, save
from training.models.symmetry import Symmetry
from training.networks import dense
from training.rotation import find_modes, wrapped
from training.symmetry_experiments.common import SIDE, fitted, keep, one_digit, turned

SEEN = torch.tensor([-30.0, 0.0, 30.0])
RANGES = (0, 15, 30, 45, 60, 90, 120, 180, 360)  # rho, degrees
SIGMA = 0.3
# Of the second: transforms are taken to be small, as by a Gaussian base about 0. Without it one prototype at three
# angles and three at one angle cost the same log 3, and every encoder learns to be invariant.
ANCHOR, ANCHORED = 200.0, 0.9
TURNS = 25  # of the mean over a range
SAME = 0.1  # prototypes differ by less than this share of the difference between the pictures: they are one


class WindowEncoder(nn.Module):
    """q(z|x) with a range of invariance: the mean over turns within +-rho / 2 of a net that sees every turn.

    Shape: polar map [N,R,A] -> mean and log variance, both [N,dim]
    """

    def __init__(self, inputs: int, angles: int, dim: int, rho_degrees: float) -> None:
        super().__init__()
        steps = torch.linspace(-rho_degrees / 2, rho_degrees / 2, TURNS) / 360 * angles
        self.shifts = sorted({round(float(step)) for step in steps})
        self.net = dense(inputs * angles, 64, 2 * dim, final_relu=False)

    def forward(self, polar: Tensor) -> tuple[Tensor, Tensor]:
        views = [self.net(polar.roll(shift, 2).flatten(1)) for shift in self.shifts]
        mean, log_variance = torch.stack(views).mean(0).chunk(2, 1)
        return mean, log_variance.clamp(-10, 10)


@torch.no_grad()
def _posterior(model: Symmetry, views: Tensor) -> tuple[Tensor, Tensor]:
    """q(eta|x) and log p(eta|x^) of the bins [N,A]"""
    prototype = model.prototype(model.embed(views))
    return model.posterior(views, prototype), model.log_prior(prototype)


def _nearest_gaussian(posterior: Tensor, angles: Tensor) -> float:
    """Mean over the pictures of the least KL(q_gauss || posterior) in nats over the mean and deviation of q_gauss."""
    log_posterior = torch.log(posterior.clamp_min(1e-12))
    best = torch.full((len(posterior),), math.inf)
    for deviation in torch.logspace(math.log10(math.radians(1)), math.log10(math.pi), 60):
        gap = wrapped(angles[:, None] - angles)  # of each bin to every mean
        gaussian = torch.softmax(-0.5 * (gap / deviation) ** 2, 0)
        negative_entropy = (gaussian * torch.log(gaussian.clamp_min(1e-12))).sum(0)
        best = torch.minimum(best, (negative_entropy - log_posterior @ gaussian).amin(1))
    return float(best.mean())


def modes(steps: int, seed: int, folder: Path) -> dict[str, Any]:
    """Conjectures 1 and 3."""
    two, eight = (turned(one_digit(2), SEEN), turned(one_digit(8, symmetric=True), SEEN))
    views = torch.cat([two, eight])
    found: dict[str, Any] = {}
    densities = {}
    for prior in ("flow", "gaussian", "shared"):
        model = fitted(views, steps, seed, SIGMA, prior=prior)
        posterior, log_prior = _posterior(model, views)
        kl = (posterior * (torch.log(posterior.clamp_min(1e-12)) - log_prior)).sum(1)
        found[f"kl_eta_{prior}"] = float(kl.mean())
        if prior != "flow":
            continue
        angles, weights = find_modes(posterior, 2)
        apart = torch.rad2deg(wrapped(angles[:, 1] - angles[:, 0]).abs())
        found["second_weight_2"], found["second_weight_8"] = (
            [round(float(value), 4) for value in weights[rows, 1]] for rows in (slice(0, 3), slice(3, 6))
        )
        found["modes_apart_8_degrees"] = [round(float(value), 1) for value in apart[3:]]
        for name, rows in (("2", slice(0, 3)), ("8", slice(3, 6))):
            relative = torch.rad2deg(wrapped(angles[rows, 0] - angles[rows, 0][1]))
            found[f"angles_{name}_degrees"] = [round(float(value), 1) for value in relative]
            found[f"gaussian_q_worse_by_nats_{name}"] = _nearest_gaussian(posterior[rows], model.angles)
        with torch.no_grad():
            likelihood = model.log_likelihood(views, model.prototype(model.embed(views)))
        # The bound is the same however p(eta|x^) shares its weight among equal modes: x itself speaks under a flat one.
        alike = torch.softmax(likelihood, 1)
        weights = find_modes(alike, 2)[1]
        for name, rows in (("2", slice(0, 3)), ("8", slice(3, 6))):
            found[f"second_weight_{name}_flat_prior"] = [round(float(value), 4) for value in weights[rows, 1]]
            found[f"gaussian_q_worse_by_nats_{name}_flat_prior"] = _nearest_gaussian(alike[rows], model.angles)
        densities = {"2": (posterior[:3], log_prior[0]), "8": (posterior[3:], log_prior[3])}
        centre = model.angles
    found["gaussian_p_worse_by_nats"] = found["kl_eta_gaussian"] - found["kl_eta_flow"]
    found["flow_without_prototype_worse_by_nats"] = found["kl_eta_shared"] - found["kl_eta_flow"]
    _draw_modes(densities, centre, folder / "modes.png")
    return found


def _draw_modes(densities: dict[str, tuple[Tensor, Tensor]], angles: Tensor, path: Path) -> None:
    figure = Figure((9, 4.5), layout="constrained")
    order = wrapped(angles).argsort()
    degrees = torch.rad2deg(wrapped(angles)[order])
    for axes, (name, (posterior, log_prior)) in zip(figure.subplots(1, 2, sharey=True), densities.items(), strict=True):
        for row, seen in zip(posterior, SEEN.tolist(), strict=True):
            axes.plot(degrees, row[order], lw=1.2, label=f"q(eta|x), seen at {seen:+.0f}")
        axes.fill_between(degrees, log_prior.exp()[order], color=ACCENT, alpha=0.25, label="p(eta|x^)")
        axes.set_title(f"'{name}' at 0 and +-30 degrees", fontsize=11)
        axes.set_xlabel("degrees about the prototype")
        axes.legend(frameon=False, fontsize=8)
    save(figure, path)


@torch.no_grad()
def _count(model: Symmetry, views: Tensor) -> tuple[int, float]:
    """How many different prototypes the views have, and how far the best angles span, degrees."""
    prototypes = model.prototype(model.embed(views))
    between = (views[:, None] - views).pow(2).mean((2, 3, 4))
    apart = (prototypes[:, None] - prototypes).pow(2).mean((2, 3, 4))
    same = apart <= SAME * between.max()
    groups: list[int] = []
    for index in range(len(views)):
        if not any(bool(same[index, other]) for other in groups):
            groups.append(index)
    angles = find_modes(model.posterior(views, prototypes), 1)[0][:, 0]
    return len(groups), float(torch.rad2deg(wrapped(angles[-1] - angles[0])))


def invariance(steps: int, seed: int, folder: Path) -> dict[str, Any]:
    """Conjecture 2."""
    views = turned(one_digit(2), SEEN)
    counts, spans = [], []
    for rho in RANGES:

        def change(model: Symmetry, rho: float = rho) -> None:
            config = model.config
            model.encoder = WindowEncoder(config.encoder.radii, config.encoder.angles, config.z_dim, rho)  # type: ignore[assignment]

        count, span = _count(fitted(views, steps, seed, SIGMA, change, anchor=ANCHOR, anchored=ANCHORED), views)
        counts.append(count)
        spans.append(round(span, 1))
    _draw_invariance(counts, spans, folder / "invariance.png")
    return {"rho_degrees": list(RANGES), "prototypes": counts, "eta_span_degrees": spans}


def _draw_invariance(counts: list[int], spans: list[float], path: Path) -> None:
    figure = Figure((7, 3.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(RANGES, counts, "o-", color=ACCENT)
    axes.axvline(60, color="#999999", lw=0.8)
    axes.set_xlabel("range of invariance rho, degrees (the views span 60)")
    axes.set_ylabel("prototypes of three views", color=ACCENT)
    axes.set_yticks([1, 2, 3])
    other = axes.twinx()
    other.plot(RANGES, spans, "s--", color=SECOND)
    other.set_ylabel("span of eta, degrees", color=SECOND)
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="of each model (default: 400)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path("results/symmetry-conjectures.json"))
    parser.add_argument("--figures", type=Path, default=Path("runs/symmetry-conjectures"))
    parser.add_argument("--only", choices=("modes", "invariance"))
    options = parser.parse_args()
    about = {
        "steps": options.steps,
        "seed": options.seed,
        "side": SIDE,
        "sigma": SIGMA,
        "data": "scikit-learn digits, one 2, one 8",
    }
    for name, experiment in (("modes", modes), ("invariance", invariance)):
        if options.only in (None, name):
            found = about | experiment(options.steps, options.seed, options.figures)
            keep(options.json, name, found)
            print(name, found)


if __name__ == "__main__":
    main()
