"""MCE-VAE: what its parts promise, that it learns on small digits, and what is exported."""

import io
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml
from pydantic import ValidationError
from rich.console import Console

from contract.geometry import to_parts
from contract.manifest import COEFFICIENTS, InputSpec, verify
from training import datasets
from training.config import MnistData, load_config
from training.datasets import LabelledImages
from training.datasets import digits as small_digits
from training.errors import ConfigError, RunError
from training.export import export_run
from training.fit import train
from training.lie import compose, exponential, inverse
from training.models.mcevae import MCEVAE
from training.models.mcevae_config import DecoderConfig, MCEVAEConfig
from training.models.mcevae_parts import Decoder
from training.models.rotation import wrapped
from training.orientation.rotnet import as_rotnet_draws
from training.run import LoadedRun, load_run
from training.turned import move, similarity, uniform

SMALL: dict[str, Any] = {
    "kind": "mcevae",
    "group": "SE2",
    "rotation_degrees": 75,
    "shift": 0.15,
    "nuisance_shift": 0.0,
    "window": 10,
    "z_dim": 4,
    "modes": 2,
    "pose": {"reach": 0.6, "radii": 6, "angles": 64, "width": 24, "dilations": [1, 2, 4]},
    "encoder": {"filters": [8, 16], "strides": [2, 2], "hidden": 32},
    "decoder": {"hidden": 32, "filters": [8, 8, 8]},
}

LIFTED = {"kind": "lifted", "centre": "ink", "reach": 2.1, "bins": 64, "filters": [16, 32, 32], "strides": [2, 2, 1]}


