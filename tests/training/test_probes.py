"""Scores against hand-made cases, probes on data whose answer is known, negatives and pages."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from contract.manifest import InputSpec
from training.datasets import LabelledImages, Splits, digits
from training.evaluation import negatives, pages, probes
from training.evaluation.pages import DARKEST, PAGES, draw_page, draw_photograph, read_from_pages
from training.evaluation.scores import auroc, expected_calibration_error
from training.models.equivae import EquiVAE
from training.models.equivae_config import EquiVAEConfig


@pytest.fixture(scope="module")
def splits() -> Splits:
    return digits.load(0)


@pytest.fixture(scope="module")
def clusters() -> tuple[torch.Tensor, torch.Tensor]:
    """Features [600,4] of three classes around three far points, and their labels."""
    labels = torch.arange(600) % 3
    noise = torch.randn((600, 4), generator=torch.Generator().manual_seed(0))
    return 8 * torch.eye(4)[labels] + noise, labels


# --- scores ---


def test_calibration_error_is_the_gap_between_confidence_and_accuracy() -> None:
    # 10 answers at 0.95, all right (gap 0.05); 10 at 0.65, five right (gap 0.15).
    probabilities = np.repeat([[0.95, 0.05], [0.65, 0.35]], 10, 0)
    labels = np.array([0] * 10 + [0, 1] * 5)
    assert expected_calibration_error(probabilities, labels) == pytest.approx((0.05 + 0.15) / 2)


def test_calibration_error_of_certainty() -> None:
    certain = np.eye(3)[[0, 1, 2, 0]]
    assert expected_calibration_error(certain, np.array([0, 1, 2, 0])) == 0
    assert expected_calibration_error(certain, np.array([1, 2, 0, 1])) == 1


def test_gaps_of_one_bin_cancel_and_of_two_do_not() -> None:
    probabilities = np.array([[0.99, 0.01], [0.97, 0.03], [0.6, 0.4]])
    expected = (abs(0.99 + 0.97 - 1) + abs(0.6 - 1)) / 3
    assert expected_calibration_error(probabilities, np.array([0, 1, 0])) == pytest.approx(expected)


def test_auroc_counts_ties_half() -> None:
    assert auroc(np.array([0.0, 0.1]), np.array([0.2, 0.3])) == 1
    assert auroc(np.array([0.5, 0.5]), np.array([0.5])) == 0.5
    assert auroc(np.array([0.1, 0.9]), np.array([0.5, 0.9])) == pytest.approx((1 + 0 + 1 + 0.5) / 4)


# --- probes ---


def test_linear_probe_finds_class_where_it_is_and_none_in_noise(clusters: tuple[torch.Tensor, torch.Tensor]) -> None:
    features, labels = clusters
    noise = torch.randn(features.shape, generator=torch.Generator().manual_seed(1))
    assert probes.linear_probe_accuracy(features[:300], labels[:300], features[300:], labels[300:]) == 100
    assert probes.linear_probe_accuracy(noise[:300], labels[:300], noise[300:], labels[300:]) < 45


def test_neural_head_learns_and_is_a_function_of_its_seed(clusters: tuple[torch.Tensor, torch.Tensor]) -> None:
    features, labels = clusters
    torch.manual_seed(3)
    first = probes.neural_head(1e3 * features, labels, 3, seed=0, steps=60)
    torch.manual_seed(4)
    second = probes.neural_head(1e3 * features, labels, 3, seed=0, steps=60)
    assert (probes.predict(first, 1e3 * features) == labels).float().mean() > 0.99
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_probes_leave_the_random_state_of_the_process_alone(clusters: tuple[torch.Tensor, torch.Tensor]) -> None:
    before = torch.get_rng_state()
    probes.neural_head(*clusters, 3, seed=0, steps=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_benchmark_cnn_has_the_encoders_body_and_new_weights(splits: Splits) -> None:
    encoder = {"filters": (8, 16), "strides": (1, 2), "kernel": 3}
    model = EquiVAE(EquiVAEConfig(kind="equivae", encoder=encoder), splits.input, 10)
    network = probes.benchmark_cnn(model, splits.train, seed=0, epochs=8)
    assert [tuple(p.shape) for p in network[0].parameters()] == [tuple(p.shape) for p in model.body.parameters()]
    right = probes.predict(network, splits.validation.images) == splits.validation.labels
    assert right.float().mean() > 0.85


def test_judge_is_cached_for_the_same_data_and_seed_only(splits: Splits, tmp_path: Path) -> None:
    first = probes.independent_cnn(tmp_path, splits, steps=40)
    stamp = (tmp_path / probes.JUDGE_FILE).stat().st_mtime_ns
    again = probes.independent_cnn(tmp_path, splits, steps=40)
    assert (tmp_path / probes.JUDGE_FILE).stat().st_mtime_ns == stamp
    assert again.validation_error == first.validation_error < 20
    images = splits.validation.images
    assert torch.equal(probes.predict(first.network, images), probes.predict(again.network, images))
    probes.independent_cnn(tmp_path, splits.without(("9",)), steps=5)
    assert (tmp_path / probes.JUDGE_FILE).stat().st_mtime_ns != stamp


@pytest.mark.parametrize(("images", "steps"), [(100, 200), (1000, 200), (1200, 200), (1300, 220)])
def test_a_judge_of_few_pictures_learns_for_more_than_a_few_steps(
    splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: int, steps: int
) -> None:
    taken = []
    monkeypatch.setattr(probes, "fit_classifier", lambda *_, **options: taken.append(options["steps"]))
    some = torch.arange(images) % len(splits.train)
    probes.independent_cnn(tmp_path, replace(splits, train=splits.train.subset(some)))
    assert taken == [steps]


def test_a_damaged_judge_is_made_anew(splits: Splits, tmp_path: Path) -> None:
    (tmp_path / probes.JUDGE_FILE).write_bytes(b"PK garbage")
    first = probes.independent_cnn(tmp_path, splits, steps=2)
    assert probes.independent_cnn(tmp_path, splits, steps=2).validation_error == first.validation_error


# --- negatives and pages ---


@pytest.mark.parametrize("kind", negatives.KINDS)
@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 32)])
def test_negatives_are_images_and_functions_of_the_seed(kind: str, channels: int, side: int) -> None:
    spec = InputSpec(channels=channels, height=side, width=side)
    images = negatives.draw(kind, spec, 13, seed=1)
    assert images.shape == (13, channels, side, side) and images.dtype == torch.float32
    assert 0 <= float(images.min()) and float(images.max()) <= 1
    assert torch.equal(images, negatives.draw(kind, spec, 13, seed=1))
    if kind == "blanks":
        assert float(images.flatten(1).std(1).max()) == 0
    else:
        assert not torch.equal(images, negatives.draw(kind, spec, 13, seed=2))
        assert float(images.flatten(1).std(1).max()) > 0.1


def test_pages_carry_dark_ink_within_margins() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        page = draw_page(np.full((8, 8), 255, np.uint8), 300, 400, rng)
        rows, columns = np.nonzero(page < 100)
        assert page[0, 0] > 200
        assert rows.min() >= 30 and rows.max() < 270 and columns.min() >= 30 and columns.max() < 370
        assert 60 <= np.ptp(rows) + 1 <= 150


def test_photographs_have_uneven_light_noise_jpeg_and_a_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    blank = np.zeros((8, 8), np.uint8)
    photograph = draw_photograph(blank, 300, 400, np.random.default_rng(0))
    assert photograph.shape == (300, 400) and photograph.dtype == np.uint8
    corners = [photograph[y : y + 40, x : x + 40].mean() for y in (0, 260) for x in (0, 360)]
    assert 235 < max(corners) <= 241 and 240 * DARKEST[0] < min(corners) < 240 * 0.95
    assert 2 < photograph[:16, :16].std() < 6
    assert np.array_equal(photograph, draw_photograph(blank, 300, 400, np.random.default_rng(0)))
    assert not np.array_equal(photograph, draw_photograph(blank, 300, 400, np.random.default_rng(1)))
    monkeypatch.setattr(pages, "JPEG_QUALITY", 20)
    assert not np.array_equal(photograph, draw_photograph(blank, 300, 400, np.random.default_rng(0)))


@pytest.mark.parametrize("name", PAGES)
def test_digits_come_back_from_their_pages(name: str, splits: Splits) -> None:
    part: LabelledImages = splits.validation.subset(torch.arange(20))
    kind = PAGES[name]._replace(height=300, width=300)
    read = read_from_pages(part.images, kind, splits.input, splits.preprocessing, seed=0)
    original = part.images.float() / 255
    assert read.shape == original.shape
    # Far nearer to their own digit than the digits are to each other.
    assert (read - original).abs().mean() < 0.5 * (original - original.roll(1, 0)).abs().mean()
