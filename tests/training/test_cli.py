"""python -m training: every option documented, every mistake one line and an exit code."""

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import typer.main
from PIL import Image
from typer.testing import CliRunner, Result

from training.__main__ import app
from training.errors import RunError
from training.evaluation.equivae import EquiVAEEvaluation
from training.evaluation.pose import PoseEvaluation
from training.models.equivae import EquiVAE
from training.run import load_run

COMMANDS = ("train", "seeds", "evaluate", "figures", "export", "keys")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also undoes what --data leaves in the environment for the processes of a run."""
    for name in {"EQUIPOISE_TRAINING_DATA", *(name for name in os.environ if name.startswith("EQUIPOISE_"))}:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def options() -> Iterator[tuple[str, click.Parameter]]:
    group = typer.main.get_command(app)
    for name in COMMANDS:
        yield from ((name, parameter) for parameter in group.commands[name].params)  # type: ignore[attr-defined]


def test_every_option_is_documented() -> None:
    seen = list(options())
    assert len(seen) > 25
    for command, option in seen:
        if getattr(option, "hidden", False):
            continue
        assert getattr(option, "help", None), f"{command} {option.name}"


def test_the_example_of_train_is_a_configuration_that_can_be_trained() -> None:
    group = typer.main.get_command(app)
    epilog = group.commands["train"].epilog  # type: ignore[attr-defined]
    words = epilog.partition("python -m training ")[2].partition(". ")[0].split()
    result = run(*words, "--check")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_the_variable_and_the_default_of_every_option(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    blocks = [block for block in re.split(r"\n  (?=--)", run(command, "--help").output)[1:] if block[:7] != "--help "]
    assert len(blocks) == sum(option.param_type_name == "option" for name, option in options() if name == command)
    for block in blocks:
        expected = "EQUIPOISE_MODEL_STORE" if block.startswith("--to ") else "EQUIPOISE_TRAINING_[A-Z_]+[A-Z]"
        joined = re.sub(r"\s+", "", block)
        assert re.search(rf"\[envvar:{expected}[];]", joined), block
        assert re.search(r"[;[]default:[^];]+|[;[]required\]|Default:", joined), block


def test_the_programs_help_has_that_of_every_command() -> None:
    shown = run("--help").output
    for command in COMMANDS:
        assert run(command, "--help").output in shown


def test_options_are_read_from_the_environment(
    write: Callable[[dict[str, Any]], Path], small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EQUIPOISE_TRAINING_SET", "fit.steps=4 fit.ema=0.5")
    monkeypatch.setenv("EQUIPOISE_TRAINING_TRAIN_RUN", str(tmp_path / "run"))
    assert run("train", write(small)).exit_code == 0
    assert (load_run(tmp_path / "run").config.fit.steps, load_run(tmp_path / "run").config.fit.ema) == (4, 0.5)
    monkeypatch.setenv("EQUIPOISE_TRAINING_EVALUATE_SPLIT", "all")
    refused = run("evaluate", tmp_path / "run")
    assert refused.exit_code == 2 and "--split" in refused.output


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example_that_names_real_options(command: str) -> None:
    text = re.sub(r"\s+", " ", run(command, "--help").output)
    example = re.search(rf"Example: (python -m training {command} [^.]*)", text)
    assert example, text
    for option in re.findall(r"--[a-z-]+", example[1]):
        assert text.count(option) >= 2


def test_without_a_command_the_commands_are_listed() -> None:
    result = run("--help")
    assert result.exit_code == 0 and all(name in result.output for name in COMMANDS)


def test_a_run_from_the_command_line(
    write: Callable[[dict[str, Any]], Path], small: dict[str, Any], tmp_path: Path
) -> None:
    path = write(small)
    done = run("train", path, "--runs", tmp_path / "runs", "--seed", 5, "--set", "fit.steps=6", "--set", "fit.ema=0.5")
    assert done.exit_code == 0, done.output
    assert re.search(r"small-5: validation error \d+\.\d\d % after 0\.\d min", done.output)
    config = load_run(tmp_path / "runs" / "small-5").config
    assert (config.fit.seed, config.fit.steps, config.fit.ema) == (5, 6, 0.5)
    again = run("train", path, "--runs", tmp_path / "runs", "--seed", 5)
    assert again.exit_code == 2 and "--resume" in again.output


def test_seeds_from_the_command_line(
    write: Callable[[dict[str, Any]], Path], small: dict[str, Any], tmp_path: Path
) -> None:
    output = tmp_path / "seeds.jsonl"
    arguments = (write(small), "--seeds", 1, 2, "--output", output, "--runs", tmp_path, "--set", "fit.steps=4")
    done = run("seeds", *arguments, "--test")
    assert done.exit_code == 0, done.output
    errors = [json.loads(line)["test"]["error"] for line in output.read_text().splitlines()]
    assert len(errors) == 2 and "seed 2: test error" in done.output
    # Of two, the standard error is half of their distance.
    said = f"mean of 2 seeds: test error {sum(errors) / 2:.3f} ± {abs(errors[0] - errors[1]) / 2:.3f}"
    assert done.output.splitlines()[-1] == said
    assert "mean of" not in run("seeds", *arguments[:2], *arguments[3:], "--test").output


def test_a_good_configuration_is_only_checked(
    write: Callable[[dict[str, Any]], Path], small: dict[str, Any], tmp_path: Path
) -> None:
    done = run("train", write(small), "--check", "--runs", tmp_path / "runs", "--set", "fit.accelerator=cuda")
    classes = ", ".join("0123456789")
    assert (done.exit_code, done.output) == (
        0,
        f"digits: 1,222 train, 216 validation, 359 test; classes 10: {classes}\n",
    )
    assert not (tmp_path / "runs").exists()


def test_a_check_lists_what_is_left_out(
    write: Callable[[dict[str, Any]], Path], small: dict[str, Any], tmp_path: Path
) -> None:
    for name in [f"{k:02}" for k in range(12)]:
        for i in range(3):
            path = tmp_path / "pictures" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.eye(8, dtype=np.uint8) * (100 + i)).save(path)
    (tmp_path / "pictures" / "unlabelled").mkdir()
    small["data"] = {"source": "folder", "path": str(tmp_path / "pictures"), "size": 8}
    done = run("train", write(small), "--check")
    assert done.exit_code == 0, done.output
    first, batch, copies, second = done.output.splitlines()
    assert batch.startswith("fit.batch is 24 instead of 40: a step takes equally many images of each of 12 classes")
    assert first.endswith("classes 12: 00, 01, 02, 03, 04, 05, 06, 07, 08, 09, ...")
    assert copies.endswith(
        "in two classes, of which no model can tell which is meant: 33, the first 00/0.png and 01/0.png"
    )
    assert second == "left out: unlabelled: 0 usable pictures: fewer than 2 tell nothing"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.canvas=40", "model.decoder={kind: transposed}"], "model: the decoder's 128 units do not fill"),
        (["fit.order=shuffled"], "model.complements: in_batch needs fit.order: balanced"),
        (
            ["model.complements=own", "model.class_mean_weight=1", "fit.order=shuffled"],
            "model.class_mean_weight needs fit.order: balanced",
        ),
        (
            ["model.complements=own", "model.distance_weight=1", "fit.order=shuffled"],
            "model.distance_weight needs fit.order: balanced",
        ),
        (["model={kind: mcevae, window: 14}", "fit.select=kl", "data.canvas=12"], "error: model.window 14"),
        (["data.canvas=120", "data.photograph_seed=0"], "photographs have room for 106 x 106 pixels"),
    ],
)
def test_what_cannot_be_trained_is_known_by_the_check(
    write: Callable[[dict[str, Any]], Path], small: dict[str, Any], overrides: list[str], words: str
) -> None:
    result = run("train", write(small), "--check", *(part for text in overrides for part in ("--set", text)))
    assert result.exit_code == 2 and words in result.output and len(result.output.splitlines()) == 1, result.output


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["train", "none.yaml"], 2, "error: none.yaml: cannot be read"),
        (
            ["train", "{config}", "--set", "fit.epoch=3"],
            2,
            "--set fit.epoch=3: fit.epoch: unknown key; is it fit.epochs?",
        ),
        (["train", "{config}", "--set", "data={source: mnist, path: none.npz}"], 2, "none.npz does not exist"),
        (["train", "{config}", "--resume", "--restart"], 2, "exclude each other"),
        (
            ["train", "{config}", "--check", "--set", "data={source: mnist, path: none.npz}"],
            2,
            "none.npz does not exist",
        ),
        (["train", "{config}", "--seed", "-1"], 2, "Invalid value for '--seed'"),
        (["train", "{config}", "--seed", str(2**63)], 2, "Invalid value for '--seed'"),
        (["seeds", "{config}", "--seeds", str(2**63), "--output", "x"], 2, "Invalid value for '--seeds'"),
        (["seeds", "{config}", "--seeds", "1", str(2**63), "--output", "x"], 2, "Invalid value for 'SEED'"),
        (["evaluate", "none", "--seed", str(2**32)], 2, "Invalid value for '--seed'"),
        (["train", "{config}", "--seed", "x"], 2, "Invalid value for '--seed'"),
        (["train", "{config}", "--nonsense"], 2, "No such option"),
        (["train"], 2, "Missing argument 'CONFIG'"),
        (["seeds", "{config}", "--seeds", "1"], 2, "Missing option '--output'"),
        (["seeds", "{config}", "--seeds", "1", "b", "--output", "x"], 2, "Invalid value for 'SEED'"),
        (
            ["seeds", "--seeds", "1", "2", "{config}", "--output", "x"],
            2,
            "c.yaml' is no seed from 0 to 9223372036854775807; the configuration stands before them: seeds CONFIG",
        ),
        (["seeds", "{config}", "--seeds", "1", "--output", "{config}/x"], 2, "c.yaml cannot be used as a folder"),
        (["evaluate", "none"], 2, "error: none does not exist"),
        (["figures", "none"], 2, "error: none does not exist"),
        (["export", "none", "--to", "store"], 2, "error: none does not exist"),
        (["evaluate", "none", "--split", "all"], 2, "--split"),
    ],
)
def test_wrong_input_is_one_clear_line(
    write: Callable[[dict[str, Any]], Path],
    small: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    path = write(small, "c.yaml")
    monkeypatch.chdir(tmp_path)
    result = run(*(argument.replace("{config}", str(path)) for argument in arguments))
    plain = re.sub(r"\s+", " ", re.sub(r"[│╭╮╰╯─]", " ", result.output))
    assert result.exit_code == code, plain
    assert words in plain
    assert "Traceback" not in result.output and isinstance(result.exception, SystemExit)
    if words.startswith("error: "):
        assert len(result.output.splitlines()) == 1


@pytest.mark.parametrize(
    ("command", "output", "words"),
    [
        ("figures", "taken", "taken cannot be used as a folder: File exists"),
        ("evaluate", "taken/x.json", "taken cannot be used as a folder: File exists"),
        ("evaluate", ".", "is a folder: expected the name of a JSON file"),
    ],
)
def test_an_output_that_cannot_be_written_is_said_before_the_work(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, output: str, words: str
) -> None:
    monkeypatch.setattr(EquiVAE, "invariant", lambda *_: pytest.fail("measured"))
    (tmp_path / "taken").touch()
    result = run(command, finished_run, "--output", tmp_path / output)
    assert result.exit_code == 2 and result.output.startswith("error: ")
    assert words in result.output and len(result.output.splitlines()) == 1


@pytest.mark.parametrize(
    ("kind", "arguments", "words"),
    [
        (
            "equivae",
            ["--classifier", "model_store"],
            "evaluate: --classifier does not apply to a model of kind equivae",
        ),
        ("equivae", ["--held-out-epochs", "3"], "evaluate: --held-out-epochs needs --held-out"),
        ("equivae", ["--photographs", "0"], "measured"),
        ("mcevae", ["--held-out", "3"], "evaluate: --held-out does not apply to a model of kind mcevae"),
        ("mcevae", ["--samples", "1000"], "evaluate: --samples does not apply to a model of kind mcevae"),
        ("mcevae", ["--photographs", "0"], "evaluate: --photographs does not apply to a model of kind mcevae"),
        ("mcevae", ["--limit", "20", "--seed", "0"], "measured"),
    ],
)
def test_an_option_that_does_not_apply_to_the_model_is_refused(
    finished_run: Path,
    finished_pose_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    arguments: list[str],
    words: str,
) -> None:
    def measured(self: object) -> None:
        raise RunError("measured")

    monkeypatch.setattr(EquiVAEEvaluation, "run", measured)
    monkeypatch.setattr(PoseEvaluation, "run", measured)
    monkeypatch.setenv("EQUIPOISE_TRAINING_EVALUATE_BENCHMARK_EPOCHS", "3")  # for all that are evaluated, of any kind
    folder = finished_run if kind == "equivae" else finished_pose_run
    result = run("evaluate", folder, *arguments, "--output", tmp_path / "report.json")
    assert (result.exit_code, result.output) == (2, f"error: {words}\n")


def test_ctrl_c_says_how_to_go_on(
    write: Callable[[dict[str, Any]], Path], small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    path = write(small)
    with monkeypatch.context() as patch:
        patch.setattr(EquiVAE, "batch", interrupted)
        stopped = run("train", path, "--run", tmp_path / "run")
        of_many = run("seeds", path, "--seeds", 1, "--output", tmp_path / "seeds.jsonl", "--runs", tmp_path)
        patch.setattr(EquiVAE, "prepare", interrupted)
        check = run("train", path, "--check")
    for anew in (of_many, check):
        assert anew.exit_code == 130 and "interrupted: run the command again" in anew.output
    assert stopped.exit_code == 130 and "interrupted: go on with --resume" in stopped.output
    assert run("train", path, "--run", tmp_path / "run", "--resume", "--set", "fit.log_steps=7").exit_code == 0


def test_the_data_folder_is_handed_on(
    write: Callable[[dict[str, Any]], Path], small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small["data"] = {"source": "mnist"}
    (tmp_path / "mnist.npz").write_text("damaged")
    result = run("train", write(small), "--data", tmp_path)
    assert result.exit_code == 2 and "mnist.npz cannot be read" in result.output.replace("\n", "")
