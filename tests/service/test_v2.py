"""The inference protocol, by Triton's own client over a real socket, and by hand where that client is too careful."""

import asyncio
import base64
import json
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from contract.picture import open_picture
from service.batching import Batcher, CallerGone
from service.budget import Budget
from service.schemas import ProtocolError
from service.tensors import InferAnswer
from tests.service import tiny, tiny_pose
from tests.service.conftest import MAX_IMAGES

GRAPHS = {
    "embed": (["image"], ["embedding"]),
    "classify": (["image"], ["embedding", "distances", "probabilities", "novelty"]),
    "recombine": (["content", "style"], ["image"]),
}


def expected(capability: str, inputs: list[np.ndarray]) -> list[np.ndarray]:
    if capability == "embed":
        return [tiny.embed(inputs[0])]
    return list(tiny.classify(inputs[0])) if capability == "classify" else [tiny.recombine(*inputs)]


@pytest.fixture(scope="module")
def triton_client(url: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(urlsplit(url).netloc) as client:
        yield client


def fp32(name: str, array: np.ndarray, binary: bool = True) -> triton.InferInput:
    tensor = triton.InferInput(name, list(array.shape), "FP32")
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def pictures(name: str, files: list[bytes]) -> triton.InferInput:
    tensor = triton.InferInput(name, [len(files)], "BYTES")
    tensor.set_data_from_numpy(np.array(files, dtype=object), binary_data=True)
    return tensor


def test_the_server_says_what_it_is(triton_client: triton.InferenceServerClient) -> None:
    assert triton_client.is_server_live() and triton_client.is_server_ready()
    metadata = triton_client.get_server_metadata()
    assert metadata["name"] == "equipoise" and "binary_tensor_data" in metadata["extensions"]


@pytest.mark.parametrize("capability", GRAPHS)
@pytest.mark.parametrize("version", ["", "1"])
def test_metadata_are_those_of_the_graph(
    triton_client: triton.InferenceServerClient, capability: str, version: str
) -> None:
    name = f"tiny.{capability}"
    assert triton_client.is_model_ready(name, version)
    metadata = triton_client.get_model_metadata(name, version)
    assert (metadata["name"], metadata["versions"], metadata["platform"]) == (name, ["1"], "onnx_onnxv1")
    inputs, outputs = GRAPHS[capability]
    for name in inputs:
        assert {"name": name, "datatype": "FP32", "shape": [-1, 1, 8, 8]} in metadata["inputs"]
    assert [output["name"] for output in metadata["outputs"]] == outputs


@pytest.mark.parametrize("capability", GRAPHS)
@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize("count", [1, 5])
def test_tensors_through_every_graph(
    triton_client: triton.InferenceServerClient, capability: str, binary_in: bool, binary_out: bool, count: int
) -> None:
    names, outputs = GRAPHS[capability]
    given = [tiny.as_input(tiny.images(count, seed)) for seed in range(len(names))]
    inputs = [fp32(name, array, binary_in) for name, array in zip(names, given, strict=True)]
    asked = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in outputs]
    result = triton_client.infer(f"tiny.{capability}", inputs[::-1], outputs=asked, request_id="r-1")
    assert result.get_response()["id"] == "r-1"
    assert result.get_response()["model_version"] == "1"
    for name, array in zip(outputs, expected(capability, given), strict=True):
        got = result.as_numpy(name)
        assert got.shape == array.shape and got.dtype == np.float32
        np.testing.assert_allclose(got, array, rtol=1e-4, atol=1e-4)


def test_a_models_own_name_is_its_classify_graph(triton_client: triton.InferenceServerClient) -> None:
    given = tiny.as_input(tiny.images(2))
    result = triton_client.infer(
        "tiny", [fp32("image", given)], model_version="1"
    )  # no outputs: all of them, as binary data
    np.testing.assert_allclose(result.as_numpy("probabilities"), tiny.classify(given)[2], atol=1e-4)
    assert (
        triton_client.get_model_metadata("tiny")["outputs"]
        == triton_client.get_model_metadata("tiny.classify")["outputs"]
    )


