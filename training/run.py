"""A run folder: what one training leaves behind, and how the rest of the package reads it.

config.yaml          the configuration with every default written out
metrics.jsonl        one JSON object a line: means of the training terms and every validation
skipped.txt          files of the data set that could not be used, with the reason (only where there are any)
checkpoint-*.pt      the newest two states of the loop (training/checkpoint.py)
model.pt             the finished model; its presence says that the run is complete

Whatever else lies in the folder is somebody else's: a restart deletes what a run, its evaluation and its figures have
made there, and nothing more.
"""

import fcntl
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
import yaml

from contract.manifest import InputSpec, Preprocessing
from training import datasets
from training.config import Config, Precision, restore_config
from training.datasets import Splits
from training.errors import DataError, RunError, first_line
from training.files import serialise, write_atomically
from training.framing import turning_frame
from training.models.base import Model
from training.models.equivae import EquiVAE
from training.models.registry import build

CONFIG_FILE, METRICS_FILE, SKIPPED_FILE, MODEL_FILE = "config.yaml", "metrics.jsonl", "skipped.txt", "model.pt"
MADE_BY_A_RUN = (
    CONFIG_FILE,
    METRICS_FILE,
    SKIPPED_FILE,
    MODEL_FILE,
    "checkpoint-*.pt",
    "tensorboard",
    "judge.pt",
    "evaluation-*.json",
    "quick-*.json",
    "figures",
    "without-class-*",
    ".*.tmp",  # what a kill left half written
)


