"""Measures of a pose estimator: functions of matrices, pictures and latents that return plain numbers.

Matrices [N,2,3] map the canonical frame to the observed picture (training/lie.py); angles are in degrees,
counter-clockwise as seen. A(x) is the matrix that a model finds in x, and M x is x under the known transform M.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from training.evaluation.scores import percent
from training.evaluation.views import ink
from training.lie import compose, inverse
from training.turned import FLIP_DEGREES

__all__ = [
    "Errors",
    "Frame",
    "calibration",
    "circular_mean_and_deviation",
    "error_matrices",
    "frame",
    "invariance",
    "orbit_errors",
    "psnr",
    "random_member_errors",
    "rotation_degrees",
    "rotation_errors",
    "shift_errors",
    "slant_degrees",
    "wrapped_degrees",
]


def wrapped_degrees(angle: Tensor, period: float = 360.0) -> Tensor:
    """The same angle in [-period / 2, period / 2)."""
    return torch.remainder(angle + period / 2, period) - period / 2


def rotation_degrees(matrix: Tensor) -> Tensor:
    """The rotation of a matrix taken apart as rotation . shear . scale: [N,2,3] -> [N] in (-180,180]"""
    return torch.rad2deg(torch.atan2(-matrix[:, 1, 0], matrix[:, 0, 0]))


# --- errors of the pose ----------------------------------------------------------------------------------------------


def error_matrices(found_before: Tensor, found_after: Tensor, known: Tensor) -> Tensor:
    """E = A(M x)^-1 M A(x), all [N,2,3]: the identity where the pose turned and moved with the picture.

    A constant error of the frame cancels. With the identity for A(x), E is the error against upright itself.
    """
    return compose(inverse(found_after), compose(known, found_before))


def rotation_errors(errors: Tensor, period: float = 360.0) -> Tensor:
    """|angle of E| in degrees; modulo 180 with that period, for pictures that look alike upside down: [N,2,3] -> [N]"""
    return wrapped_degrees(rotation_degrees(errors), period).abs()


def shift_errors(errors: Tensor) -> Tensor:
    """|translation of E| as a share of the frame's width: [N,2,3] -> [N]"""
    return errors[:, :, 2].norm(dim=1) / 2


@dataclass(frozen=True)
class Errors:
    """A distribution of rotation errors, degrees; flips: share above 90 degrees, %.

    by_axis: the mean where `symmetric` classes are scored modulo 180; per_class: name -> median, mean, flips.
    """

    median: float
    mean: float
    flips: float
    by_axis: float
    per_class: dict[str, dict[str, float]]

    @classmethod
    def of(cls, errors: Tensor, labels: Tensor, names: Sequence[str], symmetric: Sequence[str] = ()) -> Errors:
        """errors: E [N,2,3]; labels [N] index `names`; symmetric: names of classes that look alike upside down."""
        angles, modulo = rotation_errors(errors).double(), rotation_errors(errors, 180.0).double()
        alike = torch.tensor([name in symmetric for name in names])[labels]
        per_class = {
            name: {
                "median": float(angles[labels == k].median()),
                "mean": float(angles[labels == k].mean()),
                "flips": percent((angles[labels == k] > FLIP_DEGREES).numpy()),
            }
            for k, name in enumerate(names)
            if bool((labels == k).any())
        }
        return cls(
            median=float(angles.median()),
            mean=float(angles.mean()),
            flips=percent((angles > FLIP_DEGREES).numpy()),
            by_axis=float(torch.where(alike, modulo, angles).mean()),
            per_class=per_class,
        )


# --- the frame -------------------------------------------------------------------------------------------------------


def circular_mean_and_deviation(angles: Tensor) -> tuple[float, float]:
    """Mean direction in [-180,180) and circular standard deviation sqrt(-2 ln R) of angles [N], degrees.

    Mardia and Jupp, Directional Statistics (2000), 2.3: for concentrated angles the usual standard deviation.
    """
    radians = torch.deg2rad(angles.double())
    sine, cosine = float(radians.sin().mean()), float(radians.cos().mean())
    length = min(1.0, math.hypot(sine, cosine))
    deviation = math.degrees(math.sqrt(-2 * math.log(length))) if length > 0 else math.inf
    return math.degrees(math.atan2(sine, cosine)), deviation


@dataclass(frozen=True)
class Frame:
    """Where the canonical frame stands: the angles found in upright pictures, degrees.

    per_class: name -> mean, deviation, slant (deviation of the handwriting slant), rest (deviation of the angle that
    a straight line in the slant leaves); the others are over the classes.
    """

    largest_mean: float
    deviation: float
    slant: float
    rest: float
    per_class: dict[str, dict[str, float]]


