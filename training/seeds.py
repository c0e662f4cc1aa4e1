"""The same configuration under many seeds: one JSON line for every finished seed, so that a kill loses one run only."""

import fcntl
import json
import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from training import datasets
from training.config import Config
from training.datasets import LabelledImages, Splits
from training.errors import ConfigError, RunError
from training.evaluation import probes
from training.evaluation.equivae_measures import encode
from training.evaluation.scores import percent
from training.files import make_folder, write_atomically
from training.fit import precision_on, train
from training.models.equivae_config import EquiVAEConfig
from training.run import LoadedRun, check_same_config, default_folder, load_run


def run_seeds(
    config: Config,
    seeds: Sequence[int],
    output: Path,
    runs: Path,
    *,
    test: bool = False,
    benchmark_epochs: int | None = None,
    console: Console | None = None,
) -> list[dict[str, Any]]:
    """Train every seed that `output` does not hold yet, in order; the rows of all these seeds come back.

    A seed that was interrupted goes on from its checkpoint. Rows of another configuration, of other data, or without
    the figures that are asked for do not count.

    Args:
        output: JSON lines; appended to.
        runs: folder of the run folders.
        test: also measure on the test set. Leave it off until every choice is made.
        benchmark_epochs: of an EquiVAE, also train the other classifiers of the paper's tables: the neural head on
            f_inv and, for so many epochs (0: not at all), the benchmark CNN. Each row's figures then have
            `error_neural_head` and `error_benchmark_cnn` (%).
    Raises:
        ConfigError: said before the first training: several devices, no test part, or classifiers of another model.
        RunError: the folder of a seed holds a run of another configuration, or cannot be used.
    """
    console = console or Console(stderr=True)
    if config.fit.devices > 1:
        raise ConfigError("seeds: one device a run (fit.devices: 1); start the command once a device instead")
    make_folder(output.parent)
    if benchmark_epochs is not None and not isinstance(config.model, EquiVAEConfig):
        raise ConfigError(
            f"seeds: the other classifiers (--benchmark-epochs) belong to an equivae, not to a {config.model.kind}"
        )
    if test:
        splits = datasets.load(config.data)
        if splits.test is None:
            raise ConfigError(f"seeds: the data set {splits.name} has no test part to measure on")
        del splits  # training reads it again: not twice in memory
    config = _as_trained(config)
    digest = config.digest()
    parts = ("validation", "test") if test else ("validation",)

    @cache
    def data_digest(label_seed: int) -> str:
        return datasets.load(config.data.model_copy(update={"label_seed": label_seed})).digest

    rows = []
    for seed in dict.fromkeys(seeds):
        seeded = config.with_seed(seed)
        for row in read_rows(output):
            wanted = row["config"] == digest and row["seed"] == seed and _holds(row, parts, benchmark_epochs)
            # Rows of before do not say of which data they are.
            if wanted and ("data" not in row or row["data"] == data_digest(seeded.data.label_seed)):
                break
        else:
            console.print(f"seed {seed}", highlight=False)
            row = _run_seed(seeded, digest, runs, parts, benchmark_epochs, console)
            _append(output, row)
        rows.append(row)
    return rows


def _as_trained(config: Config) -> Config:
    """With what unlabelled pictures add to a recipe that says nothing of them."""
    if not config.depends_on_unlabelled:
        return config  # its data need not be read
    return config.for_data(unlabelled=datasets.load(config.data).train.unlabelled is not None)


def _holds(row: dict[str, Any], parts: Sequence[str], benchmark_epochs: int | None) -> bool:
    """Whether a row has the figures that are asked for."""
    names = {"error_neural_head"} if benchmark_epochs is not None else set()
    if benchmark_epochs:
        names.add("error_benchmark_cnn")
        if row.get("benchmark_epochs", benchmark_epochs) != benchmark_epochs:  # rows of before do not say
            return False
    return all(row[part] is not None and names <= row[part].keys() for part in parts)


def _run_seed(
    config: Config, digest: str, runs: Path, parts: Sequence[str], benchmark_epochs: int | None, console: Console
) -> dict[str, Any]:
    folder = default_folder(runs, config)
    check_same_config(folder, config, "choose another --runs, or another name by --set name=...")
    outcome = train(config, folder, resume=True, console=console)
    run = load_run(folder)
    figures: dict[str, Any] = {"validation": outcome.metrics, "test": None}
    if "test" in parts or benchmark_epochs is not None:
        splits = run.splits()
        if "test" in parts:
            assert splits.test is not None  # `run_seeds` has looked
            figures["test"] = run.model.validate(splits.train, splits.test)
        if benchmark_epochs is not None:
            for part, errors in _other_classifiers(run, splits, parts, benchmark_epochs).items():
                figures[part] = figures[part] | errors
    return {
        "config": digest,
        "name": config.name,
        "recipe": run.config.recipe,
        "seed": config.fit.seed,
        "data": run.data["digest"],
        "step": outcome.step,
        **figures,
        "benchmark_epochs": benchmark_epochs,
        "minutes": round(outcome.minutes, 3),
        "machine": machine(config),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _other_classifiers(
    run: LoadedRun, splits: Splits, parts: Sequence[str], benchmark_epochs: int
) -> dict[str, dict[str, float]]:
    """Errors (%) on each part of the neural head on f_inv and of the benchmark CNN, both trained on the labels."""
    model, train, seed = run.equivae(), splits.train, run.config.fit.seed
    head = probes.neural_head(encode(model, train.images).r, train.labels, model.num_classes, seed)
    benchmark = probes.benchmark_cnn(model, train, seed, benchmark_epochs) if benchmark_epochs else None

    def errors(data: LabelledImages) -> dict[str, float]:
        found = {"error_neural_head": probes.predict(head, encode(model, data.images).r)}
        if benchmark is not None:
            found["error_benchmark_cnn"] = probes.predict(benchmark, data.images)
        return {name: percent((predicted != data.labels).numpy()) for name, predicted in found.items()}

    return {part: errors(splits.parts[part]) for part in parts}


def machine(config: Config) -> str:
    """The kind of machine, without its name: what the minutes are to be read against."""
    fit = config.fit
    if fit.accelerator != "cpu" and torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, {fit.precision}, torch {torch.__version__}"
    threads, kind = fit.threads or torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()
    cpu = f"{platform.machine()} CPU with {kind}, {threads} of {os.cpu_count()} threads"
    return f"{cpu}, {precision_on('cpu', fit)}, torch {torch.__version__}"


def read_rows(output: Path) -> list[dict[str, Any]]:
    """The rows of a results file; a last line that a kill cut short is left out.

    Raises:
        RunError: the file cannot be read or is something else.
    """
    if not output.exists():
        return []
    try:
        text = output.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{output} cannot be read: {error}") from error
    rows, lines = [], text.splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not {"config", "seed", "test"} <= row.keys():
                raise ValueError("not a result of seeds")
        except (ValueError, AttributeError) as error:
            if number == len(lines) and line.startswith('{"config"') and not text.endswith("\n"):
                break
            raise RunError(f"{output}:{number}: {error}; choose another --output") from error
        rows.append(row)
    return rows


def _append(output: Path, row: dict[str, Any]) -> None:
    """Add a row to those that the file has by now: other processes may write theirs into it."""
    handle = os.open(output.parent, os.O_RDONLY)  # there is no file to leave behind
    try:
        with suppress(OSError):  # a file system without locks on folders, such as NFS
            fcntl.flock(handle, fcntl.LOCK_EX)
        write_atomically(output, "".join(json.dumps(each) + "\n" for each in (*read_rows(output), row)).encode())
    finally:
        os.close(handle)
