"""Augmentation: ranges, determinism, and each change by its known effect."""

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from training.augment import augment, blurred
from training.augment_config import AugmentConfig


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blobs(count: int = 6, side: int = 28) -> Tensor:
    """Soft off-centre spots [N,1,S,S]."""
    axis = torch.linspace(-1, 1, side)
    spot = torch.exp(-((axis[:, None] - 0.2) ** 2 + (axis[None] + 0.3) ** 2) / 0.05)
    return spot.expand(count, 1, side, side).clone()


EVERYTHING = AugmentConfig(
    rotation_degrees=15,
    shear_degrees=10,
    scale=0.1,
    shift=0.1,
    elastic=1,
    blur=0.5,
    coarse=0.5,
    contrast=0.3,
    strokes=0.5,
    erase=0.5,
)


def test_nothing_asked_for_changes_nothing() -> None:
    images = torch.rand((4, 3, 8, 8), generator=seeded())
    torch.testing.assert_close(augment(images, AugmentConfig(), seeded()), images, atol=1e-5, rtol=0)


def test_the_asked_share_of_images_is_left_as_it_is() -> None:
    images = torch.rand((400, 1, 8, 8), generator=seeded())
    changed = augment(images, AugmentConfig(rotation_degrees=20, unchanged=0.3), seeded())
    same = (changed == images).flatten(1).all(1)
    assert 0.2 < float(same.float().mean()) < 0.4


def test_channels_are_shuffled_and_negated_and_nothing_else() -> None:
    images = torch.rand((64, 3, 4, 4), generator=seeded())
    changed = augment(images, AugmentConfig(colours=1), seeded())
    found = set()
    for image, before in zip(changed, images, strict=True):
        kinds = torch.cat([before, 1 - before])
        of_channel = [int((kinds - channel).abs().amax((1, 2)).argmin()) for channel in image]
        torch.testing.assert_close(image, kinds[of_channel], atol=1e-5, rtol=0)
        assert sorted(kind % 3 for kind in of_channel) == [0, 1, 2]
        found.add(tuple(of_channel))
    assert len(found) > 30  # of 48


@pytest.mark.parametrize("shape", [(5, 1, 28, 28), (3, 3, 32, 32), (4, 1, 8, 8)])
def test_stays_in_range_and_follows_the_generator(shape: tuple[int, ...]) -> None:
    images = torch.rand(shape, generator=seeded())
    first, second, other = (augment(images, EVERYTHING, seeded(seed)) for seed in (1, 1, 2))
    assert first.shape == images.shape
    assert 0 <= float(first.min()) and float(first.max()) <= 1
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def centroid(images: Tensor) -> Tensor:
    """[N,2] x, y in pixels from the centre."""
    side = images.shape[-1]
    axis = torch.arange(side) - (side - 1) / 2
    mass = images[:, 0]
    total = mass.sum((1, 2))
    return torch.stack([(mass.sum(1) * axis).sum(1) / total, (mass.sum(2) * axis).sum(1) / total], 1)


def test_every_image_has_its_own_draw() -> None:
    changed = augment(blobs(), EVERYTHING, seeded())
    assert len({tuple(image.flatten().tolist()) for image in changed}) == 6


def test_rotation_keeps_the_distance_from_the_centre_and_reaches_its_limit() -> None:
    before = centroid(blobs())[0]
    turned = centroid(augment(blobs(200), AugmentConfig(rotation_degrees=30), seeded()))
    torch.testing.assert_close(turned.norm(dim=1), before.norm().expand(200), atol=0.1, rtol=0)
    angles = torch.rad2deg(torch.atan2(turned[:, 1], turned[:, 0]) - torch.atan2(before[1], before[0]))
    assert 27 < float(angles.max()) < 31
    assert -31 < float(angles.min()) < -27


def test_shift_is_a_share_of_the_side() -> None:
    moved = centroid(augment(blobs(200), AugmentConfig(shift=0.1), seeded())) - centroid(blobs())[0]
    assert 2.6 < float(moved.abs().max()) < 2.85


def test_scale_changes_the_size() -> None:
    area = augment(blobs(200), AugmentConfig(scale=0.2), seeded()).sum((1, 2, 3)) / blobs(1).sum()
    assert 1.25 < float(area.max()) < 1.5
    assert 0.6 < float(area.min()) < 0.8


