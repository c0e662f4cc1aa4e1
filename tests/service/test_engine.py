"""An engine is refused for anything that does not agree with its manifest or its golden cases."""

import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from service import engine as engine_module
from service.engine import Engine, EngineError, EngineOptions, Golden, RuntimeUnavailable, check_runtime
from tests.service import tiny

OPTIONS = EngineOptions(threads=1, max_batch=16, inline_seconds=1.0)
CASES = tiny.golden()
GOLDEN = Golden({"image": CASES["embed/in/image"]}, {"embedding": CASES["embed/out/embedding"]})


def make(model: onnx.ModelProto, golden: Golden = GOLDEN, options: EngineOptions = OPTIONS, opset: int = 18) -> Engine:
    made = Engine(model.SerializeToString(), tiny.SPECS["embed"], opset, golden, options)
    made.warm()
    return made


@pytest.mark.parametrize("count", [1, 2, 7, 32])
def test_runs_any_batch(count: int) -> None:
    images = tiny.as_input(tiny.images(count))
    (embedding,) = make(tiny.embed_model()).run([images])
    np.testing.assert_allclose(embedding, tiny.embed(images), rtol=1e-4, atol=1e-5)


def test_a_short_run_is_inline_and_a_long_one_is_not() -> None:
    inline = make(tiny.embed_model())
    assert (inline.inline_batch, inline.max_batch) == (16, 16)
    threaded = make(tiny.embed_model(), options=EngineOptions(threads=1, max_batch=16, inline_seconds=0.0))
    assert (threaded.inline_batch, threaded.max_batch) == (0, 16)


def test_the_inline_batch_is_the_largest_bucket_within_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "_time_run", lambda self, size, limit: (size * 1e-3, 1.0))

    def chosen(limit: float, max_batch: int = 40) -> tuple[int, int]:
        made = make(tiny.embed_model(), options=EngineOptions(1, max_batch, limit))
        return made.inline_batch, made.max_batch

    assert chosen(1.0) == (40, 40)
    assert chosen(0.020) == (16, 16)
    assert chosen(0.010) == (8, 40)  # inline batches of 8 would not pay for themselves: larger ones in the thread
    assert chosen(0.0005) == (0, 40)
    assert chosen(0.005, max_batch=4) == (4, 4)


