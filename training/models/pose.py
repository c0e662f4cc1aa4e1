"""What a model of poses answers, of whichever kind: the pose of each picture, and its canonical picture."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from training.lie import resample

__all__ = ["Canonical", "Pose", "without_decoder"]


class Pose(NamedTuple):
    """The transform of N pictures, canonical frame -> observed picture.

    coefficients [N,G] of the group's exponential (training/lie.py), their standard deviation [N,G], matrix [N,2,3] of
    the best mode; modes [N,M,2,3] with weights [N,M] that sum to 1, best first.
    """

    coefficients: Tensor
    coefficients_std: Tensor
    matrix: Tensor
    modes: Tensor
    weights: Tensor


class Canonical(NamedTuple):
    """A pose, the decoder's picture and the input resampled through the pose's matrix, both [N,C,S,S] in [0,1], and of
    a model that has one the invariant embedding [N,D].
    """

    pose: Pose
    canonical: Tensor
    rectified: Tensor
    embedding: Tensor | None = None


def without_decoder(images: Tensor, pose: Pose) -> Canonical:
    """Of a model that decodes nothing: the rectified picture is the canonical one too."""
    rectified = resample(images, pose.matrix).clamp(0, 1)
    return Canonical(pose, rectified, rectified)
