"""Figures of a model of poses: every file is written, shows what it says, and is the same picture each time."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from benchmarks import pose_pictures
from training.evaluation import pose_figures
from training.evaluation.plots import save
from training.evaluation.views import Limits, observe
from training.figures import draw_figures
from training.run import load_run

NAMES = {"pictures", "angles", "clusters", "tsne-z_c"}


def test_all_figures_are_written(finished_pose_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pose_figures, "TSNE_IMAGES", 60)
    # The small model puts all pictures into one cluster.
    monkeypatch.setattr(pose_figures, "clusters", lambda model, shown: torch.eye(3)[torch.arange(len(shown)) % 3])
    paths = draw_figures(finished_pose_run, tmp_path, console=Console(file=io.StringIO()))
    assert {path.stem for path in paths} == NAMES
    for path in paths:
        with Image.open(path) as picture:
            assert picture.format == "PNG" and min(picture.size) > 200
            assert np.asarray(picture.convert("L")).std() > 5


def test_one_cluster_for_all_is_not_drawn(finished_pose_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pose_figures, "TSNE_IMAGES", 60)
    monkeypatch.setattr(pose_figures, "clusters", lambda model, shown: torch.eye(3)[torch.zeros(len(shown), dtype=int)])
    run = load_run(finished_pose_run)
    assert set(pose_figures.pose_figures(run, run.splits().validation, 0)) == NAMES - {"clusters"}


def test_pictures_and_errors_repeat_and_follow_the_seed(finished_pose_run: Path, tmp_path: Path) -> None:
    run = load_run(finished_pose_run)
    data = run.splits().validation
    for draw in (pose_figures.pictures, pose_figures.error_against_angle):
        files = []
        for number, seed in enumerate((0, 0, 1)):
            path = tmp_path / f"{draw.__name__}-{number}.png"
            save(draw(run.model, data, Limits(90, 0.1), seed), path)
            files.append(path.read_bytes())
        assert files[0] == files[1] != files[2]


@pytest.mark.parametrize(("degrees", "bins"), [(4, 1), (47, 9), (90, 18)])
def test_bins_of_angles_are_equal_and_cover_the_range(finished_pose_run: Path, degrees: float, bins: int) -> None:
    run = load_run(finished_pose_run)
    figure = pose_figures.error_against_angle(run.model, run.splits().validation, Limits(degrees), 0)
    bars = figure.axes[1].patches
    width = 2 * degrees / bins
    assert len(bars) == bins
    middles = [bar.get_x() + bar.get_width() / 2 for bar in bars]
    np.testing.assert_allclose(middles, -degrees + width * (np.arange(bins) + 0.5), atol=1e-6)


def test_rows_of_pictures_are_named(finished_pose_run: Path) -> None:
    run = load_run(finished_pose_run)
    (axes,) = pose_figures.pictures(run.model, run.splits().validation, Limits(90), 0).axes
    assert [text.get_text() for text in axes.texts] == ["input", "reconstruction", "upright", "rectified", "canonical"]
    assert axes.get_title() == "unsupervised, SE2"


def test_decoded_mean_of_a_cluster_is_the_decoders(finished_pose_run: Path) -> None:
    """canonicalize decodes the same latents."""
    run = load_run(finished_pose_run)
    images = run.splits().validation.images[:3].float() / 255
    with torch.no_grad():
        decoded = run.model.decode(*run.model.latents(images))
        canonical = run.model.canonicalize(images).canonical
    torch.testing.assert_close(decoded, canonical, rtol=0, atol=1e-3)


def test_model_without_latents_has_the_figures_that_need_none(finish_pose_run: Callable[..., Path]) -> None:
    """Also of pictures that are turned already: there is no upright truth to show."""
    extractor = {"kind": "polar", "radii": 5, "angles": 32, "width": 8, "kernel": 3, "dilations": [1]}
    run = load_run(finish_pose_run({"kind": "upright", "extractor": extractor}, "rotation_error", steps=10))
    data = run.splits().validation
    assert set(pose_figures.pose_figures(run, data, 0)) == {"pictures", "angles"}
    turns = torch.linspace(-3, 3, len(data))
    matrices = pose_figures.rotation_matrices(torch.rad2deg(turns))
    shown = (255 * observe(data.images.float() / 255, matrices)).to(torch.uint8)
    already = replace(data, images=shown, turns=turns)
    (axes,) = pose_figures.pose_figures(run, already, 0)["pictures"].axes
    assert [text.get_text() for text in axes.texts] == ["input", "rectified"]


def test_runs_stand_below_each_other(finished_pose_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pose_figures, "TSNE_IMAGES", 60)
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    pose_pictures.main([str(finished_pose_run), "--output", str(one)])
    pose_pictures.main([str(finished_pose_run), str(finished_pose_run), "--output", str(two)])
    with Image.open(one) as single, Image.open(two) as double:
        assert np.asarray(single).std() > 5
        assert np.array_equal(np.asarray(double), np.concatenate([np.asarray(single)] * 2))
