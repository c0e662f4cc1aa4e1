"""The README's trainings are run, every command in order."""

import shlex
import subprocess
import sys
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
from tests.project.readme import EXAMPLES, ROOT, compare_text, environment
from tests.server import running_server
from training.__main__ import app
from training.evaluation import probes

PROGRAM = ".venv/bin/python -m training "
SMALL_POSE_NETS = (
    "--set model.modes=1 --set model.pose.width=8 --set model.pose.dilations=[1] --set model.pose.radii=6 "
    "--set model.encoder.filters=[8] --set model.encoder.strides=[2]"
)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("run", "verbs", "model"),
    [
        ("runs/my-upright", ["train", "export"], "my-upright-model"),
        ("runs/mine", ["train", "evaluate", "export"], "my-model"),
    ],
)
def test_training_on_a_folder_of_ones_own(
    run: str, verbs: list[str], model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, which has PyTorch imported: `make train` below runs the same verbs as processes."""
    training = [command for command, _, _ in EXAMPLES if command.startswith(PROGRAM)]
    commands = [command for command in training if run in command.split()]
    assert [command.split()[3] for command in commands] == verbs
    (tmp_path / "training").symlink_to(ROOT / "training")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(probes, "neural_head", partial(probes.neural_head, steps=20))
    monkeypatch.setattr(probes, "JUDGE_LEAST_STEPS", 20)
    monkeypatch.setattr(probes, "JUDGE_EPOCHS", 1)
    # The commands stand as they are but for their length: few steps of small nets on small pictures show the path
    # whole, and one mode the export.
    train = " --set fit.steps=12 --set data.size=8 --set data.channels=1"
    short = {
        "train": train if "evaluate" in verbs else f"{train} {SMALL_POSE_NETS}",
        "evaluate": " --benchmark-epochs 0 --samples 20 --photographs 1",
        "export": "",
    }
    digits = load_digits()
    for index, (pixels, label) in enumerate(zip(digits.images[:360], digits.target, strict=False)):
        folder = tmp_path / "my-pictures" / f"class-{label % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15).astype(np.uint8)).resize((40, 30)).save(folder / f"{index}.png")
    for command in commands:
        words = shlex.split(command.removeprefix(PROGRAM) + short[command.split()[3]])
        done = CliRunner().invoke(app, words, catch_exceptions=False)
        assert done.exit_code == 0, done.output
    manifest = read_manifest(tmp_path / "model_store" / model / "1")
    assert ("evaluation-validation" in manifest.metrics) == ("evaluate" in verbs)
    picture = next((tmp_path / "my-pictures").rglob("*.png")).read_bytes()
    paths = ["/classify"] if model == "my-model" else ["/canonicalize", "/classify"]
    headers = {"content-type": "image/png"}
    with running_server(Settings(model_store=tmp_path / "model_store")) as url:
        for path in paths:
            answer = httpx.post(f"{url}{path}", params={"model": model}, content=picture, headers=headers)
            assert (answer.status_code, answer.json()["model"]) == (200, model), answer.text
    assert answer.json()["label"] in {"class-0", "class-1", "class-2"}


@pytest.mark.timeout(400)
def test_make_train_makes_a_served_model(tmp_path: Path) -> None:
    ((_, language, answer),) = [example for example in EXAMPLES if example[0] == "make train"]
    assert language == "text"
    # A quarter of the steps comes to the error that the README prints; of the figures that follow a look is enough.
    look = {"BENCHMARK_EPOCHS": "0", "SAMPLES": "50", "LIMIT": "20"}
    shorter = {f"EQUIPOISE_TRAINING_EVALUATE_{name}": value for name, value in look.items()}
    shorter["EQUIPOISE_TRAINING_SET"] = "fit.steps=500"
    env = environment(RUNS=str(tmp_path / "runs"), STORE=str(tmp_path / "store"), **shorter)
    done = subprocess.run(["make", "train"], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    # Rounding differs between processors and so does the course of a training: three of 216 images are 1.4 points.
    compare_text(answer, done.stdout, relative=0.2, absolute=1.5)
    env = environment(EQUIPOISE_MODEL_STORE=str(tmp_path / "store"))
    check = [sys.executable, "-m", "service", "check"]
    subprocess.run(check, cwd=ROOT, env=env, check=True)
