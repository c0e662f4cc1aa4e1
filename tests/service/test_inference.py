"""What a request takes for small work is done on the event loop, what takes it longer by the pool."""

import asyncio
import base64
import json
import struct
import threading
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from contract.manifest import InputSpec, read_manifest
from contract.picture_header import PictureLimits
from service import images
from service.budget import Budget
from service.call import Call
from service.catalogue import LoadedModel
from service.inference import Inference
from service.observability import Metrics
from service.pool import Pool
from service.queries import Options
from service.routes import recombine, v2
from service.tensors import read_infer
from tests.service import tiny

SIDE = 112
Places = Callable[[object, str], list[bool]]


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> Places:
    """`places(module, function)`: whether each of the calls to come is done by the pool."""

    def watch(module: object, name: str) -> list[bool]:
        found: list[bool] = []
        function = getattr(module, name)

        @wraps(function)
        def watched(*arguments: Any, **named: Any) -> Any:
            found.append(threading.current_thread().name.startswith("pictures"))
            return function(*arguments, **named)

        monkeypatch.setattr(module, name, watched)
        return found

    return watch


@pytest.fixture
def recombining(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with a model that recombines pictures of 112 x 112."""
    monkeypatch.setattr(tiny, "SIDE", SIDE)
    monkeypatch.setattr(tiny, "WEIGHT", np.zeros((SIDE * SIDE, tiny.DIMENSIONS), np.float32))
    spec = tiny._spec("recombine", ["content", "style"], {"image": (1, SIDE, SIDE)})
    monkeypatch.setitem(tiny.SPECS, "recombine", spec)
    tiny.write(tmp_path, capabilities=("recombine",))
    return tmp_path


@pytest.mark.parametrize(
    ("side", "count", "pooled"), [(28, 32, False), (28, 33, True), (96, 10, False), (96, 32, True), (224, 2, True)]
)
def test_pictures_of_the_models_own_size(tiny_store: Path, places: Places, side: int, count: int, pooled: bool) -> None:
    manifest = read_manifest(tiny_store / "tiny" / "1")
    large = manifest.model_copy(update={"input": InputSpec(channels=1, height=side, width=side)})
    model = LoadedModel(large, {}, lambda closed: None)
    pool, budget = Pool(1), Budget(100, 1 << 30)
    store: Any = None
    inference = Inference(store, budget, Metrics(budget), pool, PictureLimits(), max_images=100, timeout_seconds=60)
    encoded = [images.accept(tiny.encode(np.zeros((side, side), np.uint8)), PictureLimits()) for _ in range(count)]
    found = places(images, "to_input")

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    async def scenario() -> int:
        return len(await inference.prepare(Call({}, "id", receive), encoded, model, Options()))

    try:
        assert asyncio.run(scenario()) == count
    finally:
        pool.executor.shutdown()
    assert found == [pooled] * count


@pytest.mark.parametrize("accept", ["application/json", "image/webp"])
def test_a_recombined_picture_is_encoded_by_the_pool_where_it_is_large(
    tiny_store: Path, recombining: Path, serve: Callable[..., str], places: Places, accept: str
) -> None:
    found = places(recombine, "_write")
    for store, side in ((tiny_store, 8), (recombining, SIDE)):
        data = tiny.encode(np.full((side, side), 99, np.uint8))
        form = {"content": data, "style": data}
        answer = httpx.post(f"{serve(store)}/recombine", files=form, headers={"accept": accept}, trust_env=False)
        assert answer.headers["content-type"] == accept, answer.text
    assert found == [False, True]


def test_a_large_answer_of_the_protocol_is_written_by_the_pool(
    recombining: Path, serve: Callable[..., str], places: Places
) -> None:
    url = f"{serve(recombining)}/v2/models/tiny.recombine/infer"
    found = places(v2, "write_answer")
    for rows, binary in ((1, False), (8, False), (8, True)):
        shape = [rows, 1, SIDE, SIDE]
        array = np.random.default_rng(0).random(shape, np.float32)
        size = {"binary_data_size": array.nbytes}
        inputs = [
            {"name": name, "shape": shape, "datatype": "FP32", "parameters": size} for name in ("content", "style")
        ]
        head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": binary}}).encode()
        headers = {"inference-header-content-length": str(len(head))}
        answer = httpx.post(url, content=head + 2 * array.tobytes(), headers=headers, trust_env=False)
        assert answer.status_code == 200
        if not binary:
            got = np.array(answer.json()["outputs"][0]["data"], np.float32).reshape(shape)
            np.testing.assert_allclose(got, array, atol=1e-6)
    assert found == [False, True, False]


def test_pictures_behind_the_json_are_copied_by_the_pool_where_they_are_large(
    tiny_store: Path, serve: Callable[..., str], places: Places
) -> None:
    url = f"{serve(tiny_store)}/v2/models/tiny.embed/infer"
    found = places(v2, "_accept")
    for side in (8, 400):
        data = tiny.encode(np.random.default_rng(0).integers(0, 256, (side, side), dtype=np.uint8))
        part = struct.pack("<I", len(data)) + data
        tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(part)}}
        head = json.dumps({"inputs": [tensor]}).encode()
        headers = {"inference-header-content-length": str(len(head))}
        answer = httpx.post(url, content=head + part, headers=headers, trust_env=False)
        rest = httpx.post(url.partition("/v2")[0] + "/embed", content=data, trust_env=False).json()
        assert answer.json()["outputs"][0]["data"] == pytest.approx(rest["embedding"], abs=1e-5)
    assert found == [False, True]


def test_they_lie_in_the_body_until_then() -> None:
    data = tiny.png()
    part = struct.pack("<I", len(data)) + data
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(part)}}
    head = json.dumps({"inputs": [tensor]}).encode()
    body = head + part
    ((file,),) = read_infer(body, len(head), tiny.SPECS["embed"], 8).inputs
    assert isinstance(file, memoryview) and file.obj is body and file == data
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [base64.b64encode(data).decode()]}
    body = json.dumps({"inputs": [tensor]}).encode()
    assert read_infer(body, len(body), tiny.SPECS["embed"], 8).inputs == [[data]]