def test_pictures_are_prepared_as_by_rest(triton_client: triton.InferenceServerClient, client: httpx.Client) -> None:
    page = np.full((60, 50, 3), 250, np.uint8)
    page[10:40, 20:30] = 15
    files = [tiny.png(3), tiny.encode(page), tiny.encode(page, "JPEG")]
    for query in ({}, {"polarity": "light", "fit": "image"}):
        rest = client.post("/embed", files=[("images", file) for file in files], params=query).json()["results"]
        result = triton_client.infer("tiny.embed", [pictures("image", files)], query_params=query)
        np.testing.assert_allclose(
            result.as_numpy("embedding"), [answer["embedding"] for answer in rest], rtol=0, atol=1e-4
        )
    mixed = triton_client.infer(
        "tiny.recombine", [pictures("content", files), fp32("style", tiny.as_input(tiny.images(3)))]
    ).as_numpy("image")
    both = triton_client.infer("tiny.recombine", [pictures("style", files[:1]), pictures("content", files[:1])])
    assert mixed.shape == (3, 1, 8, 8)
    own = tiny.as_input(tiny.images(1, 3))
    np.testing.assert_allclose(both.as_numpy("image"), own, atol=1e-4)


def test_pictures_as_json_are_base64(client: httpx.Client) -> None:
    text = base64.b64encode(tiny.png(4)).decode()
    for shape, data in (([2], [text, text]), ([2, 1], [[text], [text]]), ([1, 1], [[text]])):
        tensor = {"name": "image", "shape": shape, "datatype": "BYTES", "data": data}
        answer = client.post("/v2/models/tiny.embed/infer", json={"inputs": [tensor]}).json()
        InferAnswer.model_validate(answer)
        (output,) = answer["outputs"]
        wanted = tiny.embed(tiny.as_input(tiny.images(1, 4)))
        np.testing.assert_allclose(np.reshape(output["data"], output["shape"]), wanted.repeat(shape[0], 0), atol=1e-4)


def test_null_stands_for_no_parameters(client: httpx.Client) -> None:
    given = tiny.as_input(tiny.images(1))
    tensor = {"name": "image", "datatype": "FP32", "shape": list(given.shape), "data": given.ravel().tolist()}
    message = {"parameters": None, "inputs": [tensor | {"parameters": None}], "outputs": None}
    answer = client.post("/v2/models/tiny.embed/infer", json=message)
    assert answer.status_code == 200, answer.text
    named = message | {"outputs": [{"name": "embedding", "parameters": None}]}
    assert client.post("/v2/models/tiny.embed/infer", json=named).json()["outputs"] == answer.json()["outputs"]


def test_a_raw_tensor_is_the_whole_body(client: httpx.Client) -> None:
    given = tiny.as_input(tiny.images(3))
    response = client.post(
        "/v2/models/tiny.embed/versions/1/infer",
        content=given.tobytes(),
        headers={"Inference-Header-Content-Length": "0", "Content-Type": "application/octet-stream"},
    )
    result = triton.InferResult.from_response_body(
        response.content, header_length=int(response.headers["inference-header-content-length"])
    )
    np.testing.assert_allclose(result.as_numpy("embedding"), tiny.embed(given), atol=1e-4)


def test_unaligned_tensors_are_read_right(client: httpx.Client) -> None:
    given = tiny.as_input(tiny.images(2))
    for blanks in range(4):
        head = json.dumps(message(parameters={"binary_data_size": given.nbytes}, shape=[2, 1, 8, 8])).encode()
        head += b" " * blanks
        response = post(client, head + given.tobytes(), str(len(head)))
        np.testing.assert_allclose(response.json()["outputs"][0]["data"], tiny.embed(given).ravel(), atol=1e-4)


def test_the_index_lists_every_graph_and_what_was_refused(tmp_path: Any, serve: Any) -> None:
    tiny.write(tmp_path)
    (tiny.write(tmp_path, "broken") / "embed.onnx").write_bytes(b"")
    with triton.InferenceServerClient(urlsplit(serve(tmp_path)).netloc) as client:
        index = client.get_model_repository_index()
    ready = [entry["name"] for entry in index if entry["state"] == "READY"]
    assert ready == ["tiny", "tiny.embed", "tiny.classify", "tiny.recombine"]
    (refused,) = [entry for entry in index if entry["state"] != "READY"]
    assert (refused["name"], refused["version"], refused["state"]) == ("broken", "1", "UNAVAILABLE")
    assert "embed.onnx has 0 bytes" in refused["reason"]


