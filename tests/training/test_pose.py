"""The card of a small finished run: what it holds, and that its figures are those of the measures."""

import io
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from tests.training.conftest import SMALL_POSE
from training import export
from training.datasets import Splits
from training.errors import RunError
from training.evaluate import EVALUATION_FILE, QUICK_FILE, evaluate
from training.evaluation import pose as card
from training.evaluation import pose_measures as measures
from training.evaluation import probes
from training.evaluation.options import Options
from training.evaluation.report import Report
from training.evaluation.views import Limits, observe
from training.lie import inverse, resample
from training.mixture import matched_accuracy
from training.run import LoadedRun, load_run

BASELINES = {"identity_error_60", "principal_axis_error_60", "clustering_k_means_pixels", "clustering_k_means_vae"}
LINES = {
    *("rotation_error_60", "rotation_median_60", "rotation_flips_60", "rotation_error_90", "rotation_error_60_moved"),
    *("shift_error_60_moved", "within_one_std_60", "frame_largest_mean", "frame_spread", "frame_slant", "frame_rest"),
    *("accuracy_upright", "accuracy_turned", "accuracy_rectified", "accuracy_canonical", "orbit_psnr_rectified"),
    *("orbit_psnr_canonical", "orbit_psnr_floor", "orbit_psnr_other", "invariance_z_c", "invariance_z"),
    *("reconstruction_bce", "reconstruction_mse", "recanonicalisation", "clustering", "clustering_k_means_rectified"),
    *("error_distance", "ece", "false_alarms"),
}