def frame(angles: Tensor, slants: Tensor, labels: Tensor, names: Sequence[str]) -> Frame:
    """Angles found in upright pictures [N] and their slants [N], per class.

    Handwriting leans, and what leans is taken for turned: of the angle's deviation within a class, the part that a
    straight line in the slant explains is no error of the estimator.
    """
    per_class: dict[str, dict[str, float]] = {}
    for k, name in enumerate(names):
        members = labels == k
        if not bool(members.any()):
            continue
        mean, deviation = circular_mean_and_deviation(angles[members])
        about = wrapped_degrees(angles[members].double() - mean).numpy()
        lean = slants[members].double().numpy()
        lean = lean - lean.mean()
        slope = float(about @ lean / max(lean @ lean, 1e-12))
        rest = float(np.std(about - slope * lean))
        per_class[name] = {"mean": mean, "deviation": deviation, "slant": float(np.std(lean)), "rest": rest}
    rows = per_class.values()
    return Frame(
        largest_mean=max(abs(row["mean"]) for row in rows),
        deviation=float(np.mean([row["deviation"] for row in rows])),
        slant=float(np.mean([row["slant"] for row in rows])),
        rest=float(np.mean([row["rest"] for row in rows])),
        per_class=per_class,
    )


def slant_degrees(images: Tensor) -> Tensor:
    """How far the strokes lean to the left, from second moments of the ink: [N,C,H,W] -> [N], 0 without ink.

    atan(mu11 / mu02), the angle whose horizontal shear makes the mixed moment vanish (the usual deslanting): where
    upright strokes are sheared it is their angle, counter-clockwise as seen.
    """
    mass = ink(images.double())
    rows = torch.arange(mass.shape[1], dtype=torch.float64)[:, None]
    columns = torch.arange(mass.shape[2], dtype=torch.float64)[None, :]
    total = mass.sum((1, 2)).clamp_min(1e-12)
    y = rows - ((mass * rows).sum((1, 2)) / total)[:, None, None]
    x = columns - ((mass * columns).sum((1, 2)) / total)[:, None, None]
    mixed, vertical = (mass * x * y).sum((1, 2)), (mass * y * y).sum((1, 2))
    return torch.rad2deg(torch.atan2(mixed, vertical.clamp_min(1e-12)))


# --- orbits: the same picture under many transforms ------------------------------------------------------------------


def orbit_errors(orbits: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared error of every orbit's members to its medoid, the member nearest to all: [D,A,...] -> [D], index [D]

    The medoid itself, which has no error, is not counted.
    """
    flat = orbits.flatten(2).double()
    squares = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist") ** 2 / flat.shape[2]
    totals, medoid = squares.sum(2).min(1)
    return totals / (orbits.shape[1] - 1), medoid


def random_member_errors(medoids: Tensor, members: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Mean squared error between a digit's medoid [D,...] and one member [D,...] of another digit of its class: [D']

    Digits that are alone in their class are left out.
    """
    found = []
    for label in range(int(labels.max()) + 1):
        rows = torch.nonzero(labels == label).flatten()
        if len(rows) < 2:
            continue
        shift = 1 + int(torch.randint(len(rows) - 1, (1,), generator=generator))
        others = rows.roll(shift)
        found.append(((medoids[rows] - members[others]).double() ** 2).flatten(1).mean(1))
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64)


def psnr(error: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error of values in [0,1]."""
    return -10 * math.log10(error) if error > 0 else math.inf


def invariance(before: Tensor, orbits: Tensor) -> float:
    """Mean of ||z(x) - z(M x)||^2 over the mean of ||z(x) - z(y)||^2 of different pictures: [D,Z], [D,A,Z]

    0 for a latent that does not see the transform, 1 where the transform moves it as much as another picture does.
    """
    moved = ((orbits - before[:, None]).double() ** 2).sum(2).mean()
    between = 2 * before.double().var(0, correction=1).sum()
    return float(moved / between) if float(between) > 0 else math.nan


def calibration(errors: Tensor, stds_before: Tensor, stds_after: Tensor) -> float:
    """Share (%) of relative errors [N] within one standard deviation sqrt(s1^2 + s2^2), flips apart; all in degrees.

    68.3 for a calibrated Gaussian.
    """
    kept = errors.abs() <= FLIP_DEGREES
    within = errors.abs() <= torch.sqrt(stds_before**2 + stds_after**2)
    return percent(within[kept].numpy()) if bool(kept.any()) else math.nan