def test_a_model_without_a_plain_graph(tmp_path: Any, serve: Any) -> None:
    tiny.write(tmp_path, "half.embed", capabilities=("embed",))
    with triton.InferenceServerClient(urlsplit(serve(tmp_path)).netloc) as client:
        assert [entry["name"] for entry in client.get_model_repository_index()] == ["half.embed.embed"]
        assert client.is_model_ready("half.embed.embed")
        assert not client.is_model_ready("half.embed")
        assert not client.is_model_ready("half")


def test_not_ready_while_nothing_is_loaded(tmp_path: Any, serve: Any) -> None:
    (tiny.write(tmp_path) / "embed.onnx").write_bytes(b"")
    with triton.InferenceServerClient(urlsplit(serve(tmp_path, ready=False)).netloc) as client:
        assert client.is_server_live()
        assert not client.is_server_ready()
        with pytest.raises(InferenceServerException) as error:
            client.infer("tiny", [fp32("image", tiny.as_input(tiny.images(1)))])
        assert error.value.status() == "503"


def message(**tensor: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32"} | tensor]}


def post(client: httpx.Client, body: bytes, json_length: str | None = None, **headers: str) -> httpx.Response:
    if json_length is not None:
        headers["Inference-Header-Content-Length"] = json_length
    return client.post("/v2/models/tiny.embed/infer", content=body, headers=headers)


ROW = [0.5] * 64
WRONG: list[tuple[Any, int, str]] = [
    ({}, 400, "inputs: Field required"),
    ([], 400, "request: Input should be a JSON object"),
    ({"inputs": []}, 400, "inputs: List should have at least 1 item"),
    ({"inputs": [{"name": "image"}]}, 400, "inputs.0.shape: Field required"),
    (message(data=ROW) | {"id": 7}, 400, "id: Input should be a JSON string"),
    (message(data=ROW) | {"parameters": {"timeout": 0}}, 400, "timeout is a whole number"),
    (message(data=ROW) | {"parameters": {"timeout": "1"}}, 400, "timeout is a whole number"),
    (message(data=ROW, name="picture"), 400, "the inputs are `picture`; the graph takes each of `image` once"),
    ({"inputs": message(data=ROW)["inputs"] * 2}, 400, "the graph takes each of `image` once"),
    (message(), 400, "image has to come either as data or as binary_data_size and bytes"),
    (message(data=ROW, parameters={"binary_data_size": 256}), 400, "either as data or as binary_data_size"),
    (message(data=ROW, shape=[]), 400, "a batch has at least one row"),
    (message(data=[], shape=[0, 1, 8, 8]), 400, "a batch has at least one row"),
    (message(data=ROW, shape=[-1, 1, 8, 8]), 400, "a batch has at least one row"),
    (message(data=ROW, shape=[1, 64]), 400, "image has shape [1, 64], the graph takes [-1, 1, 8, 8]"),
    (message(data=ROW, shape=[True, 1, 8, 8]), 400, "inputs.0.shape.0: Input should be a valid integer"),
    (message(data=ROW, shape=[2**70, 1, 8, 8]), 400, "inputs.0.shape.0"),
    (message(data=ROW * 9, shape=[9, 1, 8, 8]), 413, "at most 8 rows"),
    (message(data=ROW[1:]), 400, "data has 63 elements, its shape takes 64"),
    (message(data=[ROW]), 400, "neither flat nor of its shape"),
    (message(data=[ROW, ROW[1:]]), 400, "neither flat nor of its shape"),
    (message(data=[*ROW[1:], "0.5"]), 400, "something that is no number"),
    (message(data=[*ROW[1:], None]), 400, "something that is no number"),
    (message(data=[True] * 64), 400, "something that is no number"),
    (message(data=[*ROW[1:], True]), 400, "something that is no number"),
    (message(data=[*ROW[1:], 1e39]), 400, "a number that FP32 does not hold"),
    (message(data=ROW, datatype="FP64"), 400, "image is 'FP64', the graph takes FP32 or BYTES (pictures)"),
    (message(data=ROW, datatype="BYTES"), 400, "image has shape [1, 1, 8, 8], of BYTES it is [n] or [n, 1]"),
    (message(data=ROW, datatype="BYTES", shape=[64]), 413, "at most 8 rows"),
    (message(data=[1], datatype="BYTES", shape=[1]), 400, "an element of data is no string"),
    (message(data=["?"], datatype="BYTES", shape=[1]), 400, "in JSON, bytes are base64"),
    (message(data=["", ""], datatype="BYTES", shape=[1]), 400, "data has 2 elements, its shape takes 1"),
    (message(data=["aGk="], datatype="BYTES", shape=[1]), 400, "picture 0: "),
    (message(data=[""], datatype="BYTES", shape=[1]), 400, "picture 0: "),
    (message(data=ROW) | {"outputs": [{"name": "embeding"}]}, 400, "'embeding' is asked for; there are `embedding`"),
    (message(data=ROW) | {"outputs": [{"name": "embedding"}] * 2}, 400, "each once"),
    (
        message(data=ROW) | {"outputs": [{"name": "embedding", "parameters": {"classification": 2}}]},
        400,
        "asks for classification",
    ),
    (
        message(parameters={"shared_memory_region": "a", "shared_memory_byte_size": 256}),
        400,
        "either as data or as binary_data_size",
    ),
]


@pytest.mark.parametrize(("document", "status", "said"), WRONG, ids=[said for _, _, said in WRONG])
def test_wrong_messages_are_4xx_in_the_protocols_own_shape(
    client: httpx.Client, document: Any, status: int, said: str
) -> None:
    response = post(client, json.dumps(document).encode())
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert said in ProtocolError.model_validate_json(response.content).error


def test_a_long_string_among_numbers_takes_no_room_for_each_of_them(client: httpx.Client) -> None:
    body = json.dumps(message(data=["a" * 100_000, *(ROW * 8)[1:]], shape=[8, 1, 8, 8])).encode()
    tracemalloc.start()
    try:
        response = post(client, body)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert response.status_code == 400 and "something that is no number" in response.text
    assert most < 20e6  # bytes; each number as a string as long would take 200 MB together


def deep(levels: int) -> bytes:
    return json.dumps(message(data=0)).replace('"data": 0', f'"data": {"[" * levels}{"]" * levels}').encode()


BINARY = json.dumps(message(parameters={"binary_data_size": 256})).encode()
FILES = json.dumps(message(datatype="BYTES", shape=[1], parameters={"binary_data_size": 12})).encode()
FRAMES: list[tuple[bytes, str | None, int, str]] = [
    (b"", None, 400, "send an inference request"),
    (b"{", None, 400, "line 1"),
    (b"\xff", None, 400, "line 1"),
    (b'{"inputs": NaN}', None, 400, "line 1"),
    (deep(70), None, 400, "neither flat nor of its shape"),
    (deep(2000), None, 400, "line 1"),
    (BINARY + bytes(256), None, 400, "line 1"),
    (BINARY + bytes(256), "1", 400, "line 1"),
    (BINARY + bytes(256), "x", 400, "is no number from 0"),
    (BINARY + bytes(256), "-1", 400, "is no number from 0"),
    (BINARY + bytes(256), str(len(BINARY) + 257), 400, "is no number from 0"),
    (BINARY + bytes(255), str(len(BINARY)), 400, "is no number of bytes that follow"),
    (BINARY + bytes(257), str(len(BINARY)), 400, "1 bytes follow the JSON that no input claims"),
    (BINARY.replace(b"256", b"-1") + bytes(256), str(len(BINARY) - 1), 400, "is no number of bytes that follow"),
    (BINARY.replace(b"256", b"255") + bytes(255), str(len(BINARY)), 400, "image has 255 bytes, its shape takes 256"),
    (BINARY.replace(b"256", b"2e2") + bytes(256), str(len(BINARY)), 400, "is no number of bytes that follow"),
    (FILES + struct.pack("<I", 9) + bytes(8), str(len(FILES)), 400, "element 0 goes past the end"),
    (FILES + struct.pack("<I", 2**32 - 1) + bytes(8), str(len(FILES)), 400, "element 0 goes past the end"),
    (FILES + struct.pack("<I", 4) + bytes(8), str(len(FILES)), 400, "has not the 1 elements"),
    (FILES + struct.pack("<I", 8) + b"no image", str(len(FILES)), 400, "picture 0: "),
    (bytes(255), "0", 400, "the body has 255 bytes, a row of image has 256"),
    (bytes(256 * (MAX_IMAGES + 1)), "0", 413, "at most 8 rows"),
    (bytes(300_001), "0", 413, "300,000 bytes"),
]


@pytest.mark.parametrize(("body", "length", "status", "said"), FRAMES)
def test_wrong_frames_are_4xx(client: httpx.Client, body: bytes, length: str | None, status: int, said: str) -> None:
    response = post(client, body, length)
    assert response.status_code == status, response.text
    assert said in ProtocolError.model_validate_json(response.content).error


def test_a_raw_tensor_needs_a_graph_of_one_input(client: httpx.Client) -> None:
    response = client.post(
        "/v2/models/tiny.recombine/infer", content=bytes(512), headers={"Inference-Header-Content-Length": "0"}
    )
    assert response.status_code == 400 and "`content`, `style`" in response.json()["error"]


def test_json_has_a_limit_of_its_own(tiny_store: Any, serve: Any) -> None:
    url = serve(tiny_store)
    body = json.dumps(message(data=[0.5])).encode() + b" " * 16 * 1024 * 1024
    response = httpx.post(f"{url}/v2/models/tiny/infer", content=body, trust_env=False, timeout=20)
    assert response.status_code == 413 and "send binary tensor data" in response.json()["error"]
    body = b'{"inputs":[' + b"[]," * 500_000 + b"0]}"
    response = httpx.post(f"{url}/v2/models/tiny/infer", content=body, trust_env=False, timeout=20)
    assert response.status_code == 400 and "more than 500,000 lists" in response.json()["error"]


def test_a_message_of_the_repository_is_short(client: httpx.Client) -> None:
    """It is parsed on the event loop, which megabytes of empty lists would hold up for seconds."""
    body = b'{"ready":true,"more":[' + b"[]," * 30_000 + b"0]}"
    response = client.post("/v2/repository/index", content=body)
    assert response.status_code == 413 and "at most 65,536 are read" in response.json()["error"]
    assert client.post("/v2/repository/index", content=b'{"ready":true}').status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "said"),
    [
        ("GET", "/v2/nothing", 404, "is not known"),
        ("GET", "/v2/models/other", 404, "there are tiny.embed, tiny.classify, tiny.recombine"),
        ("GET", "/v2/models/tiny.transform", 404, "cannot transform"),
        ("GET", "/v2/models/tiny/versions/2", 404, "version 2 of tiny is not loaded"),
        ("GET", "/v2/models/tiny/versions/a", 404, "version 'a' of tiny is not loaded"),
        ("GET", "/v2/models/tiny/versions/9999999999", 404, "is not loaded"),
        ("GET", "/v2/models/other/ready", 404, "is not loaded"),
        ("POST", "/v2/models/other/infer", 404, "is not loaded"),
        ("GET", "/v2/models/tiny/infer", 405, "takes POST"),
        ("DELETE", "/v2", 405, "takes GET"),
        ("POST", "/v2/models/tiny/infer?model=tiny", 422, "stand in the path"),
        ("POST", "/v2/models/tiny/infer?colour=red", 422, "is not known here"),
        ("POST", "/v2/repository/index", 400, "line 1"),
    ],
)
def test_other_refusals_have_that_shape_too(
    client: httpx.Client, method: str, path: str, status: int, said: str
) -> None:
    response = client.request(method, path, content=b"{" if method == "POST" else None)
    assert response.status_code == status, response.text
    assert said in ProtocolError.model_validate_json(response.content).error