@pytest.fixture(scope="module")
def run(finished_pose_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("card") / "run"
    shutil.copytree(finished_pose_run, copy)
    return copy


def quick(run: Path, **options: Any) -> Report:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(card, "ORBIT_IMAGES", 20)
        patch.setattr(card, "ORBIT_MEMBERS", 6)
        patch.setattr(card, "VAE_EPOCHS", 1)
        patch.setattr(probes.independent_cnn, "__defaults__", (0, 5))
        return evaluate(run, options=Options(**options), console=Console(file=io.StringIO(), width=200))


@pytest.fixture(scope="module")
def report(run: Path) -> Report:
    return quick(run)


@pytest.fixture(scope="module")
def loaded(run: Path) -> LoadedRun:
    return load_run(run)


@pytest.fixture(scope="module")
def splits(loaded: LoadedRun) -> Splits:
    return loaded.splits()


def how(report: Report, name: str) -> str:
    return next(figure.how for figure in report.figures if figure.name == name)


def test_card_has_every_line_and_its_baselines(report: Report, run: Path) -> None:
    names = [figure.name for figure in report.figures]
    assert len(set(names)) == len(names) and set(names) >= LINES | BASELINES
    # No absolute error without supervision, and no shift of three pixels in a frame of twelve.
    assert not {name for name in names if name.startswith(("absolute", "rotnet")) or "shift3" in name}
    for figure in report.figures:
        assert figure.split == "validation" and figure.n > 0 and figure.how and math.isfinite(figure.value)
    stored = json.loads((run / EVALUATION_FILE.format(split="validation")).read_text())
    assert stored == report.as_dict()
    assert stored["model"]["group"] == "SE2" and stored["model"]["supervised"] is False
    assert stored["details"]["rotation_60"]["per_class"].keys() == set("0123456789")
    assert stored["details"]["rotation_60_moved"]["lost_ink"]["largest"] < 0.35


def test_rotation_error_and_calibration_are_those_of_the_measures(
    report: Report, loaded: LoadedRun, splits: Splits
) -> None:
    upright = splits.validation.images.float() / 255
    known = Limits(60).draw(len(upright), 0)
    with torch.no_grad():
        before, after = loaded.model.pose(upright), loaded.model.pose(observe(upright, known))
    errors = measures.rotation_errors(measures.error_matrices(before.matrix, after.matrix, known))
    assert report.value("rotation_error_60") == pytest.approx(float(errors.mean()), rel=1e-3)
    assert report.value("rotation_median_60") == pytest.approx(float(errors.median()), rel=1e-3)
    expected = torch.hypot(before.coefficients_std[:, 0], after.coefficients_std[:, 0]).rad2deg()
    within = 100 * float((errors <= expected)[errors <= 90].float().mean())
    assert report.value("within_one_std_60") == pytest.approx(within, abs=1)
    assert how(report, "within_one_std_60").endswith("the factor of the deviation fitted on these images")
    assert report.value("identity_error_60") == pytest.approx(30, abs=3)


def test_reconstruction_and_clusters_by_hand(report: Report, loaded: LoadedRun, splits: Splits) -> None:
    upright = splits.validation.images.float() / 255
    known = Limits(90, 0.1).draw(len(upright), 0)
    shown = observe(upright, known)
    with torch.no_grad():
        pose, canonical, *_ = loaded.model.canonicalize(shown)
        found = loaded.model.clusters(shown).argmax(1)
    rebuilt = resample(canonical, inverse(pose.matrix), padding="border")
    assert report.value("reconstruction_mse") == pytest.approx(float(((rebuilt - shown) ** 2).mean()), rel=1e-3)
    right = 100 * matched_accuracy(found, splits.validation.labels)
    assert report.value("clustering") == pytest.approx(right, abs=0.5)
    assert report.details["clusters"].keys() == set("0123456789")
    for label, shares in enumerate(report.details["clusters"].values()):
        of_class = found[splits.validation.labels == label]
        expected = 100 * torch.bincount(of_class, minlength=len(shares)) / len(of_class)
        assert shares == pytest.approx(expected.tolist(), abs=5)  # one picture on the edge of two clusters


def test_orbits_are_between_the_floor_and_the_pictures_as_shown(report: Report) -> None:
    order = [report.value(f"orbit_psnr_{name}") for name in ("floor", "rectified", "identity")]
    assert order == sorted(order, reverse=True)


def test_quick_look_takes_a_part_and_is_no_figure_for_an_export(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    report = quick(copy, limit=40, seed=3, split="test")
    assert {figure.n for figure in report.figures if figure.name == "rotation_error_60"} == {40}
    for name in ("within_one_std_60", "ece", "false_alarms"):
        assert how(report, name).endswith("fitted on the validation split")
    assert {figure.seed for figure in report.figures} == {3} and {figure.split for figure in report.figures} == {"test"}
    assert (copy / QUICK_FILE.format(split="test")).is_file()
    assert not (copy / EVALUATION_FILE.format(split="test")).exists()


@pytest.fixture(scope="module")
def supervised(finish_pose_run: Callable[..., Path]) -> Path:
    return finish_pose_run(
        {**SMALL_POSE["model"], "group": "SO2", "shift": 0.0, "supervised": True, "rotation_degrees": 180}
    )


def test_supervised_model_has_absolute_errors_and_rotnets_line(supervised: Path) -> None:
    report = quick(supervised, limit=60)
    values = {figure.name: figure.value for figure in report.figures}
    assert {"absolute_median", "absolute_flips", "absolute_within_one_std", "rotnet_error"} <= set(values)
    assert values["absolute_error_by_axis"] <= values["absolute_error"] < 80  # 90 by chance
    assert values["absolute_error_identity"] == pytest.approx(90, abs=8)  # of turns over the whole circle
    assert values["absolute_error_by_axis_principal_axis"] < values["absolute_error_principal_axis"] < 120
    assert values["rotation_error_60_by_axis"] <= values["rotation_error_60"]
    assert 0 < values["rotnet_error_by_axis"] <= values["rotnet_error"] <= 180
    assert not {name for name in values if name.startswith("shift")}
    assert how(report, "within_one_std_60").endswith("of the absolute error, of which alone 68.3 is expected")
    assert how(report, "absolute_within_one_std").endswith("the factor of the deviation fitted on these images")


def test_pictures_that_are_turned_already_are_shown_as_they_are(supervised: Path) -> None:
    """The same pictures turned here give the same errors as those that the card turns itself."""
    loaded = load_run(supervised)
    splits = loaded.splits()
    part = splits.validation.subset(torch.arange(50))
    known = Limits(180).draw(50, 0)
    shown = (255 * observe(part.images.float() / 255, known)).round().to(torch.uint8)
    data = replace(part, images=shown, turns=torch.deg2rad(measures.rotation_degrees(known)))
    options, console = Options(), Console(file=io.StringIO())
    report = card.PoseEvaluation(loaded, splits, data, options, console).run()
    assert {figure.name.split("_")[0] for figure in report.figures} == {"absolute"}
    usual = card.PoseEvaluation(loaded, splits, part, options, console)
    usual.absolute_errors()
    assert report.value("absolute_median") == pytest.approx(usual.report.value("absolute_median"), abs=0.5)


def test_a_model_with_a_frame_of_its_own_is_not_measured_on_pictures_that_are_turned_already(
    loaded: LoadedRun, splits: Splits
) -> None:
    data = replace(splits.validation, turns=torch.zeros(len(splits.validation)))
    with pytest.raises(RunError, match="was not told what is upright, and the pictures of digits are turned already"):
        card.PoseEvaluation(loaded, splits, data, Options(), Console(file=io.StringIO()))


def test_model_without_latents_has_the_lines_that_need_none(finish_pose_run: Callable[..., Path]) -> None:
    extractor = {"kind": "polar", "radii": 5, "angles": 32, "width": 8, "kernel": 3, "dilations": [1]}
    report = quick(finish_pose_run({"kind": "upright", "extractor": extractor}, "rotation_error", steps=10), limit=30)
    names = {figure.name for figure in report.figures}
    assert {"absolute_error", "rotation_error_60", "rotation_error_180", "orbit_psnr_rectified"} <= names
    assert not {name for name in names if name.startswith(("invariance", "clustering"))}


def test_a_model_that_finds_no_pose_has_no_line_of_it_fed_back(finish_pose_run: Callable[..., Path]) -> None:
    values = {"kind": "plain_vae", "method": "beta", "group": "SE2", "shift": 0.1}
    report = quick(finish_pose_run(values, "reconstruction", steps=10), limit=30)
    assert "recanonicalisation" not in {figure.name for figure in report.figures}
    assert all(math.isfinite(figure.value) for figure in report.figures)
    assert report.value("rotation_error_60") == report.value("identity_error_60")


def test_export_takes_the_card_into_the_manifest(report: Report, loaded: LoadedRun) -> None:
    metrics = export._metrics(loaded)["evaluation-validation"]
    assert metrics["rotation_error_60"]["value"] == report.value("rotation_error_60")
    assert metrics["rotation_error_60"]["unit"] == "degrees" and metrics["rotation_error_60"]["n"] == 216


def test_classifier_that_does_not_fit_is_said_before_anything_is_measured(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(card.PoseEvaluation, "run", lambda self: pytest.fail("measured"))
    target = tmp_path / "report.json"
    with pytest.raises(RunError, match="no model folder"):
        evaluate(run, target, Options(classifier=tmp_path), Console(file=io.StringIO()))
    assert not target.exists()
