"""Versions change under load and no request is lost, mixed or late; what is bad or gone changes nothing."""

import asyncio
import gc
import logging
import os
import platform
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

from service.app import create_store
from service.budget import Budget
from service.deadlines import Deadline
from service.devices import Devices
from service.engine import Engine
from service.errors import DeadlineExceeded, ModelNotFound, ModelRefused, NotAlive, NotReady
from service.life import Life
from service.model_store import ModelStore
from service.observability import Metrics
from service.routes.v2_models import find_graph
from service.settings import Settings
from tests.service import tiny

PNG = {"content-type": "image/png"}
Serve = Callable[..., str]
POLL = {"model_poll_seconds": 0.02}


def embed(url: str, seed: int = 0) -> httpx.Response:
    return httpx.post(f"{url}/embed", content=tiny.png(seed), headers=PNG, trust_env=False, timeout=20)


def metrics(url: str) -> str:
    return httpx.get(f"{url}/metrics", trust_env=False).text


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def asking(url: str, clients: int) -> Iterator[list[httpx.Response]]:
    """Keep-alive clients that ask for embeddings, and one that asks for readiness, without a pause until the end."""
    stop = threading.Event()
    answers: list[httpx.Response] = []

    def ask(method: str, path: str, body: bytes | None) -> None:
        with httpx.Client(base_url=url, trust_env=False, timeout=20) as client:
            while not stop.is_set():
                answers.append(client.request(method, path, content=body, headers=PNG))

    with ThreadPoolExecutor(clients + 1) as pool:
        asked = [pool.submit(ask, "POST", "/embed", tiny.png()) for _ in range(clients)]
        asked.append(pool.submit(ask, "GET", "/readyz", None))
        try:
            yield answers
        finally:
            stop.set()
        for future in asked:
            future.result()


def test_many_swaps_under_load(tmp_path: Path, serve: Serve) -> None:
    """Every answer is whole and from one version; nothing fails, readiness included; the old versions are closed."""
    swaps = 12
    tiny.write_scaled(tmp_path, 1)
    url = serve(tmp_path, **POLL)
    with asking(url, clients=3) as answers:
        for version in range(2, swaps + 1):
            tiny.write_scaled(tmp_path, version)
            until(lambda version=version: embed(url).json()["version"] == version)  # type: ignore[misc]
    assert {answer.status_code for answer in answers} == {200}
    one = tiny.embed(tiny.as_input(tiny.images(1)))[0]
    embeddings = [answer.json() for answer in answers if "embedding" in answer.text]
    for answer in embeddings:
        np.testing.assert_allclose(answer["embedding"], answer["version"] * one, rtol=1e-3, atol=1e-4)
    assert len({answer["version"] for answer in embeddings}) > swaps / 2
    text = metrics(url)
    assert f'equipoise_model_info{{kind="equivae",model="tiny",version="{swaps}"}} 1.0' in text
    assert text.count("equipoise_model_info{") == text.count("equipoise_queue_depth_images{") == 1


def test_a_request_is_answered_by_the_version_that_it_entered(
    tmp_path: Path, serve: Serve, gate: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "equipoise")
    tiny.write_scaled(tmp_path, 1)
    url = serve(tmp_path, inline_milliseconds=0, **POLL)

    def closed() -> list[object]:
        return [record.facts["version"] for record in caplog.records if record.message == "model closed"]  # type: ignore[attr-defined]

    with ThreadPoolExecutor(1) as pool:
        old = pool.submit(embed, url)
        until(lambda: "equipoise_accepted_images 1.0" in metrics(url))
        tiny.write_scaled(tmp_path, 2)
        until(lambda: httpx.get(f"{url}/readyz", trust_env=False).json()["models"] == ["tiny/2"])
        assert closed() == []
        gate.set()
        assert old.result().json()["version"] == 1
    until(lambda: closed() == [1])
    assert embed(url).json()["version"] == 2


