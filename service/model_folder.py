"""The model folders on disk: which there are, whether one has changed, and one of them read and verified."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np

from contract.manifest import GOLDEN_FILE, Manifest, ManifestError, is_version, read_verified
from service.engine import Array, Engine, EngineError, EngineOptions, Golden

Version = tuple[Manifest, dict[str, list[Engine]]]
"""Its manifest, and its engines by capability, one for each device."""

Signature = tuple[tuple[str, int, int], ...]
"""Name, size and time of every file of a folder: another one where anything in it was written anew."""

_FILESYSTEMS_OWN = "lost+found"  # at the root of a volume
_RULE = "a version is a folder named by a whole number from 1, of at most nine digits"
_MOST_TOLD = 3


class EmptyStore(Exception):
    """The model store is missing, cannot be listed, or has no model folder at all."""


class NoModelYet(EmptyStore):
    """The model store is a folder that can be listed, and no <model>/<version> is in it."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A model folder that does not serve, and why; version None: the folder above its versions, or one in it that is
    no version.
    """

    model: str
    version: int | None
    reason: str


def printable(text: str) -> str:
    """What can be written as UTF-8: bytes of file names that are none are escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def find(root: Path) -> tuple[dict[str, list[int]], list[Refusal]]:
    """Model name -> version numbers on disk, highest first; and what is refused by names alone: models whose folder
    cannot be listed, is not named in UTF-8 or has no version, and folders beside versions that are none. What has a dot
    in front is ignored.

    Raises:
        EmptyStore: no folder, or one that cannot be listed. NoModelYet: no <model>/<version> in it.
    """
    try:
        if not root.is_dir():
            raise EmptyStore(f"the model store {root} is not a folder")
        names = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not _is_ignored(entry.name))
    except OSError as error:
        raise EmptyStore(f"the model store {root} cannot be listed: {error.strerror}") from error
    found: dict[str, list[int]] = {}
    closed: list[Refusal] = []
    misnamed: list[Refusal] = []
    for name in names:
        if printable(name) != name:
            closed.append(Refusal(printable(name), None, "the name of the folder is not UTF-8"))
            continue
        try:
            entries = sorted((root / name).iterdir())
        except OSError as error:
            closed.append(Refusal(name, None, f"the folder cannot be listed: {error.strerror}"))
            continue
        if numbers := sorted((int(entry.name) for entry in entries if is_version(entry.name)), reverse=True):
            found[name] = numbers
        misnamed += [Refusal(name, None, reason) for reason in _no_versions(entries)]
    if not found and not closed:
        told = "".join(f"; {refusal.model}: {refusal.reason}" for refusal in misnamed[:_MOST_TOLD])
        raise NoModelYet(f"the model store {root} has no model: a model is <store>/<model>/<version>/{told}")
    return found, closed + misnamed


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name == _FILESYSTEMS_OWN


def _no_versions(entries: Sequence[Path]) -> list[str]:
    """What is to be said of names in a model's folder. With nothing but a dot in front, its first version is being
    written.
    """
    visible = [entry for entry in entries if not entry.name.startswith(".")]
    # os.path's answer is no where Path's is an error: of a folder that may be listed and not entered.
    strays = [entry.name for entry in visible if not is_version(entry.name) and os.path.isdir(entry)]
    if strays:
        return [f"{stray[:100]!r} is no version: {_RULE}" for stray in strays]
    if any(is_version(entry.name) for entry in visible) or (entries and not visible):
        return []
    return [f"it has no version: {_RULE}"]


def sign(folder: Path) -> Signature:
    """What a version's folder looks like now; empty where it cannot be read."""
    try:
        facts = [(entry.name, entry.stat()) for entry in folder.iterdir()]
    except OSError:
        return ()
    return tuple(sorted((name, fact.st_size, fact.st_mtime_ns) for name, fact in facts))


def read_version(folder: Path, options: Sequence[EngineOptions]) -> Version:
    """A version, with an engine a graph for each of the options: every file verified, every graph held to its golden
    cases where it will run. `warm` makes them ready to serve.

    Raises:
        ManifestError, EngineError, OSError: the folder is refused; the message is the reason.
    """
    manifest, files = read_verified(folder)
    golden = _read_golden(files[GOLDEN_FILE])
    engines: dict[str, list[Engine]] = {}
    for capability, spec in manifest.graphs.items():
        with _named(capability):
            engines[capability] = [
                Engine(files[spec.file], spec, manifest.opset, _golden_of(golden, capability), wanted)
                for wanted in options
            ]
    return manifest, engines


def warm(engines: Mapping[str, Sequence[Engine]]) -> None:
    """Warm a version's engines and choose their batches, one after the other.

    Raises:
        EngineError: the version is refused; the message is the reason.
    """
    for capability, those in engines.items():
        with _named(capability):
            for engine in those:
                engine.warm()


@contextmanager
def _named(capability: str) -> Iterator[None]:
    try:
        yield
    except EngineError as error:
        raise EngineError(f"{capability}: {error}") from error


def _read_golden(data: bytes) -> dict[str, Array]:
    """Arrays by `<capability>/<in|out>/<tensor>`.

    Raises:
        ManifestError: not such a file.
    """
    try:
        with np.load(BytesIO(data), allow_pickle=False) as archive:
            return {key: np.ascontiguousarray(archive[key], dtype=np.float32) for key in archive.files}
    except Exception as error:  # numpy and zipfile raise a dozen kinds on a damaged archive
        raise ManifestError(f"{GOLDEN_FILE} cannot be read: {error}") from error


def _golden_of(golden: Mapping[str, Array], capability: str) -> Golden:
    def side(name: str) -> dict[str, Array]:
        prefix = f"{capability}/{name}/"
        return {key[len(prefix) :]: array for key, array in golden.items() if key.startswith(prefix)}

    return Golden(side("in"), side("out"))
