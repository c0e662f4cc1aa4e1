"""The command line: start, check, and a clear message with a non-zero status for everything that is wrong."""

import base64
import json
import re
import shlex
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest

from service import __main__ as command_line
from service.devices import DeviceUnavailable
from service.engine import RuntimeUnavailable
from service.settings import ENV_PREFIX, Settings, option_name
from tests.service import tiny
from tests.service.process import forked, run, started

Here = Callable[..., subprocess.CompletedProcess[str]]


def test_help_documents_every_option(here: Here) -> None:
    result = here("--help")
    assert result.returncode == 0
    text = re.sub(r"-\s*\n\s+", "-", result.stdout)
    flat = " ".join(text.split())
    for name, field in Settings.model_fields.items():
        assert option_name(name) in flat
        assert f"[default: {field.default}; environment: {ENV_PREFIX}{name.upper()}]" in flat, name
    for choice in ("log-level debug|info|warning|error", "log-format plain|json", "allow-anonymous true|false"):
        assert f"--{choice} " in flat


def test_nothing_is_kept_about_the_machine_or_its_user(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    tiny.write(tmp_path / "store")
    result = run("check", "--model-store", str(tmp_path / "store"), HOME=str(home), XDG_CACHE_HOME=str(home))
    assert result.returncode == 0
    assert list(home.iterdir()) == []


def test_check_loads_and_verifies_every_model(tmp_path: Path, here: Here) -> None:
    folder = tiny.write(tmp_path)
    assert here("check", "--model-store", str(tmp_path)).returncode == 0
    (folder / "embed.onnx").write_bytes(b"")
    result = here("check", "--model-store", str(tmp_path), "--log-format", "json")
    assert result.returncode == 1
    refused = [json.loads(line) for line in result.stderr.splitlines()][0]
    assert (refused["level"], refused["message"], refused["model"]) == ("error", "model refused", "tiny")
    assert "embed.onnx has 0 bytes" in refused["reason"]


def test_check_goes_on_below_the_version_that_would_serve(tmp_path: Path, here: Here) -> None:
    (tiny.write(tmp_path) / "embed.onnx").write_bytes(b"")
    for _ in range(2):
        tiny.write(tmp_path)
    result = here("check", "--model-store", str(tmp_path), "--log-format", "json")
    assert result.returncode == 1
    lines = [json.loads(line) for line in result.stderr.splitlines()]
    told = [(line["message"], line["version"]) for line in lines if "version" in line]
    assert told == [("model loaded", 3), ("model loaded", 2), ("model refused", 1)]


@pytest.mark.parametrize("command", ["serve", "check"])
def test_an_empty_or_missing_store(tmp_path: Path, command: str, here: Here) -> None:
    result = here(command, "--model-store", str(tmp_path))
    assert result.returncode == 1
    assert f"the model store {tmp_path} has no model" in result.stderr
    result = here(command, "--model-store", str(tmp_path / "nowhere"))
    assert result.returncode == 1
    assert "is not a folder" in result.stderr


def test_a_missing_store_is_not_waited_for(tmp_path: Path, here: Here) -> None:
    result = here("--model-store", str(tmp_path / "nowhere"), "--wait-for-models", "true")
    assert (result.returncode, "is not a folder" in result.stderr) == (1, True)


def test_wrong_settings(here: Here) -> None:
    result = run("--port", "abc")  # a process: its status and line reach the shell
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "--port=abc" in result.stderr
    result = here(EQUIPOISE_PROT="1")
    assert result.returncode == 2
    assert "did you mean EQUIPOISE_PORT?" in result.stderr
    result = here("--no-such-option", "1")
    assert result.returncode == 2 and "unrecognized arguments: --no-such-option" in result.stderr
    result = here("chek")
    assert result.returncode == 2 and "chek: no such command; choose from serve, check, key" in result.stderr


def test_a_port_in_use(tmp_path: Path, here: Here) -> None:
    tiny.write(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = here("--model-store", str(tmp_path), "--port", str(port))
    assert result.returncode == 1
    assert result.stderr == f"error: cannot listen on 127.0.0.1:{port}: Address already in use\n"


def test_what_refuses_to_start_was_never_connected_to_and_leaves_nothing_open(
    tmp_path: Path, here: Here, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.write(tmp_path)
    opened: list[socket.socket] = []
    assemble = command_line.assemble

    def assembled(settings: Settings, sockets: list[socket.socket], *more: object) -> object:
        opened.extend(sockets)
        return assemble(settings, sockets, *more)  # type: ignore[arg-type]

    def refuse(*arguments: object) -> None:
        with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", free_port), timeout=5):
            pass
        raise DeviceUnavailable("there is none")

    monkeypatch.setattr(command_line, "assemble", assembled)
    monkeypatch.setattr("service.app.find_devices", refuse)
    threads = set(threading.enumerate())
    options = ("--port", str(free_port), "--probe-port", "0", "--otel-endpoint", "http://127.0.0.1:9")
    result = here("--model-store", str(tmp_path), *options)
    assert (result.returncode, result.stderr) == (1, "error: there is none\n")
    assert [one.fileno() for one in opened] == [-1, -1]
    assert set(threading.enumerate()) == threads


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the second one cannot even be bound")
def test_a_port_that_another_process_takes_meanwhile(
    tmp_path: Path, here: Here, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that start at once may both have it as long as nobody listens."""
    tiny.write(tmp_path)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", free_port))
        monkeypatch.setattr(command_line, "app_factory", lambda *arguments: other.listen())
        try:
            result = here("--model-store", str(tmp_path), "--port", str(free_port))
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    assert result.returncode == 1
    assert result.stderr == f"error: cannot listen on 127.0.0.1:{free_port}: Address already in use\n"


def test_a_host_that_is_not_ours(tmp_path: Path, here: Here) -> None:
    tiny.write(tmp_path)
    result = here("--model-store", str(tmp_path), "--host", "203.0.113.1", EQUIPOISE_ALLOW_ANONYMOUS="1")
    assert result.returncode == 1
    assert "cannot listen on 203.0.113.1:8000" in result.stderr


def test_both_runtimes_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def both() -> str:
        raise RuntimeUnavailable("onnxruntime and onnxruntime-gpu are both installed: uninstall one")

    monkeypatch.setattr(command_line, "check_runtime", both)
    monkeypatch.setattr(command_line, "set_up_logging", lambda form, level: None)
    assert command_line.main(["--model-store", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "error: onnxruntime and onnxruntime-gpu are both installed: uninstall one\n"


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_start_answer_and_stop_with_one_log_line_each(tmp_path: Path, stop: signal.Signals) -> None:
    tiny.write(tmp_path)
    options = ("--port", "0", "--log-format", "json", "--drain-seconds", "0")
    with started("--model-store", str(tmp_path), *options) as process:
        assert process.stderr is not None
        start = json.loads(process.stderr.readline())
        assert start["message"] == "starting"
        lines = [json.loads(process.stderr.readline()) for _ in range(2)]
        assert [line["message"] for line in lines] == ["model loaded", "ready"]
        with httpx.Client(base_url=start["url"], trust_env=False) as client:
            for _ in range(3):
                assert client.post("/classify", content=tiny.png()).status_code == 200
            assert client.post("/classify", content=b"?").status_code == 400
            damaged = tiny.encode(tiny.images(1)[0], "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
            assert client.post("/classify", content=damaged).status_code == 200
            form = {"content-type": "multipart/form-data; boundary=x"}
            assert client.post("/classify", content=b"no boundary in here", headers=form).status_code == 400
            tags = (256, 4, 1, 8), (257, 4, 1, 8), (277, 4, 1, 100)  # 8 x 8 pixels of 100 samples
            tiff = b"II*\0\x08\0\0\0\3\0" + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
            assert client.post("/classify", content=tiff).status_code == 400
        process.send_signal(stop)
        assert process.wait(timeout=20) == 0
        told = [json.loads(line)["message"] for line in process.stderr]
        assert told == (["draining", "stopped"] if stop == signal.SIGTERM else ["stopped"])


def test_plain_logs_are_one_line_each_and_their_curl_line_works(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    with forked("--model-store", str(tmp_path), "--port", "0") as process:
        pattern = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO starting url=http://127\.0\.0\.1:\d+ .*\n"
        assert re.fullmatch(pattern, process.stderr.readline())
        curl = process.stderr.readline().partition(" try: ")[2]
        assert "model loaded" in process.stderr.readline()
        assert "ready" in process.stderr.readline()
        command = [*shlex.split(curl), "--silent", "--noproxy", "*"]
        answer = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        assert answer["results"][0]["label"] in tiny.LABELS


def test_the_curl_line_has_a_place_for_the_key_that_is_asked_for(tmp_path: Path) -> None:
    tiny.write(tmp_path / "store")
    (tmp_path / "keys").write_text(f"me use sha256:{'0' * 64}\n")
    options = ("--model-store", str(tmp_path / "store"), "--api-keys", str(tmp_path / "keys"), "--port", "0")
    with forked(*options) as process:
        process.stderr.readline()
        assert "Authorization: Bearer KEY" in shlex.split(process.stderr.readline())


# A request with ?exif=ignore fails where its picture is decoded.
FAILING = """
from service import images

genuine = images.to_input

def to_input(picture, manifest, options, **more):
    if options.exif == "ignore":
        raise RuntimeError("a decoder that raises")
    return genuine(picture, manifest, options, **more)

images.to_input = to_input
"""


def test_no_line_of_the_log_has_anything_of_a_picture(tiny_store: Path) -> None:
    """Of the access log and of errors with their tracebacks: no piece as it is, as Python or hex digits, or base64."""
    picture = tiny.encode(np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8))
    batch = {"images": [{"data": base64.b64encode(picture).decode()}]}
    options = ("--port", "0", "--access-log-every", "1", "--drain-seconds", "0")
    with forked("--model-store", str(tiny_store), *options, code=FAILING) as process:
        (url,) = re.findall(r" url=(\S+)", process.stderr.readline())
        while "INFO ready" not in process.stderr.readline():
            assert process.poll() is None
        with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
            for query, status in (("", 200), ("?exif=ignore", 500)):
                assert client.post(f"/classify{query}", content=picture).status_code == status
                assert client.post(f"/classify{query}", json=batch).status_code == status
            assert client.post("/classify", content=picture[:-40]).status_code == 400
        process.send_signal(signal.SIGINT)
        log = process.stderr.read()
    assert log.count(" INFO request ") == 5 and log.count("RuntimeError: a decoder that raises") == 2
    pieces = [picture[at : at + 12] for at in range(0, len(picture) - 11, 12)]
    spellings = (
        lambda p: p.decode("latin-1"),
        lambda p: repr(p)[2:-1],
        bytes.hex,
        lambda p: base64.b64encode(p).decode(),
    )
    assert not [piece for piece in pieces for spell in spellings if spell(piece) in log]
