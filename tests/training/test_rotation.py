"""The posterior over the rotation: modes, spread and prior, by hand and by their symmetries."""

import math

import pytest
import torch

from training.models.polar import AngleNet, PolarSampler
from training.rotation import bin_angles, coverage_factor, deviation, find_modes, range_prior, wrapped
from training.turned import move, similarity

BINS = 64


def peak(angle: float, width: float = 0.15) -> torch.Tensor:
    """A von Mises distribution over the bins [B]."""
    return torch.softmax(torch.cos(bin_angles(BINS) - angle) / width**2, 0)


@pytest.mark.parametrize("angle", [0.0, 0.3, 1.234, math.pi - 0.01, -math.pi + 0.02, -2.5])
def test_the_mode_of_a_peak_is_found_far_below_a_bin(angle: float) -> None:
    modes, weights = find_modes(peak(angle)[None], 3)
    assert float(wrapped(modes[0, 0] - angle)) == pytest.approx(0, abs=math.radians(0.05))
    assert float(weights[0, 0]) > 0.99 and float(weights.sum()) == pytest.approx(1)


def test_modes_come_best_first_and_neighbours_are_one() -> None:
    posterior = 0.6 * peak(1.0) + 0.3 * peak(-2.0) + 0.1 * peak(2.6) + 0.0 * peak(0)
    modes, weights = find_modes(posterior[None], 4)
    assert modes[0, :3].tolist() == pytest.approx([1.0, -2.0, 2.6], abs=0.01)
    assert weights[0].tolist() == pytest.approx([0.6, 0.3, 0.1, 0.0], abs=0.02)
    # 20 degrees apart is one mode.
    modes, weights = find_modes((0.5 * peak(0.0) + 0.5 * peak(math.radians(20)))[None], 2)
    assert float(modes[0, 0]) == pytest.approx(math.radians(10), abs=0.01) and float(weights[0, 0]) > 0.95


def test_a_turned_posterior_has_turned_modes() -> None:
    posterior = 0.7 * peak(0.4) + 0.3 * peak(-1.9)
    for places in (1, 17, 40):
        modes, weights = find_modes(torch.stack([posterior, posterior.roll(places)]), 2)
        turn = 2 * math.pi * places / BINS
        assert float(wrapped(modes[1] - modes[0] - turn).abs().max()) < 1e-4
        assert torch.allclose(weights[0], weights[1], atol=1e-5)


def test_a_prior_chooses_among_modes_and_moves_none_of_them() -> None:
    posterior = (0.6 * peak(math.radians(120)) + 0.4 * peak(math.radians(-60)))[None]
    prior = range_prior(bin_angles(BINS), math.radians(90), math.radians(8))
    modes, weights = find_modes(posterior, 2, posterior * prior / (posterior * prior).sum())
    assert torch.rad2deg(modes[0]).tolist() == pytest.approx([-60, 120], abs=0.5)
    assert float(weights[0, 0]) > 0.95
    # At the edge of the range the posterior under the prior leans inwards; the mode does not.
    modes, _ = find_modes(peak(math.radians(88))[None], 1, (peak(math.radians(88)) * prior)[None])
    assert math.degrees(float(modes[0, 0])) == pytest.approx(88, abs=0.1)


def test_two_opposite_modes_deviate_more_than_the_uniform_posterior() -> None:
    posteriors = torch.stack([0.5 * peak(0.0, 0.01) + 0.5 * peak(math.pi, 0.01), torch.full((BINS,), 1 / BINS)])
    opposite, uniform = deviation(posteriors, torch.zeros(2)).tolist()
    assert opposite == pytest.approx(math.pi / math.sqrt(2)) and uniform == pytest.approx(math.pi / math.sqrt(3), 1e-3)


def test_the_coverage_factor_corrects_deviations_that_are_too_small() -> None:
    errors = torch.randn(20_000, generator=torch.Generator().manual_seed(0)).abs()
    assert float(coverage_factor(errors, torch.full((20_000,), 0.25))) == pytest.approx(4, rel=0.03)
    assert float(coverage_factor(errors, torch.zeros(20_000))) == 10


def test_gradient_of_the_mode_is_finite_and_turns_it() -> None:
    logits = torch.log(peak(0.5)[None]).requires_grad_()
    mode = find_modes(torch.softmax(logits, 1), 1)[0]
    mode.sum().backward()
    assert torch.isfinite(logits.grad).all()
    ahead = int(torch.argmin((bin_angles(BINS) - 0.65).abs()))
    assert float(logits.grad[0, ahead]) > 0


def test_deviation_of_the_flat_and_of_a_sharp_posterior() -> None:
    flat = torch.full((1, 4096), 1 / 4096)
    assert math.degrees(float(deviation(flat, torch.zeros(1)))) == pytest.approx(103.9, abs=0.1)
    assert float(deviation(peak(1.0, 0.2)[None], torch.ones(1))) == pytest.approx(0.2, abs=0.01)


def test_prior_is_flat_within_the_range_half_at_its_ends_and_symmetric() -> None:
    limit, spread = math.radians(90), math.radians(8)
    angles = torch.tensor([0.0, 60.0, 90.0, -90.0, 120.0, 180.0]).deg2rad()
    prior = range_prior(angles, limit, spread)
    assert prior.tolist() == pytest.approx([1, 1, 0.5, 0.5, 0, 0], abs=0.01)
    assert torch.equal(range_prior(angles, math.pi, spread), torch.ones(6))


def blobs(side: int) -> torch.Tensor:
    """A smooth picture without symmetry [1,1,side,side]."""
    centres = (2 * torch.arange(side) + 1) / side - 1
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    picture = sum(
        height * torch.exp(-((x - a) ** 2 + (y - b) ** 2) / 0.04)
        for height, a, b in ((1.0, 0.3, -0.2), (0.7, -0.3, 0.1), (0.5, 0.0, 0.45))
    )
    return picture[None, None]


@pytest.mark.parametrize("side", [28, 64])
def test_a_turn_of_the_picture_is_a_shift_of_the_logits(side: int) -> None:
    torch.manual_seed(0)
    sampler, net = PolarSampler(side, 0.9, 12, 64), AngleNet(12, 16, 5, (1, 2)).eval()
    picture, centre = blobs(side), torch.zeros(1, 2)
    places = 5
    matrix = similarity(torch.tensor([2 * math.pi * places / 32]), torch.zeros(1, 2))
    with torch.no_grad():
        upright = net(sampler(picture, centre))
        turned = net(sampler(move(picture, matrix, mode="bicubic"), centre))
    assert upright.shape == (1, 32)
    scale = float(upright.std())
    assert float((turned - upright.roll(places, 1)).std()) < 0.1 * scale
    assert float((turned - upright).std()) > 0.5 * scale


def test_the_sampler_looks_at_a_moved_and_scaled_picture_where_it_is() -> None:
    sampler = PolarSampler(40, 0.4, 8, 32)
    picture, none = blobs(40), torch.zeros(1)
    small = move(picture, similarity(none, torch.zeros(1, 2), 0.5))
    shift = torch.tensor([[0.3, -0.2]])
    matrix = similarity(none, shift, 0.6)
    plain = sampler(small, torch.zeros(1, 2))
    moved = sampler(move(picture, matrix), shift, torch.tensor([1.2]))
    assert float((plain - moved).abs().max()) < 0.05 * float(plain.max())
