"""The README's trainings are run, every command in order."""

import shlex
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from typer.testing import CliRunner

from contract.manifest import read_manifest
from service.settings import Settings
from tests.project.readme import EXAMPLES, ROOT, compare_text
from tests.server import running_server
from training import rotation
from training.__main__ import app
from training.evaluation import probes

PROGRAM = ".venv/bin/python -m training "
VERBS = ("train", "evaluate", "export")
SMALL_POSE_NETS = (
    "--set model.modes=1 --set model.pose.width=8 --set model.pose.dilations=[1] --set model.pose.radii=6 "
    "--set model.encoder.filters=[8] --set model.encoder.strides=[2]"
)


@pytest.fixture
def quick_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an evaluation trains beside the model takes few steps."""
    monkeypatch.setattr(probes, "neural_head", partial(probes.neural_head, steps=20))
    monkeypatch.setattr(probes, "JUDGE_LEAST_STEPS", 20)
    monkeypatch.setattr(probes, "JUDGE_EPOCHS", 1)


def run_here(command: str, more: str = "") -> str:
    """What a training command prints, in this process, which has PyTorch imported; tests/training starts processes."""
    variables, _, words = command.partition(PROGRAM)
    environment = dict(variable.split("=") for variable in variables.split())
    done = CliRunner().invoke(app, shlex.split(words + more), env=environment, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def made_by(example: str, *options: str) -> list[str]:
    """The commands that `make train` of the README would run."""
    assert [command for command, _, _ in EXAMPLES if command == example] == [example]
    made = [f"--old-file={path}" for path in (".venv/.train", "pyproject.toml", "constraints.txt")]
    make = [*example.split(), "--silent", "--dry-run", "VENV=.venv", *made, *options]
    commands = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [command.partition(PROGRAM)[2].split()[0] for command in commands] == list(VERBS)
    return commands


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("quick_probes")
@pytest.mark.parametrize(("config", "model"), [("mcevae-folder", "my-upright-model"), ("equivae-folder", "my-model")])
def test_training_on_a_folder_of_ones_own(
    config: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = made_by(f"make train CONFIG=training/configs/{config}.yaml")
    (tmp_path / "training").symlink_to(ROOT / "training")
    monkeypatch.chdir(tmp_path)
    # The commands stand as they are but for their length: few steps of small nets on small pictures show the path
    # whole, and one mode, found in one round, the export.
    monkeypatch.setattr(rotation, "ROUNDS", 1)
    train = " --set fit.steps=12 --set data.size=8 --set data.channels=1"
    upright = config == "mcevae-folder"
    short = {
        "train": f"{train} {SMALL_POSE_NETS}" if upright else train,
        "evaluate": "" if upright else " --benchmark-epochs 0 --samples 20 --photographs 1",
        "export": "",
    }
    digits = load_digits()
    for index, (pixels, label) in enumerate(zip(digits.images[:360], digits.target, strict=False)):
        folder = tmp_path / "my-pictures" / f"class-{label % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15).astype(np.uint8)).resize((40, 30)).save(folder / f"{index}.png")
    for command, verb in zip(commands, VERBS, strict=True):
        run_here(command, short[verb])
    manifest = read_manifest(tmp_path / "model_store" / model / "1")
    assert "evaluation-validation" in manifest.metrics
    picture = next((tmp_path / "my-pictures").rglob("*.png")).read_bytes()
    paths = ["/classify"] if model == "my-model" else ["/canonicalize", "/classify"]
    headers = {"content-type": "image/png"}
    with running_server(Settings(model_store=tmp_path / "model_store")) as url:
        for path in paths:
            answer = httpx.post(f"{url}{path}", params={"model": model}, content=picture, headers=headers)
            assert (answer.status_code, answer.json()["model"]) == (200, model), answer.text
    assert answer.json()["label"] in {"class-0", "class-1", "class-2"}


@pytest.mark.timeout(400)
@pytest.mark.usefixtures("quick_probes")
def test_make_train_makes_a_served_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: Callable[..., "subprocess.CompletedProcess[str]"]
) -> None:
    """The commands that `make` would run, in order."""
    ((_, language, answer),) = [example for example in EXAMPLES if example[0] == "make train"]
    assert language == "text"
    runs, store = tmp_path / "runs", tmp_path / "store"
    commands = made_by("make train", f"RUNS={runs}", f"STORE={store}")
    monkeypatch.chdir(ROOT)
    # A quarter of the steps comes to the error that the README prints; of the figures that follow a look is enough.
    short = {
        "train": " --set fit.steps=500",
        "evaluate": " --benchmark-epochs 0 --samples 50 --limit 20",
        "export": "",
    }
    printed = "".join(run_here(command, short[verb]) for command, verb in zip(commands, VERBS, strict=True))
    shipped = read_manifest(ROOT / "model_store" / "equivae-digits" / "1").metrics["validation"]["error"]
    assert f"validation error {shipped:.2f} %" in answer
    # Rounding differs between processors and so does the course of a training: three of 216 images are 1.4 points.
    compare_text(answer, printed, relative=0.2, absolute=1.5)
    assert here("check", EQUIPOISE_MODEL_STORE=str(store)).returncode == 0
