"""API keys over a real socket: who is let in, what an admin may, how keys are rotated; the file and its faults."""

import hashlib
import logging
import os
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from service import keys as keys_module
from service.errors import Unauthorized
from service.keys import KeyFileError, Keys, new_key, read_keys
from service.schemas import Problem, ProtocolError
from service.settings import Settings, SettingsError, load_settings
from tests.service import tiny
from tests.service.process import run

Serve = Callable[..., str]
USE, ADMIN = "eq_use", "eq_admin"


def line(name: str, role: str, key: str) -> str:
    return f"{name} {role} sha256:{hashlib.sha256(key.encode()).hexdigest()}\n"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text("# who may ask\n\n" + line("web", "use", USE) + line("ops", "admin", ADMIN))
    return path


@pytest.fixture
def guarded(serve: Serve, tiny_store: Path, key_file: Path) -> str:
    return serve(tiny_store, api_keys=key_file)


def classify(url: str, **headers: str) -> httpx.Response:
    return httpx.post(f"{url}/classify", content=tiny.png(), headers=headers, trust_env=False)


def test_a_key_lets_in_and_nothing_else_does(guarded: str) -> None:
    for key in (USE, ADMIN):
        assert classify(guarded, **bearer(key)).status_code == 200
    assert classify(guarded, authorization=f"bearer   {USE}").status_code == 200
    digest = hashlib.sha256(USE.encode()).hexdigest()
    for given in (
        "",
        "Bearer",
        USE,
        f"Basic {USE}",
        f"Bearer {USE}x",
        f"Bearer {digest}",
        f"Bearer {USE[:-1]}",
    ):
        response = classify(guarded, authorization=given)
        assert response.status_code == 401, given
        assert response.headers["www-authenticate"] == "Bearer"
        assert Problem.model_validate_json(response.content).type == "urn:equipoise:problem:unauthorized"
    assert classify(guarded).status_code == 401
    assert 'requests_total{endpoint="classify",status="401"}' in httpx.get(f"{guarded}/metrics", trust_env=False).text


@pytest.mark.parametrize(
    "path", ["/startupz", "/healthz", "/readyz", "/metrics", "/v2/health/live", "/docs", "/openapi.json"]
)
def test_probes_metrics_and_documentation_need_no_key(guarded: str, path: str) -> None:
    assert httpx.get(guarded + path, trust_env=False).status_code == 200


@pytest.mark.parametrize("path", ["/models", "/v2", "/v2/models/tiny", "/nothing", "/docs/", "//healthz", "/healthz/"])
def test_everything_else_does(guarded: str, path: str) -> None:
    response = httpx.get(guarded + path, trust_env=False)
    assert response.status_code == 401
    if path.startswith("/v2"):
        assert "send a key" in ProtocolError.model_validate_json(response.content).error


