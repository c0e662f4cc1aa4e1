"""Devices that are asked for, found or not; buffers that are bound once. Tests marked `cuda` need a GPU and say so."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime
import pytest
from pydantic import ValidationError

from benchmarks import gpu
from contract.manifest import read_manifest, versions
from service import engine as engine_module
from service.binding import Binding, host_buffer
from service.devices import CPU, Device, DeviceUnavailable, find_devices, why_not
from service.engine import Engine, EngineError, EngineOptions, Golden
from service.model_folder import read_version, warm
from service.settings import Settings
from tests.service import tiny
from tests.service.process import run

STORE = Path(__file__).parents[2] / "model_store"
CASES = tiny.golden()
NO_GPU = why_not(Device(0))
cuda = [pytest.mark.cuda, pytest.mark.skipif(bool(NO_GPU), reason=f"no CUDA device: {NO_GPU}")]
without_cuda = pytest.mark.skipif(not NO_GPU, reason="there is a CUDA device")


def make(options: EngineOptions) -> Engine:
    golden = Golden({"image": CASES["embed/in/image"]}, {"embedding": CASES["embed/out/embedding"]})
    return Engine(tiny.embed_model().SerializeToString(), tiny.SPECS["embed"], 18, golden, options)


def bound(max_batch: int) -> Engine:
    """An engine that runs as on a GPU, in buckets with buffers of their own, on the CPU."""
    options = EngineOptions(threads=1, max_batch=max_batch, inline_seconds=1.0)
    made = make(options)
    made._bindings = made._bind(options)
    return made


def pretend_cuda_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])


def test_the_cpu_can_always_be_had() -> None:
    found = find_devices("cpu")
    assert (found.found, found.reason, found.fell_back) == ((CPU,), "", False)
    assert (CPU.name, CPU.providers()) == ("cpu", [("CPUExecutionProvider", {})])


@without_cuda
@pytest.mark.parametrize("asked", ["cuda", "cuda:1", "cuda:0,1"])
def test_a_gpu_that_is_asked_for_by_name_is_had_or_refused(asked: str) -> None:
    with pytest.raises(DeviceUnavailable, match=f"device {asked} is asked for and cannot be had: "):
        find_devices(asked)


@without_cuda
def test_the_process_refuses_to_start_and_says_how_to_mend_it(tmp_path: Path, here: Callable[..., Any]) -> None:
    tiny.write(tmp_path)
    for command, start in (("serve", run), ("check", here)):
        result = start(command, "--model-store", str(tmp_path), "--device", "cuda", "--port", "0")
        assert result.returncode == 1
        assert result.stderr.startswith("error: device cuda is asked for and cannot be had: ")
        assert "pip" in result.stderr or "driver" in result.stderr
        assert "Traceback" not in result.stderr


@without_cuda
def test_auto_takes_the_cpu_and_says_why(serve: Callable[..., str], tiny_store: Path) -> None:
    url = serve(tiny_store)
    ready = httpx.get(f"{url}/readyz", trust_env=False).json()
    assert ready["devices"] == ["cpu"] and ready["fallback"] == NO_GPU and ready["strays"] == []
    metrics = httpx.get(f"{url}/metrics", trust_env=False).text
    assert 'equipoise_device_info{device="cpu",provider="CPUExecutionProvider"} 1.0' in metrics
    # With the build for CPUs nobody counts on a GPU.
    assert f"equipoise_device_fallback {float(find_devices('auto').fell_back)}" in metrics


@without_cuda
def test_the_cuda_build_without_a_driver_is_a_fallback(
    tiny_store: Path, serve: Callable[..., str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pretend_cuda_build(monkeypatch)
    found = find_devices("auto")
    assert found.found == (CPU,) and found.fell_back
    assert "driver is not to be seen" in found.reason and "docker run --gpus all" in found.reason
    url = serve(tiny_store)
    assert [record.facts["reason"] for record in caplog.records if record.message == "graphs run on the CPU"] == [  # type: ignore[attr-defined]
        found.reason
    ]
    assert "equipoise_device_fallback 1.0" in httpx.get(f"{url}/metrics", trust_env=False).text


def test_what_a_session_on_a_gpu_is_made_with() -> None:
    ((provider, options),) = Device(1, 2**30, "exhaustive").providers()
    assert provider == "CUDAExecutionProvider"
    assert options == {
        "device_id": "1",
        "gpu_mem_limit": str(2**30),
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "use_tf32": "0",
    }
    assert "gpu_mem_limit" not in Device(0).providers()[0][1]


@pytest.mark.parametrize("wrong", ["gpu", "cuda:", "cuda:-1", "cuda:0,", "CPU", "cuda:1000", ""])
def test_a_device_that_is_none(wrong: str) -> None:
    with pytest.raises(ValidationError):
        Settings(device=wrong)


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8])
def test_rows_in_a_bucket_are_answered_as_without_one(rows: int) -> None:
    made = bound(max_batch=8)
    assert list(made._bindings) == [1, 2, 4, 8]
    for seed in range(3):  # what an earlier run left in a bucket's other rows is of no account
        images = tiny.as_input(tiny.images(rows, seed))
        (embedding,) = made.run([images])
        np.testing.assert_allclose(embedding, tiny.embed(images), rtol=1e-4, atol=1e-5)


def test_answers_are_nobody_elses_buffers() -> None:
    made = bound(max_batch=4)
    (first,) = made.run([tiny.as_input(tiny.images(3, 1))])
    kept = first.copy()
    made.run([tiny.as_input(tiny.images(3, 2))])
    np.testing.assert_array_equal(first, kept)


def test_golden_cases_of_more_rows_than_the_largest_bucket() -> None:
    made = bound(max_batch=3)  # there are four of them
    images = tiny.as_input(tiny.images(8))
    np.testing.assert_allclose(made.run([images])[0], tiny.embed(images), rtol=1e-4, atol=1e-5)


def test_a_binding_of_several_tensors() -> None:
    session = onnxruntime.InferenceSession(
        tiny.recombine_model().SerializeToString(), providers=["CPUExecutionProvider"]
    )
    shape = (1, tiny.SIDE, tiny.SIDE)
    binding = Binding(session, 4, {"content": shape, "style": shape}, {"image": shape}, CPU)
    content, style = tiny.as_input(tiny.images(3, 1)), tiny.as_input(tiny.images(3, 2))
    np.testing.assert_allclose(binding.run([content, style])[0], tiny.recombine(content, style), rtol=1e-6)


def test_a_buffer_that_cannot_be_locked_is_one_like_any_other() -> None:
    buffer = host_buffer((2, 3), Device(0))
    assert buffer.shape == (2, 3) and not buffer.any()


def test_nodes_that_are_not_where_they_should_be_are_named() -> None:
    session = make(EngineOptions(1, 4, 1.0))._session
    nodes, strays = engine_module._placement(session, Device(0))
    assert sum(nodes.values()) == len(strays) >= 1
    assert any("(MatMul)" in stray or "(Gemm)" in stray for stray in strays)
    assert engine_module._placement(session, CPU)[1] == []


def test_a_session_that_is_not_on_the_device_is_refused() -> None:
    """Of ONNX Runtime's warnings that CUDA could not be had nothing else is left."""
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this build has CUDA")
    with pytest.raises(
        engine_module.EngineError, match=r"ONNX Runtime refuses the graph|without CUDAExecutionProvider"
    ):
        make(EngineOptions(1, 4, 1.0, Device(0)))


