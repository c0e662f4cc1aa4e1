"""How files are written: whole or not at all, with an error that says why."""

from __future__ import annotations

import errno
import io
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from training.errors import RunError, RunFailed

__all__ = ["make_folder", "reason_of", "serialise", "write_atomically"]

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


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
    """Replace `target`, or what it links to, by the whole content or leave it as it was; what is no file, as a pipe,
    is written to.

    Raises:
        RunFailed: no space, no permission, ...; the message says so and nothing is left behind.
    """
    try:
        if target.exists() and not target.is_file():
            target.write_bytes(content)
        else:
            _replace(Path(os.path.realpath(target)), content)
    except OSError as error:
        raise RunFailed(f"{target} cannot be written: {reason_of(error)}") from error


def _replace(target: Path, content: bytes) -> None:
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
    finally:  # also where the user interrupts
        with suppress(OSError):
            aside.unlink()


def serialise(state: dict[str, Any]) -> bytes:
    """What `torch.save` would write."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()