def small_run(folder: Path, steps: int, **changes: Any) -> LoadedRun:
    values = {
        "name": "small-pose",
        "recipe": "test",
        "data": {"source": "digits", "canvas": 16, "exclude": ["0", "1", "6", "8", "9"]},
        "model": {**SMALL, **changes},
        "fit": {
            "steps": steps,
            "batch": 48,
            "optimiser": {"kind": "adamw", "learning_rate": 0.005},
            "schedule": {"kind": "cosine"},
            "ema": 0.98,
            "validate_epochs": 100,
            "select": "rotation_error_60",
            "accelerator": "cpu",
            "threads": 1,
        },
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    train(load_config(path), folder / "run", console=Console(file=io.StringIO()))
    return load_run(folder / "run")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> LoadedRun:
    return small_run(tmp_path_factory.mktemp("pose"), 220)


@pytest.fixture(scope="module")
def digits(run: LoadedRun) -> torch.Tensor:
    return run.splits().validation.images.float() / 255


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moves(count: int, degrees: float, shift: float) -> torch.Tensor:
    """Random turns and shifts (normalised units) as matrices [count,2,3]."""
    return similarity(uniform(count, math.radians(degrees), seeded()), uniform(count, shift, seeded(1), columns=2))


def make(side: int = 16, channels: int = 1, **changes: Any) -> MCEVAE:
    torch.manual_seed(0)
    config = MCEVAEConfig.model_validate({**SMALL, **changes})
    return MCEVAE(config, InputSpec(channels=channels, height=side, width=side), 10).eval()


# --- what it learns ---------------------------------------------------------------------------------------------------


def test_it_finds_turns_and_shifts_that_it_was_never_told(run: LoadedRun, digits: torch.Tensor) -> None:
    known = similarity(
        uniform(len(digits), math.radians(60), seeded()), uniform(len(digits), 0.25, seeded(1), columns=2)
    )
    with torch.no_grad():
        before, after = run.model.pose(digits), run.model.pose(move(digits, known, mode="bicubic"))
    error = compose(inverse(after.matrix), compose(known, before.matrix))
    degrees = torch.rad2deg(torch.atan2(error[:, 0, 1], error[:, 0, 0])).abs()
    shift = error[:, :, 2].norm(dim=1) / 2
    assert float(degrees.median()) < 2 and float((degrees > 90).float().mean()) < 0.08
    assert float(shift.median()) < 0.01
    assert run.metrics["rotation_median_60"] < 2


def test_the_frame_is_upright_without_any_label(run: LoadedRun, digits: torch.Tensor) -> None:
    """The range alone tells: the mean angle of upright pictures is about 0."""
    with torch.no_grad():
        rotation = run.model.pose(digits).coefficients[:, 0]
    mean = torch.atan2(torch.sin(rotation).mean(), torch.cos(rotation).mean())
    assert abs(math.degrees(float(mean))) < 12
    assert float((rotation.abs() < math.radians(45)).float().mean()) > 0.85


def test_the_canonical_picture_looks_like_the_rectified_one(run: LoadedRun, digits: torch.Tensor) -> None:
    with torch.no_grad():
        _, canonical, rectified = run.model.canonicalize(digits)
    fit = ((canonical - rectified) ** 2).flatten(1).sum(1).mean()
    other = ((canonical - rectified.roll(1, 0)) ** 2).flatten(1).sum(1).mean()
    assert float(fit) < 0.85 * float(other)
    assert canonical.shape == rectified.shape == digits.shape
    assert float(canonical.min()) >= 0 and float(canonical.max()) <= 1


def test_latents_and_clusters_do_not_change_with_the_pose(run: LoadedRun, digits: torch.Tensor) -> None:
    known = similarity(
        uniform(len(digits), math.radians(50), seeded()), uniform(len(digits), 0.2, seeded(1), columns=2)
    )
    with torch.no_grad():
        here, there = run.model.latents(digits), run.model.latents(move(digits, known))
        clusters = run.model.clusters(digits)
    for one, other in zip(here, there, strict=True):
        moved = ((one - other) ** 2).sum(1).median()
        between = ((one - one.roll(1, 0)) ** 2).sum(1).mean()
        assert float(moved) < 0.2 * float(between)
    assert torch.allclose(clusters.sum(1), torch.ones(len(digits)))
    # No cluster takes all.
    assert int((clusters.mean(0) > 0.1).sum()) >= 2


def test_no_orientation_no_confidence(run: LoadedRun, digits: torch.Tensor) -> None:
    """A blank, a ring and noise: a standard deviation many times that of digits."""
    centres = torch.arange(16) - 7.5
    radius = torch.hypot(centres[:, None], centres)
    strange = torch.stack([torch.zeros(16, 16), (1.2 - (radius - 4).abs()).clamp(0, 1)])[:, None]
    noise = torch.rand(20, 1, 16, 16, generator=seeded())
    with torch.no_grad():
        usual = run.model.pose(digits).coefficients_std
        std, noisy = run.model.pose(strange).coefficients_std, run.model.pose(noise).coefficients_std
    assert math.degrees(float(std[:, 0].min())) > 35
    assert float(noisy[:, 0].median()) > 3 * float(usual[:, 0].median())
    # Without ink there is no centre either.
    assert float(std[0, 1]) > 0.5 and float(usual[:, 1].max()) < 0.1


def test_calibration_covers_two_thirds_of_the_errors(run: LoadedRun, digits: torch.Tensor) -> None:
    known = similarity(uniform(len(digits), math.radians(60), seeded(5)), torch.zeros(len(digits), 2))
    with torch.no_grad():
        before, after = run.model.pose(digits), run.model.pose(move(digits, known, mode="bicubic"))
    rotation = torch.atan2(known[:, 0, 1], known[:, 0, 0])
    gap = wrapped(after.coefficients[:, 0] - before.coefficients[:, 0] - rotation).abs()
    std = torch.hypot(before.coefficients_std[:, 0], after.coefficients_std[:, 0])
    same = gap < math.pi / 4
    assert 0.5 < float((gap < std)[same].float().mean()) < 0.85


def test_a_supervised_model_knows_the_whole_circle(tmp_path: Path) -> None:
    run = small_run(tmp_path, 220, group="SO2", shift=0.0, supervised=True, rotation_degrees=180, pose=LIFTED)
    digits = run.splits().validation.images.float() / 255
    rotation = uniform(len(digits), math.pi, seeded())
    with torch.no_grad():
        pose = run.model.pose(move(digits, similarity(rotation, torch.zeros(len(digits), 2))))
        blank = run.model.pose(torch.zeros(1, 1, 16, 16))
    assert math.degrees(float(blank.coefficients_std[0, 0])) > 90  # the flat posterior's 103.9
    error = torch.rad2deg(wrapped(pose.coefficients[:, 0] - rotation)).abs()
    assert float(error.median()) < 12 and float((error > 90).float().mean()) < 0.15
    assert pose.coefficients.shape[1] == 1


# --- the parts --------------------------------------------------------------------------------------------------------


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
        pose, canonical, rectified = model.canonicalize(picture)
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


def test_a_share_of_the_views_is_drawn_by_rotnets_generator() -> None:
    """Turned by whole degrees that the model is told, and smaller where that is far from a quarter of a circle."""
    data = small_digits.load(0).train
    model = make(8, window=8, group="SO2", shift=0.0, supervised=True, rotation_degrees=180, rotnet_share=0.5)
    model.prepare(data)
    batch = model.batch(data, torch.arange(200), seeded())
    view, degrees = batch["views"][0], torch.rad2deg(batch["beta"][0])
    drawn = ((view == 0) | (view == 1)).flatten(1).all(1)
    assert 0.4 < float(drawn.float().mean()) < 0.6
    assert float((degrees - degrees.round())[drawn].abs().max()) < 1e-3
    assert torch.equal(view[drawn], as_rotnet_draws(data.images[:200][drawn], degrees.round()[drawn]))
    with pytest.raises(ValueError, match="rotnet_share is for grey pictures"):
        make(8, channels=3, window=8, group="SO2", shift=0.0, supervised=True, rotnet_share=0.5)


def test_a_blank_training_set_is_refused() -> None:
    blank = LabelledImages(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64), ("a",))
    with pytest.raises(ValueError, match="no picture has ink"):
        make(8, window=8).prepare(blank)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rotation_degrees": 170}, "the range alone says what is up"),
        ({"group": "SO2"}, "group SO2 has no shift"),
        ({"rotnet_share": 0.5}, "rotnet_share needs supervision and group SO2"),
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


