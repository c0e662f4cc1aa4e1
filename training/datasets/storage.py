"""Where data sets lie on this machine, and how a missing file is fetched from its public mirrors."""

import hashlib
import os
import secrets
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

from training.errors import DataError

ENVIRONMENT = "EQUIPOISE_TRAINING_DATA"
TIMEOUT_S = 30.0


def data_root() -> Path:
    """The folder of data sets: `EQUIPOISE_TRAINING_DATA`, else the user's cache folder."""
    if chosen := os.environ.get(ENVIRONMENT):
        return expanded(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "equipoise"


def expanded(path: str | Path) -> Path:
    """With the home of `~` or `~user`; Path's own method raises where there is no such user: here `~user` is a folder
    that does not exist.
    """
    return Path(os.path.expanduser(path))


def md5(path: Path) -> str:
    """The checksum that the mirrors publish; it guards against broken transfers, not against malice."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def download(name: str, mirrors: Sequence[str], checksum: str, folder: Path, advice: str) -> Path:
    """Fetch `name` into `folder` from the first mirror that gives the right bytes; beside it first, then renamed."""
    target = folder / name
    failures = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot make the data folder {folder}: {error.strerror}") from error
    for mirror in mirrors:
        partial = target.with_name(f".{name}.{secrets.token_hex(8)}.part")
        try:
            request = Request(mirror + name, headers={"User-Agent": "equipoise"})  # noqa: S310 - a constant, held to its digest
            with urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
                partial.write_bytes(answer.read())
            if md5(partial) == checksum:
                partial.rename(target)
                return target
            failures.append(f"{mirror}: wrong checksum")
        except URLError as error:
            failures.append(f"{mirror}: {error.reason}")
        except (OSError, HTTPException) as error:
            failures.append(f"{mirror}: {error}")
        finally:
            partial.unlink(missing_ok=True)
    raise DataError(f"{name} is not in {folder} and could not be downloaded ({'; '.join(failures)}). {advice}")
