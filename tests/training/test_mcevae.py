"""MCE-VAE: that it learns on small digits, and what is exported."""

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
from rich.console import Console

from contract.manifest import verify
from tests.training.tiny_mcevae import LIFTED, SMALL, moves, seeded
from training.config_file import load_config
from training.errors import ConfigError, RunError
from training.export import export_run
from training.fit import train
from training.lie import compose, inverse
from training.models.registry import build, graphs
from training.rotation import wrapped
from training.run import LoadedRun, load_run
from training.turned import move, similarity, uniform


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
    return small_run(tmp_path_factory.mktemp("pose"), 150)


@pytest.fixture(scope="module")
def digits(run: LoadedRun) -> torch.Tensor:
    return run.splits().validation.images.float() / 255


def test_it_finds_turns_and_shifts_that_it_was_never_told(run: LoadedRun, digits: torch.Tensor) -> None:
    known = moves(len(digits), 60, 0.25)
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
        _, canonical, rectified, _ = run.model.canonicalize(digits)
    fit = ((canonical - rectified) ** 2).flatten(1).sum(1).mean()
    other = ((canonical - rectified.roll(1, 0)) ** 2).flatten(1).sum(1).mean()
    assert float(fit) < 0.85 * float(other)
    assert canonical.shape == rectified.shape == digits.shape
    assert float(canonical.min()) >= 0 and float(canonical.max()) <= 1


def test_latents_and_clusters_do_not_change_with_the_pose(run: LoadedRun, digits: torch.Tensor) -> None:
    known = moves(len(digits), 50, 0.2)
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


def test_its_embedding_tells_the_class_in_any_pose(run: LoadedRun, digits: torch.Tensor) -> None:
    labels = run.splits().validation.labels
    with torch.no_grad():
        embedding, distances, probabilities, novelty = run.model.classify(move(digits, moves(len(digits), 50, 0.2)))
    assert len(embedding) == len(digits)
    assert float((distances.argmin(1) == labels).float().mean()) > 0.45  # chance is 0.2; a run of 150 steps
    assert torch.allclose(probabilities.sum(1), torch.ones(len(digits)))
    confidence = probabilities.max(1).values.mean()
    assert abs(float(confidence) - float((probabilities.argmax(1) == labels).float().mean())) < 0.2
    assert 0.3 < float(novelty.median()) < 0.7 and float((novelty > 0.99).float().mean()) < 0.1


def test_data_without_classes_has_nothing_to_classify(run: LoadedRun) -> None:
    model = build(run.model.config, run.model.input, 1)
    assert set(graphs("mcevae", model)) == {"embed", "transform", "canonicalize"}


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
    # A model that blurs instead of turning would be unsure of every angle.
    assert math.degrees(float(before.coefficients_std[:, 0].median())) < 3


def test_a_supervised_model_knows_the_whole_circle(tmp_path: Path) -> None:
    run = small_run(tmp_path, 60, group="SO2", shift=0.0, supervised=True, rotation_degrees=180, pose=LIFTED)
    digits = run.splits().validation.images.float() / 255
    rotation = uniform(len(digits), math.pi, seeded())
    with torch.no_grad():
        pose = run.model.pose(move(digits, similarity(rotation, torch.zeros(len(digits), 2))))
        blank = run.model.pose(torch.zeros(1, 1, 16, 16))
    assert math.degrees(float(blank.coefficients_std[0, 0])) > 90  # the flat posterior's 103.9
    error = torch.rad2deg(wrapped(pose.coefficients[:, 0] - rotation)).abs()
    assert float(error.median()) < 12 and float((error > 90).float().mean()) < 0.15
    assert pose.coefficients.shape[1] == 1


def test_export_has_poses_and_pictures_at_any_batch(run: LoadedRun, digits: torch.Tensor, tmp_path: Path) -> None:
    folder = export_run(run.folder, tmp_path, console=Console(file=io.StringIO()))
    manifest = verify(folder)
    assert set(manifest.graphs) == {"embed", "classify", "transform", "canonicalize"}
    assert (manifest.group, manifest.kind, manifest.labels) == ("SE2", "mcevae", ("2", "3", "4", "5", "7"))
    assert manifest.metrics["validation"]["rotation_error_60"] == run.metrics["rotation_error_60"]
    assert manifest.preprocessing.fit == "circle" and 0.2 < manifest.preprocessing.margin < 0.4
    turned = move(digits[:9], similarity(uniform(9, math.pi, seeded(3)), uniform(9, 0.2, seeded(4), columns=2)))
    for capability in manifest.graphs:
        proto = onnx.load(folder / f"{capability}.onnx")
        operators = Counter(node.op_type for node in proto.graph.node)
        assert not {"AffineGrid", "Shape", "RandomNormal", "BatchNormalization"} & set(operators)
        assert operators["GridSample"] == (1 if capability == "transform" else 2)
    session = onnxruntime.InferenceSession(folder / "canonicalize.onnx", providers=["CPUExecutionProvider"])
    with torch.no_grad():
        pose, canonical, rectified, _ = run.model.canonicalize(turned)
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
