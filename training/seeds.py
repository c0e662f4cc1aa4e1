"""The same configuration under many seeds: one JSON line for every finished seed, so that a kill loses one run only."""

import json
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from training.checkpoint import make_folder, write_atomically
from training.config import Config
from training.errors import ConfigError, RunError
from training.fit import train
from training.run import default_folder, load_run


def run_seeds(
    config: Config,
    seeds: Sequence[int],
    output: Path,
    runs: Path,
    *,
    test: bool = False,
    console: Console | None = None,
) -> list[dict[str, Any]]:
    """Train every seed that `output` does not hold yet, in order; the rows of all these seeds come back.

    A seed that was interrupted goes on from its checkpoint. Rows of another configuration, or without test figures
    where these are asked for, do not count.

    Args:
        output: JSON lines; appended to.
        runs: folder of the run folders.
        test: also measure on the test set. Leave it off until every choice is made.
    """
    console = console or Console(stderr=True)
    if config.fit.devices > 1:
        raise ConfigError("seeds: one device a run (fit.devices: 1); start the command once a device instead")
    earlier = read_rows(output)
    make_folder(output.parent)
    digest = config.digest()
    rows = []
    for seed in dict.fromkeys(seeds):
        row = next(
            (r for r in earlier if r["config"] == digest and r["seed"] == seed and (r["test"] or not test)), None
        )
        if row is None:
            console.print(f"seed {seed}", highlight=False)
            row = _run_seed(config.with_seed(seed), digest, runs, test, console)
            earlier.append(row)
            _write(output, earlier)
        rows.append(row)
    return rows


def _run_seed(config: Config, digest: str, runs: Path, test: bool, console: Console) -> dict[str, Any]:
    folder = default_folder(runs, config)
    outcome = train(config, folder, resume=True, console=console)
    measured = None
    if test:
        run = load_run(folder)
        splits = run.splits()
        if splits.test is None:
            raise ConfigError(f"seeds: the data set {splits.name} has no test part to measure on")
        measured = run.model.validate(splits.train, splits.test, None)
    return {
        "config": digest,
        "name": config.name,
        "recipe": config.recipe,
        "seed": config.fit.seed,
        "step": outcome.step,
        "validation": outcome.metrics,
        "test": measured,
        "minutes": round(outcome.minutes, 3),
        "machine": machine(config),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def machine(config: Config) -> str:
    """The kind of machine, without its name: what the minutes are to be read against."""
    fit = config.fit
    if fit.accelerator != "cpu" and torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, {fit.precision}, torch {torch.__version__}"
    threads = fit.threads or torch.get_num_threads()
    return f"{platform.machine()} CPU, {threads} of {os.cpu_count()} threads, torch {torch.__version__}"


def read_rows(output: Path) -> list[dict[str, Any]]:
    """The rows of a results file; a last line that a kill cut short is left out.

    Raises:
        RunError: the file cannot be read or is something else.
    """
    if not output.exists():
        return []
    try:
        lines = output.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{output} cannot be read: {error}") from error
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not {"config", "seed", "test"} <= row.keys():
                raise ValueError("not a result of seeds")
        except (ValueError, AttributeError) as error:
            if number == len(lines):
                break
            raise RunError(f"{output}:{number}: {error}; choose another --output") from error
        rows.append(row)
    return rows


def _write(output: Path, rows: list[dict[str, Any]]) -> None:
    write_atomically(output, "".join(json.dumps(row) + "\n" for row in rows).encode())