@dataclass(frozen=True)
class LoadedRun:
    """A finished run. The model is in evaluation mode on the CPU, averaged weights where they were asked for."""

    folder: Path
    config: Config
    model: Model
    input: InputSpec
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    data: dict[str, Any]
    metrics: dict[str, float]
    step: int
    minutes: float
    precision: Precision | None  # of what computed the weights; runs of before do not say

    def sha256(self) -> str:
        """Of model.pt: what ties the figures of an evaluation to these weights."""
        return hashlib.sha256((self.folder / MODEL_FILE).read_bytes()).hexdigest()

    @property
    def parameters(self) -> int:
        """Weights and biases, counted."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def equivae(self) -> EquiVAE:
        """The model, where what is asked of it makes sense for an EquiVAE alone.

        Raises:
            RunError: it is another kind of model.
        """
        if not isinstance(self.model, EquiVAE):
            raise RunError(f"{self.folder} holds a model of kind {self.config.model.kind}: expected equivae")
        return self.model

    def splits(self) -> Splits:
        """The data that the model was trained on, read again.

        Raises:
            DataError: it is not there, or is no longer the same.
        """
        splits = datasets.load(self.config.data)
        if splits.digest != self.data["digest"]:
            raise DataError(
                f"{self.folder}: the data set {splits.name} is not the one this model was trained on "
                f"(digest {splits.digest[:16]}, expected {self.data['digest'][:16]})"
            )
        return splits


def default_folder(runs: Path, config: Config) -> Path:
    return runs / f"{config.name}-{config.fit.seed}"


def is_complete(folder: Path) -> bool:
    return (folder / MODEL_FILE).is_file()


@contextmanager
def open_folder(folder: Path, config: Config, *, resume: bool, restart: bool) -> Iterator[None]:
    """Make the folder for a new run, clear it for a restart, or see that it can be resumed with this configuration.

    No other process can open it until the context ends.

    Raises:
        RunError: the folder holds a run and neither was asked for, or a run of another configuration, or is in use.
    """
    stored = folder / CONFIG_FILE
    with ExitStack() as held:
        try:
            if folder.exists() and not _is_empty(folder) and not _is_run(folder):
                raise RunError(f"{folder} exists and is not a run folder: choose another --run")
            folder.mkdir(parents=True, exist_ok=True)
            _lock(folder, held)
            for left in (*folder.glob(".checkpoint-*.tmp"), *folder.glob(f".{MODEL_FILE}.*.tmp")):
                left.unlink()  # of a run that was killed while it wrote
            if restart:
                _clear(folder)
        except OSError as error:
            raise RunError(f"{folder} cannot be used as a run folder: {error.strerror}") from error
        if restart or not stored.is_file():
            write_atomically(folder / METRICS_FILE, b"")
            write_atomically(stored, yaml.safe_dump(config.as_dict(), sort_keys=False, allow_unicode=True).encode())
        elif resume:
            check_same_config(folder, config, f"resume with the same one, {begin_again(folder)}")
        else:
            raise RunError(f"{folder} holds a run already: add --resume, --restart to replace it, or another --run")
        yield


def _lock(folder: Path, held: ExitStack) -> None:
    """Lock the folder itself: there is no file to leave behind, and the kernel lets go when the process dies."""
    handle = os.open(folder, os.O_RDONLY)
    held.callback(os.close, handle)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RunError(f"{folder} is in use: another process trains into it; choose another --run") from error
    except OSError:
        pass  # a file system without locks on folders, such as NFS


def _is_empty(folder: Path) -> bool:
    """Whether a new run may begin there; hidden files, such as a first write that was interrupted, do not count."""
    return folder.is_dir() and all(path.name.startswith(".") for path in folder.iterdir())


def _is_run(folder: Path) -> bool:
    """Whether the folder is a run's: many a program, and many a user, has a config.yaml of their own."""
    try:
        values = yaml.safe_load((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError, yaml.YAMLError):
        return False
    begun = (folder / METRICS_FILE).is_file() or all(
        _is_made_by_a_run(path) for path in folder.iterdir() if not path.name.startswith(".")
    )
    return isinstance(values, dict) and values.keys() >= Config.model_fields.keys() and begun


def _is_made_by_a_run(path: Path) -> bool:
    return any(fnmatch(path.name, pattern) for pattern in MADE_BY_A_RUN)


def _clear(folder: Path) -> None:
    """Delete what the run has made, but for the files that say that it is a run's, so that a kill leaves a run folder;
    the new run writes them over.
    """
    for path in filter(_is_made_by_a_run, folder.iterdir()):
        if path.name in (CONFIG_FILE, METRICS_FILE):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def begin_again(folder: Path) -> str:
    """What helps where a run cannot go on; of the commands that train, one alone can replace it."""
    return f"delete {folder}, or train it with --restart"


def check_same_config(folder: Path, config: Config, what_helps: str) -> None:
    """That the run in a folder, if there is one, is of this configuration.

    Raises:
        RunError: it is of another, with what helps, or its configuration is damaged or of another version.
    """
    stored = folder / CONFIG_FILE
    if not stored.is_file():
        return
    try:
        earlier = restore_config(yaml.safe_load(stored.read_text(encoding="utf-8"))).identity()
    except (ValueError, TypeError, yaml.YAMLError) as error:
        reason = first_line(error)[:200]
        raise RunError(f"{stored} is damaged or of another version: {reason}; {begin_again(folder)}") from error
    if different := sorted(_differences(earlier, config.identity())):
        names = ", ".join(different[:5])
        raise RunError(f"{folder} was begun with another configuration ({names} differ): {what_helps}")


def _differences(one: Any, other: Any, name: str = "") -> Iterator[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in one.keys() | other.keys():
            yield from _differences(one.get(key), other.get(key), f"{name}.{key}".strip("."))
    elif one != other:
        yield name


def save_model(
    folder: Path,
    config: Config,
    splits: Splits,
    model: Model,
    metrics: dict[str, float],
    step: int,
    minutes: float,
    precision: Precision,
) -> None:
    """Write the finished model; the last act of a run.

    Args:
        precision: what the device that finished it computes in, whatever the configuration says.
    """
    preprocessing = splits.preprocessing if config.model.group is None else turning_frame(splits)
    content = {
        "config": config.as_dict(),
        "state": {name: value.cpu() for name, value in model.state_dict().items()},
        "input": splits.input.model_dump(mode="json"),
        "class_names": list(splits.class_names),
        "preprocessing": preprocessing.model_dump(mode="json"),
        "data": splits.summary(),
        "metrics": metrics,
        "step": step,
        "minutes": minutes,
        "precision": precision,
    }
    write_atomically(folder / MODEL_FILE, serialise(content))


def load_run(folder: Path) -> LoadedRun:
    """Read a finished run.

    Raises:
        RunError: no such folder, not finished, or damaged.
    """
    path = folder / MODEL_FILE
    if not folder.is_dir():
        raise RunError(f"{folder} does not exist: expected the folder of a training run")
    if not path.is_file():
        hint = f"finish it: python -m training train {folder / CONFIG_FILE} --run {folder} --resume"
        raise RunError(f"{folder} has no {MODEL_FILE}: {hint if (folder / CONFIG_FILE).is_file() else 'not a run'}")
    try:
        content = torch.load(io.BytesIO(path.read_bytes()), map_location="cpu", weights_only=True)
        config = restore_config(content["config"])
        input = InputSpec(**content["input"])
        model = build(config.model, input, len(content["class_names"]))
        model.load_state_dict(content["state"])
        return LoadedRun(
            folder=folder,
            config=config,
            model=model.eval(),
            input=input,
            class_names=tuple(content["class_names"]),
            preprocessing=Preprocessing(**content["preprocessing"]),
            data=content["data"],
            metrics=content["metrics"],
            step=content["step"],
            minutes=content["minutes"],
            precision=content.get("precision"),
        )
    except Exception as error:  # a damaged file fails in as many ways as it has bytes
        raise RunError(f"{path} is damaged or of another version: {first_line(error)[:200]}") from error


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; a last line cut short by a kill is left out.

    Raises:
        RunError: another line is no row.
    """
    path = folder / METRICS_FILE
    if not path.is_file():
        return []
    content = path.read_bytes()
    rows, lines = [], content.splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not {"step", "split"} <= row.keys():
                raise ValueError("neither step nor split")
        except (ValueError, AttributeError) as error:
            if number == len(lines) and not content.endswith(b"\n"):
                break
            raise RunError(f"{path}:{number}: is damaged ({first_line(error)}): delete the line") from error
        rows.append(row)
    return rows
