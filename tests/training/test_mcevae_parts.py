"""MCE-VAE: what its parts promise, without training."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from contract.geometry import to_parts
from contract.manifest import COEFFICIENTS, InputSpec
from tests.training.tiny_mcevae import LIFTED, SMALL, make, seeded
from training import datasets
from training.config import MnistData
from training.datasets import LabelledImages
from training.datasets import digits as small_digits
from training.lie import compose, exponential
from training.models import mcevae
from training.models.mcevae import MCEVAE
from training.models.mcevae_config import DecoderConfig, MCEVAEConfig
from training.models.mcevae_parts import Decoder
from training.rotation import wrapped
from training.turned import move, similarity


@pytest.mark.parametrize("group", ["SO2", "SE2", "SIM2"])
def test_a_pose_is_consistent(group: str) -> None:
    model = make(group=group, shift=0.0)
    pictures = torch.rand(5, 1, 16, 16, generator=seeded())
    with torch.no_grad():
        pose = model.pose(pictures)
    assert pose.coefficients.shape == pose.coefficients_std.shape == (5, len(COEFFICIENTS[group]))  # type: ignore[index]
    assert torch.allclose(exponential(group, pose.coefficients), pose.matrix, atol=1e-5)  # type: ignore[arg-type]
    assert torch.equal(pose.modes[:, 0], pose.matrix)
    assert (pose.weights.diff(dim=1) <= 1e-6).all()
    assert torch.allclose(pose.weights.sum(1), torch.ones(5), atol=1e-5)
    for matrix, coefficients in zip(pose.matrix, pose.coefficients, strict=True):
        found = to_parts(matrix.double().numpy())
        assert found.rotation_degrees == pytest.approx(math.degrees(float(coefficients[0])), abs=1e-3)


def test_shift_and_scale_follow_the_picture_exactly() -> None:
    model = make(32, group="SIM2", window=20, pose={**SMALL["pose"], "reach": 0.5})
    centres = (2 * torch.arange(32) + 1) / 32 - 1
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    picture = torch.exp(-((x - 0.1) ** 2 / 0.02 + (y + 0.05) ** 2 / 0.05))[None, None]
    known = similarity(torch.tensor([0.7]), torch.tensor([[0.2, -0.1]]), 0.8)
    with torch.no_grad():
        before, after = model.pose(picture), model.pose(move(picture, known))
    want = compose(known, before.matrix)[0, :, 2]
    assert torch.allclose(after.matrix[0, :, 2], want, atol=0.01)
    growth = torch.linalg.det(after.matrix[:, :, :2]) / torch.linalg.det(before.matrix[:, :, :2])
    assert float(growth.sqrt()) == pytest.approx(0.8, rel=0.02)


def test_dark_ink_and_colour_with_a_background_of_their_own() -> None:
    model = make(16, channels=3, background="border", likelihood="gaussian")
    picture = torch.full((1, 3, 16, 16), 0.8)
    picture[:, :, 5:12, 7:9] = torch.tensor([0.1, 0.3, 0.6])[None, :, None, None]
    with torch.no_grad():
        pose, canonical, rectified, _ = model.canonicalize(picture)
    # What comes in from outside is the paper's colour.
    assert torch.allclose(rectified[0, :, 0, 0], picture[0, :, 0, 0], atol=0.02)
    assert torch.allclose(canonical[0, :, 0, 0], picture[0, :, 0, 0], atol=0.02)
    assert float(pose.matrix[0, 0, 2].abs()) < 0.05


def test_a_photograph_is_judged_by_its_inscribed_circle_alone() -> None:
    model = make(16, group="SO2", shift=0.0, background="border", pose={**SMALL["pose"], "centre": "frame"})
    picture = torch.rand(1, 1, 16, 16, generator=seeded())
    corners = picture.clone()
    corners[:, :, :2, :2] = corners[:, :, -2:, -2:] = 1 - corners[:, :, :2, :2]
    with torch.no_grad():
        assert torch.equal(model.pose(picture).coefficients, model.pose(corners).coefficients)


def test_every_training_picture_keeps_its_unknown_turn() -> None:
    data = small_digits.load(0).train
    model = make(8, window=8, group="SO2", shift=0.0)
    model.prepare(data)
    first = model.turns.clone()
    model.prepare(data)
    assert torch.equal(first, model.turns) and float(first.abs().max()) <= math.radians(75)
    batch = model.batch(data, torch.arange(6), seeded())
    again = model.batch(data, torch.arange(6), seeded())
    assert all(torch.equal(batch[name], again[name]) for name in batch)
    # beta is the known part alone: what is shown is turned by the unknown part too.
    shown = move(data.images[:6].float() / 255, similarity(first[:6] + batch["beta"][0], torch.zeros(6, 2)))
    plain = move(data.images[:6].float() / 255, similarity(batch["beta"][0], torch.zeros(6, 2)))
    near = ((batch["views"][0] - shown) ** 2).flatten(1).sum(1)
    far = ((batch["views"][0] - plain) ** 2).flatten(1).sum(1)
    assert (near < far).float().mean() > 0.8


def test_a_step_has_finite_terms_and_reaches_every_weight() -> None:
    data = small_digits.load(0).train
    for changes in (
        {},
        {"supervised": True},
        {"clusters": 1},
        {"outlier_share": 0.0},
        {"likelihood": "gaussian"},
        {"pose": LIFTED},
    ):
        model = make(8, window=8, group="SO2", shift=0.0, **changes).train()
        model.prepare(data)
        terms = model.loss(model.batch(data, torch.arange(12), seeded()), seeded())
        terms["loss"].backward()
        assert all(torch.isfinite(value) for value in terms.values())
        missing = [name for name, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
        assert missing == []
        assert ("assignment" in terms) == (model.config.clusters > 1)


def test_a_share_of_the_views_is_black_and_white() -> None:
    data = small_digits.load(0).train
    model = make(8, window=8, binary_share=0.5)
    model.prepare(data)
    views = model.batch(data, torch.arange(200), seeded())["views"]
    binary = ((views == 0) | (views == 1)).flatten(2).all(2)
    assert 0.4 < float(binary.float().mean()) < 0.6
    assert float(views[binary].mean()) > 0.1


def test_a_supervised_model_that_follows_turns_but_knows_no_upright_is_not_exact() -> None:
    """As it is before training: its net turns with the picture, and where upright is it cannot know yet."""
    data = small_digits.load(0)
    model = make(8, window=8, group="SO2", shift=0.0, supervised=True, rotation_degrees=180)
    figures = model.validate(data.train, data.validation)
    assert set(figures) == set(model.config.metrics)
    assert figures["rotation_error_60"] < 45 < 60 < figures["rotation_error"]
    assert "rotation_error" not in make(8, window=8, group="SO2", shift=0.0).config.metrics


def test_dimensions_of_z_that_say_nothing_are_told_from_those_in_use() -> None:
    """A decoder that finds all it needs in z_c leaves z at its prior: every KL is 0."""
    data = small_digits.load(0)
    model = make(8, window=8, group="SO2", shift=0.0)
    model.prepare(data.train)
    for layer in (model.encoder.mean, model.encoder.log_variance):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    ignored = model.validate(data.train, data.validation)
    with torch.no_grad():
        model.encoder.mean.bias[-2:] = 1.0  # of two of the dimensions of z: half a nat each
    used = model.validate(data.train, data.validation)
    assert (ignored["active_dims"], used["active_dims"]) == (0, 2)
    assert used["kl"] - ignored["kl"] == pytest.approx(1, abs=1e-4)


def test_a_blank_training_set_is_refused() -> None:
    blank = LabelledImages(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64), ("a",))
    with pytest.raises(ValueError, match="no picture has ink"):
        make(8, window=8).prepare(blank)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rotation_degrees": 170}, "the range alone says what is up"),
        ({"group": "SO2"}, "group SO2 has no shift"),
        ({"scale": 0.2}, "group SE2 has no scale"),
        ({"pose": {"centre": "frame"}}, "pose.centre must be ink"),
        ({"cluster_dim": 4}, "10 clusters need as many dimensions"),
        ({"pose": {"kernel": 4}}, "has no middle"),
        ({"encoder": {"filters": [8]}}, "1 filters but 4 strides"),
    ],
)
def test_configurations_that_contradict_themselves(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        MCEVAEConfig.model_validate({**SMALL, **changes})


def test_a_window_that_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="window 11 must be at most 16"):
        make(16, window=11)


def test_outliers_are_part_of_a_step() -> None:
    data = small_digits.load(0).train
    model = make(8, window=8, group="SO2", shift=0.0, outlier_share=0.5)
    model.prepare(data)
    batch = model.batch(data, torch.arange(12), seeded())
    assert batch["outliers"].shape == (6, 1, 8, 8)
    as_content = make(8, window=8, group="SO2", shift=0.0, outlier_share=0.5, outliers_as_content=1.0)
    as_content.prepare(data)
    brought = as_content.batch(data, torch.arange(12), seeded())["outliers"]
    assert not torch.equal(brought, batch["outliers"])


@pytest.mark.parametrize(("since", "counted"), [(0.0, True), (0.4, True), (0.6, False)])
def test_outliers_count_from_a_share_of_the_training_on(since: float, counted: bool) -> None:
    data = small_digits.load(0).train
    model = make(8, window=8, group="SO2", shift=0.0, outlier_share=0.5, outliers_from=since)
    model.prepare(data)
    terms = model.loss(model.batch(data, torch.arange(12), seeded()), seeded(), progress=0.5)
    assert ("outlier" in terms) == counted


def test_what_mnist_tells_of_the_way_up_is_not_looked_at(mnist_folder: Path) -> None:
    """Every digit of MNIST lies half a pixel off the frame's middle, always to the same side; its pose does not."""
    images = datasets.load(MnistData(source="mnist", path=mnist_folder)).validation.images[:500, 0].double()
    positions = torch.arange(28, dtype=torch.float64) - 13.5
    offsets = torch.stack([(images.sum(axis) * positions).sum(1) / images.sum((1, 2)) for axis in (1, 2)], 1)
    assert offsets.mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.05)
    assert float((offsets > 0).double().mean()) > 0.98
    torch.manual_seed(0)
    model = MCEVAE(MCEVAEConfig(kind="mcevae"), InputSpec(channels=1, height=28, width=28), 10).eval()
    shown = images[:20, None].float() / 255
    moved = torch.roll(shown, (-1, -1), (2, 3))
    with torch.no_grad():
        gap = wrapped(model.pose(moved).coefficients - model.pose(shown).coefficients)
    assert float(gap.abs().max()) < math.radians(0.1)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_decoders_last_convolution_is_one_however_it_is_computed(channels: int) -> None:
    decoder = Decoder(6, channels, 28, DecoderConfig(hidden=16, filters=(8, 8, 4))).eval()
    latent = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    start = decoder.dense(latent).unflatten(1, (decoder.units, decoder.start, decoder.start))
    torch.testing.assert_close(decoder(latent), decoder.layers(start), atol=1e-5, rtol=1e-5)