def test_an_idle_connection_keeps_no_old_version(tmp_path: Path, serve: Serve) -> None:
    """It keeps the facts of its last request; the session that answered it is freed all the same."""
    tiny.write_scaled(tmp_path, 1)
    url = serve(tmp_path, **POLL)
    sessions = [weakref.ref(found) for found in gc.get_objects() if type(found) is Engine]
    with httpx.Client(base_url=url, trust_env=False) as idle:
        assert idle.post("/embed", content=tiny.png(), headers=PNG).json()["version"] == 1
        there = [session for session in sessions if session() is not None]
        tiny.write_scaled(tmp_path, 2)
        until(lambda: embed(url).json()["version"] == 2)
        until(lambda: any(session() is None for session in there))


def replace(folder: Path, factor: float) -> None:
    """Put another model in a version's place, under the same number."""
    elsewhere = folder.parents[1] / ".made"
    for _ in range(int(folder.name)):
        made = tiny.write_scaled(elsewhere, factor)
    folder.rename(folder.parent / ".old")
    made.rename(folder)
    shutil.rmtree(elsewhere)
    shutil.rmtree(folder.parent / ".old")


def factor(url: str) -> float:
    """Of the model that answers now, see `tiny.write_scaled`."""
    return round(embed(url).json()["embedding"][0] / float(tiny.embed(tiny.as_input(tiny.images(1)))[0, 0]), 3)


def test_another_model_under_the_number_that_serves_replaces_it(tmp_path: Path, serve: Serve) -> None:
    """As a training makes it that takes a number which has become free, while the old model serves on."""
    folder = tiny.write_scaled(tmp_path, 1)
    url = serve(tmp_path, **POLL)
    with asking(url, clients=2) as answers:
        replace(folder, 3)
        until(lambda: factor(url) == 3)
    assert {answer.status_code for answer in answers} == {200}
    assert embed(url).json()["version"] == 1
    shutil.rmtree(folder)
    time.sleep(0.2)  # ten looks
    tiny.write_scaled(tmp_path, 5)
    until(lambda: factor(url) == 5)
    until(lambda: metrics(url).count("equipoise_model_info{") == 1)


