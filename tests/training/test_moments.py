"""Moments of the ink: the axis against an eigenvector; all of them turn, move and grow with the picture."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from training.moments import arctan2, moments
from training.turned import move, similarity

SIDE = 48


@pytest.fixture
def images() -> Tensor:
    """Smooth blobs inside the frame's circle, longer one way than the other: [6,1,S,S]"""
    centres = (2 * torch.arange(SIDE) + 1) / SIDE - 1
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    generator = torch.Generator().manual_seed(0)
    spots = 0.3 * torch.randn(6, 5, 2, generator=generator).clamp(-1.5, 1.5) * torch.tensor([1.0, 0.4])
    squared = (x - spots[:, :, 0, None, None]) ** 2 + (y - spots[:, :, 1, None, None]) ** 2
    return torch.exp(-squared / 0.01).amax(1, keepdim=True)


def test_they_are_mean_and_covariance(images: Tensor) -> None:
    found = moments(images[:, 0])
    for index, image in enumerate(images[:, 0].numpy()):
        rows, columns = (2 * np.indices(image.shape) + 1) / SIDE - 1
        places = np.stack([columns.ravel(), rows.ravel()])
        covariance = np.cov(places, aweights=image.ravel(), ddof=0)
        (_, main), mean = np.linalg.eigh(covariance)[1].T, np.average(places, 1, image.ravel())
        gap = float(found.axis[index]) - math.atan2(-main[1], main[0])
        assert abs(math.remainder(gap, math.pi)) < 1e-3
        assert found.centre[index].numpy() == pytest.approx(mean, abs=1e-5)
        assert float(found.radius[index]) == pytest.approx(math.sqrt(np.trace(covariance)), rel=1e-4)
        assert float(found.mass[index]) == pytest.approx(image.sum(), rel=1e-4)


@pytest.mark.parametrize("degrees", [-160.0, -90.0, -20.0, 7.0, 90.0, 135.0])
def test_they_follow_the_picture(images: Tensor, degrees: float) -> None:
    turn, shift = torch.full((6,), math.radians(degrees)), torch.tensor([0.08, -0.05]).expand(6, 2)
    known = similarity(turn, shift, 0.9)
    before, after = moments(images[:, 0]), moments(move(images, known, mode="bicubic")[:, 0])
    gaps = (after.axis - before.axis - turn).tolist()
    assert max(abs(math.remainder(gap, math.pi)) for gap in gaps) < math.radians(1)
    place = (known[:, :, :2] @ before.centre[:, :, None])[:, :, 0] + shift
    assert torch.allclose(after.centre, place, atol=5e-3)  # a tenth of a pixel
    assert torch.allclose(after.radius, 0.9 * before.radius, rtol=0.01)


def test_arctan2_is_that_of_torch() -> None:
    angles = torch.linspace(-math.pi, math.pi, 4001)[1:-1]
    for radius in (1e-12, 1.0, 1e6):
        y, x = radius * angles.sin(), radius * angles.cos()
        torch.testing.assert_close(arctan2(y, x), torch.atan2(y, x), rtol=0, atol=1e-6)
    zero, one = torch.zeros(1), torch.ones(1)
    assert arctan2(zero, zero) == 0 and arctan2(zero, one) == 0
    torch.testing.assert_close(arctan2(zero, -one), torch.full((1,), math.pi))
    torch.testing.assert_close(arctan2(-one, zero), torch.full((1,), -math.pi / 2))
