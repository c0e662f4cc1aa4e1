"""No node of a shipped graph has to leave a GPU: every kind of node has a CUDA kernel, by the committed table."""

import json
from pathlib import Path

import onnx
import pytest

from benchmarks import cuda_kernels
from benchmarks.cuda_kernels import TABLE, kinds, shipped
from tests.service import tiny

KERNELS: dict[str, bool] = json.loads(TABLE.read_text())["kernels"]
GRAPHS = shipped()


@pytest.mark.parametrize("name", sorted(GRAPHS))
def test_every_node_has_a_cuda_kernel(name: str) -> None:
    found = {kind for kind, _ in kinds(GRAPHS[name])}
    assert len(found) > 2
    unknown = found - set(KERNELS)
    assert not unknown, f"not in the table, run benchmarks/cuda_standin.sh -m benchmarks.cuda_kernels: {unknown}"
    assert {kind for kind in found if not KERNELS[kind]} == set()


@pytest.mark.parametrize("name", sorted(GRAPHS))
def test_no_graph_computes_a_shape(name: str) -> None:
    """ONNX Runtime does that on the CPU, beside a GPU too, and an alert says that nodes are there."""
    assert not {node.op_type for node in GRAPHS[name].graph.node} & {"Shape", "Size", "ConstantOfShape"}


def test_the_kinds_are_those_of_the_graph() -> None:
    found = dict(kinds(tiny.classify_model()))
    assert "Unsqueeze-13(float, int64)" in found and "Softmax-13(float)" in found
    for alone in found.values():
        onnx.checker.check_model(alone)
        assert len(alone.graph.node) == 1


def test_without_a_gpu_the_command_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["cuda_kernels", "--json", str(tmp_path / "table.json")])
    monkeypatch.setattr(cuda_kernels, "why_not", lambda device: "there is none")
    assert cuda_kernels.main() == 1
    assert capsys.readouterr().err == "no CUDA device: there is none\n"
    assert not (tmp_path / "table.json").exists()