def test_a_bad_version_is_refused_once_and_tried_again_when_it_changes(
    tmp_path: Path, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    tiny.write_scaled(tmp_path, 1)
    url = serve(tmp_path, **POLL)
    elsewhere = tmp_path.parent / f"{tmp_path.name}-made"
    tiny.write_scaled(elsewhere, 1)
    made = tiny.write_scaled(elsewhere, 2)
    # Copied file by file instead of being renamed into place: it is seen before it is whole.
    (tmp_path / "tiny" / ".2").mkdir()
    shutil.copy(made / "manifest.json", tmp_path / "tiny" / ".2")
    (tmp_path / "tiny" / ".2").rename(tmp_path / "tiny" / "2")  # or the folder may be seen, and refused, empty
    until(lambda: bool(httpx.get(f"{url}/models", trust_env=False).json()["refused"]))
    refusals = [record for record in caplog.records if record.message == "model refused"]
    time.sleep(0.2)  # ten looks
    assert [record for record in caplog.records if record.message == "model refused"] == refusals
    assert embed(url).json()["version"] == 1
    assert "equipoise_models_refused 1.0" in metrics(url)
    for file in made.iterdir():
        shutil.copy(file, tmp_path / "tiny" / "2")
    until(lambda: embed(url).json()["version"] == 2)
    assert httpx.get(f"{url}/models", trust_env=False).json()["refused"] == []
    assert "equipoise_models_refused 0.0" in metrics(url)


def test_a_new_model_is_found(tmp_path: Path, serve: Serve) -> None:
    tiny.write_scaled(tmp_path, 1)
    url = serve(tmp_path, **POLL)
    tiny.write(tmp_path, name="other")
    until(lambda: httpx.get(f"{url}/readyz", trust_env=False).json()["models"] == ["other/1", "tiny/1"])


def test_a_store_that_had_no_good_model_becomes_ready(tmp_path: Path, serve: Serve) -> None:
    (tiny.write_scaled(tmp_path, 1) / "embed.onnx").write_bytes(b"")
    url = serve(tmp_path, ready=False, **POLL)
    until(lambda: "no model is loaded" in httpx.get(f"{url}/readyz", trust_env=False).text)
    tiny.write_scaled(tmp_path, 2)
    until(lambda: httpx.get(f"{url}/readyz", trust_env=False).status_code == 200)


def test_what_vanishes_from_disk_serves_on(tmp_path: Path, serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    store = tmp_path / "store"
    tiny.write_scaled(store, 1)
    url = serve(store, **POLL)
    shutil.rmtree(store)

    def complaints() -> int:
        return len([record for record in caplog.records if record.message == "the model store cannot be read"])

    until(lambda: complaints() > 0)
    time.sleep(0.2)  # it may have been seen empty before it was gone
    told = complaints()
    time.sleep(0.2)
    assert complaints() == told <= 2
    assert embed(url).json()["version"] == 1
    tiny.write_scaled(store, 1)
    tiny.write_scaled(store, 2)
    until(lambda: embed(url).json()["version"] == 2)


def with_store(root: Path, scenario: Callable[[ModelStore], object]) -> None:
    settings = Settings(model_store=root)
    observed = Metrics(Budget(settings.queue_images, settings.queue_bytes))
    with ThreadPoolExecutor(1) as loader:

        async def main() -> None:
            await scenario(create_store(settings, observed, Devices("cpu"), [loader], loader, Life()))  # type: ignore[misc]

        asyncio.run(main())


def serving(store: ModelStore) -> dict[str, int]:
    return {model.name: model.version for model in store.serving.models.values()}


def test_load_and_unload_by_name(tmp_path: Path) -> None:
    tiny.write_scaled(tmp_path, 1)

    async def scenario(store: ModelStore) -> None:
        with pytest.raises(NotReady):
            await store.load("tiny")
        store.load_all()
        first = await store.load("tiny")
        assert first is store.serving.models["tiny"]  # nothing newer: nothing is loaded again
        tiny.write_scaled(tmp_path, 2)
        second = await store.load("tiny")
        assert (second.version, serving(store)) == (2, {"tiny": 2})
        await store.unload("tiny")
        assert serving(store) == {}
        with pytest.raises(ModelNotFound, match="not loaded"):
            await store.unload("tiny")
        assert store.reason_not_ready() == "no model is loaded: tiny: unloaded until it is loaded by name"
        tiny.write_scaled(tmp_path, 3)
        await store.poll()
        assert serving(store) == {}  # what was taken out by name comes back by name
        assert (await store.load("tiny")).version == 3

    with_store(tmp_path, scenario)


def test_the_number_that_serves_is_read_anew_where_its_folder_has_changed(tmp_path: Path) -> None:
    """By both ways; while it is bad the old one serves on, and it is read once."""
    folder = tiny.write_scaled(tmp_path, 1)

    async def scenario(store: ModelStore) -> None:
        store.load_all()
        first = store.serving.models["tiny"]
        await store.poll()
        assert store.serving.models["tiny"] is await store.load("tiny") is first
        replace(folder, 2)
        second = await store.load("tiny")
        assert second is store.serving.models["tiny"] is not first
        await store.poll()
        assert store.serving.models["tiny"] is second

        replace(folder, 3)
        whole = (folder / "embed.onnx").read_bytes()
        (folder / "embed.onnx").write_bytes(whole[:100])
        for _ in range(2):
            await store.poll()
            assert [(refusal.model, refusal.version) for refusal in store.refused] == [("tiny", 1)]
            with pytest.raises(ModelRefused, match="version 1 of tiny is refused: embed.onnx has 100 bytes"):
                await store.load("tiny")
            assert store.serving.models["tiny"] is second
        (folder / "embed.onnx").write_bytes(whole)
        await store.poll()
        assert store.serving.models["tiny"] is not second and store.refused == []

    with_store(tmp_path, scenario)


def test_a_folder_that_is_gone_for_a_while_and_comes_back_as_it_was_is_not_read_again(tmp_path: Path) -> None:
    """As on a network's file system."""
    folder = tiny.write_scaled(tmp_path, 1)
    tiny.write(tmp_path, name="other", capabilities=("embed",))

    async def scenario(store: ModelStore) -> None:
        store.load_all()
        first = store.serving.models["tiny"]
        folder.rename(tmp_path / "tiny" / ".away")
        await store.poll()
        (tmp_path / "tiny" / ".away").rename(folder)
        await store.poll()
        assert store.serving.models["tiny"] is first

    with_store(tmp_path, scenario)


def test_a_version_that_was_taken_out_and_is_put_back_is_new(tmp_path: Path) -> None:
    tiny.write_scaled(tmp_path, 1)
    newer = tiny.write_scaled(tmp_path, 2)

    async def scenario(store: ModelStore) -> None:
        store.load_all()
        newer.rename(tmp_path / "tiny" / ".away")
        assert (await store.load("tiny")).version == 1
        (tmp_path / "tiny" / ".away").rename(newer)
        await store.poll()
        assert serving(store) == {"tiny": 2}

    with_store(tmp_path, scenario)


def test_a_run_that_hangs_is_known_after_its_version_is_gone(tmp_path: Path, gate: threading.Event) -> None:
    tiny.write_scaled(tmp_path, 1)
    settings = Settings(model_store=tmp_path, inline_milliseconds=0).model_copy(update={"hang_seconds": 0.01})
    observed = Metrics(Budget(settings.queue_images, settings.queue_bytes))

    async def main(loader: ThreadPoolExecutor, device: ThreadPoolExecutor) -> None:
        store = create_store(settings, observed, Devices("cpu"), [device], loader, Life())
        store.load_all()
        batcher = store.serving.models["tiny"].batchers["embed"]
        row = (np.zeros(batcher.engine.spec.inputs[0].row_shape, np.float32),)
        with pytest.raises(DeadlineExceeded):
            await batcher.run([row], Deadline(time.perf_counter() + 0.05), lambda: False)
        del batcher
        await store.unload("tiny")
        with pytest.raises(NotAlive):
            store.check_alive()
        gate.set()
        while store.running_seconds():
            await asyncio.sleep(0.01)
        store.check_alive()

    with ThreadPoolExecutor(1) as loader, ThreadPoolExecutor(1, "device") as device:
        asyncio.run(main(loader, device))


def test_a_request_whose_observer_fails_leaves_its_version(
    tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    noted = threading.Event()

    def fail(*facts: object, **more: object) -> None:
        noted.set()
        raise OSError("an observer that fails")

    tiny.write(tmp_path)
    url = serve(tmp_path, access_log_every=1, log_level="info", **POLL)
    with monkeypatch.context() as patch:
        patch.setattr("service.access_log.say", fail)
        assert embed(url).json()["version"] == 1
        assert noted.wait(10)
    with caplog.at_level(logging.INFO, "equipoise"):
        tiny.write(tmp_path)
        until(lambda: "model closed" in [record.message for record in caplog.records])
    assert embed(url).json()["version"] == 2


def test_a_closed_version_is_freed_at_once(tmp_path: Path) -> None:
    """Without the garbage collector, which knows nothing of what lived when it was frozen."""
    tiny.write_scaled(tmp_path, 1)

    async def scenario(store: ModelStore) -> None:
        store.load_all()
        sessions = [weakref.ref(batcher.engine) for batcher in store.serving.models["tiny"].batchers.values()]
        model = store.serving.models["tiny"]
        model.enter()
        tiny.write_scaled(tmp_path, 2)
        await store.load("tiny")
        assert all(session() is not None for session in sessions)
        model.leave()
        del model
        assert all(session() is None for session in sessions)

    gc.disable()
    try:
        with_store(tmp_path, scenario)
    finally:
        gc.enable()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library gives memory back by itself")
def test_freed_memory_goes_back_when_a_version_is_closed(tmp_path: Path) -> None:
    """The C library keeps what is freed below what is in use, which fifty megabytes are here."""
    tiny.write_scaled(tmp_path, 1)

    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    async def scenario(store: ModelStore) -> None:
        store.load_all()
        blocks = [b"x" * 100_000 for _ in range(500)]
        above = blocks.pop()
        blocks.clear()
        before = resident_bytes()
        await store.unload("tiny")
        store.loader.submit(above.decode).result()  # after what the unloading has left to it
        assert before - resident_bytes() > 40_000_000

    with_store(tmp_path, scenario)


def test_loading_a_bad_version_leaves_the_old_one(tmp_path: Path) -> None:
    tiny.write_scaled(tmp_path, 1)

    async def scenario(store: ModelStore) -> None:
        store.load_all()
        (tiny.write_scaled(tmp_path, 2) / "golden.npz").write_bytes(b"")
        for _ in range(2):
            with pytest.raises(ModelRefused, match="version 2 of tiny is refused: golden.npz"):
                await store.load("tiny")
        assert serving(store) == {"tiny": 1}
        assert [(refusal.model, refusal.version) for refusal in store.refused] == [("tiny", 2)]

    with_store(tmp_path, scenario)


def test_a_refusal_below_the_version_that_serves_is_forgotten_when_its_folder_changes(tmp_path: Path) -> None:
    tiny.write_scaled(tmp_path, 1)
    bad = tiny.write_scaled(tmp_path, 2) / "golden.npz"
    whole = bad.read_bytes()
    bad.write_bytes(b"")

    async def scenario(store: ModelStore) -> None:
        store.load_all()
        tiny.write_scaled(tmp_path, 3)
        for _ in range(2):
            await store.poll()
            assert serving(store) == {"tiny": 3}
            assert [(refusal.model, refusal.version) for refusal in store.refused] == [("tiny", 2)]
        bad.write_bytes(whole)
        await store.poll()
        assert serving(store) == {"tiny": 3} and store.refused == []

    with_store(tmp_path, scenario)


def test_the_end_of_the_service_changes_nothing_about_what_is_loaded(tmp_path: Path) -> None:
    """Who asks meanwhile for a model of the inference protocol that is not there hears so; 503 he would ask again."""
    tiny.write_scaled(tmp_path, 1)

    async def scenario(store: ModelStore) -> None:
        store.load_all()
        store.life.draining = True
        assert find_graph(store, "tiny.embed", None) == (store.serving.models["tiny"], "embed")
        for name in ("nope", "nope.embed", "tiny.nope"):
            with pytest.raises(ModelNotFound, match="there are tiny.embed"):
                find_graph(store, name, None)
        await store.unload("tiny")
        with pytest.raises(NotReady, match="about to end"):
            find_graph(store, "tiny", None)

    with_store(tmp_path, scenario)


def test_removing_a_folder_and_loading_goes_back(tmp_path: Path) -> None:
    tiny.write_scaled(tmp_path, 1)
    newer = tiny.write_scaled(tmp_path, 2)

    async def scenario(store: ModelStore) -> None:
        store.load_all()
        shutil.rmtree(newer)
        await store.poll()
        assert serving(store) == {"tiny": 2}
        assert (await store.load("tiny")).version == 1

    with_store(tmp_path, scenario)


@pytest.mark.parametrize("name", ["nothing", "", "..", "../store", ".tmp", "tiny/1", "x" * 5000, "a\0b"])
def test_a_name_that_is_no_model(tmp_path: Path, name: str) -> None:
    tiny.write_scaled(tmp_path / "store", 1)

    async def scenario(store: ModelStore) -> None:
        store.load_all()
        with pytest.raises(ModelNotFound) as problem:
            await store.load(name)
        assert str(tmp_path) not in problem.value.detail
        with pytest.raises(ModelNotFound):
            await store.unload(name)

    with_store(tmp_path / "store", scenario)
