"""A configuration that trains in a second or two: scikit-learn's digits and a very small EquiVAE.

PyTorch is imported within the fixtures: the process that hands the tests out to the workers imports this file too.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from rich.console import Console

if TYPE_CHECKING:
    from training.config import Config

SMALL: dict[str, Any] = {
    "name": "small",
    "recipe": "test",
    "data": {"source": "digits"},
    "model": {
        "kind": "equivae",
        "r_dim": 4,
        "v_dim": 3,
        "complements": "in_batch",
        "encoder": {"filters": [4, 8], "strides": [1, 2], "kernel": 3, "norm": True, "hidden": 16},
        "encoder_head": 16,
        "posterior": {"kind": "dense", "widths": [16]},
        "posterior_hidden": 16,
        "decoder": {"kind": "dense", "widths": [16]},
        "augment": {"rotation_degrees": 10.0, "shift": 0.1},
    },
    "fit": {
        "steps": 40,
        "batch": 40,
        "order": "balanced",
        "optimiser": {"kind": "adamw", "learning_rate": 0.003, "weight_decay": 0.01},
        "schedule": {"kind": "cosine"},
        "ema": 0.9,
        "clip": 10.0,
        "checkpoint_steps": 7,
        "log_steps": 5,
        "accelerator": "cpu",
        "threads": 1,
    },
}


SMALL_POSE: dict[str, Any] = {
    "name": "small-pose",
    "recipe": "test",
    "data": {"source": "digits", "canvas": 12},
    "model": {
        "kind": "mcevae",
        "group": "SE2",
        "rotation_degrees": 90,
        "shift": 0.1,
        "z_dim": 3,
        "pose": {"radii": 5, "angles": 32, "width": 12, "kernel": 3, "dilations": [1, 2]},
        "encoder": {"filters": [8, 8], "strides": [2, 1], "hidden": 16},
        "decoder": {"hidden": 16, "filters": [4, 8, 4]},
    },
    "fit": {
        "steps": 60,
        "batch": 64,
        "optimiser": {"kind": "adamw", "learning_rate": 0.003, "weight_decay": 0.01},
        "schedule": {"kind": "cosine"},
        "select": "rotation_error_60",
        "accelerator": "cpu",
        "threads": 1,
    },
}


@pytest.fixture
def small() -> dict[str, Any]:
    """The values of a small configuration, to be changed at will."""
    return copy.deepcopy(SMALL)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    """Write values as a YAML file."""

    def write(values: dict[str, Any], name: str = "config.yaml") -> Path:
        path = tmp_path / name
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        return path

    return write


@pytest.fixture
def make_config(write: Callable[[dict[str, Any]], Path], small: dict[str, Any]) -> Callable[..., Config]:
    """The small configuration with overrides as on the command line, `make_config("fit.steps=3")`."""
    from training.config_file import load_config

    return lambda *overrides: load_config(write(small), overrides)


@pytest.fixture
def one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modes are found in one round, whose nodes an exported graph has once instead of four times."""
    from training import rotation

    monkeypatch.setattr(rotation, "ROUNDS", 1)


def trained(values: dict[str, Any], folder: Path) -> Path:
    """The folder, within `folder`, of a finished run of this configuration."""
    from training.config_file import load_config
    from training.fit import train

    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    train(load_config(path), folder / "run", console=Console(file=io.StringIO()))
    return folder / "run"


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of the small configuration; to be copied before anything is written into it."""
    values = copy.deepcopy(SMALL)
    values["fit"] |= {"steps": 150, "checkpoint_steps": 75}
    return trained(values, tmp_path_factory.mktemp("finished"))


@pytest.fixture(scope="session")
def finish_pose_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Train a small model of poses of this `model` section; the run's folder."""

    def finish(
        model: dict[str, Any], select: str = "rotation_error_60", steps: int = SMALL_POSE["fit"]["steps"]
    ) -> Path:
        fit = {**SMALL_POSE["fit"], "select": select, "steps": steps}
        return trained({**SMALL_POSE, "model": model, "fit": fit}, tmp_path_factory.mktemp("pose"))

    return finish


@pytest.fixture(scope="session")
def finished_pose_run(finish_pose_run: Callable[..., Path]) -> Path:
    """The folder of a finished run of the small model of poses; to be copied before anything is written into it."""
    return finish_pose_run(SMALL_POSE["model"])
