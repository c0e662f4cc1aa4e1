"""The loop: what step t does, exact resumption after a kill, and clear errors with the last good checkpoint kept."""

import hashlib
import io
import itertools
import math
import os
import pickle
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from tests.training import process
from tests.training.conftest import SMALL, trained
from training import checkpoint, datasets, reporter
from training.__main__ import app
from training.average import Average
from training.config import Config
from training.config_file import load_config
from training.errors import DeviceError, RunError
from training.fit import make_fabric, train
from training.models.equivae import EquiVAE
from training.plan import Plan
from training.run import load_run, read_metrics

MakeConfig = Callable[..., Config]
ENCODED = (
    "model.complements=encoded",
    "model.augment=null",
    "fit.order=shuffled",
    "fit.batch=32",
    "fit.ema=null",
    "fit.schedule={kind: batch-doubling, after_epochs: [1]}",
)

IN_STAGES: dict[str, Any] = {
    "name": "staged",
    "recipe": "test",
    "data": {"source": "digits", "canvas": 12},
    "model": {
        "kind": "symmetry_two_stage",
        "encoder": {"radii": 4, "angles": 16, "width": 8, "kernel": 3, "dilations": [1]},
        "flow": {"features": [8, 8], "hidden": [8], "bins": 4, "transforms": 1},
    },
    "fit": {"steps": 6, "batch": 16, "select": "flow", "accelerator": "cpu", "threads": 1},
}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_run(folder).model.state_dict()


