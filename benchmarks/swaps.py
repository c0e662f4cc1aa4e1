"""New versions of a model under load, two different ones by turns, each answer held to the version that it names."""

import json
import shutil
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.clients import Clients, Tally, post
from benchmarks.load import Cores, Server, Target, running, tree_pss_mb
from benchmarks.serving import store_of


def swaps(server: Server, folders: Sequence[Path], cores: Cores, picture: bytes, count: int) -> dict[str, Any]:
    """folders: two models; odd versions are the first, even ones the second. The second stands beside them under its
    own name as well, so that both can be asked for what they answer.
    """
    with tempfile.TemporaryDirectory() as scratch:
        store = store_of(folders, Path(scratch)).parent.parent
        name, other = (folder.parent.name for folder in folders)
        command = [part if part != str(folders[0].parent.parent) else scratch for part in server.command]
        polling = server.environment | {"EQUIPOISE_MODEL_POLL_SECONDS": "0.05"}
        request = post("/classify", "image/png", picture)
        with running(replace(server, command=command, environment=polling), cores, picture) as target:
            expected = [_said(target, f"/classify?model={asked}", picture) for asked in (other, name)]
            wrong: list[bytes] = []
            versions: set[int] = set()

            def hear(answer: bytes) -> None:
                said = json.loads(answer.partition(b"\r\n\r\n")[2])
                versions.add(version := said.get("version", 0))
                if not _same(said, expected[version % 2]):
                    wrong.append(answer)

            Clients(target.port, request, 8).run(1.0)
            memory = [tree_pss_mb(target.process.pid)]
            not_ready = 0
            asked: list[Tally] = []
            stop = threading.Event()

            def ask() -> None:
                while not stop.is_set():
                    asked.append(Clients(target.port, request, 8, heard=hear).run(2.0))

            asking = threading.Thread(target=ask)
            asking.start()
            start = time.monotonic()
            for version in range(2, count + 2):
                write_version(folders[(version - 1) % 2], store / name, version)
                shutil.rmtree(store / name / str(version - 1))
                while True:
                    status, answer = get_json(target, "/readyz")
                    not_ready += status != 200
                    if f"{name}/{version}" in answer.get("models", ()):
                        break
                    time.sleep(0.01)
                if (version - 1) % max(1, count // 10) == 0:
                    memory.append(tree_pss_mb(target.process.pid))
            taken = time.monotonic() - start
            stop.set()
            asking.join()
            time.sleep(1.0)
            memory.append(tree_pss_mb(target.process.pid))
    statuses: Counter[int] = Counter()
    for tally in asked:
        statuses.update(tally.statuses())
    return {
        "swaps": count,
        "models": [name, other],
        "seconds_a_swap": taken / count,
        "statuses": {str(status): number for status, number in sorted(statuses.items())},
        "versions_heard": len(versions),
        "mixed": len(wrong),
        "broken": sum(tally.broken for tally in asked),
        "not_ready": not_ready,
        "p99_ms": sorted(tally.milliseconds(99) for tally in asked)[len(asked) // 2],
        "memory_mb": [round(size, 1) for size in memory],
    }


def _said(target: Target, path: str, picture: bytes) -> dict[str, Any]:
    request = urllib.request.Request(f"http://127.0.0.1:{target.port}{path}", picture, {"Content-Type": "image/png"})
    with urllib.request.urlopen(request, timeout=30) as response:
        said: dict[str, Any] = json.load(response)
    return said


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two answers of `/classify` are of one model."""
    return all(
        one.get(name, {}).keys() == other[name].keys()
        and np.allclose(list(one[name].values()), list(other[name].values()), rtol=1e-4, atol=1e-5)
        for name in ("probabilities", "distances")
    )


def write_version(folder: Path, model: Path, version: int) -> Path:
    """A copy of a version's folder as another version of `model`, a folder."""
    aside = model / f".tmp-{version}"
    shutil.copytree(folder, aside)
    manifest = json.loads((aside / "manifest.json").read_text())
    (aside / "manifest.json").write_text(json.dumps(manifest | {"name": model.name, "version": version}))
    return aside.rename(model / str(version))


def get_json(target: Target, path: str) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{target.port}{path}", timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, {}
