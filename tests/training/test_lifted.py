"""The lifted extractor: equivariance, exact to quarter turns and near to others; its distortions."""

import math

import pytest
import torch
from torch import Tensor

from training.lie import exponential, inverse, resample
from training.models.lifted import DRAWS, Lifted
from training.models.lifted_config import LiftedConfig
from training.rotation import wrapped
from training.turned import move, similarity

SIDE = 48
CONFIG = LiftedConfig(kind="lifted", bins=32, filters=(4, 8), strides=(2, 2))


def blobs(count: int, generator: torch.Generator) -> Tensor:
    """Smooth blobs inside the frame's circle, longer one way than the other: [count,1,S,S]"""
    centres = (2 * torch.arange(SIDE) + 1) / SIDE - 1
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    spots = 0.3 * torch.randn(count, 5, 2, generator=generator).clamp(-1.5, 1.5) * torch.tensor([1.0, 0.4])
    squared = (x - spots[:, :, 0, None, None]) ** 2 + (y - spots[:, :, 1, None, None]) ** 2
    return torch.exp(-squared / 0.01).amax(1, keepdim=True)


def turned(images: Tensor, degrees: float) -> Tensor:
    turn = torch.full((len(images), 1), math.radians(degrees))
    return resample(images, inverse(exponential("SO2", turn)), "bicubic").clamp(0, 1)


@pytest.fixture
def images() -> Tensor:
    return blobs(6, torch.Generator().manual_seed(0))


@pytest.fixture
def net() -> Lifted:
    torch.manual_seed(0)
    net = Lifted(CONFIG, 1, SIDE).eval()
    torch.nn.init.normal_(net.head.weight, std=0.1)
    return net


def over_the_circle(net: Lifted, images: Tensor, shift: float = 0.0) -> Tensor:
    """Log posterior at 64 fixed angles + shift, between bins by straight lines: [N,64]"""
    with torch.no_grad():
        log_posterior, origin = net(images)
    angles = 2 * math.pi * torch.arange(64) / 64 + shift
    place = (angles - origin[:, None]) % (2 * math.pi) / (2 * math.pi) * CONFIG.bins
    below = place.floor()
    low = log_posterior.gather(1, below.long() % CONFIG.bins)
    high = log_posterior.gather(1, (below.long() + 1) % CONFIG.bins)
    return low + (place - below) * (high - low)


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_quarter_turns_turn_the_posterior_exactly(net: Lifted, images: Tensor, quarters: int) -> None:
    before = over_the_circle(net, images)
    after = over_the_circle(net, torch.rot90(images, quarters, (2, 3)), quarters * math.pi / 2)
    assert (before - after).abs().max() < 1e-3
    assert before.std(1).min() > 0.05  # or there would be nothing to turn


def test_any_turn_turns_the_posterior_up_to_interpolation(net: Lifted, images: Tensor) -> None:
    before = over_the_circle(net, images)
    after = over_the_circle(net, turned(images, 33), math.radians(33))
    assert (before - after).abs().mean() < 0.1 * before.std()


def test_the_posterior_sums_to_one_and_starts_uniform(images: Tensor) -> None:
    log_posterior, origin = Lifted(CONFIG, 1, SIDE).eval()(images)
    assert torch.allclose(log_posterior.exp().sum(1), torch.ones(6)) and origin.shape == (6,)
    assert torch.allclose(log_posterior, torch.full_like(log_posterior, -math.log(CONFIG.bins)), atol=1e-4)


def test_a_distortion_of_nothing_turns_the_axis_alone(images: Tensor, net: Lifted) -> None:
    turns, draws = torch.linspace(-3, 3, 6), torch.zeros(6, DRAWS)
    plain = net(images)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(plain, net(images, turns, draws), strict=True))
    draws[:, 0] = torch.linspace(-1, 1, 6)
    moved = wrapped(net(images, turns, draws)[1] - plain[1])
    assert torch.allclose(moved, math.radians(CONFIG.jitter_degrees) * draws[:, 0], atol=1e-5)


@pytest.mark.parametrize("column", range(1, DRAWS))
def test_a_distortion_keeps_a_level_line_level(column: int) -> None:
    """A bar turned by a known angle: its edges, seen in the upright frame, stay level however its letters change."""
    bar = torch.zeros(1, 1, SIDE, SIDE)
    bar[:, :, 20:28, 8:40] = 1
    turn = torch.tensor([math.radians(25.0)])
    seen: list[Tensor] = []
    net = Lifted(CONFIG, 1, SIDE).eval()
    net.body.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    draws = torch.zeros(1, DRAWS)
    draws[:, column] = 1
    _, origin = net(turned(bar, 25), turn, draws)
    lying = torch.nn.functional.pad(seen[0][:1], (0, 0, net.above, net.above))
    assert (lying - turned(bar, 25 - math.degrees(float(origin)))).abs().max() > 0.3  # something has changed
    level = resample(lying, exponential("SO2", (turn - origin)[:, None]))[0, 0]
    tops = (level > 0.5).float()[:, 14:34].argmax(0)
    assert int(tops.max() - tops.min()) <= 1


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_flat_picture_has_a_finite_posterior_and_gradient(net: Lifted, value: float) -> None:
    flat = torch.full((2, 1, SIDE, SIDE), value, requires_grad=True)
    log_posterior, origin = net(flat)
    log_posterior[:, 0].sum().backward()
    assert torch.isfinite(log_posterior).all() and torch.isfinite(origin).all()
    assert flat.grad is not None and torch.isfinite(flat.grad).all()


def test_about_the_ink_neither_its_place_nor_its_size_matters(images: Tensor) -> None:
    torch.manual_seed(0)
    net = Lifted(CONFIG.model_copy(update={"centre": "ink", "reach": 2.1}), 1, SIDE).eval()
    torch.nn.init.normal_(net.head.weight, std=0.1)
    moved = move(images, similarity(torch.zeros(6), torch.tensor([0.1, -0.06]).expand(6, 2), 0.9), mode="bicubic")
    (before, axis), (after, same) = net(images), net(moved)
    assert torch.allclose(axis, same, atol=0.01)
    assert (before - after).abs().mean() < 0.1 * before.std()