def test_a_gpu_that_has_failed_fails_liveness(tiny_store: Path, serve: Callable[..., str], monkeypatch: Any) -> None:
    made: list[Engine] = []
    remember = Engine.__init__

    def noted(self: Engine, *arguments: Any) -> None:
        remember(self, *arguments)
        made.append(self)

    monkeypatch.setattr(Engine, "__init__", noted)
    url = serve(tiny_store, inline_milliseconds=0)

    class Failing:
        def run(self, inputs: Any) -> None:
            raise RuntimeError("CUDA failure 700: an illegal memory access was encountered")

    assert httpx.get(f"{url}/healthz", trust_env=False).status_code == 200
    for engine in made:
        engine._bindings = {32: Failing()}  # type: ignore[dict-item]
    response = httpx.post(f"{url}/classify", content=tiny.png(), headers={"content-type": "image/png"}, trust_env=False)
    assert response.status_code == 500
    alive = httpx.get(f"{url}/healthz", trust_env=False)
    assert alive.status_code == 503 and "illegal memory access" in alive.json()["detail"]


def test_the_benchmark_says_that_there_is_no_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(asked: str) -> None:
        raise DeviceUnavailable(f"device {asked} is asked for and cannot be had: there is none")

    monkeypatch.setattr("sys.argv", ["gpu"])
    monkeypatch.setattr(gpu, "find_devices", none)
    assert gpu.main() == 1
    assert capsys.readouterr().err.startswith("no CUDA device: device cuda:0 is asked for")


def test_the_benchmark_tells_where_a_graphs_time_goes() -> None:
    shares = gpu.by_node("equivae-mnist", "classify", CPU)
    assert 50 < sum(shares.values()) <= 101 and list(shares.values()) == sorted(shares.values(), reverse=True)
    assert all(node.endswith("(CPU)") for node in shares) and any(node.startswith("Conv ") for node in shares)


class GpuAlone(onnxruntime.SessionOptions):
    """Of sessions that refuse a graph with a node that would run on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.add_session_config_entry("session.disable_cpu_ep_fallback", "1")


def test_the_ban_on_the_cpu_reaches_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that is asked for by name contradicts it."""
    monkeypatch.setattr(onnxruntime, "SessionOptions", GpuAlone)
    with pytest.raises(EngineError, match="Conflicting session configuration"):
        make(EngineOptions(threads=1, max_batch=1, inline_seconds=1.0))


@pytest.mark.parametrize("name", sorted(folder.name for folder in STORE.iterdir()))
@pytest.mark.parametrize("marked", [pytest.param("cuda:0", marks=cuda)])
def test_shipped_models_on_a_gpu(name: str, marked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every graph reproduces its golden cases there, leaves no work to the CPU, and answers as on the CPU."""
    folder = STORE / name / str(versions(STORE / name)[-1])
    (device,) = find_devices(marked).found
    with monkeypatch.context() as patched:
        patched.setattr(onnxruntime, "SessionOptions", GpuAlone)
        _, on_gpu = read_version(folder, [EngineOptions(1, 32, 1.0, device)])
    _, on_cpu = read_version(folder, [EngineOptions(1, 32, 1.0)])
    warm(on_gpu)
    random = np.random.default_rng(0)
    with ThreadPoolExecutor(1) as thread:
        for capability, graph in read_manifest(folder).graphs.items():
            (gpu,), (cpu,) = on_gpu[capability], on_cpu[capability]
            assert gpu.strays == [] and not gpu.inline_batch
            inputs = [random.random((7, *tensor.row_shape), np.float32) for tensor in graph.inputs]
            for got, wanted in zip(thread.submit(gpu.run, inputs).result(), cpu.run(inputs), strict=True):
                np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-4)
