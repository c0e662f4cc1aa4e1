"""The reader of ONNX's wire form, against the `onnx` package."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from service.onnx_file import OnnxFileError, inspect
from tests.service import tiny

SHIPPED = sorted((Path(__file__).parents[2] / "model_store").glob("*/*/*.onnx"))


def operators(graph: onnx.GraphProto) -> set[str]:
    found = {node.op_type for node in graph.node}
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs]:
                found |= operators(inner)
    return found


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parts[-3]}-{path.name}")
def test_agrees_with_the_onnx_package_on_shipped_graphs(path: Path) -> None:
    model, facts = onnx.load(path), inspect(path.read_bytes())
    assert facts.opsets == {entry.domain: entry.version for entry in model.opset_import}
    assert facts.operators == operators(model.graph)
    assert not facts.external


def conditional(branch_weight: onnx.TensorProto) -> onnx.ModelProto:
    """A model whose weight lies in a branch of an `If`, as an attribute of a `Constant`."""
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [2])
    branch = helper.make_graph([helper.make_node("Constant", [], ["out"], value=branch_weight)], "branch", [], [out])
    node = helper.make_node("If", ["which"], ["out"], then_branch=branch, else_branch=branch)
    which = helper.make_tensor_value_info("which", TensorProto.BOOL, [])
    graph = helper.make_graph([node], "graph", [which], [out])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("other", 3)])


def test_sees_into_branches() -> None:
    weight = numpy_helper.from_array(np.zeros(2, np.float32), "w")
    facts = inspect(conditional(weight).SerializeToString())
    assert facts.operators == {"If", "Constant"}
    assert facts.opsets == {"": 18, "other": 3}
    assert not facts.external


def test_sees_external_data_in_a_branch() -> None:
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value="../../../etc/passwd")
    assert inspect(conditional(weight).SerializeToString()).external


def test_every_prefix_is_read_or_refused() -> None:
    data = tiny.classify_model().SerializeToString()
    for size in range(0, len(data), 7):
        try:
            inspect(data[:size])
        except OnnxFileError:
            continue
