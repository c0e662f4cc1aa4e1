"""Checkpoints that survive a kill, a full disk and a flipped bit.

A checkpoint is written aside, flushed to the disk and renamed to `checkpoint-<step>-<digest>.pt`, in which the digest
is the start of the SHA-256 of its bytes: what the name promises the content must keep, or the one before it is used.
"""

import hashlib
import io
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from training.errors import RunError, RunFailed
from training.files import serialise, write_atomically

KEPT = 2
_NAME = re.compile(r"^checkpoint-(\d{9})-([0-9a-f]{16})\.pt$")


@dataclass(frozen=True)
class Found:
    """The newest good checkpoint; `damaged` names those that had to be passed over."""

    state: dict[str, Any] | None
    damaged: tuple[str, ...]


def _existing(folder: Path) -> list[Path]:
    """Checkpoints by their names, newest first."""
    return sorted((path for path in folder.iterdir() if _NAME.match(path.name)), reverse=True)


def is_begun(folder: Path) -> bool:
    """Whether there is a checkpoint, a good one or not."""
    return folder.is_dir() and bool(_existing(folder))


def save(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write the state after `step` steps, then delete all but the newest two."""
    content = serialise(state)
    path = folder / f"checkpoint-{step:09d}-{hashlib.sha256(content).hexdigest()[:16]}.pt"
    try:
        write_atomically(path, content)
    except RunError as error:
        kept = _existing(folder)
        last = f"the last good checkpoint, {kept[0].name}, is kept" if kept else "there is no earlier checkpoint"
        raise RunFailed(f"{error}; {last}: make room and run the command again (train: with --resume)") from error
    for old in _existing(folder)[KEPT:]:
        old.unlink()
    return path


def find(folder: Path) -> Found:
    """Read the newest checkpoint whose content is what its name says; `state` is None where there is none."""
    damaged: list[str] = []
    for path in _existing(folder):
        content = path.read_bytes()
        match = _NAME.match(path.name)
        if match and hashlib.sha256(content).hexdigest()[:16] == match[2]:
            try:
                # Tensors and plain values only: a checkpoint from elsewhere cannot run code here.
                state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
                return Found(state, tuple(damaged))
            except (pickle.UnpicklingError, RuntimeError, EOFError):
                pass
        damaged.append(path.name)
    return Found(None, tuple(damaged))
