"""Each measure against a naive re-implementation, or on a case whose answer is known."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from torch import Tensor

from contract import geometry
from training.evaluation import pose_measures as measures
from training.evaluation.pose_measures import Errors
from training.evaluation.views import Limits, even_degrees, lost_ink, observe, rotation_matrices


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def arrows(count: int = 6, side: int = 28) -> Tensor:
    """Pictures without any symmetry [count,1,side,side]: a bar with a blob at one end and a smaller one beside it."""
    rows, columns = np.mgrid[:side, :side]
    picture = np.zeros((side, side))
    for y, x, height, width, level in ((13, 13, 6.5, 1.5, 1.0), (8, 15, 2, 3, 0.9), (17, 11, 2, 2, 0.6)):
        picture = np.maximum(picture, level * np.exp(-(((rows - y) / height) ** 4) - ((columns - x) / width) ** 4))
    return torch.from_numpy(picture).float().expand(count, 1, -1, -1).contiguous()


# --- errors ---


def test_perfect_estimator_has_no_error_whatever_its_frame() -> None:
    known = Limits(60, 0.2, 0.3).draw(50, 1)
    before = Limits(180, 0.1).draw(50, 2)
    pairs = zip(known.numpy(), before.numpy(), strict=True)
    after = torch.from_numpy(np.stack([geometry.compose(turn, pose) for turn, pose in pairs])).float()
    found = measures.error_matrices(before, after, known)
    assert float(measures.rotation_errors(found).max()) < 1e-3
    assert float(measures.shift_errors(found).max()) < 1e-5


def test_constant_estimator_has_the_mean_of_the_range() -> None:
    known = Limits(60).draw(20_000, 0)
    nothing = rotation_matrices(torch.zeros(20_000))
    errors = measures.rotation_errors(measures.error_matrices(nothing, nothing, known))
    assert float(errors.mean()) == pytest.approx(30, abs=0.3) and float(errors.max()) <= 60.001


def test_error_matrices_by_hand() -> None:
    known, before, after = (Limits(180, 0.3, 0.2).draw(7, seed) for seed in (1, 2, 3))
    found = measures.error_matrices(before, after, known)
    for index in range(7):
        full = [np.vstack([part[index].numpy(), [0, 0, 1]]) for part in (after, known, before)]
        expected = np.linalg.inv(full[0]) @ full[1] @ full[2]
        np.testing.assert_allclose(found[index].numpy(), expected[:2], atol=1e-5)
        parts = geometry.to_parts(expected[:2])
        assert float(measures.rotation_errors(found)[index]) == pytest.approx(abs(parts.rotation_degrees), abs=1e-3)
        assert float(measures.shift_errors(found)[index]) == pytest.approx(math.hypot(*parts.translation), abs=1e-5)


def test_modulo_180_forgives_a_flip() -> None:
    errors = rotation_matrices(torch.tensor([-170.0, 100.0, 90.0, 5.0]))
    assert measures.rotation_errors(errors, 180.0).tolist() == pytest.approx([10, 80, 90, 5], abs=1e-4)
    assert measures.rotation_errors(errors).tolist() == pytest.approx([170, 100, 90, 5], abs=1e-4)


def test_errors_per_class_by_hand() -> None:
    angles = torch.tensor([1.0, -3.0, 178.0, 2.0, -95.0, 4.0])
    errors = Errors.of(
        rotation_matrices(angles), torch.tensor([0, 0, 0, 1, 1, 1]), ("8", "7", "no such image"), symmetric=("8",)
    )
    assert (errors.median, errors.mean) == pytest.approx((3.0, 283 / 6), abs=1e-3)
    assert errors.flips == pytest.approx(100 / 3)
    assert errors.by_axis == pytest.approx((1 + 3 + 2 + 2 + 95 + 4) / 6, abs=1e-3)
    assert set(errors.per_class) == {"8", "7"}
    assert errors.per_class["8"] == pytest.approx({"median": 3, "mean": 182 / 3, "flips": 100 / 3}, abs=1e-3)


# --- the frame ---


def test_circular_statistics_are_those_of_scipy() -> None:
    angles = torch.cat([20 * torch.randn(50, generator=seeded()) + 175, torch.tensor([-170.0])])
    mean, deviation = measures.circular_mean_and_deviation(angles)
    radians = np.radians(angles.double().numpy())
    difference = mean - math.degrees(stats.circmean(radians))
    assert (difference + 180) % 360 - 180 == pytest.approx(0, abs=1e-9)
    assert deviation == pytest.approx(math.degrees(stats.circstd(radians)))


def test_frame_takes_the_slant_out_of_the_spread() -> None:
    slants = 8 * torch.randn(4000, generator=seeded(1))
    labels = torch.arange(4000) % 2
    angles = 0.5 * slants + 3 * torch.randn(4000, generator=seeded(2)) + torch.tensor([1.0, -6.0])[labels]
    frame = measures.frame(angles, slants, labels, ("one", "other", "empty"))
    assert frame.largest_mean == pytest.approx(6, abs=0.3) and set(frame.per_class) == {"one", "other"}
    assert frame.deviation == pytest.approx(5, abs=0.2)  # the root of 4^2 + 3^2
    assert frame.slant == pytest.approx(8, abs=0.3) and frame.rest == pytest.approx(3, abs=0.15)


@pytest.mark.parametrize("degrees", [-20.0, 0.0, 15.0])
def test_slant_of_a_bar_that_leans(degrees: float) -> None:
    """Turned counter-clockwise it leans to the left: positive."""
    bar = torch.zeros(1, 1, 41, 41)
    bar[:, :, 6:35, 19:22] = 1
    leaning = torch.from_numpy(ndimage.rotate(bar.numpy(), degrees, axes=(2, 3), reshape=False, order=1))
    assert float(measures.slant_degrees(leaning)) == pytest.approx(degrees, abs=0.5)
    assert float(measures.slant_degrees(torch.zeros(1, 1, 9, 9))) == 0


# --- orbits ---


def test_orbit_errors_by_hand() -> None:
    orbits = torch.rand(3, 5, 1, 4, 4, generator=seeded())
    errors, medoids = measures.orbit_errors(orbits)
    for orbit, error, medoid in zip(orbits, errors.tolist(), medoids.tolist(), strict=True):
        mean = [sum(float(((a - b) ** 2).mean()) for b in orbit) / 4 for a in orbit]
        assert error == pytest.approx(min(mean), rel=1e-5) and mean.index(min(mean)) == medoid


def test_equal_members_have_no_error_and_an_infinite_ratio() -> None:
    errors, _ = measures.orbit_errors(torch.rand(2, 1, 1, 4, 4).expand(2, 6, 1, 4, 4))
    assert errors.tolist() == [0, 0] and measures.psnr(0.0) == math.inf
    assert measures.psnr(0.01) == pytest.approx(20)


def test_random_members_are_other_pictures_of_the_class() -> None:
    """Every picture holds its class in one pixel and its own number in the other."""
    labels = torch.tensor([0, 1, 0, 1, 1, 2])
    pictures = torch.stack([labels.float(), 10 * torch.arange(6.0)], 1)[:, None, None]
    errors = measures.random_member_errors(pictures, pictures, labels, seeded())
    assert len(errors) == 5  # class 2 has one picture alone
    between = {float((10 * (a - b)) ** 2 / 2) for a in range(6) for b in range(6) if a != b and labels[a] == labels[b]}
    assert set(errors.tolist()) <= between


def test_invariance_of_a_latent_that_sees_nothing_and_of_one_that_sees_all() -> None:
    before = torch.randn(300, 4, generator=seeded())
    assert measures.invariance(before, before[:, None].expand(300, 6, 4)) == 0
    assert measures.invariance(before, torch.randn(300, 6, 4, generator=seeded(1))) == pytest.approx(1, abs=0.1)
    by_hand = torch.stack([((a - b) ** 2).sum() for a in before[:20] for b in before[:20]]).sum() / (20 * 19)
    orbits = torch.randn(20, 3, 4, generator=seeded(2))
    moved = ((orbits - before[:20, None]) ** 2).sum(2).mean()
    assert measures.invariance(before[:20], orbits) == pytest.approx(float(moved / by_hand), rel=1e-5)
    assert math.isnan(measures.invariance(torch.ones(3, 2), torch.ones(3, 2, 2)))


def test_calibration_of_gaussian_errors_is_two_thirds_and_flips_do_not_count() -> None:
    stds = torch.rand(2, 40_000, generator=seeded()) + 0.5
    errors = stds.norm(dim=0) * torch.randn(40_000, generator=seeded(1))
    assert measures.calibration(errors, *stds) == pytest.approx(68.3, abs=0.8)
    flipped = torch.cat([errors, torch.full((20_000,), 175.0)])
    assert measures.calibration(flipped, *torch.cat([stds, stds[:, :20_000]], 1)) == pytest.approx(68.3, abs=0.8)
    assert math.isnan(measures.calibration(torch.tensor([120.0]), torch.ones(1), torch.ones(1)))


# --- views ---


def test_pictures_are_turned_counter_clockwise_and_moved_right_and_down() -> None:
    pictures = arrows(3)
    seen = observe(pictures, rotation_matrices(torch.tensor([0.0, 90.0, 37.0])))
    torch.testing.assert_close(seen[0], pictures[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(seen[1], torch.rot90(pictures[1], 1, (1, 2)), rtol=0, atol=1e-4)
    expected = ndimage.rotate(pictures[2, 0].numpy(), 37, reshape=False, order=3)
    assert np.abs(seen[2, 0].numpy() - expected).max() < 0.08
    shift = rotation_matrices(torch.zeros(1))
    shift[0, :, 2] = torch.tensor([2 * 3 / 28, 2 * -2 / 28])
    torch.testing.assert_close(observe(pictures[:1], shift), pictures[:1].roll((3, -2), (3, 2)), rtol=0, atol=1e-5)


def test_ground_of_the_border_comes_in_from_outside() -> None:
    paper = 1 - arrows(1)
    corner = observe(paper, rotation_matrices(torch.tensor([45.0])))[0, 0, 0, 0]
    assert float(corner) == pytest.approx(1, abs=1e-3)


def test_draws_stay_within_their_limits_and_repeat() -> None:
    limits = Limits(30, 0.25, 0.2)
    matrices = limits.draw(2000, 5)
    assert torch.equal(matrices, limits.draw(2000, 5)) and not torch.equal(matrices, limits.draw(2000, 6))
    angles, scales = measures.rotation_degrees(matrices), torch.linalg.det(matrices[:, :, :2]).sqrt()
    assert 29 < float(angles.max()) <= 30.001 and -30.001 <= float(angles.min()) < -29
    assert 0.49 < float(matrices[:, :, 2].abs().max()) <= 0.5
    assert math.exp(-0.2) - 1e-5 <= float(scales.min()) and float(scales.max()) <= math.exp(0.2) + 1e-5


def test_even_angles_do_not_count_half_a_turn_twice() -> None:
    assert even_degrees(90, 3).tolist() == [-90, 0, 90]
    assert even_degrees(180, 4).tolist() == [-180, -90, 0, 90]


def test_lost_ink_is_what_left_the_frame() -> None:
    picture = torch.zeros(1, 1, 10, 10)
    picture[..., 4:6, 4:6] = 1
    moves = rotation_matrices(torch.zeros(3))
    moves[:, 0, 2] = torch.tensor([0.0, 2 * 5 / 10, 2 * 9 / 10])  # by 0, 5 and 9 of 10 pixels
    lost = lost_ink(picture.expand(3, 1, 10, 10), moves)
    assert lost.tolist() == pytest.approx([0, 0.5, 1], abs=1e-5)
