"""Checkpoints that survive a kill, a full disk and a flipped bit.

A checkpoint is written aside, flushed to the disk and renamed to `checkpoint-<step>-<digest>.pt`, in which the digest
is the start of the SHA-256 of its bytes: what the name promises the content must keep, or the one before it is used.
"""

import errno
import hashlib
import io
import os
import pickle
import re
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from training.errors import RunError, RunFailed

KEPT = 2
_NAME = re.compile(r"^checkpoint-(\d{9})-([0-9a-f]{16})\.pt$")
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True)
class Found:
    """The newest good checkpoint; `damaged` names those that had to be passed over."""

    state: dict[str, Any] | None
    damaged: tuple[str, ...]


def make_folder(folder: Path) -> None:
    """Make the folder of what is to be written, before any work is done for it.

    Raises:
        RunError: it is a file, lies in one, or may not be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder} cannot be used as a folder: {error.strerror}") from error


def reason_of(error: OSError) -> str:
    """Why something cannot be written, in a few words."""
    return "the disk is full" if error.errno in _DISK_FULL else error.strerror or str(error)


def write_atomically(target: Path, content: bytes) -> None:
    """Replace `target` by the whole content or leave it as it was.

    Raises:
        RunFailed: no space, no permission, ...; the message says so and nothing is left behind.
    """
    # A name of its own, for others may write the same file; not tempfile's, whose files only their owner may read.
    aside = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        with aside.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.rename(target)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise RunFailed(f"{target} cannot be written: {reason_of(error)}") from error
    finally:  # also where the user interrupts
        with suppress(OSError):
            aside.unlink()


def serialise(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


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
        raise RunFailed(f"{error}; {last}: make room and run again with --resume") from error
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
