"""Runs beside each other: their losses by epoch, the clusters' accuracy, three pictures."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import vaes
from tests.training.conftest import SMALL_POSE, trained
from training.run import read_metrics


@pytest.fixture(scope="module")
def finish(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Train a small model of this `model` section for a few steps; the run's folder."""
    fit = {**SMALL_POSE["fit"], "select": "reconstruction", "steps": 10}
    return lambda **model: trained({**SMALL_POSE, "model": model, "fit": fit}, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def runs(finish: Callable[..., Path]) -> dict[str, Path]:
    return {
        "beta": finish(kind="plain_vae", method="beta", group="SE2", shift=0.1),
        "MCE": finish(kind="mcevae_paper", transforms=1, group="SE2", shift=0.1),
    }


def test_the_figures_of_two_runs(runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vaes, "MAPPED", 60)
    written = tmp_path / "vaes.json"
    vaes.main([f"{name}={run}" for name, run in runs.items()] + ["--output", str(tmp_path), "--json", str(written)])
    models = json.loads(written.read_text())["models"]
    assert [model["name"] for model in models] == list(runs)
    for model in models:
        rows = read_metrics(runs[model["name"]])
        last = [row for row in rows if row["split"] == "validation"][-1]
        assert model["validation"][-1] == [math.ceil(last["epoch"]), last["reconstruction_drawn"]]
        assert model["train"][-1][1] == pytest.approx(
            [row for row in rows if row["split"] == "train"][-1]["reconstruction"]
        )
        assert 10 < model["clustering"] <= 100
    for name in ("loss", "maps", "canonical"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.format == "PNG" and min(picture.size) > 200


def test_runs_on_other_data_are_refused(
    runs: dict[str, Path], finish: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = finish(kind="plain_vae", method="beta", rotation_degrees=45)
    for folder, message in (
        (other, "other was not trained on pictures of +-90 degrees"),
        (tmp_path, "not a run"),
    ):
        with pytest.raises(SystemExit):
            vaes.main([f"beta={runs['beta']}", f"other={folder}", "--output", str(tmp_path)])
        assert message in capsys.readouterr().err
