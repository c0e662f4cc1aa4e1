"""The run's folder: who may use it, what a restart deletes, how files are written into it, what it begins with."""

import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console

from training import datasets
from training.config import Config
from training.config_file import load_config
from training.errors import DataError, RunError, RunFailed, TrainingError
from training.files import write_atomically
from training.fit import train
from training.preparation import prepare
from training.run import load_run, open_folder, read_metrics

MakeConfig = Callable[..., Config]


def test_outliers_that_no_training_uses_are_said_to_be_so(make_config: MakeConfig) -> None:
    told = "3 outliers (the outliers of no use to a training without model.outlier_share); classes 10"
    for options, is_told in (
        ([], True),
        (["model.distance_weight=1", "model.outlier_share=0.1", "model.reject_distance=9"], False),
    ):
        prepared = prepare(make_config(*options))
        own = replace(prepared.splits.train, outliers=prepared.splits.train.images[:3])
        described = replace(prepared, splits=replace(prepared.splits, train=own)).described
        assert "3 outliers" in described and (told in described) == is_told


@pytest.mark.parametrize(
    ("kind", "metric"),
    [
        ("mcevae", "kl"),
        ("mcevae_paper", "kl"),
        ("plain_vae, method: beta", "kl"),
        ("symmetry", "elbo"),
        ("symmetry_two_stage", "flow"),
    ],
)
def test_pictures_that_are_turned_already_are_not_taken_for_upright(
    kind: str, metric: str, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(f"model={{kind: {kind}}}", f"fit.select={metric}")
    splits = datasets.load(config.data)
    turned = replace(splits, train=replace(splits.train, turns=torch.zeros(len(splits.train))))
    monkeypatch.setattr(datasets, "load", lambda _: turned)
    with pytest.raises(
        DataError, match=f"^digits: model.kind: {config.model.kind} needs upright pictures: these are turned"
    ):
        prepare(config)


def test_a_finished_run_is_not_trained_again(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config("fit.steps=10")
    first = train(config, tmp_path / "run")
    content = (tmp_path / "run" / "model.pt").read_bytes()
    assert train(config, tmp_path / "run", resume=True) == first
    assert (tmp_path / "run" / "model.pt").read_bytes() == content


def test_a_folder_in_use_is_not_overwritten(make_config: MakeConfig, tmp_path: Path) -> None:
    config, run = make_config("fit.steps=5"), tmp_path / "run"
    train(config, run)
    with pytest.raises(RunError, match="holds a run already"):
        train(config, run)
    with pytest.raises(RunError, match=r"another configuration \(fit.ema, fit.seed differ\)"):
        train(make_config("fit.steps=5", "fit.ema=0.5", "fit.seed=3"), run, resume=True)
    train(make_config("fit.steps=5", "fit.seed=3"), run, restart=True)
    assert load_run(run).config.fit.seed == 3
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious.txt").touch()
    for restart in (False, True):
        with pytest.raises(RunError, match="not a run folder"):
            train(config, tmp_path / "other", restart=restart)
    assert (tmp_path / "other" / "precious.txt").exists()
    with pytest.raises(RunError, match="cannot be used as a run folder"):
        train(config, tmp_path / "other" / "precious.txt" / "run")


def test_a_restart_deletes_what_runs_make_and_nothing_else(
    make_config: MakeConfig, finished_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    (run / "figures").mkdir()
    (run / "notes.txt").touch()
    config = make_config()
    with open_folder(run, config, resume=False, restart=True):
        assert {path.name for path in run.iterdir()} == {"config.yaml", "metrics.jsonl", "notes.txt"}
    assert load_config(run / "config.yaml") == config


def test_of_the_metrics_a_last_line_may_be_cut_short_and_no_other(tmp_path: Path) -> None:
    path, rows = tmp_path / "metrics.jsonl", [{"step": step, "split": "train"} for step in (1, 2)]
    whole = "".join(json.dumps(row) + "\n" for row in rows).encode()
    assert read_metrics(tmp_path) == []
    for end in (b"", b'{"step": 3, "spl', b"\0\0", '{"st\u00e4p'.encode()[:-2]):
        path.write_bytes(whole + end)
        assert read_metrics(tmp_path) == rows
    path.write_bytes(whole[:-1])  # of which the line's end alone is cut
    assert read_metrics(tmp_path) == rows
    for line in (b"{\n", b"\xff\n", b"[1]\n", b"{}\n", b"\n"):
        path.write_bytes(whole + line + whole)
        with pytest.raises(RunError, match=f"{path}:3: is damaged .*: delete the line"):
            read_metrics(tmp_path)


def test_a_restart_deletes_nothing_before_the_new_run_can_begin(
    make_config: MakeConfig, finished_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    content = (run / "model.pt").read_bytes()
    itself = f"fit.initial={run}"
    for wrong in (["fit.initial=nowhere"], ["model.few_labels={unlabelled_batch: 4}"], [itself, "model.r_dim=5"]):
        with pytest.raises(TrainingError):
            train(make_config(*wrong), run, restart=True)
        assert (run / "model.pt").read_bytes() == content
    train(make_config(itself, "fit.steps=1"), run, restart=True)
    assert load_run(run).step == 1


def test_a_run_that_does_not_say_its_precision_is_still_read(finished_run: Path, tmp_path: Path) -> None:
    content = torch.load(finished_run / "model.pt", weights_only=True)
    assert content.pop("precision") == "32-true"
    torch.save(content, tmp_path / "model.pt")
    assert load_run(tmp_path).precision is None


def test_a_disk_that_is_full_from_the_first_is_no_wrong_input(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFailed, match="cannot be written: the disk is full") as failed:
        train(make_config(), tmp_path / "run", console=Console(quiet=True))
    assert isinstance(failed.value.__cause__, OSError) and failed.value.exit_code == 1


@pytest.mark.parametrize("text", ["apiVersion: v1\n", "{{ template }}", None])
def test_a_config_yaml_makes_no_run_folder(make_config: MakeConfig, tmp_path: Path, text: str | None) -> None:
    """Another program's, or the user's own (None) beside the pictures that it names."""
    config, folder = make_config(), tmp_path / "project"
    (folder / "pictures").mkdir(parents=True)
    text = text or yaml.safe_dump(config.as_dict())
    (folder / "config.yaml").write_text(text)
    with pytest.raises(RunError, match="not a run folder"), open_folder(folder, config, resume=False, restart=True):
        pass
    assert (folder / "pictures").is_dir() and (folder / "config.yaml").read_text() == text


def test_a_file_system_without_locks_will_do(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with open_folder(tmp_path / "run", make_config(), resume=False, restart=False):
        assert (tmp_path / "run" / "config.yaml").is_file()


def test_two_processes_may_write_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, genuine = tmp_path / "judge.pt", os.fsync

    def fsync(handle: int) -> None:
        monkeypatch.setattr(os, "fsync", genuine)
        write_atomically(target, b"the other's")
        genuine(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    (tmp_path / "plain").touch()
    write_atomically(target, b"ours")
    assert target.read_bytes() == b"ours" and sorted(os.listdir(tmp_path)) == ["judge.pt", "plain"]
    assert target.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_link_keeps_leading_to_the_file_that_is_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"before")
    (tmp_path / "link").symlink_to("file")
    write_atomically(tmp_path / "link", b"after")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_bytes() == b"after"


def test_what_is_no_file_is_written_to_and_stays(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_atomically(pipe, b"content")
        assert os.read(reader, 100) == b"content"
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    with pytest.raises(RunFailed, match="/dev/full cannot be written: the disk is full"):
        write_atomically(Path("/dev/full"), b"content")


def test_an_interrupted_write_leaves_nothing_in_the_way(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(make_config("fit.steps=1"), folder)
    assert os.listdir(folder) == []
    (folder / ".config.yaml.0123.tmp").touch()  # a kill leaves it
    assert train(make_config("fit.steps=1"), folder, resume=True).step == 1


def test_a_run_can_begin_with_the_weights_of_another(
    make_config: MakeConfig, finished_run: Path, tmp_path: Path
) -> None:
    begin = [f"fit.initial={finished_run}", "fit.steps=1", "fit.optimiser.learning_rate=1e-9", "fit.ema=null"]
    train(make_config(*begin), tmp_path / "run", console=Console(quiet=True))
    before, after = load_run(finished_run).model, load_run(tmp_path / "run").model
    for (name, weight), other in zip(before.named_parameters(), after.parameters(), strict=True):
        assert torch.allclose(weight, other, atol=1e-6), name
    named = make_config(f"fit.initial={finished_run.parent}/small-{{seed}}", "fit.seed=7")
    assert named.fit.initial_run == finished_run.parent / "small-7"
    with pytest.raises(RunError, match=r"small-7 does not exist"):
        train(named, tmp_path / "named", console=Console(quiet=True))
    with pytest.raises(RunError, match=r"fit.initial: the model of .* has another shape: .*size"):
        train(make_config(*begin, "model.r_dim=5"), tmp_path / "other", console=Console(quiet=True))


@pytest.mark.parametrize(
    ("initial", "hint"),
    [
        ("nowhere", "train that run first$"),
        ("runs/equivae-digits-7", "first: python -m training train (.+) --seed 7 --run runs/equivae-digits-7$"),
        ("runs/equivae-digits-best", "train that run first$"),
    ],
)
def test_the_run_to_begin_with_is_to_be_trained_first(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, initial: str, hint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match=rf"fit.initial: {initial} does not exist: .*{hint}") as refused:
        train(make_config(f"fit.initial={initial}"), tmp_path / "none", console=Console(quiet=True))
    for config in re.findall(r"train (\S+\.yaml)", str(refused.value)):
        assert load_config(Path(config)).name == "equivae-digits"


def test_weights_of_another_run_come_without_the_statistics_of_its_data(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    gaussian = ["model.likelihood=gaussian", "fit.steps=1", "fit.optimiser.learning_rate=1e-9", "fit.ema=null"]
    train(make_config(*gaussian), first, console=Console(quiet=True))
    other_data = make_config(*gaussian, f"fit.initial={first}", "fit.seed=2", "data.split_seed=7")
    train(other_data, second, console=Console(quiet=True))
    models = []
    for run in map(load_run, (first, second)):
        pixels = run.splits().train.images.float() / 255
        models.append(run.equivae())
        torch.testing.assert_close(models[-1].pixel_mean, pixels.mean(0))
        torch.testing.assert_close(models[-1].pixel_deviation, pixels.std(0).clamp_min(1e-2))
    assert not torch.equal(models[0].pixel_mean, models[1].pixel_mean)
    for weight, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.allclose(weight, other, atol=1e-6)


def test_only_a_run_without_weights_of_its_own_needs_those_it_begins_with(
    make_config: MakeConfig, finished_run: Path, tmp_path: Path
) -> None:
    initial, run = tmp_path / "initial", tmp_path / "run"
    shutil.copytree(finished_run, initial)
    config = make_config(f"fit.initial={initial}", "fit.steps=7")
    train(config, run, console=Console(quiet=True))
    (run / "model.pt").unlink()  # as a kill after the last checkpoint leaves it
    shutil.rmtree(initial)
    assert train(config, run, resume=True, console=Console(quiet=True)).step == 7
    for path in (*run.glob("checkpoint-*.pt"), run / "model.pt"):
        path.unlink()
    with pytest.raises(RunError, match="initial does not exist"):
        train(config, run, resume=True, console=Console(quiet=True))


def test_digests_do_not_change_with_keys_that_came_later(make_config: MakeConfig) -> None:
    assert make_config("fit.initial=null", "data.canvas=null").digest() == make_config().digest()
    assert make_config("fit.initial=somewhere").digest() != make_config().digest()
    assert make_config("fit.initial=here/run-1").digest() == make_config("fit.initial=there/run-1").digest()
    by_seed = [make_config("fit.initial=here/run-{seed}", f"fit.seed={seed}").digest() for seed in (1, 2)]
    assert by_seed[0] == by_seed[1] != make_config("fit.initial=here/run-1").digest()