def test_a_compressed_body_is_refused(triton_client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="encoded as 'gzip'"):
        triton_client.infer(
            "tiny", [fp32("image", tiny.as_input(tiny.images(1)))], request_compression_algorithm="gzip"
        )


def test_a_timeout_is_kept(triton_client: triton.InferenceServerClient) -> None:
    inputs = [fp32("image", tiny.as_input(tiny.images(1)))]
    assert triton_client.infer("tiny", inputs, timeout=20_000_000).as_numpy("novelty").shape == (1,)
    with pytest.raises(InferenceServerException, match=r"\[504\] the deadline has passed"):
        triton_client.infer("tiny", inputs, timeout=1)


def test_rows_take_room_in_the_queue(tiny_store: Any, serve: Any) -> None:
    url = serve(tiny_store, queue_images=4, max_images=4)
    with triton.InferenceServerClient(urlsplit(url).netloc) as client:
        client.infer("tiny", [fp32("image", tiny.as_input(tiny.images(4)))])
        with pytest.raises(InferenceServerException) as error:
            client.infer("tiny", [fp32("image", tiny.as_input(tiny.images(5)))])
        assert error.value.status() == "413"
    text = httpx.get(f"{url}/metrics", trust_env=False).text
    assert 'equipoise_requests_total{endpoint="v2_infer",status="200"} 1.0' in text
    assert "equipoise_accepted_images 0.0" in text and "equipoise_accepted_bytes 0.0" in text


