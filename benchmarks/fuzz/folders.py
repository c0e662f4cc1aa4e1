"""Model folders that nobody should serve, read by a process of their own, as the service reads them."""

import hashlib
import json
import multiprocessing
import shutil
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.fuzz.asking import SLOW_SECONDS
from benchmarks.fuzz.pieces import scramble
from benchmarks.fuzz.requests import damaged_document, written
from contract.manifest import ManifestError
from service.engine import EngineError, EngineOptions
from service.model_folder import read_version, warm

_PATIENCE_SECONDS = 60.0
_NODES_BYTES = 6000
_OPTIONS = EngineOptions(threads=1, max_batch=4, inline_seconds=1.0)


@dataclass
class FolderFindings:
    """outcomes: how folders were answered. unforeseen: (number, error) that is none of the documented kinds.

    crashes: (number, exit status of the reader). hangs: numbers that took over a minute. slow: (number, seconds) that
    took over two of the reader's CPU time; by the clock a busy machine would be blamed on the folder.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    unforeseen: list[tuple[int, str]] = field(default_factory=list)
    crashes: list[tuple[int, int | None]] = field(default_factory=list)
    hangs: list[int] = field(default_factory=list)
    slow: list[tuple[int, float]] = field(default_factory=list)
    longest_seconds: float = 0.0
    memory_mb: list[float] = field(default_factory=list)

    def bad(self) -> bool:
        return bool(self.unforeseen or self.crashes or self.hangs or self.slow)


def damaged_folder(good: Path, folder: Path, seed: int, number: int) -> None:
    """A copy of a good folder with one to three damages; digests mostly stated anew, so that they hide nothing."""
    random = Random(f"{seed}/folder/{number}")
    shutil.copytree(good, folder)
    names = sorted(path.name for path in good.iterdir() if path.name != "manifest.json")
    for _ in range(random.choice((1, 1, 2, 3))):
        path = folder / random.choice(names)
        match random.randrange(8):
            case 0:
                path.unlink(missing_ok=True)
            case 1:
                (folder / random.choice(("extra", ".hidden", "embed.onnx.data"))).write_bytes(random.randbytes(10))
            case 2 if path.exists():
                path.unlink()
                path.symlink_to(good / path.name)
            case 3 | 4 | 5 | 6 if path.is_file() and not path.is_symlink():
                data = path.read_bytes()
                # of a graph, its nodes, which come first; what follows is mostly weights, where any bytes are good
                at = min(len(data), _NODES_BYTES) if random.random() < 0.8 else len(data)
                path.write_bytes(scramble(random, data[:at]) + data[at:])
            case _:
                manifest = _manifest(folder)
                (folder / "manifest.json").write_bytes(written(random, damaged_document(random, manifest)))
    if random.random() < 0.8:
        _state_anew(folder)


def _state_anew(folder: Path) -> None:
    """Sizes and digests in the manifest, where it still has a place for them."""
    manifest = _manifest(folder)
    files = manifest.get("files") if isinstance(manifest, dict) else None
    for name, stated in files.items() if isinstance(files, dict) else ():
        path = folder / name if "/" not in name and len(name) < 200 and "\0" not in name else folder
        if path.is_file() and isinstance(stated, dict):
            data = path.read_bytes()
            stated |= {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    if files:
        (folder / "manifest.json").write_text(json.dumps(manifest))


def _manifest(folder: Path) -> Any:
    """What it has become so far; None where it is no JSON any more."""
    try:
        return json.loads((folder / "manifest.json").read_bytes())
    except (ValueError, RecursionError):
        return None


def _read_folders(pipe: Connection) -> None:
    """The reader's life: a word that it has started; then a path in, its outcome and CPU seconds out."""
    pipe.send("started")
    while (path := pipe.recv()) is not None:
        start = time.process_time()
        try:
            _, engines = read_version(Path(path), [_OPTIONS])
            warm(engines)
            outcome = "accepted"
        except (ManifestError, EngineError) as error:
            outcome = type(error).__name__
        except OSError:
            outcome = "OSError"
        except Exception as error:
            outcome = f"unforeseen: {error!r}"
        pipe.send((outcome, time.process_time() - start))


def try_folders(good: Path, count: int, seed: int, findings: FolderFindings) -> None:
    """So many damaged copies of a good folder `<store>/<model>/<version>`."""
    reader, pipe = None, None
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(count):
            if reader is None or pipe is None:
                reader, pipe = _start_reader()
            folder = Path(scratch) / str(number) / good.parent.name / good.name
            damaged_folder(good, folder, seed, number)
            start = time.perf_counter()
            pipe.send(str(folder))
            try:
                answered = pipe.poll(_PATIENCE_SECONDS)
                outcome, spent = pipe.recv() if answered else ("", 0.0)
            except (EOFError, OSError):
                reader.join()
                findings.crashes.append((number, reader.exitcode))
                reader = None
                continue
            if not answered:
                findings.hangs.append(number)
                reader.kill()
                reader = None
                continue
            findings.longest_seconds = max(findings.longest_seconds, time.perf_counter() - start)
            if spent > SLOW_SECONDS:
                findings.slow.append((number, round(spent, 2)))
            if outcome.startswith("unforeseen"):
                findings.unforeseen.append((number, outcome))
            findings.outcomes[outcome.split(":", 1)[0]] += 1
            if number % max(1, count // 20) == 0 and reader.pid is not None:
                findings.memory_mb.append(_resident_mb(reader.pid))
            shutil.rmtree(Path(scratch) / str(number))
        if reader is not None and pipe is not None:
            pipe.send(None)
            reader.join()


def _start_reader() -> tuple[SpawnProcess, Connection]:
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    reader = context.Process(target=_read_folders, args=(theirs,), daemon=True)
    reader.start()
    theirs.close()
    pipe.recv()  # the time that it takes to start is no folder's
    return reader, pipe


def _resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 / 1e6
