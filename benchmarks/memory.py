"""The most memory that the service takes, beside what its settings say it may: where that is passed a pod is killed.

    python -m benchmarks.memory --json results/memory.json        (a few minutes)

Clients fill `queue_bytes` with large bodies: each sends all of one but the last byte, then all of them that, so that
every body is there at once; who is refused asks again. What is measured is the process's greatest resident set since
just before. `memory_needed` is the rule for the limit of a pod, which tests hold the Kubernetes objects to.
"""

import argparse
import base64
import json
import re
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.contenders import ours
from benchmarks.load import ROOT, Cores, Target, running
from benchmarks.serving import machine, model_folder, picture
from service.body import FREE_BODY_BYTES
from service.settings import Settings

BESIDE = 512 * 2**20
"""Interpreter, models, ONNX Runtime's arena."""
OF_A_CLIENT = round(1.4 * FREE_BODY_BYTES)
"""Of a body what is in no queue, and the largest head: up to 1.39 measured, of many short headers."""
_PATIENCE_SECONDS = 600.0
_PAUSE_SECONDS = 0.2
_UNREAD_SECONDS = 25.0
_MOST_CLIENTS = 64
_PIECE = 1 << 20


def memory_needed(settings: Settings) -> int:
    """Bytes that a service may take: a full queue; what every client may send before it is part of it; what reading
    takes beside the bodies, twice one in each thread that reads (of JSON, the parser's copy and the texts) and once for
    the one that has just arrived whole; and what is there without any.
    """
    reading = (2 * settings.decode_threads + 1) * settings.max_body_bytes
    return settings.queue_bytes + settings.max_connections * OF_A_CLIENT + reading + BESIDE


@dataclass(frozen=True)
class Case:
    """make: a body of about so many bytes. unread: whether clients take nothing of their answers for a while."""

    name: str
    path: str
    content_type: str
    make: Callable[[int], bytes]
    unread: bool = False


def noise(side: int, channels: int = 3) -> bytes:
    """A PNG as long as its pixels are."""
    samples = np.random.default_rng(0).integers(0, 256, (side, side, channels), np.uint8)
    file = BytesIO()
    Image.fromarray(samples.squeeze()).save(file, "PNG", compress_level=0)
    return file.getvalue()