def test_calibration_goes_on_where_every_picture_is_a_flip(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a few validation pictures that happens; flips say nothing of the deviation."""
    monkeypatch.setattr(mcevae, "FLIP_DEGREES", 0)
    pictures = torch.randint(256, (10, 1, 16, 16), generator=seeded()).byte()
    data = LabelledImages(pictures, torch.arange(10), tuple("0123456789"))
    model = make()
    model.calibrate(data, data)
    assert float(model.std_factor) == 1 and bool(model.frame_std.isfinite().all())


@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_the_deviation_of_the_scale_is_that_of_its_errors(scale: float) -> None:
    """Over other pictures than those it was measured on."""
    digits = small_digits.load(0)
    train, validation = digits.train.padded(16), digits.validation.padded(16)
    model = make(16, group="SIM2", scale=scale)
    model.prepare(train)
    model.calibrate(train, validation)
    images = train.images[:500].float() / 255
    turn, known = (2 * torch.rand(2, 500, generator=seeded(5)) - 1) * torch.tensor([[math.radians(75)], [scale]])
    with torch.no_grad():
        upright, moved = model.pose(images), model.pose(move(images, similarity(turn, None, known.exp()), 0, "bicubic"))
    errors = moved.coefficients[:, 3] - upright.coefficients[:, 3] - known
    served = torch.hypot(upright.coefficients_std[:, 3], moved.coefficients_std[:, 3]).mean()
    assert float(served) == pytest.approx(float(errors.std()), rel=0.1)
