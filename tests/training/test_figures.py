"""Figures: every file is written, shows what it says, and is the same picture each time."""

import errno
import importlib
import io
import os
import shutil
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from training.datasets.images import first_of_each_class
from training.errors import RunError, TrainingError
from training.evaluation import equivae_figures as figures
from training.evaluation import plots
from training.evaluation.classification import Mistake, serve
from training.evaluation.equivae_figures import pooled_embeddings
from training.evaluation.equivae_measures import encode
from training.figures import draw_figures
from training.models.equivae import EquiVAE
from training.run import load_run


class FakeUmap:
    """The first two features, in place of umap-learn."""

    def __init__(self, n_neighbors: int, random_state: int) -> None:
        self.n_neighbors = n_neighbors

    def fit_transform(self, features: np.ndarray) -> np.ndarray:
        assert self.n_neighbors < len(features)
        return features[:, :2]


@pytest.fixture
def with_umap(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("umap")
    module.UMAP = FakeUmap  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "umap", module)
    monkeypatch.setattr(figures.importlib.util, "find_spec", lambda name: object())


@pytest.mark.usefixtures("with_umap")
def test_all_figures_are_written(finished_run: Path, tmp_path: Path) -> None:
    paths = draw_figures(finished_run, tmp_path, console=Console(file=io.StringIO()))
    names = {"prior-samples", "interpolation", "swap-grid", "mistakes", "elbo", "umap-r", "umap-v"}
    assert {path.stem for path in paths} == names
    for path in paths:
        with Image.open(path) as picture:
            assert picture.format == "PNG" and min(picture.size) > 300
            assert np.asarray(picture.convert("L")).std() > 5


def test_without_umap_the_others_are_drawn_and_it_is_said(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures.importlib.util, "find_spec", lambda name: None)
    said = io.StringIO()
    paths = draw_figures(finished_run, tmp_path, console=Console(file=said, width=300))
    assert f"umap-learn is not installed ({plots.INSTALL})" in said.getvalue()
    assert {path.stem for path in paths} == {"prior-samples", "interpolation", "swap-grid", "mistakes", "elbo"}


