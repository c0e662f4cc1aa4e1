"""A bad model folder never takes the service down: it is reported with its reason, and the others are served."""

import asyncio
import errno
import hashlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest

from contract.manifest import Manifest
from service import model_folder, model_store
from service.engine import Engine, EngineOptions
from service.errors import ModelRefused, NotReady
from service.model_folder import EmptyStore, NoModelYet, Version, find
from service.model_store import ModelStore
from service.settings import Settings
from service.store_watch import load_at_start, serve_store
from tests.server import loading_server
from tests.service import tiny
from tests.service.test_model_store import until, with_store

PNG = {"content-type": "image/png"}
Serve = Callable[..., str]


def get(url: str) -> httpx.Response:
    return httpx.get(url, trust_env=False)


def post(url: str) -> httpx.Response:
    return httpx.post(url, content=tiny.png(), headers=PNG, trust_env=False)


def flip_a_byte(folder: Path) -> None:
    data = bytearray((folder / "embed.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "embed.onnx").write_bytes(data)


def change(folder: Path, **fields: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def damage_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("{")


def unknown_schema(folder: Path) -> None:
    change(folder, schema_version=2)


def other_name(folder: Path) -> None:
    change(folder, name="else")


def extra_file(folder: Path) -> None:
    (folder / "notes.txt").write_text("hello")


def missing_file(folder: Path) -> None:
    (folder / "classify.onnx").unlink()


def link(folder: Path) -> None:
    shutil.move(folder / "embed.onnx", folder.parent / "elsewhere.onnx")
    (folder / "embed.onnx").symlink_to(folder.parent / "elsewhere.onnx")


def traversal(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["graphs"]["embed"]["file"] = "../../../etc/passwd"
    change(folder, **manifest)


DAMAGES = {
    flip_a_byte: "SHA-256",
    damage_manifest: "not JSON",
    unknown_schema: "schema_version",
    other_name: "the manifest is of else/1",
    extra_file: "not listed in the manifest: notes.txt",
    missing_file: "classify.onnx is missing",
    link: "not a plain file",
    traversal: "graphs.embed.file",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_folder_is_reported_and_the_others_are_served(
    tmp_path: Path, serve: Serve, damage: Callable[[Path], None]
) -> None:
    tiny.write(tmp_path)
    damage(tiny.write(tmp_path, name="broken"))
    url = serve(tmp_path)
    answer = get(f"{url}/models").json()
    assert [model["name"] for model in answer["models"]] == ["tiny"]
    (refusal,) = answer["refused"]
    assert (refusal["model"], refusal["version"]) == ("broken", 1)
    assert DAMAGES[damage] in refusal["reason"]
    assert str(tmp_path) not in refusal["reason"]
    assert post(f"{url}/classify").status_code == 200
    assert "equipoise_models_refused 1.0" in get(f"{url}/metrics").text


def test_a_graph_that_does_not_agree_with_its_golden_cases_is_refused(tmp_path: Path, serve: Serve) -> None:
    tiny.write(tmp_path)
    cases = {"embed/out/embedding": np.zeros((4, tiny.DIMENSIONS), np.float32)}
    tiny.write(tmp_path, name="wrong", cases=cases)
    (refusal,) = get(f"{serve(tmp_path)}/models").json()["refused"]
    assert refusal["reason"].startswith("embed: the graph does not reproduce its golden cases")


def test_a_graph_that_does_not_run_at_every_batch_is_refused(tmp_path: Path, serve: Serve) -> None:
    tiny.write(tmp_path)
    tiny.write(tmp_path, name="four", graphs={"embed": tiny.embed_model_of_four()})
    (refusal,) = get(f"{serve(tmp_path)}/models").json()["refused"]
    assert refusal["reason"].startswith("embed: a batch of 1 does not run: ")


def test_an_error_that_nobody_foresaw_stops_no_other_model_and_is_logged_with_its_traceback(
    tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tiny.write(tmp_path)
    tiny.write(tmp_path, name="odd")
    read = model_folder.read_verified

    def odd(folder: Path) -> object:
        return read(folder) if folder.parent.name == "tiny" else 1 / 0

    monkeypatch.setattr(model_folder, "read_verified", odd)
    answer = get(f"{serve(tmp_path)}/models").json()
    assert [model["name"] for model in answer["models"]] == ["tiny"]
    assert answer["refused"] == [{"model": "odd", "version": 1, "reason": "ZeroDivisionError('division by zero')"}]
    (record,) = [record for record in caplog.records if record.message == "model refused"]
    assert record.exc_info and isinstance(record.exc_info[1], ZeroDivisionError)


@pytest.fixture
def unlistable(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a folder that cannot be listed; its mode would not stop the root user."""
    listed = Path.iterdir

    def iterdir(self: Path) -> Iterator[Path]:
        if self.name == "closed":
            raise PermissionError(13, "Permission denied")
        return listed(self)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    return "closed"


def test_a_model_folder_that_cannot_be_listed(tmp_path: Path, serve: Serve, unlistable: str) -> None:
    tiny.write(tmp_path)
    (tmp_path / unlistable / "1").mkdir(parents=True)
    url = serve(tmp_path)
    reason = "the folder cannot be listed: Permission denied"
    assert get(f"{url}/models").json()["refused"] == [{"model": unlistable, "version": None, "reason": reason}]
    assert post(f"{url}/classify").status_code == 200


def test_a_model_folder_that_can_be_listed_again(
    tmp_path: Path, serve: Serve, unlistable: str, caplog: pytest.LogCaptureFixture
) -> None:
    tiny.write(tmp_path)
    url = serve(tmp_path, model_poll_seconds=0.02)
    with caplog.at_level(logging.ERROR, "equipoise"):
        (tmp_path / unlistable / "1").mkdir(parents=True)
        until(lambda: [entry["model"] for entry in get(f"{url}/models").json()["refused"]] == [unlistable])
        time.sleep(0.1)
    assert [record.getMessage() for record in caplog.records] == ["model refused"]  # once, not with every look
    (tmp_path / unlistable).rename(tmp_path / "open")
    until(lambda: {entry["model"] for entry in get(f"{url}/models").json()["refused"]} == {"open"})


def test_loading_a_model_folder_that_cannot_be_listed(tmp_path: Path, unlistable: str) -> None:
    (tmp_path / unlistable / "1").mkdir(parents=True)

    async def scenario(store: ModelStore) -> None:
        store.load_all()
        with pytest.raises(ModelRefused, match="closed is refused: the folder cannot be listed: Permission denied"):
            await store.load(unlistable)

    with_store(tmp_path, scenario)


def test_a_store_that_cannot_be_listed(tmp_path: Path, unlistable: str) -> None:
    (tmp_path / unlistable).mkdir()
    with pytest.raises(EmptyStore, match="cannot be listed: Permission denied"):
        find(tmp_path / unlistable)


def test_golden_file_that_is_no_archive(tmp_path: Path, serve: Serve) -> None:
    tiny.write(tmp_path)
    folder = tiny.write(tmp_path, name="wrong")
    (folder / "golden.npz").write_bytes(b"PK\x03\x04 not really")
    manifest = json.loads((folder / "manifest.json").read_text())
    data = (folder / "golden.npz").read_bytes()
    manifest["files"]["golden.npz"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    change(folder, **manifest)
    (refusal,) = get(f"{serve(tmp_path)}/models").json()["refused"]
    assert "golden.npz cannot be read" in refusal["reason"]


def test_the_highest_good_version_serves(tmp_path: Path, serve: Serve) -> None:
    tiny.write(tmp_path)
    tiny.write(tmp_path)
    flip_a_byte(tiny.write(tmp_path))
    url = serve(tmp_path)
    assert post(f"{url}/classify").json()["version"] == 2
    answer = get(f"{url}/models").json()
    assert [(model["name"], model["version"]) for model in answer["models"]] == [("tiny", 2)]
    assert [(refusal["model"], refusal["version"]) for refusal in answer["refused"]] == [("tiny", 3)]


def test_at_the_start_models_are_read_side_by_side_and_warmed_one_after_the_other(
    tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """That is: a model is warmed when nothing else runs. What is said of them is in the order of their names."""
    for name in "abcd":
        tiny.write(tmp_path, name=name)
    flip_a_byte(tmp_path / "a" / "1")
    two, read, warm = threading.Barrier(2), model_folder.read_version, Engine.warm
    done: list[str] = []

    def read_with_another(folder: Path, options: list[EngineOptions]) -> Version:
        two.wait(20)
        done.append("read")
        return read(folder, options)

    def warm_alone(engine: Engine) -> None:
        assert threading.current_thread().name.startswith("loader")
        done.append("warmed")
        warm(engine)

    monkeypatch.setattr(model_store, "read_version", read_with_another)
    monkeypatch.setattr(Engine, "warm", warm_alone)
    caplog.set_level(logging.INFO, "equipoise")
    answer = get(f"{serve(tmp_path, inference_threads=2)}/models").json()
    assert [model["name"] for model in answer["models"]] == ["b", "c", "d"]
    assert done == ["read"] * 4 + ["warmed"] * 3 * len(tiny.SPECS)
    said = [(record.message, record.facts["model"]) for record in caplog.records if record.message.startswith("model ")]  # type: ignore[attr-defined]
    assert said == [("model refused", "a"), *(("model loaded", name) for name in "bcd")]


def test_what_was_verified_is_what_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever writes there meanwhile: by then it has been read."""
    folder = tiny.write(tmp_path)
    read_verified = model_folder.read_verified

    def overtaken(folder: Path) -> tuple[Manifest, dict[str, bytes]]:
        found = read_verified(folder)
        for name in found[1]:
            (folder / name).write_bytes(b"something else")
        return found

    monkeypatch.setattr(model_folder, "read_verified", overtaken)
    _, engines = model_folder.read_version(folder, [EngineOptions(1, 4, 1.0)])
    assert set(engines) == set(tiny.SPECS)


@pytest.mark.parametrize("end", [1, 3])
def test_nothing_is_loaded_or_complained_of_once_the_service_is_about_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, end: int
) -> None:
    """end: the model of three that is being warmed when the end begins."""
    for name in "abc":
        tiny.write(tmp_path, name=name, capabilities=("embed",))
    warm = Engine.warm
    caplog.set_level(logging.INFO, "equipoise")

    async def scenario(store: ModelStore) -> None:
        warmed: list[Engine] = []

        def warm_until_the_end(engine: Engine) -> None:
            warmed.append(engine)
            store.life.draining = len(warmed) == end
            warm(engine)

        monkeypatch.setattr(Engine, "warm", warm_until_the_end)
        load_at_start(store)
        assert (len(warmed), store.refused) == (end, [])
        tiny.write(tmp_path, name="c")
        with pytest.raises(NotReady):
            await store.load("c")
        await asyncio.wait_for(serve_store(store, store.loader.submit(load_at_start, store), 0.01, lambda: None), 10)

    with_store(tmp_path, scenario)
    assert [record.message for record in caplog.records] == ["model loaded"] * end


def test_no_good_model_is_not_ready_with_the_reason(tmp_path: Path, serve: Serve) -> None:
    flip_a_byte(tiny.write(tmp_path))
    url = serve(tmp_path, ready=False)
    while "being loaded" in (answer := get(f"{url}/readyz")).text:
        pass
    assert answer.status_code == 503
    assert answer.json()["type"] == "urn:equipoise:problem:not-ready"
    assert "tiny/1: embed.onnx does not match its SHA-256" in answer.json()["detail"]
    assert get(f"{url}/healthz").status_code == 200
    assert post(f"{url}/classify").json()["type"] == "urn:equipoise:problem:not-ready"


def test_started_once_every_model_was_loaded_or_refused(tmp_path: Path) -> None:
    """From then on for good: no restart mends a model that is refused."""
    flip_a_byte(tiny.write(tmp_path))
    with loading_server(Settings(model_store=tmp_path)) as (url, go_on):
        answer = get(f"{url}/startupz")
        assert (answer.status_code, answer.json()["detail"]) == (503, "models are being loaded")
        assert answer.headers["retry-after"] == "1"
        assert get(f"{url}/healthz").status_code == 200
        go_on.set()
        while (answer := get(f"{url}/startupz")).status_code == 503:
            pass
        assert answer.json() == {"status": "started"}
        assert get(f"{url}/readyz").status_code == 503


def test_what_is_being_written_is_ignored(tmp_path: Path, serve: Serve) -> None:
    tiny.write(tmp_path)
    (tmp_path / "tiny" / ".tmp-abc").mkdir()
    (tmp_path / ".hidden" / "1").mkdir(parents=True)
    (tmp_path / "tiny" / "notes.txt").touch()
    (tmp_path / "first" / ".tmp-abc").mkdir(parents=True)
    (tmp_path / "lost+found").mkdir()
    assert get(f"{serve(tmp_path)}/models").json()["refused"] == []


NO_VERSIONS = ("v1", "0", "01", "abc", "9" * 30)


def test_a_folder_that_is_no_version_is_told_once(
    tmp_path: Path, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """Alone in a model's folder or beside a good version, which serves; a model's folder with nothing in it, too."""
    tiny.write(tmp_path)
    (tmp_path / "tiny" / "latest").mkdir()
    for name in NO_VERSIONS:
        (tmp_path / f"m-{name}" / name).mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    rule = "a version is a folder named by a whole number from 1, of at most nine digits"
    expected = {(f"m-{name}", None, f"{name!r} is no version: {rule}") for name in NO_VERSIONS}
    expected |= {("tiny", None, f"'latest' is no version: {rule}"), ("empty", None, f"it has no version: {rule}")}
    caplog.set_level(logging.INFO, "equipoise")
    url = serve(tmp_path, model_poll_seconds=0.02)
    refused = get(f"{url}/models").json()["refused"]
    assert {(entry["model"], entry["version"], entry["reason"]) for entry in refused} == expected
    assert post(f"{url}/classify").status_code == 200
    time.sleep(0.1)
    assert [record.message for record in caplog.records].count("model refused") == len(expected)
    tiny.write(tmp_path, name="empty")  # its first version is taken up, and forgotten what was said before
    until(lambda: "empty" in {model["name"] for model in get(f"{url}/models").json()["models"]})
    assert "empty" not in {entry["model"] for entry in get(f"{url}/models").json()["refused"]}


def test_loading_a_model_with_folders_that_are_no_versions(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    (tmp_path / "tiny" / "latest").mkdir()
    (tmp_path / "other" / "v1").mkdir(parents=True)

    async def scenario(store: ModelStore) -> None:
        store.load_all()
        assert (await store.load("tiny")).version == 1
        with pytest.raises(ModelRefused, match="other is refused: 'v1' is no version"):
            await store.load("other")

    with_store(tmp_path, scenario)


def test_a_store_of_nothing_but_wrong_names_is_no_store(tmp_path: Path) -> None:
    """So that a wrong path is not taken for one; it says what there is."""
    (tmp_path / "mine" / "v1").mkdir(parents=True)
    with pytest.raises(NoModelYet, match="has no model: .*; mine: 'v1' is no version: a version is"):
        find(tmp_path)


def test_a_folder_that_may_be_listed_and_not_entered_keeps_no_other_from_being_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.write(tmp_path)
    closed = tmp_path / "closed" / "README"
    closed.parent.mkdir()
    closed.touch()
    genuine = os.stat

    def stat(path: Any, **options: Any) -> os.stat_result:
        if not isinstance(path, int) and Path(path) == closed:
            raise PermissionError(errno.EACCES, "Permission denied")
        return genuine(path, **options)

    monkeypatch.setattr(os, "stat", stat)  # the rights themselves do not hold for root
    found, refused = find(tmp_path)
    assert found == {"tiny": [1]} and [refusal.model for refusal in refused] == ["closed"]


def test_a_capability_of_no_model(tmp_path: Path, serve: Serve) -> None:
    tiny.write(tmp_path, capabilities=("embed",))
    tiny.write(tmp_path, name="painter", capabilities=("recombine",))
    url = serve(tmp_path)
    problem = post(f"{url}/classify")
    assert problem.status_code == 404
    assert problem.json()["type"] == "urn:equipoise:problem:capability-not-found"
    assert problem.json()["models"] == []
    problem = post(f"{url}/embed?model=painter")
    assert (problem.status_code, problem.json()["models"]) == (404, ["tiny"])
    none = dict.fromkeys(("classify", "transform", "canonicalize", "augment"))
    assert get(f"{url}/models").json()["defaults"] == none | {"embed": "tiny", "recombine": "painter"}


def test_the_default_model_is_a_setting(tmp_path: Path, serve: Serve) -> None:
    for name in ("one", "two"):
        tiny.write(tmp_path, name=name)
    url = serve(tmp_path, default_classify="two")
    assert post(f"{url}/classify").json()["model"] == "two"
    assert post(f"{url}/classify?model=one").json()["model"] == "one"
    # Two models can embed, and the default is neither: the request has to choose.
    problem = post(f"{url}/embed").json()
    assert (problem["type"], problem["models"]) == ("urn:equipoise:problem:model-not-found", ["one", "two"])


def test_external_data_is_refused_even_when_its_file_is_listed(tmp_path: Path, serve: Serve) -> None:
    tiny.write(tmp_path)
    model = tiny.embed_model()
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    tiny.write(tmp_path, name="outside", graphs={"embed": onnx.load(tmp_path / "m.onnx", load_external_data=False)})
    (refusal,) = get(f"{serve(tmp_path)}/models").json()["refused"]
    assert "external data" in refusal["reason"]


def test_a_default_that_is_not_there_is_said_once(
    tmp_path: Path, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    tiny.write(tmp_path)
    tiny.write(tmp_path, "other")
    with caplog.at_level(logging.WARNING, "equipoise"):
        url = serve(tmp_path, default_classify="nope", default_embed="other", default_recombine="tiny")
    (said,) = [record for record in caplog.records if "default" in record.message]
    assert said.facts == {"setting": "--default-classify", "default": "nope", "models": "other,tiny"}  # type: ignore[attr-defined]
    answer = httpx.post(f"{url}/classify", content=tiny.png(), headers=PNG, trust_env=False)
    assert answer.status_code == 404 and answer.json()["models"] == ["other", "tiny"]


def test_names_that_are_not_utf8(tmp_path: Path, serve: Serve) -> None:
    """Of a folder in the store, of one beside a version and of a file in a version; then nothing serves."""
    (tmp_path / os.fsdecode(b"caf\xe9") / "1").mkdir(parents=True)
    (tmp_path / "beside" / os.fsdecode(b"caf\xe9")).mkdir(parents=True)
    (tiny.write(tmp_path) / os.fsdecode(b"caf\xe9")).touch()
    url = serve(tmp_path, ready=False)
    until(lambda: get(f"{url}/startupz").status_code == 200)
    refused = {entry["model"]: entry["reason"] for entry in get(f"{url}/models").json()["refused"]}
    assert refused.keys() == {"caf\\udce9", "beside", "tiny"}
    assert refused["caf\\udce9"] == "the name of the folder is not UTF-8"
    assert refused["tiny"] == "not listed in the manifest: caf\\udce9"
    answer = get(f"{url}/readyz")
    assert answer.status_code == 503 and "caf\\udce9" in answer.json()["detail"]
    assert httpx.post(f"{url}/v2/repository/index", trust_env=False).status_code == 200


@pytest.mark.parametrize("name", [".", "json"])
def test_a_store_by_a_path_that_is_part_of_reasons(
    tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    store = tmp_path / name
    store.mkdir(exist_ok=True)
    damage_manifest(tiny.write(store))
    monkeypatch.chdir(tmp_path)
    url = serve(Path(name), ready=False)
    until(lambda: get(f"{url}/startupz").status_code == 200)
    (refusal,) = get(f"{url}/models").json()["refused"]
    assert refusal["reason"].startswith("manifest.json is not JSON")


def test_a_store_that_is_waited_for_is_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "equipoise")

    async def scenario(store: ModelStore) -> None:
        poll, polls = store.poll, asyncio.Semaphore(0)

        async def counted() -> None:
            try:
                await poll()
            finally:
                polls.release()

        store.poll = counted  # type: ignore[method-assign]
        loading = store.loader.submit(load_at_start, store)
        watching = asyncio.create_task(serve_store(store, loading, 0.001, lambda: None))
        for _ in range(3):
            await polls.acquire()
        watching.cancel()
        assert str(tmp_path) not in (store.reason_not_ready() or "")

    with_store(tmp_path, scenario)
    (record,) = caplog.records
    assert record.message == "not ready, waiting for a model" and str(tmp_path) in str(record.__dict__["facts"])