@pytest.mark.parametrize(
    ("limit", "sizes"),
    [(0.0, [1]), (0.0015, [1, 2]), (0.010, [1, 2, 4, 8]), (0.015, [1, 2, 4, 8, 16]), (0.020, [1, 2, 4, 8, 16])],
)
def test_no_size_is_warmed_that_decides_nothing(
    limit: float, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    warmed: list[int] = []

    def timed(self: Engine, size: int, limit: float) -> tuple[float, float]:
        warmed.append(size)
        return size * 1e-3, size * 2e-3

    monkeypatch.setattr(Engine, "_time_run", timed)
    engine = make(tiny.embed_model(), options=EngineOptions(1, 40, limit))
    assert warmed == sizes
    assert engine.run_seconds == pytest.approx(engine.max_batch * 2e-3)


def test_other_work_on_the_machine_does_not_make_a_run_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts is the thread's own time: here every run waits, as if something else had the CPU."""
    run = Engine.run

    def disturbed(self: Engine, inputs: list[Any]) -> Any:
        time.sleep(0.01)
        return run(self, inputs)

    monkeypatch.setattr(Engine, "run", disturbed)
    engine = make(tiny.embed_model(), options=EngineOptions(threads=1, max_batch=16, inline_seconds=0.005))
    assert (engine.inline_batch, engine.max_batch) == (16, 16)
    assert engine.run_seconds >= 0.01  # how long it takes all the same


def test_golden_cases_that_are_not_reproduced() -> None:
    wrong = Golden(GOLDEN.inputs, {"embedding": GOLDEN.outputs["embedding"] + np.float32(0.01)})
    with pytest.raises(EngineError, match="embedding is off by 0.01"):
        make(tiny.embed_model(), wrong)
    unheard = Golden(GOLDEN.inputs, {"embedding": np.full_like(GOLDEN.outputs["embedding"], np.nan)})
    with pytest.raises(EngineError, match="does not reproduce"):
        make(tiny.embed_model(), unheard)


def test_golden_cases_of_another_shape_or_absent() -> None:
    with pytest.raises(EngineError, match="shape"):
        make(tiny.embed_model(), Golden(GOLDEN.inputs, {"embedding": GOLDEN.outputs["embedding"][:, :2]}))
    with pytest.raises(EngineError, match="lack the tensor 'image'"):
        make(tiny.embed_model(), Golden({}, {}))
    with pytest.raises(EngineError, match="do not run"):
        make(tiny.embed_model(), Golden({"image": np.zeros((1, 3, 8, 8), np.float32)}, GOLDEN.outputs))


def test_golden_cases_without_rows() -> None:
    none = {name: array[:0] for name, array in GOLDEN.inputs.items()}
    with pytest.raises(EngineError, match="golden image has no rows"):
        make(tiny.embed_model(), Golden(none, {"embedding": GOLDEN.outputs["embedding"][:0]}))


def test_a_graph_that_runs_the_golden_batch_alone() -> None:
    with pytest.raises(EngineError, match="a batch of 1 does not run: .*Gather"):
        make(tiny.embed_model_of_four())


def test_an_output_whose_rows_do_not_follow_the_batch() -> None:
    model = tiny.embed_model()
    model.graph.node[1].output[0] = "whole"
    model.graph.initializer.append(numpy_helper.from_array(np.ones(4, bool), "first_four"))
    model.graph.node.append(helper.make_node("Compress", ["whole", "first_four"], ["embedding"], axis=0))
    with pytest.raises(EngineError, match=r"of a batch of 8, embedding has shape \(4, 4\)"):
        make(model)


def test_graphs_share_the_memory_of_their_runs() -> None:
    model = tiny.embed_model()
    model.graph.node[1].output[0] = "whole"
    for name, array in {"often": np.array([1, 1 << 14]), "rows": np.array([1]), "nothing": np.float32([0])}.items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    model.graph.node.extend(
        [
            helper.make_node("Tile", ["flat", "often"], ["large"]),  # 4 MB a row
            helper.make_node("ReduceMax", ["large", "rows"], ["most"]),
            helper.make_node("Mul", ["most", "nothing"], ["zeros"]),
            helper.make_node("Add", ["whole", "zeros"], ["embedding"]),
        ]
    )
    engines = [make(model)]
    before = resident_mb()
    engines.append(make(model))
    assert resident_mb() - before < 16 * 4 / 2


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def test_another_opset_than_the_manifest_says() -> None:
    with pytest.raises(EngineError, match="opset 17, the manifest says 18"):
        make(tiny.embed_model(opset=17))


def test_external_data(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(tiny.embed_model(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    with pytest.raises(EngineError, match="external data"):
        Engine(path.read_bytes(), tiny.SPECS["embed"], 18, GOLDEN, OPTIONS)


def test_random_nodes() -> None:
    model = tiny.embed_model()
    model.graph.node[1].output[0] = "clean"
    model.graph.node.append(helper.make_node("RandomNormalLike", ["clean"], ["noise"], scale=1e-9))
    model.graph.node.append(helper.make_node("Add", ["clean", "noise"], ["embedding"]))
    with pytest.raises(EngineError, match="random numbers: RandomNormalLike"):
        make(model)


@pytest.mark.parametrize("shape", [["N", 1, 8, 9], [1, 1, 8, 8], ["N", 8, 8], ["N", 1, 8, "W"]])
def test_input_shapes_that_differ_from_the_manifest(shape: list[int | str]) -> None:
    nodes = [helper.make_node("Shape", ["image"], ["s"]), helper.make_node("Cast", ["s"], ["embedding"], to=1)]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, None)],
    )
    with pytest.raises(EngineError, match="input image has shape"):
        make(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9))


def test_names_and_types_that_differ_from_the_manifest() -> None:
    renamed = tiny.embed_model()
    renamed.graph.output[0].name = renamed.graph.node[1].output[0] = "vector"
    with pytest.raises(EngineError, match=r"outputs are \['vector'\]"):
        make(renamed)
    double = tiny.embed_model()
    double.graph.node[1].output[0] = "single"
    double.graph.node.append(helper.make_node("Cast", ["single"], ["embedding"], to=TensorProto.DOUBLE))
    double.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    with pytest.raises(EngineError, match="only float32"):
        make(double)


@pytest.mark.parametrize("data", [b"", b"hello", b"\x08\x07", bytes(1000)])
def test_files_that_are_no_model(data: bytes) -> None:
    with pytest.raises(EngineError, match="ONNX"):
        Engine(data, tiny.SPECS["embed"], 18, GOLDEN, OPTIONS)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_file_cut_short(share: float) -> None:
    data = tiny.embed_model().SerializeToString()
    with pytest.raises(EngineError):
        Engine(data[: int(len(data) * share)], tiny.SPECS["embed"], 18, GOLDEN, OPTIONS)


def versions_installed(monkeypatch: pytest.MonkeyPatch, **installed: str) -> None:
    def version(name: str) -> str:
        if name in installed:
            return installed[name]
        raise engine_module.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(engine_module.metadata, "version", version)


def test_both_runtimes_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    both = {"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.1"}
    versions_installed(monkeypatch, **both)
    with pytest.raises(RuntimeUnavailable, match="pip uninstall onnxruntime-gpu"):
        check_runtime()
    versions_installed(monkeypatch)
    with pytest.raises(RuntimeUnavailable, match="extra cpu"):
        check_runtime()
    versions_installed(monkeypatch, **{"onnxruntime-gpu": "1.31.1"})
    assert check_runtime() == "onnxruntime-gpu 1.31.1"
