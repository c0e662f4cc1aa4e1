"""Made-up outliers: pictures of several kinds, by the generator, and the content that some of them come as."""

import pytest
import torch

from training.moments import moments
from training.outliers import _as_content, _enlarged_circles, outliers


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("as_content", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(64, 1, 28, 28), (64, 3, 32, 32), (64, 1, 8, 8), (1, 1, 9, 9)])
def test_outliers_are_pictures_and_follow_the_generator(shape: tuple[int, ...], as_content: float) -> None:
    images = torch.rand(shape, generator=seeded())
    made = outliers(images, seeded(3), as_content)
    assert made.shape == images.shape
    assert made.dtype == torch.float32
    assert bool(torch.isfinite(made).all())
    assert 0 <= float(made.min()) and float(made.max()) <= 1
    assert torch.equal(made, outliers(images, seeded(3), as_content))


def test_what_comes_as_content_lies_where_a_digit_does() -> None:
    """Light on nothing, about the middle, and no wider than the content of a page is made."""
    page = torch.zeros(40, 1, 28, 28)
    page[:, :, 3:9, 14:24] = torch.linspace(0.2, 1, 40).view(40, 1, 1, 1)
    for paper_is_dark in (True, False):
        made = _as_content(page if paper_is_dark else 1 - page, seeded(2))
        made = made[made.amax((1, 2, 3)) > 0.9]  # but where some shade of the stroke was drawn as paper
        assert len(made) > 20
        ink = made[:, 0]
        pixels = 14 * moments(ink).centre
        assert 0.5 < float(pixels.abs().max()) < 2.5
        assert float(pixels.mean(0).abs().max()) < 0.5
        width = (ink.amax(1) > 0.15).sum(1)
        assert 14 <= float(width.float().median()) <= 23
        assert float(ink[:, 0].max()) < 1e-6


def test_what_is_flat_has_no_content() -> None:
    assert float(_as_content(torch.full((5, 3, 28, 28), 0.4), seeded()).max()) == 0


@pytest.mark.parametrize("shape", [(40, 1, 28, 28), (40, 3, 32, 32), (40, 1, 8, 8)])
def test_enlarged_circles_are_round_and_of_a_digits_size(shape: tuple[int, ...]) -> None:
    for seed in range(20):
        made = _enlarged_circles(torch.zeros(shape), seeded(seed))
        assert made.shape == shape
        ink = made[:, 0].amax(0) > 0.5
        rows, columns = ink.any(1).nonzero().flatten(), ink.any(0).nonzero().flatten()
        width, height = int(columns[-1] - columns[0]) + 1, int(rows[-1] - rows[0]) + 1
        assert width == height
        assert 0.5 <= width / shape[3] <= 0.9
        crop = made[:, :, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        torch.testing.assert_close(crop, crop.transpose(2, 3), atol=1e-5, rtol=0)
        torch.testing.assert_close(crop, crop.flip(3), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("side", "drawn"), [(8, False), (15, False), (16, True), (28, True)])
def test_circles_are_among_the_outliers_where_there_is_room_for_them(
    monkeypatch: pytest.MonkeyPatch, side: int, drawn: bool
) -> None:
    monkeypatch.setattr("training.outliers._enlarged_circles", lambda images, _: torch.full_like(images, 0.123))
    made = outliers(torch.rand((200, 1, side, side), generator=seeded()), seeded(1))
    assert bool((made == 0.123).flatten(1).all(1).any()) == drawn


def test_outliers_are_of_several_kinds() -> None:
    images = torch.rand((300, 1, 28, 28), generator=seeded(1))
    made = outliers(images, seeded())
    deviation = made.flatten(1).std(1)
    assert 0.05 < float((deviation < 1e-6).float().mean()) < 0.25  # flat ones
    assert float((deviation > 0.3).float().mean()) > 0.1
    assert not bool((made == images).flatten(1).all(1).any())


def test_quarters_and_pairs_of_the_data_never_come_as_content(monkeypatch: pytest.MonkeyPatch) -> None:
    """Brought to size, they would be much like the data."""
    monkeypatch.setattr("training.outliers._as_content", lambda images, _: torch.full_like(images, 0.123))
    for name in ("_shuffled", "_overlaid"):
        monkeypatch.setattr(f"training.outliers.{name}", lambda images, _: torch.full_like(images, 0.456))
    made = outliers(torch.rand((900, 1, 28, 28), generator=seeded()), seeded(1), as_content=1)
    of_data = (made == 0.456).flatten(1).all(1)
    assert 0.15 < float(of_data.float().mean()) < 0.3  # two kinds of nine
    assert bool((made[~of_data] == 0.123).all())