def test_a_blur_keeps_the_mean_and_softens() -> None:
    images = torch.zeros(2, 1, 28, 28)
    images[:, :, 10:18, 10:18] = 1
    soft = blurred(images, torch.tensor([0.0, 0.1]).view(2, 1, 1, 1))
    torch.testing.assert_close(soft.mean((1, 2, 3)), images.mean((1, 2, 3)), atol=2e-3, rtol=0)
    assert float((soft[0] - images[0]).abs().max()) < 0.01
    assert float(soft[1].max()) < 0.9


def test_the_asked_share_is_out_of_focus_by_two_pixels_of_28_at_most() -> None:
    images = torch.zeros(400, 1, 28, 28)
    images[:, :, :, 14:] = 1
    changed = augment(images, AugmentConfig(blur=0.3), seeded())
    softest = (changed - images).abs().amax((1, 2, 3))
    sharp = softest < 1e-4
    assert 0.6 < float(sharp.float().mean()) < 0.8
    slope = (changed[..., 1:] - changed[..., :-1]).amax((1, 2, 3))[~sharp]
    assert 0.19 < float(slope.min()) < 0.25  # 1 / (sigma sqrt(2 pi)), sigma 2
    assert float(slope.max()) > 0.9


def test_the_asked_share_comes_from_few_pixels() -> None:
    lines = torch.zeros(400, 1, 28, 28)
    lines[:, :, :, ::2] = 1
    changed = augment(lines, AugmentConfig(coarse=0.3), seeded())
    fine = (changed - lines).abs().amax((1, 2, 3)) < 1e-4
    assert 0.6 < float(fine.float().mean()) < 0.8
    inner = changed[~fine][..., 4:-4, 4:-4]
    assert float(inner.std()) < 0.3  # 0.5 of the lines
    torch.testing.assert_close(inner.mean(), torch.tensor(0.5), atol=0.05, rtol=0)
    seen = {round(float(augment(lines[:50], AugmentConfig(coarse=1), seeded(seed)).std()), 3) for seed in range(8)}
    assert len(seen) > 4  # of many sizes


def test_contrast_leaves_black_and_white() -> None:
    images = torch.tensor([0.0, 0.5, 1.0]).expand(50, 1, 3, 3).contiguous()
    changed = augment(images, AugmentConfig(contrast=0.5), seeded())
    torch.testing.assert_close(changed[..., 0], torch.zeros(50, 1, 3), atol=1e-3, rtol=0)
    torch.testing.assert_close(changed[..., 2], torch.ones(50, 1, 3), atol=1e-3, rtol=0)
    grey = changed[..., 1]
    assert 0.3 < float(grey.min()) < 0.35  # 0.5 ** exp(0.5) = 0.319
    assert 0.63 < float(grey.max()) < 0.66  # 0.5 ** exp(-0.5) = 0.657


def test_erase_blanks_squares_of_the_asked_share() -> None:
    changed = augment(torch.ones(400, 1, 28, 28), AugmentConfig(erase=0.5), seeded())
    blanked = (changed == 0).sum((1, 2, 3))
    assert 0.4 < float((blanked > 0).float().mean()) < 0.6
    assert int(blanked.max()) <= 81


def test_the_asked_share_gets_a_line_as_bright_as_the_image() -> None:
    dots = torch.zeros(400, 1, 28, 28)
    dots[:, :, 2:4, 2:4] = 0.8
    changed = augment(dots, AugmentConfig(strokes=0.4), seeded())
    added = (changed - augment(dots, AugmentConfig(), seeded())).flatten(2)
    drawn = added.amax((1, 2)) > 0.5
    assert 0.33 < float(drawn.float().mean()) < 0.47
    assert float(added.min()) > -1e-5 and 0.7 < float(changed.max()) < 0.801
    length = (added[drawn] > 0.4).flatten(1).sum(1)  # pixels of a line of 0.7 to two pixels' width
    assert int(length.min()) > 3 and int(length.max()) < 28 * 0.5 * 2.5
    rows, columns = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    for line in added[drawn][:20, 0]:  # it is straight: all of it lies about its long axis
        inside = line > 0.1
        places = torch.stack([rows.flatten()[inside], columns.flatten()[inside]], 1)
        assert float(torch.linalg.eigvalsh(torch.cov(places.T))[0]) < 1


def test_ranges_are_checked() -> None:
    with pytest.raises(ValidationError):
        AugmentConfig(scale=1.5)
    with pytest.raises(ValidationError, match="turn"):
        AugmentConfig.model_validate({"turn": 1})
