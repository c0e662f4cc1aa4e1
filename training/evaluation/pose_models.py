"""What a model answers for a whole set of pictures, chunk after chunk on its own device; results lie on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from training.evaluation.pose_measures import orbit_errors
from training.evaluation.views import observe
from training.lie import resample
from training.models.pose import Canonical, Pose

__all__ = ["LatentModel", "Orbits", "PoseModel", "canonicals", "clusters", "latents", "look_at_orbits", "poses"]

CHUNK = 500


@runtime_checkable
class PoseModel(Protocol):
    """What a model of poses offers for images [N,C,S,S] in [0,1]; answers as in training/models/pose.py.

    config: group, supervised, rotation_degrees, shift and, of SIM2, scale: the transforms of its training pictures.
    """

    config: Any

    def pose(self, images: Tensor) -> Pose: ...

    def canonicalize(self, images: Tensor) -> Canonical: ...


@runtime_checkable
class LatentModel(PoseModel, Protocol):
    """One with a decoder, latents and clusters, too."""

    def latents(self, images: Tensor) -> tuple[Tensor, Tensor]: ...

    def clusters(self, images: Tensor) -> Tensor: ...

    def decode(self, content: Tensor, style: Tensor) -> Tensor: ...


@torch.no_grad()
def _over(model: PoseModel, look: Callable[[Tensor], tuple[Tensor, ...]], images: Tensor) -> list[Tensor]:
    assert isinstance(model, nn.Module)
    device = next(model.parameters()).device
    parts = [[value.cpu() for value in look(chunk.to(device))] for chunk in torch.split(images, CHUNK)]
    return [torch.cat(column) for column in zip(*parts, strict=True)]


def poses(model: PoseModel, images: Tensor) -> Pose:
    """`PoseModel.pose` of images [N,C,S,S] in [0,1]."""
    return Pose(*_over(model, model.pose, images))


def canonicals(model: PoseModel, images: Tensor) -> Canonical:
    """`PoseModel.canonicalize` of images [N,C,S,S] in [0,1], without the embedding, which not every model has."""

    def look(chunk: Tensor) -> tuple[Tensor, ...]:
        pose, canonical, rectified, _ = model.canonicalize(chunk)
        return (canonical, rectified, *pose)

    canonical, rectified, *pose = _over(model, look, images)
    return Canonical(Pose(*pose), canonical, rectified)


def latents(model: LatentModel, images: Tensor) -> tuple[Tensor, Tensor]:
    """z_c [N,D] and z [N,Z]"""
    cluster, rest = _over(model, model.latents, images)
    return cluster, rest


def clusters(model: LatentModel, images: Tensor) -> Tensor:
    """Probabilities of the clusters: [N,K]"""
    return _over(model, lambda chunk: (model.clusters(chunk),), images)[0]


@dataclass(frozen=True)
class Orbits:
    """What is kept of the orbits of D pictures with A members each.

    errors: of the members as rectified, canonical, shown (identity) and turned back by the truth (floor): mean squared
    error to the medoid [D]. medoids, members: the medoid and one member of every orbit, rectified [D,C,S,S]. latents:
    z_c and z of all members [D,A,...], of a model that has them.
    """

    errors: dict[str, Tensor]
    medoids: Tensor
    members: Tensor
    latents: tuple[Tensor, ...]


def look_at_orbits(model: PoseModel, upright: Tensor, known: Tensor) -> Orbits:
    """Show upright pictures [D,C,S,S] under matrices [D,A,2,3]."""
    count, members = known.shape[:2]
    flat = known.flatten(0, 1)
    shown = observe(upright.repeat_interleave(members, 0), flat)
    seen = canonicals(model, shown)
    pictures = {
        "rectified": seen.rectified,
        "canonical": seen.canonical,
        "floor": resample(shown, flat),
        "identity": shown,
    }
    orbits = {name: images.reshape(count, members, *upright.shape[1:]) for name, images in pictures.items()}
    errors = {name: orbit_errors(orbit) for name, orbit in orbits.items()}
    medoids = orbits["rectified"][torch.arange(count), errors["rectified"][1]]
    found = latents(model, shown) if isinstance(model, LatentModel) else ()
    return Orbits(
        errors={name: error for name, (error, _) in errors.items()},
        medoids=medoids,
        members=orbits["rectified"][:, members // 2],
        latents=tuple(latent.reshape(count, members, -1) for latent in found),
    )
