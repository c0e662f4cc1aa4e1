"""Who takes part: ours, plain FastAPI, the marks, and the peers, each with its best documented settings.

A peer runs in an environment of its own, made on first use under `.bench/` from `benchmarks/peers/<peer>.txt`.
Bodies differ where a peer's protocol forces it: base64 in JSON (LitServe, MLServer), multipart (BentoML).
"""

import base64
import json
import subprocess
import sys
import venv
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.load import ROOT, Server
from service.keys import new_key

PEERS = ROOT / "benchmarks" / "peers"
ENVIRONMENTS = ROOT / ".bench"
_BOUNDARY = "equipoise-benchmark"


def ours(folder: Path, with_key: bool = False) -> Server:
    """with_key: the service asks for an API key, and every request brings it."""
    command = [sys.executable, "-m", "service", "--model-store", str(folder.parent.parent)]
    command += ["--default-classify", folder.parent.name, "--port", "{port}"]
    server = Server("Equipoise", command, {"EQUIPOISE_INFERENCE_THREADS": "1", "EQUIPOISE_DRAIN_SECONDS": "0"})
    if not with_key:
        return server
    key, line = new_key()
    ENVIRONMENTS.mkdir(exist_ok=True)
    (ENVIRONMENTS / "keys").write_text(line)
    return replace(server, command=[*command, "--api-keys", str(ENVIRONMENTS / "keys")], key=key)


def plain_fastapi(folder: Path) -> Server:
    return Server("plain FastAPI", _uvicorn("benchmarks.plain_fastapi:app"), {"MODEL": str(folder)})


def marks(folder: Path) -> list[Server]:
    answer = json.dumps({"label": "constant", "probability": 1.0, "filling": "x" * 700})
    model = {"MODEL": str(folder)}
    raw = _uvicorn("benchmarks.peers.raw_asgi:app")
    return [
        Server("HTTP floor (uvicorn, constant answer)", _uvicorn("benchmarks.peers.floor:app"), {"ANSWER": answer}),
        Server("raw ASGI mark, Pillow", raw, model | {"DECODER": "pillow"}),
        Server("raw ASGI mark, OpenCV", raw, model | {"DECODER": "opencv"}),
        Server("raw ASGI mark, our decoder", raw, model | {"DECODER": "ours"}),
    ]


def peers(folder: Path, scratch: Path) -> list[Server]:
    """The peer servers; their environments are made first.

    Args:
        scratch: an empty folder for a peer's own configuration.
    """
    model = {"MODEL": str(folder), "PYTHONPATH": str(PEERS)}
    lit, bento, ml, ray = (_environment(name) for name in ("litserve", "bentoml", "mlserver", "ray"))
    _write_mlserver_settings(scratch)
    litserve = [str(lit / "python"), str(PEERS / "litserve_server.py"), "{port}"]
    bentoml = [str(bento / "bentoml"), "serve", "bentoml_service:Peer", "--port", "{port}", "--host", "127.0.0.1"]
    as_json = {"content_type": "application/json", "encode": _json_base64}
    fast = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_ENABLE_HA_PROXY": "1"}
    return [
        Server("LitServe 0.2.19, fast_queue, batch_timeout 0", [*litserve, "0"], model, **as_json),  # type: ignore[arg-type]
        Server("LitServe 0.2.19, fast_queue, batch_timeout 5 ms", [*litserve, "0.005"], model, **as_json),  # type: ignore[arg-type]
        Server(
            "BentoML 1.4.39",
            [*bentoml, "--quiet"],
            model | {"BENTOML_HOME": str(scratch / "bentoml"), "BENTOML_DO_NOT_TRACK": "True"},
            content_type=f"multipart/form-data; boundary={_BOUNDARY}",
            encode=_multipart,
            read=lambda answer: answer[0],
            folder=PEERS,
        ),
        Server(
            "MLServer 1.7.1",
            [str(ml / "mlserver"), "start", str(scratch)],
            model | {"MLSERVER_HTTP_PORT": "{port}"},
            path="/v2/models/peer/infer",
            content_type="application/json",
            encode=_v2_bytes,
            read=lambda answer: json.loads(answer["outputs"][0]["data"][0]),
        ),
        Server(
            "Ray Serve 2.60.0, throughput-optimized, HAProxy",
            [str(ray / "python"), str(PEERS / "ray_app.py"), "{port}"],
            model | fast,
        ),
    ]


def _uvicorn(app: str) -> list[str]:
    return [sys.executable, "-m", "uvicorn", app, "--no-access-log", "--log-level", "error", "--port", "{port}"]


def _environment(name: str) -> Path:
    """The folder of the environment's programs, made where it is not there yet."""
    folder = ENVIRONMENTS / name
    ready = folder / "ready"
    wanted = (PEERS / f"{name}.txt").read_text()
    if not ready.is_file() or ready.read_text() != wanted:
        print(f"making the environment of {name} in {folder} ...", file=sys.stderr, flush=True)
        venv.create(folder, with_pip=True, clear=True)
        install = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "-r", str(PEERS / f"{name}.txt")]
        subprocess.run(install, check=True)
        ready.write_text(wanted)
    return folder / "bin"


def _write_mlserver_settings(folder: Path) -> None:
    """One process, adaptive batches; the port is put in by the environment."""
    settings = {"parallel_workers": 0, "metrics_endpoint": None, "debug": False, "use_structured_logging": False}
    model = {
        "name": "peer",
        "implementation": "mlserver_runtime.Peer",
        "max_batch_size": 64,
        "max_batch_time": 0.002,
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(model))


def _json_base64(picture: bytes) -> bytes:
    return json.dumps({"image": base64.b64encode(picture).decode()}).encode()


def _v2_bytes(picture: bytes) -> bytes:
    data: dict[str, Any] = {
        "name": "image",
        "shape": [1, 1],
        "datatype": "BYTES",
        "parameters": {"content_type": "base64"},
        "data": [base64.b64encode(picture).decode()],
    }
    return json.dumps({"inputs": [data]}).encode()


def _multipart(picture: bytes) -> bytes:
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n'
    return head.encode() + b"Content-Type: image/png\r\n\r\n" + picture + f"\r\n--{_BOUNDARY}--\r\n".encode()