def test_the_openapi_document_says_so(guarded: str) -> None:
    document = httpx.get(f"{guarded}/openapi.json", trust_env=False).json()
    assert document["components"]["securitySchemes"] == {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            needed = needs_key(path)
            assert ("security" in operation) == needed, path
            assert not needed or "401" in operation["responses"], path


def needs_key(path: str) -> bool:
    return path not in ("/startupz", "/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready")


def test_a_stranger_s_body_is_not_read(guarded: str) -> None:
    with socket.create_connection((urlsplit(guarded).hostname, urlsplit(guarded).port), timeout=10) as connection:
        connection.sendall(b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 60000000\r\n\r\n")
        answer = connection.recv(65536)
    assert b" 401 " in answer.split(b"\r\n", 1)[0]
    assert b"connection: close\r\n" in answer


def test_keys_are_rotated_without_a_restart(
    guarded: str, key_file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keys_module, "_LOOK_SECONDS", 0.0)
    assert classify(guarded, **bearer(USE)).status_code == 200  # and is remembered
    aside = key_file.with_suffix(".new")
    aside.write_text(line("web-2", "use", "eq_next"))
    os.replace(aside, key_file)
    assert classify(guarded, **bearer("eq_next")).status_code == 200
    assert classify(guarded, **bearer(USE)).status_code == 401
    with caplog.at_level(logging.ERROR, "equipoise"):
        key_file.write_text("nonsense")
        assert classify(guarded, **bearer("eq_next")).status_code == 200
        key_file.unlink()
        assert classify(guarded, **bearer("eq_next")).status_code == 200
    assert [record.message for record in caplog.records] == ["the old keys stay in use"] * 2
    assert "eq_next" not in caplog.text


def test_keys_are_rotated_as_kubernetes_does(
    tiny_store: Path, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mounted Secret is a link to a folder, in whose place another one comes."""
    monkeypatch.setattr(keys_module, "_LOOK_SECONDS", 0.0)
    mounted = tmp_path / "keys"
    mounted.symlink_to("..data/keys")

    def write(folder: str, key: str) -> None:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "keys").write_text(line("web", "use", key))
        (tmp_path / "..new").symlink_to(folder)
        os.replace(tmp_path / "..new", tmp_path / "..data")

    write("..1", "eq_first")
    url = serve(tiny_store, api_keys=mounted)
    assert classify(url, **bearer("eq_first")).status_code == 200
    write("..2", "eq_next")
    assert classify(url, **bearer("eq_next")).status_code == 200
    assert classify(url, **bearer("eq_first")).status_code == 401


def test_an_admin_loads_and_unloads(serve: Serve, tmp_path: Path, key_file: Path) -> None:
    store = tmp_path / "store"
    tiny.write(store)
    url = serve(store, api_keys=key_file, model_poll_seconds=0)
    with triton.InferenceServerClient(urlsplit(url).netloc) as client:

        def versions() -> list[str]:
            return client.get_model_metadata("tiny", headers=bearer(USE))["versions"]

        assert versions() == ["1"]
        tiny.write(store)
        client.load_model("tiny", headers=bearer(ADMIN))
        assert versions() == ["2"]
        client.unload_model("tiny", headers=bearer(ADMIN))
        assert not client.is_model_ready("tiny", headers=bearer(USE))
        load = f"{url}/v2/repository/models/tiny/load"
        assert httpx.post(load, json={"parameters": None}, headers=bearer(ADMIN), trust_env=False).status_code == 200
        assert client.is_model_ready("tiny", headers=bearer(USE))
        (tiny.write(store) / "embed.onnx").write_bytes(b"")
        for change, name, said in (
            (client.load_model, "tiny", r"\[422\] version 3 of tiny is refused: embed.onnx has 0 bytes"),
            (client.load_model, "other", r"\[404\] the model store has no model 'other'"),
            (client.load_model, "../store/tiny", r"\[404\]"),
            (client.unload_model, "tiny.embed", r"\[404\] the model 'tiny.embed' is not loaded"),
        ):
            with pytest.raises(InferenceServerException, match=said):
                change(name, headers=bearer(ADMIN))
        assert versions() == ["2"]
        with pytest.raises(InferenceServerException, match=r"\[400\] 'config' is not taken over the network"):
            client.load_model("tiny", headers=bearer(ADMIN), config="{}")


@pytest.mark.parametrize("change", ["load", "unload"])
def test_nobody_else_does(guarded: str, url: str, change: str) -> None:
    path = f"/v2/repository/models/tiny/{change}"
    for address, headers, status, said in (
        (guarded, bearer(USE), 403, "this needs an admin key"),
        (guarded, {}, 401, "send a key"),
        (url, {}, 403, "runs without keys"),
        (url, bearer(ADMIN), 403, "runs without keys"),
    ):
        response = httpx.post(address + path, headers=headers, trust_env=False)
        assert response.status_code == status
        assert said in ProtocolError.model_validate_json(response.content).error


def test_a_new_key_fits_its_line(tmp_path: Path) -> None:
    key, made = new_key()
    path = tmp_path / "keys"
    path.write_text(made)
    found = Keys(path).check({b"authorization": f"Bearer {key}".encode()})
    assert found.role == "use" and found.name in made
    assert len({new_key()[0] for _ in range(100)}) == 100 and len(key) > 40


def test_the_command_makes_a_key(tmp_path: Path, here: Callable[..., Any]) -> None:
    done = here("key")
    assert done.returncode == 0
    key = re.findall(r"shown once: (\S+)", done.stderr)[0]
    (tmp_path / "keys").write_text(done.stdout)  # as `key >> keys` would
    assert Keys(tmp_path / "keys").check({b"authorization": f"Bearer {key}".encode()})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "has no key"),
        (b"# nothing\n", "has no key"),
        (b"web use sha256:00", "line 1 of"),
        (b"web root sha256:" + b"0" * 64, "line 1 of"),
        (b"web use " + b"0" * 64, "line 1 of"),
        (b"web use eq_a-plain-key", "line 1 of"),
        (b"web use sha256:" + b"0" * 64 + b"\nweb use sha256:" + b"1" * 64, "the name web stands twice"),
        (b"\xff\xfe", "cannot be read"),
        (b"web use sha256:" + b"0" * 64 + b"\n" * 2**20 + b"later use sha256:" + b"1" * 64, "is larger than"),
    ],
)
def test_a_bad_file_is_refused_at_the_start(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "keys"
    path.write_bytes(content)
    with pytest.raises(KeyFileError, match=said) as error:
        read_keys(path)
    assert "eq_a" not in str(error.value)


def test_a_missing_file_is_refused_at_the_start(tmp_path: Path) -> None:
    tiny.write(tmp_path / "store")
    done = run("--model-store", str(tmp_path / "store"), "--port", "0", "--api-keys", str(tmp_path / "none"))
    assert done.returncode == 2 and "error: the key file" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", ""])
def test_beyond_loopback_needs_keys_or_a_word(host: str, key_file: Path) -> None:
    with pytest.raises(SettingsError, match="EQUIPOISE_API_KEYS.*EQUIPOISE_ALLOW_ANONYMOUS=true"):
        load_settings({"host": host})
    load_settings({"host": host, "allow_anonymous": "true"})
    load_settings({"host": host, "api_keys": str(key_file)})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_needs_neither(host: str) -> None:
    assert Settings(host=host).api_keys is None


def test_a_key_costs_next_to_nothing(key_file: Path) -> None:
    keys = Keys(key_file)
    headers = {b"authorization": b"Bearer " + USE.encode()}
    start = time.process_time()
    for _ in range(2000):
        keys.check(headers)
    assert (time.process_time() - start) / 2000 < 50e-6


def test_many_spellings_of_a_key_take_little_memory(key_file: Path) -> None:
    keys = Keys(key_file)
    for blanks in range(1, 3000):
        assert keys.check({b"authorization": b"Bearer" + b" " * blanks + USE.encode()}).name == "web"
    assert len(keys._shown) <= 1024 and max(map(len, keys._shown)) <= 256
    with pytest.raises(Unauthorized):
        keys.check({b"authorization": b"Bearer " + b"eq_other"})
    assert keys.check({b"authorization": b"Bearer " + USE.encode()}).name == "web"