def test_a_full_queue_is_429_here_too(tiny_store: Any, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    url = serve(tiny_store, queue_images=4, max_images=4)
    monkeypatch.setattr(Budget, "retry_after_seconds", lambda *_: 7)
    monkeypatch.setattr(Batcher, "run", never)
    body = json.dumps(message(data=ROW * 4, shape=[4, 1, 8, 8])).encode()
    with httpx.Client(base_url=url, trust_env=False) as waiting, httpx.Client(base_url=url, trust_env=False) as asking:
        with pytest.raises(httpx.ReadTimeout):
            waiting.post("/v2/models/tiny/infer", content=body, timeout=0.3)
        response = asking.post("/v2/models/tiny/infer", content=body)
    assert (response.status_code, response.headers["retry-after"]) == (429, "7")
    assert "try again in 7 s" in ProtocolError.model_validate_json(response.content).error


async def never(batcher: Batcher, *arguments: Any) -> None:
    await asyncio.sleep(1)
    raise CallerGone


@pytest.mark.parametrize("degrees", [0.0, 35.0, -140.0])
def test_poses_equal_rest(tmp_path: Path, serve: Callable[..., str], degrees: float) -> None:
    tiny_pose.write(tmp_path)
    file = BytesIO()
    tiny_pose.pointer(degrees).save(file, "PNG")
    url = serve(tmp_path)
    rest = httpx.post(f"{url}/canonicalize", content=file.getvalue(), trust_env=False).json()
    canonical = open_picture(base64.b64decode(rest["canonical"]["data"])).pixels / 255
    with triton.InferenceServerClient(urlsplit(url).netloc) as client:
        assert client.get_model_metadata("tiny-pose") == {
            **client.get_model_metadata("tiny-pose.canonicalize"),
            "name": "tiny-pose",
        }
        for name in ("tiny-pose.transform", "tiny-pose.canonicalize", "tiny-pose"):
            result = client.infer(name, [pictures("image", [file.getvalue()] * 2)])
            for row in range(2):
                for tensor, wanted in (
                    ("matrix", rest["transform"]["matrix"]),
                    ("modes", [mode["matrix"] for mode in rest["transform"]["modes"]]),
                    ("weights", [mode["weight"] for mode in rest["transform"]["modes"]]),
                ):
                    np.testing.assert_allclose(result.as_numpy(tensor)[row], wanted, rtol=0, atol=1e-4)
        np.testing.assert_allclose(np.clip(result.as_numpy("canonical")[1, 0], 0, 1), canonical, atol=0.51 / 255)
    text = httpx.get(f"{url}/metrics", trust_env=False).text
    assert 'equipoise_rotation_degrees_bucket{le="+Inf",model="tiny-pose",version="1"} 7.0' in text