# --- the run and its export -------------------------------------------------------------------------------------------


def test_export_has_poses_and_pictures_at_any_batch(run: LoadedRun, digits: torch.Tensor, tmp_path: Path) -> None:
    folder = export_run(run.folder, tmp_path, console=Console(file=io.StringIO()))
    manifest = verify(folder)
    assert set(manifest.graphs) == {"embed", "transform", "canonicalize"}
    assert (manifest.group, manifest.kind, manifest.labels) == ("SE2", "mcevae", ())
    assert manifest.metrics["validation"]["rotation_error_60"] == run.metrics["rotation_error_60"]
    assert manifest.preprocessing.fit == "circle" and 0.2 < manifest.preprocessing.margin < 0.4
    turned = move(digits[:9], similarity(uniform(9, math.pi, seeded(3)), uniform(9, 0.2, seeded(4), columns=2)))
    for capability in manifest.graphs:
        proto = onnx.load(folder / f"{capability}.onnx")
        operators = Counter(node.op_type for node in proto.graph.node)
        assert not {"AffineGrid", "Shape", "RandomNormal", "BatchNormalization"} & set(operators)
        assert operators["GridSample"] == {"transform": 1, "embed": 2, "canonicalize": 2}[capability]
    session = onnxruntime.InferenceSession(folder / "canonicalize.onnx", providers=["CPUExecutionProvider"])
    with torch.no_grad():
        pose, canonical, rectified = run.model.canonicalize(turned)
    for count in (1, 2, 9):
        got = session.run(None, {"image": turned[:count].numpy()})
        for value, want in zip(got, (*pose, canonical, rectified), strict=True):
            np.testing.assert_allclose(value, want[:count].numpy(), rtol=1e-3, atol=1e-4)


def test_what_is_for_an_equivae_alone_says_so(run: LoadedRun) -> None:
    with pytest.raises(RunError, match="holds a model of kind mcevae: expected equivae"):
        run.equivae()


def test_a_metric_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"fit.select: mcevae measures 'rotation_error_60'.*not \"error\""):
        load_config(Path("training/configs/mcevae-mnist-so2.yaml"), ["fit.select=error"])


def test_outliers_are_part_of_a_step() -> None:
    data = small_digits.load(0).train
    model = make(8, window=8, group="SO2", shift=0.0, outlier_share=0.5)
    model.prepare(data)
    batch = model.batch(data, torch.arange(12), seeded())
    assert batch["outliers"].shape == (6, 1, 8, 8)


def test_what_mnist_tells_of_the_way_up_is_not_looked_at(mnist_file: Path) -> None:
    """Every digit of MNIST lies half a pixel off the frame's middle, always to the same side; its pose does not."""
    images = datasets.load(MnistData(source="mnist", path=mnist_file)).validation.images[:500, 0].double()
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