def _files(size: int, count: int) -> list[bytes]:
    """So many small pictures, each with a tail that no decoder looks at."""
    small = noise(64, 1)
    return [small + bytes(max(0, size // count - len(small)))] * count


def _json(files: Sequence[bytes]) -> bytes:
    return json.dumps({"images": [{"data": base64.b64encode(file).decode()} for file in files]}).encode()


def _form(files: Sequence[bytes]) -> bytes:
    head = b'--b\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
    return b"".join(head + file + b"\r\n" for file in files) + b"--b--\r\n"


def _numbers(size: int) -> bytes:
    """The protocol's JSON, in the digits that take the most memory for their length: rows of 28 x 28, at most 1,024."""
    rows = min(1024, size // 4 // 784)
    data = b",".join([b"0.5"] * (784 * rows))
    head = b'{"inputs":[{"name":"image","shape":[%d,1,28,28],"datatype":"FP32","data":[' % rows
    return head + data + b"]}]}"


def _photographs(size: int) -> bytes:
    """A form, short beside what is drawn of it."""
    return _form([noise(700)] * max(1, size // 4_500_000))


FORM = "multipart/form-data; boundary=b"
MODEL = "equivae-mnist"
INFER = f"/v2/models/{MODEL}.embed/infer"
CASES = [
    Case("one picture", "/classify", "image/png", lambda size: _files(size, 1)[0]),
    Case("a form of 8", "/classify", FORM, lambda size: _form(_files(size, 8))),
    Case("JSON of 8", "/classify", "application/json", lambda size: _json(_files(size * 3 // 4 - 4096, 8))),
    Case("numbers", INFER, "application/json", _numbers),
    Case("drawn", "/canonicalize", FORM, _photographs),
    Case("unread", "/canonicalize", FORM, _photographs, unread=True),
]


class _Client(threading.Thread):
    """Asks until it is let in, at most for `_PATIENCE_SECONDS`."""

    def __init__(self, port: int, case: Case, body: bytes, together: threading.Barrier, until: float) -> None:
        super().__init__(daemon=True)
        self._port, self._case, self._body, self._together, self._until = port, case, body, together, until
        self.statuses: Counter[str] = Counter()

    def run(self) -> None:
        while time.monotonic() < self._until:
            try:
                status = self._ask()
            except OSError as error:  # a refusal may cut a client that still sends
                status = type(error).__name__
            self._together.abort()  # whoever asks again waits for nobody
            self.statuses[status] += 1
            if status.isdigit() and status != "429":
                return
            time.sleep(_PAUSE_SECONDS)

    def _ask(self) -> str:
        head = (
            f"POST {self._case.path} HTTP/1.1\r\nHost: memory\r\nConnection: close\r\n"
            f"Content-Type: {self._case.content_type}\r\nContent-Length: {len(self._body)}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", self._port), timeout=_PATIENCE_SECONDS) as connection:
            connection.sendall(head.encode() + self._body[:-1])
            with suppress(threading.BrokenBarrierError):  # not all of them fit
                self._together.wait(_PATIENCE_SECONDS)
            connection.sendall(self._body[-1:])
            answer = connection.recv(64)
            if self._case.unread:
                time.sleep(_UNREAD_SECONDS)
            while connection.recv(_PIECE):
                pass
        return answer.split(b" ", 2)[1].decode() if answer else "cut"


def _resident(pid: int, name: str) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def measure(target: Target, case: Case, settings: Settings) -> dict[str, Any]:
    """The process's memory in MiB: before, the most, and what `memory_needed` has for the clients, who are more than
    the queue takes.
    """
    body = case.make(settings.max_body_bytes - 4096)
    clients = min(_MOST_CLIENTS, round(1.1 * settings.queue_bytes / max(1, len(body) - FREE_BODY_BYTES)))
    pid = target.process.pid
    before = _resident(pid, "VmRSS")
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # the greatest resident set is the present one
    start = time.monotonic()
    together = threading.Barrier(clients)
    asking = [_Client(target.port, case, body, together, start + _PATIENCE_SECONDS) for _ in range(clients)]
    for client in asking:
        client.start()
    for client in asking:
        client.join()
    statuses = sum((client.statuses for client in asking), Counter[str]())
    bound = memory_needed(settings.model_copy(update={"max_connections": clients}))
    return {
        "case": case.name,
        "path": case.path,
        "body_mib": round(len(body) / 2**20, 1),
        "clients": clients,
        "before_mib": round(before / 2**20),
        "most_mib": round(_resident(pid, "VmHWM") / 2**20),
        "needed_mib": round(bound / 2**20),
        "seconds": round(time.monotonic() - start),
        "statuses": dict(sorted(statuses.items())),
    }


def run(settings: Settings, cases: Sequence[Case], model: str = MODEL) -> list[dict[str, Any]]:
    """Every case on a service of its own, with all models of the store."""
    folder = model_folder(settings.model_store, model)
    server = ours(folder)
    given = ("queue_bytes", "max_body_bytes", "max_pixels", "decode_threads")
    own = {f"EQUIPOISE_{name.upper()}": str(getattr(settings, name)) for name in given}
    own |= {"EQUIPOISE_QUEUE_SECONDS": "0", "EQUIPOISE_REQUEST_TIMEOUT_SECONDS": "600"}
    own |= {"EQUIPOISE_BODY_TIMEOUT_SECONDS": "600"}
    found = []
    for case in cases:
        started = replace(server, name=case.name, environment=server.environment | own)
        with running(started, Cores(), picture(folder)) as target:
            found.append(measure(target, case, settings))
        print(json.dumps(found[-1]), flush=True)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-store", type=Path, default=ROOT / "model_store")
    parser.add_argument("--only", nargs="+", help="these cases, by their names")
    for name in ("queue_bytes", "max_body_bytes", "max_pixels", "decode_threads"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(Settings(), name))
    parser.add_argument("--json", type=Path)
    options = vars(parser.parse_args(arguments))
    path, only = options.pop("json"), options.pop("only")
    cases = [case for case in CASES if not only or case.name in only]
    rows = run(Settings(**options), cases)
    if path:
        path.write_text(json.dumps({"machine": machine(), "measured": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