def test_two_dimensions_are_shown_as_they_are(finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without UMAP too: one figure each for r and v."""
    monkeypatch.setattr(figures.importlib.util, "find_spec", lambda name: None)
    run = load_run(finished_run)
    flat = run.equivae().config.model_copy(update={"r_dim": 2, "v_dim": 2})
    run = replace(run, model=EquiVAE(flat, run.model.input, 10).eval())
    said = io.StringIO()
    drawn = figures.equivae_figures(run, run.splits().validation, 0, Console(file=said))
    assert {"plane-r", "plane-v"} < set(drawn) and not said.getvalue()
    spots = [len(classes.get_offsets()) for classes in drawn["plane-v"].axes[0].collections]  # type: ignore[arg-type]
    assert sum(spots) == len(run.splits().validation)


def test_figures_are_functions_of_the_seed(finished_run: Path, tmp_path: Path) -> None:
    run = load_run(finished_run)
    data = run.splits().validation
    encoded = encode(run.model, data.images)
    files = []
    for number, seed in enumerate((0, 0, 1)):
        path = tmp_path / f"{number}.png"
        plots.save(figures.swap_grid(run.model, data, encoded, seed), path)
        files.append(path.read_bytes())
    assert files[0] == files[1] != files[2]


@pytest.mark.parametrize("module", ["training.evaluation.equivae_figures", "training.evaluation.pose_figures"])
def test_missing_matplotlib_is_explained(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for loaded in ("training.evaluation.plots", module):
        monkeypatch.delitem(sys.modules, loaded, raising=False)
    with pytest.raises(TrainingError, match=r"pip install --constraint constraints.txt --editable '\.\[figures\]'"):
        importlib.import_module(module)


def test_tiles_are_ink_on_paper() -> None:
    light_on_dark = torch.zeros(3, 1, 8, 8)
    light_on_dark[:, :, 2:6, 2:6] = 1
    picture = plots.tiles([light_on_dark, light_on_dark])
    side = picture.shape[0] // 2
    assert picture.shape == (2 * side, 3 * side, 1)
    assert picture[0, 0, 0] == 1 and picture[side // 2, side // 2, 0] < 0.05
    colour = plots.tiles([light_on_dark.expand(-1, 3, -1, -1)])
    assert colour.shape[2] == 3 and colour[colour.shape[0] // 2, colour.shape[0] // 2, 0] > 0.95


def test_pooled_embeddings_are_means_of_hidden_units_of_one_class(finished_run: Path) -> None:
    run = load_run(finished_run)
    data = run.splits().validation
    one, labels = pooled_embeddings(run.model, data, 1, seed=0)
    five, _ = pooled_embeddings(run.model, data, 5, seed=0)
    assert torch.bincount(labels).tolist() == [len(members) for members in data.by_class]
    spread = [float(torch.stack([r[labels == k].var(0).sum() for k in range(10)]).mean()) for r in (one, five)]
    assert spread[1] < 0.5 * spread[0]
    # All members of a class but one give every image the same mean.
    members = data.by_class[0]
    whole, _ = pooled_embeddings(run.model, data.subset(members), len(members), seed=0)
    with torch.no_grad():
        expected = run.model.head(run.model.body(data.images[members].float() / 255).mean(0))
    torch.testing.assert_close(whole, expected.expand_as(whole))


def test_an_unfinished_run_is_refused(finished_run: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "run", ignore=shutil.ignore_patterns("model.pt"))
    with pytest.raises(RunError, match=r"has no model\.pt"):
        draw_figures(tmp_path / "run", tmp_path / "figures")


def test_one_image_a_class_has_the_figures_that_need_no_two(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures.importlib.util, "find_spec", lambda name: None)
    run = load_run(finished_run)
    one = first_of_each_class(run.splits().validation, 10)
    right = serve(run.equivae(), one.images).distances.argmin(1) == one.labels.numpy()
    mistakes = set() if right.all() else {"mistakes"}
    assert set(figures.equivae_figures(run, one, 0, Console(file=io.StringIO()))) - mistakes == {
        "prior-samples",
        "swap-grid",
        "elbo",
    }


def test_the_surest_mistakes_are_shown_with_their_names(finished_run: Path) -> None:
    data = load_run(finished_run).splits().validation
    wrong = [Mistake(place, int(data.labels[place]), 3, 0.9 - place / 100, 0.5) for place in range(12)]
    shown = figures.read_wrongly(data, wrong)
    titles = [axes.get_title() for axes in shown.axes]
    assert titles[:12] == [f"{data.class_names[one.label]} as 3\n{one.probability:.2f}" for one in wrong]
    assert len(shown.axes) == 20 and not any(titles[12:])
    assert len(figures.read_wrongly(data, wrong[:1]).axes) == 1


def test_names_of_classes_are_no_formulas(finished_run: Path, tmp_path: Path) -> None:
    data = load_run(finished_run).splits().validation
    priced = replace(data, class_names=tuple(f"$\\{name}$ {{" for name in data.class_names))
    wrong = [Mistake(0, int(data.labels[0]), 3, 0.9, 0.5)]
    plots.save(figures.read_wrongly(priced, wrong), tmp_path / "wrong.png")
    rows = [data.images[:3].float() / 255]
    plots.save(plots.grid_figure(rows, [priced.class_names[0]], "one"), tmp_path / "grid.png")
    plots.save(plots.scatter(np.eye(2), torch.tensor([0, 1]), priced.class_names, "two"), tmp_path / "map.png")


def test_a_full_disk_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"figure\.png cannot be written: the disk is full"):
        plots.save(plots.Figure((1, 1)), tmp_path / "deep" / "figure.png")
    assert not list((tmp_path / "deep").iterdir())
