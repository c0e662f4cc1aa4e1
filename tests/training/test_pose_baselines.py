"""Baselines, RotNet's generator and the classifier on cases whose answers are known."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from training.datasets.rotnet import THRESHOLD, rotnet_digits
from training.errors import RunError
from training.evaluation import pose_baselines as baselines
from training.evaluation.pose_measures import error_matrices, rotation_degrees, rotation_errors
from training.evaluation.upright_classifier import served_classifier
from training.evaluation.views import Limits, observe, rotation_matrices

STORE = Path(__file__).resolve().parents[2] / "model_store"


def bars(count: int) -> torch.Tensor:
    pictures = torch.zeros(count, 1, 29, 29)
    pictures[:, :, 6:23, 12:17] = 1
    return pictures


def test_identity_changes_nothing() -> None:
    assert torch.equal(baselines.identity(bars(2)), torch.eye(2, 3).expand(2, 2, 3))


def test_principal_axis_of_turned_bars() -> None:
    known = Limits(80, 0.1).draw(40, 0)
    found = baselines.principal_axis(observe(bars(40), known))
    upright = baselines.principal_axis(bars(40))
    assert float(rotation_degrees(upright).abs().max()) < 1e-4
    assert float(rotation_errors(error_matrices(upright, found, known)).max()) < 0.5
    dark_ink = baselines.principal_axis(1 - observe(bars(40), known))
    torch.testing.assert_close(dark_ink, found, rtol=0, atol=1e-3)
    blank = torch.zeros(1, 1, 12, 12)
    assert torch.equal(baselines.principal_axis(blank), baselines.identity(blank))


def test_k_means_finds_separate_clouds_and_not_noise() -> None:
    labels = torch.arange(120) % 4
    noise = torch.randn(120, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    clouds = noise + 30 * torch.nn.functional.one_hot(labels, 4).reshape(120, 1, 2, 2)
    assert baselines.k_means_accuracy(clouds, labels, 4, 0) == 100
    assert 25 <= baselines.k_means_accuracy(noise, labels, 4, 0) < 60


def test_vae_separates_what_pixels_separate_and_repeats() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 2
    pictures = 0.1 * torch.rand(200, 1, 6, 6, generator=generator)
    pictures[labels == 0, :, :3] += 0.9
    pictures[labels == 1, :, 3:] += 0.9
    features = baselines.vae_features(pictures, pictures, seed=1, steps=15)
    assert features.shape == (200, baselines.VAE_LATENT)
    assert torch.equal(features, baselines.vae_features(pictures, pictures, seed=1, steps=15))
    assert baselines.k_means_accuracy(features, labels, 2, 0) == 100


# --- RotNet's generator ---


def test_rotnet_draws_turn_counter_clockwise_and_shrink() -> None:
    """By its own description, drawn with another library: enlarge the canvas while turning, resize back, binarise."""
    image = np.zeros((28, 28), np.uint8)
    image[6:22, 12:15] = 255
    image[6:10, 12:19] = 255
    pictures, degrees = rotnet_digits(torch.from_numpy(image).expand(300, 1, 28, 28), seed=3)
    assert set(pictures.unique().tolist()) == {0, 1} and pictures.shape == (300, 1, 28, 28)
    assert bool((degrees == degrees.round()).all()) and 0 <= degrees.min() < 20 and 340 < degrees.max() < 360
    plain = (image >= THRESHOLD * 255).sum()
    agreements, areas = [], {}
    for picture, angle in zip(pictures[:, 0].numpy(), degrees.tolist(), strict=True):
        turned_by_pillow = Image.fromarray(image).rotate(angle, Image.Resampling.BILINEAR, expand=True)
        expected = np.asarray(turned_by_pillow.resize((28, 28), Image.Resampling.BILINEAR)) >= THRESHOLD * 255
        agreements.append(np.minimum(picture, expected).sum() / np.maximum(picture, expected).sum())
        areas[angle] = picture.sum() / plain
    assert np.mean(agreements) > 0.7  # a pixel of difference in the canvas moves the edges of a thin stroke
    diagonal = [area for angle, area in areas.items() if abs(angle % 90 - 45) < 8]
    straight = [area for angle, area in areas.items() if abs((angle + 45) % 90 - 45) < 4]
    assert np.mean(diagonal) < 0.8 * np.mean(straight)


def test_rotnet_degrees_are_those_of_the_house() -> None:
    pictures, degrees = rotnet_digits((255 * bars(60)).to(torch.uint8), seed=0)
    errors = error_matrices(
        baselines.identity(pictures), baselines.principal_axis(pictures), rotation_matrices(degrees)
    )
    assert float(rotation_errors(errors, 180.0).median()) < 2 and degrees.unique().numel() > 40


# --- the classifier ---


def digits(side: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    source = load_digits()
    images = torch.from_numpy(source.images[:200] / 16).float()[:, None]
    margin = (side - 8) // 2
    return torch.nn.functional.pad(images, [margin] * 4), torch.from_numpy(source.target[:200])


@pytest.mark.parametrize("side", [8, 14])
def test_served_classifier_reads_the_middle_of_the_pictures(side: int) -> None:
    classifier = served_classifier(STORE / "equivae-digits", tuple("0123456789"), 1, side)
    assert classifier.name == "equivae-digits version 1"
    images, labels = digits(side)
    assert float((classifier.read(images) == labels).float().mean()) > 0.95
    sideways = observe(images, rotation_matrices(torch.full((200,), 90.0)))
    assert float((classifier.read(sideways) == labels).float().mean()) < 0.5


def test_classifier_that_does_not_fit_is_explained(tmp_path: Path) -> None:
    names = tuple("0123456789")
    for folder, labels, channels, side, reason in (
        (tmp_path, names, 1, 8, "is no model folder"),
        (tmp_path / "absent", names, 1, 8, "is no model folder"),
        (STORE / "equivae-digits" / "1", ("a", "b"), 1, 8, "does not classify a, b"),
        (STORE / "equivae-digits" / "1", names, 3, 8, "reads 1 x 8 x 8, not 3 x 8 x 8"),
        (STORE / "equivae-digits" / "1", names, 1, 6, "not 1 x 6 x 6"),
        (STORE / "equivae-digits" / "1", names, 1, 9, "not 1 x 9 x 9"),
    ):
        with pytest.raises(RunError, match=reason):
            served_classifier(folder, labels, channels, side)


def test_classifier_that_is_not_what_its_manifest_says_is_refused(tmp_path: Path) -> None:
    version = tmp_path / "equivae-digits" / "1"
    shutil.copytree(STORE / "equivae-digits" / "1", version)
    graph = version / "classify.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"?")
    with pytest.raises(RunError, match="does not match its SHA-256"):
        served_classifier(version.parent, tuple("0123456789"), 1, 8)
    manifest = json.loads((version / "manifest.json").read_text())
    graph.write_bytes(b"no graph")
    manifest["files"]["classify.onnx"] = {"sha256": hashlib.sha256(b"no graph").hexdigest(), "size": 8}
    (version / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunError, match="classify graph cannot be loaded"):
        served_classifier(version.parent, tuple("0123456789"), 1, 8)