def assert_same_bits(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def words(config: Path, folder: Path, *options: str) -> list[str]:
    return ["train", str(config), "--run", str(folder), *options]


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the model's batch of `step` (from 0) end the process's patience, as Ctrl-C would."""
    genuine = EquiVAE.batch
    calls = iter(range(10**9))

    def batch(self: EquiVAE, *arguments: Any) -> Any:
        if next(calls) == step:
            raise KeyboardInterrupt
        return genuine(self, *arguments)

    monkeypatch.setattr(EquiVAE, "batch", batch)


@pytest.fixture
def interrupted(make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Config, Path]:
    """A run of 40 steps that ended in step 17, with checkpoints of 7 and 14."""
    config, folder = make_config(), tmp_path / "interrupted"
    with monkeypatch.context() as patch:
        interrupt_at(17, patch)
        with pytest.raises(KeyboardInterrupt):
            train(config, folder)
    return config, folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What that run leaves where nothing interrupts it."""
    return trained(SMALL, tmp_path_factory.mktemp("whole"))


# --- training -------------------------------------------------------------------------------------------------------


def test_a_run_learns_and_leaves_what_it_promises(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(
        "fit.steps=300",
        "fit.validate_epochs=4",
        "fit.checkpoint_steps=100",
        "model.distance_weight=10",
        "fit.optimiser.learning_rate=0.01",
    )
    outcome = train(config, tmp_path / "run", console=Console(quiet=True))
    run = load_run(tmp_path / "run")
    assert run.metrics == outcome.metrics and outcome.step == 300
    assert outcome.metrics["error"] < 15
    rows = read_metrics(tmp_path / "run")
    losses = [row["loss"] for row in rows if row["split"] == "train"]
    assert len(losses) == 60 and losses[-1] < 0.8 * losses[0]
    # 1,222 images make 30 steps of 40 an epoch.
    assert [row["step"] for row in rows if row["split"] == "validation"] == [120, 240, 300]
    assert not run.model.training and not (tmp_path / "run" / "skipped.txt").exists()
    splits = run.splits()
    assert run.data == splits.summary() and run.preprocessing == splits.preprocessing
    images = splits.validation.images.float() / 255
    wrong = (run.model.classify(images)[1].argmin(1) != splits.validation.labels).float().mean()
    assert 100 * float(wrong) == pytest.approx(outcome.metrics["error"])
    assert len(list((tmp_path / "run").glob("checkpoint-*.pt"))) == 2
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_a_terminal_shows_terms_and_the_time_left(make_config: MakeConfig, tmp_path: Path) -> None:
    for terminal in (True, False):
        screen = io.StringIO()
        console = Console(file=screen, force_terminal=terminal, width=150)
        train(make_config("fit.steps=10", "fit.validate_epochs=0.1"), tmp_path / str(terminal), console=console)
        shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
        assert ("━" in shown) == terminal
        if terminal:
            assert re.search(r"10/10 loss [\d.]+  reconstruction [\d.]+  kl [\d.]+ +\d:\d\d:\d\d", shown)
        assert re.search(r"step 6  epoch 0.2  validation: error [\d.]+ .*\(\d:\d\d:\d\d left\)", shown)


def test_a_log_has_a_line_a_minute_between_validations(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = itertools.count()
    monkeypatch.setattr(reporter.time, "monotonic", lambda: 10.0 * next(reads))
    said = io.StringIO()
    config = make_config("fit.steps=6", "fit.log_steps=1", "fit.validate_epochs=50")
    train(config, tmp_path / "run", console=Console(file=said, width=150))
    lines = re.findall(
        r"step (\d)  epoch 0\.\d  (validation: error|loss) [\d.]+ .*\(\d:\d\d:\d\d left\)", said.getvalue()
    )
    assert lines[-1] == ("6", "validation: error")
    steps = [int(step) for step, term in lines if term == "loss"]
    assert 2 <= len(steps) < 6


def test_the_seed_decides_everything(make_config: MakeConfig, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.manual_seed(len(name) + seed)  # the state that another program left must not matter
        train(make_config("fit.steps=10", f"fit.seed={seed}"), tmp_path / name)
    assert_same_bits(tmp_path / "a", tmp_path / "b")
    a, c = weights(tmp_path / "a"), weights(tmp_path / "c")
    assert all(not torch.equal(a[name], c[name]) for name in a if name.endswith("weight"))


def test_the_average_is_the_exponential_moving_one() -> None:
    layer = torch.nn.BatchNorm1d(2)
    average = Average(layer, 0.6)
    expected = torch.zeros(2)
    for n in range(8):
        with torch.no_grad():
            layer.weight.copy_(torch.tensor([n, n * n], dtype=torch.float32))
            layer.running_mean.fill_(n)  # type: ignore[union-attr]
            layer.num_batches_tracked.fill_(10 * n)  # type: ignore[union-attr]
        average.update()
        decay = min(0.6, (1 + n) / (10 + n)) if n else 0.0
        expected = decay * expected + (1 - decay) * layer.weight.detach()
    assert torch.allclose(average.module.weight, expected)  # type: ignore[arg-type]
    assert torch.allclose(average.module.running_mean, expected[0])  # type: ignore[arg-type]
    assert int(average.module.num_batches_tracked) == 70  # type: ignore[arg-type]


def script_errors(errors: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    remaining = iter(errors)
    monkeypatch.setattr(EquiVAE, "validate", lambda *_: {"error": next(remaining, 0.0)})


def test_patience_ends_a_run_and_the_best_weights_are_kept(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = ("fit.schedule={kind: constant}", "fit.validate_epochs=0.1")  # every 3 steps
    train(make_config("fit.steps=6", *same), tmp_path / "six")
    script_errors([5, 3, 4, 3], monkeypatch)
    outcome = train(make_config("fit.patience=2", "fit.keep=best", *same), tmp_path / "best")
    assert outcome.step == 6
    assert max(row["step"] for row in read_metrics(tmp_path / "best")) == 12
    assert_same_bits(tmp_path / "six", tmp_path / "best")


def test_the_last_weights_are_kept_unless_the_best_are_asked_for(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script_errors([1, 2, 3, 4, 5], monkeypatch)
    assert train(make_config("fit.steps=9", "fit.validate_epochs=0.1"), tmp_path / "run").step == 9


def test_a_run_can_be_selected_by_every_metric_of_validate(finished_run: Path) -> None:
    run = load_run(finished_run)
    assert set(run.config.model.metrics) == run.metrics.keys()


def test_a_loss_that_is_not_finite_ends_the_run(make_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"not finite any more at step \d+: lower fit.optimiser.learning_rate"):
        train(make_config("fit.optimiser.learning_rate=1e30", "fit.clip=null"), tmp_path / "run")
    assert not (tmp_path / "run" / "model.pt").exists()
    found = checkpoint.find(tmp_path / "run").state
    assert found is None or all(v.isfinite().all() for v in found["model"].values())


def test_a_last_step_that_spoils_the_weights_leaves_no_model(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RunError, match=r"not finite any more at step 1"):
        train(make_config("fit.steps=1", "fit.optimiser.learning_rate=1e30", "fit.clip=null"), tmp_path / "huge")
    genuine = EquiVAE.loss

    def loss(self: EquiVAE, batch: Any, generator: Any = None, progress: float = 0.0) -> dict[str, torch.Tensor]:
        terms = genuine(self, batch, generator, progress)
        if progress >= 2 / 3:  # finite itself, but the root's slope at 0 is not
            terms["loss"] = terms["loss"] + torch.sqrt(0 * self.head[0].weight.sum())
        return terms

    monkeypatch.setattr(EquiVAE, "loss", loss)
    with pytest.raises(RunError, match=r"weight is not finite any more at step 3"):
        train(make_config("fit.steps=3"), tmp_path / "slope")
    assert not (tmp_path / "huge" / "model.pt").exists() and not (tmp_path / "slope" / "model.pt").exists()


@pytest.mark.parametrize(("instructions", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_mixed_precision_where_it_is_fast_and_channels_last_train(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instructions: bool, expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: instructions)
    genuine, computed = EquiVAE.loss, set()

    def loss(*arguments: Any) -> dict[str, torch.Tensor]:
        computed.add((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
        return genuine(*arguments)

    monkeypatch.setattr(EquiVAE, "loss", loss)
    overrides = ("fit.precision=bf16-mixed", "fit.channels_last=true", "fit.steps=10")
    outcome = train(make_config(*overrides), tmp_path / "run")
    assert computed == {expected}
    assert load_run(tmp_path / "run").precision == ("bf16-mixed" if instructions else "32-true")
    assert math.isfinite(outcome.metrics["elbo"])
    assert all(v.dtype != torch.bfloat16 for v in weights(tmp_path / "run").values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_absent_is_named(make_config: MakeConfig) -> None:
    with pytest.raises(DeviceError, match="no CUDA device"):
        make_fabric(make_config("fit.accelerator=cuda").fit)
    assert make_fabric(make_config("fit.accelerator=auto").fit).device.type == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_trains(make_config: MakeConfig, tmp_path: Path) -> None:
    outcome = train(
        make_config("fit.accelerator=cuda", "fit.precision=bf16-mixed", "model.distance_weight=10", "fit.steps=300"),
        tmp_path / "run",
    )
    assert outcome.metrics["error"] < 15


def test_two_processes_share_the_batch(make_config: MakeConfig, tmp_path: Path, small: dict[str, Any]) -> None:
    small["fit"].update(devices=2, steps=20)
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump(small))
    command = [sys.executable, "-m", "training", *words(path, tmp_path / "two")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("validation error") == 1  # of two processes the first alone tells
    run = load_run(tmp_path / "two")
    assert run.step == 20 and run.config.fit.devices == 2
    alone = train(load_config(path, ["fit.devices=1"]), tmp_path / "one")
    assert run.metrics["reconstruction"] == pytest.approx(alone.metrics["reconstruction"], rel=0.1)


def test_two_processes_share_a_model_of_which_a_stage_leaves_weights_out(tmp_path: Path) -> None:
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump(IN_STAGES | {"fit": IN_STAGES["fit"] | {"devices": 2}}))
    arguments = words(path, tmp_path / "two", "--resume")
    for last in ("step 6  epoch", "is complete already"):
        log = tmp_path / f"{last}.log"
        assert process.run_ranks(2, arguments, os.environ, log, 100) == [0, 0], log.read_text()
        said = log.read_text()
        assert said.count("after ") == 1 and said.count(last) == 1
    assert load_run(tmp_path / "two").step == 6


def test_a_logged_mean_is_over_the_steps_that_had_the_term(write: Callable[..., Path], tmp_path: Path) -> None:
    def rows(every: int) -> list[dict[str, Any]]:
        folder = tmp_path / str(every)
        train(load_config(write(IN_STAGES), [f"fit.log_steps={every}"]), folder, console=Console(quiet=True))
        return [row for row in read_metrics(folder) if row["split"] == "train"]

    single, (together,) = rows(1), rows(6)
    for name in ("loss", "mse", "flow"):
        values = [row[name] for row in single if name in row]
        assert len(values) == {"loss": 6, "mse": 4, "flow": 2}[name]
        assert together[name] == pytest.approx(sum(values) / len(values), rel=1e-5)


def test_a_checkpoint_of_another_version_is_refused_and_kept(interrupted: tuple[Config, Path]) -> None:
    config, folder = interrupted
    state = checkpoint.find(folder).state
    assert state is not None
    kept = checkpoint.save(folder, 15, state | {"version": state["version"] - 1})
    with pytest.raises(RunError, match="of another version: delete .*, or train it with --restart"):
        train(config, folder, resume=True)
    assert kept.exists()


# --- interruption ---------------------------------------------------------------------------------------------------


def test_a_killed_run_goes_on_bit_for_bit(make_config: MakeConfig, tmp_path: Path) -> None:
    overrides = ("fit.steps=100", "fit.channels_last=true")
    config = make_config(*overrides)
    path = tmp_path / "config.yaml"
    options = [word for override in overrides for word in ("--set", override)]
    arguments = words(path, tmp_path / "killed", *options)
    with process.started(arguments, os.environ, tmp_path / "killed.log") as other:
        deadline = time.monotonic() + 60
        # Step 42 lies within an epoch: 30 steps of 40 images.
        while not list((tmp_path / "killed").glob("checkpoint-000000042-*.pt")):
            assert other.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        other.send_signal(signal.SIGSTOP)
        for way in ({"resume": True}, {"restart": True}):
            with pytest.raises(RunError, match="killed is in use: another process"):
                train(config, tmp_path / "killed", **way)
        other.send_signal(signal.SIGKILL)
        assert other.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "model.pt").exists()
    goes_on_bit_for_bit(config, tmp_path / "killed")


def test_the_papers_order_goes_on_bit_for_bit(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config("fit.steps=60", *ENCODED)
    with monkeypatch.context() as patch:
        # After the checkpoint of step 42, within an epoch: 38 steps of 32 images, then 19 of 64.
        interrupt_at(45, patch)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "interrupted")
    goes_on_bit_for_bit(config, tmp_path / "interrupted")


def goes_on_bit_for_bit(config: Config, folder: Path, whole: Path | None = None) -> None:
    """The rest of an interrupted run leaves what a run without an interruption does, by default one made here."""
    train(config, folder, resume=True)
    if whole is None:
        whole = folder.parent / "whole"
        train(config, whole)
    assert_same_bits(folder, whole)
    assert load_run(folder).metrics == load_run(whole).metrics
    assert read_metrics(folder) == read_metrics(whole)


def test_changed_data_is_not_resumed(interrupted: tuple[Config, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    config, folder = interrupted
    genuine = datasets.load(config.data)
    changed = genuine.train.images.clone()
    changed[0, 0, 0, 0] += 1
    genuine.train.images.copy_(changed)
    monkeypatch.setattr(datasets, "load", lambda _: genuine)
    with pytest.raises(RunError, match="data set has changed .*: delete .*, or train it with --restart"):
        train(config, folder, resume=True)


def test_devices_that_change_the_batch_do_not_resume(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_at(8, patch)
        with pytest.raises(KeyboardInterrupt):
            train(make_config("fit.batch=50"), folder)
    # In the place of more devices, for which there may be no room here.
    monkeypatch.setattr(Plan, "_first_batch", lambda *_: 40)
    with pytest.raises(RunError, match=r"begun with a batch of 50 images.*make 40"):
        train(make_config("fit.batch=50"), folder, resume=True)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    interrupted: tuple[Config, Path], whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, folder = interrupted
    older, newer = sorted(folder.glob("checkpoint-*.pt"))
    content = bytearray(newer.read_bytes())
    content[len(content) // 2] ^= 1
    newer.write_bytes(content)
    train(config, folder, resume=True)
    said = capsys.readouterr().err
    assert f"damaged, passed over: {newer.name}" in said and "resumed at step 7" in said
    assert_same_bits(folder, whole)


def test_without_any_good_checkpoint_nothing_is_guessed(interrupted: tuple[Config, Path]) -> None:
    config, folder = interrupted
    for path in folder.glob("checkpoint-*.pt"):
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(RunError, match="no checkpoint is undamaged: delete .*, or train it with --restart"):
        train(config, folder, resume=True)
    assert len(list(folder.glob("checkpoint-*.pt"))) == 2


def test_a_full_disk_keeps_the_last_good_checkpoint(interrupted: tuple[Config, Path], whole: Path) -> None:
    config, folder = interrupted
    before = sorted(path.name for path in folder.glob("checkpoint-*.pt"))
    size = (folder / before[-1]).stat().st_size
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limit[1]))
    try:
        done = CliRunner().invoke(
            app, ["train", str(folder / "config.yaml"), "--run", str(folder), "--resume"], catch_exceptions=False
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert done.exit_code == 1
    error = done.output.strip().splitlines()[-1]
    assert error.startswith("error: ") and "the disk is full" in error and before[-1] in error and "--resume" in error
    assert "Traceback" not in done.output
    assert sorted(path.name for path in folder.glob("checkpoint-*.pt")) == before
    assert [name for name in os.listdir(folder) if name.endswith(".tmp")] == []
    train(config, folder, resume=True)
    assert_same_bits(folder, whole)


def test_a_checkpoint_cannot_run_code(interrupted: tuple[Config, Path]) -> None:
    config, folder = interrupted
    for path in folder.glob("checkpoint-*.pt"):
        path.unlink()
    content = pickle.dumps({"model": print}, protocol=2)
    (folder / f"checkpoint-{99:09d}-{hashlib.sha256(content).hexdigest()[:16]}.pt").write_bytes(content)
    with pytest.raises(RunError, match="no checkpoint is undamaged"):
        train(config, folder, resume=True)


# --- reading a run --------------------------------------------------------------------------------------------------


def test_names_of_classes_are_no_markup(make_config: MakeConfig, tmp_path: Path) -> None:
    for name in ("[red]", "[-b]"):
        for i in range(3):
            path = tmp_path / "pictures" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.eye(8, dtype=np.uint8) * (100 + i)).save(path)
    said = io.StringIO()
    data = f"data={{source: folder, path: {tmp_path / 'pictures'}, size: 8}}"
    train(make_config("fit.steps=1", data), tmp_path / "run", console=Console(file=said))
    assert "classes 2: [-b], [red]; run" in said.getvalue()


def test_runs_that_cannot_be_read_say_why(interrupted: tuple[Config, Path], tmp_path: Path) -> None:
    _, folder = interrupted
    with pytest.raises(RunError, match="does not exist"):
        load_run(tmp_path / "none")
    with pytest.raises(RunError, match="finish it: python -m training train"):
        load_run(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="not a run"):
        load_run(tmp_path / "empty")
    (folder / "model.pt").write_bytes(b"PK nonsense")
    with pytest.raises(RunError, match=r"model.pt is damaged"):
        load_run(folder)
