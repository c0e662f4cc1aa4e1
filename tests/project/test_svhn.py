"""SVHN from the published files' layout to answers over HTTP: what is missing where the data is not is its pictures."""

import math
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat, savemat

from service.settings import Settings
from tests.server import running_server
from training.config_file import load_config
from training.datasets import svhn
from training.export import export_run
from training.run import load_run
from training.seeds import run_seeds

CONFIGS = Path(__file__).parents[2] / "training" / "configs"
SMALLER = ("fit.steps=3", "fit.batch=20", "fit.threads=1", "fit.accelerator=cpu", "model.max_complements=2")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`train_32x32.mat` and `test_32x32.mat` of noise, 10 for the digit 0; 40 validation images, not 3,257."""
    monkeypatch.setattr(svhn, "VALIDATION", 40)
    monkeypatch.setattr(svhn, "_content", loadmat)  # in this process: these files crash nothing
    generator = np.random.default_rng(0)
    for name, count in (("train_32x32.mat", 140), ("test_32x32.mat", 30)):
        images = generator.integers(0, 256, (32, 32, 3, count), np.uint8)
        savemat(tmp_path / name, {"X": images, "y": (np.arange(count, dtype=np.uint8) % 10 + 1)[:, None]})
    return tmp_path


@pytest.mark.parametrize(
    ("name", "overrides", "unlabelled"),
    [
        ("equivae-svhn-paper", ("fit.epochs=null", "fit.schedule={kind: constant}"), 0),
        ("equivae-svhn-1000labels-paper", ("data.labels=40", "model.few_labels.unlabelled_batch=4"), 60),
    ],
)
def test_a_recipe_is_trained_measured_exported_and_served(
    name: str, overrides: tuple[str, ...], unlabelled: int, folder: Path, tmp_path: Path
) -> None:
    config = load_config(CONFIGS / f"{name}.yaml", (*SMALLER, *overrides, f"data.path={folder}"))
    store = tmp_path / "store"
    (row,) = run_seeds(config, [1], tmp_path / "seeds.jsonl", tmp_path, test=True)
    assert row["test"].keys() == set(config.for_data(unlabelled=bool(unlabelled)).model.metrics)
    assert all(math.isfinite(value) for value in row["test"].values())
    run = tmp_path / f"{name}-1"
    assert load_run(run).data["counts"].get("unlabelled", 0) == unlabelled
    exported = export_run(run, store)
    assert exported.parent.name == name
    buffer = BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8)).save(buffer, "PNG")
    settings = Settings(model_store=store, default_classify=name, default_embed=name, default_recombine=name)
    with running_server(settings) as url:
        answer = httpx.post(
            f"{url}/classify", content=buffer.getvalue(), headers={"content-type": "image/png"}, timeout=30
        )
    assert answer.status_code == 200, answer.text
    assert answer.json()["label"] in set("0123456789") and answer.json()["input"]["width"] == 32
