"""Which nodes of the shipped graphs ONNX Runtime has CUDA kernels for, by the judgement of its own CUDA build.

    python -m benchmarks.cuda_kernels [--json tests/project/cuda_kernels.json]

Every kind of node (operator, operator set, types of its inputs) is given to ONNX Runtime as a graph of that node alone,
with CUDA and nothing optimised; where CUDA has no kernel, the node is placed on the CPU. Needs onnxruntime-gpu and a
CUDA device. The table is committed, so that a graph that would leave the GPU is noticed without one: a kind that is not
in it makes its test fail until this command has been run again.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
from onnx import TensorProto, helper, shape_inference

from benchmarks.load import ROOT
from service.devices import Device, why_not
from service.engine import check_runtime

STORE = ROOT / "model_store"
TABLE = ROOT / "tests" / "project" / "cuda_kernels.json"


def kinds(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.ModelProto]]:
    """The kind of every node, as `Operator-opset(types)`, and a graph of that node alone."""
    inferred = shape_inference.infer_shapes(model)
    graph = inferred.graph
    types = {value.name: value for value in (*graph.value_info, *graph.input, *graph.output)}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    for node in graph.node:
        names = [name for name in node.input if name]
        elements = [
            weights[name].data_type if name in weights else types[name].type.tensor_type.elem_type for name in names
        ]
        since = onnx.defs.get_schema(node.op_type, opsets[node.domain], node.domain).since_version
        kind = (
            f"{node.op_type}-{since}({', '.join(TensorProto.DataType.Name(element).lower() for element in elements)})"
        )
        alone = helper.make_graph(
            [node],
            "alone",
            [types[name] for name in dict.fromkeys(names) if name not in weights],
            [types[name] for name in node.output if name],
            [weights[name] for name in dict.fromkeys(names) if name in weights],
        )
        yield kind, helper.make_model(alone, opset_imports=model.opset_import, ir_version=model.ir_version)


def shipped() -> dict[str, onnx.ModelProto]:
    """Every graph of the model store by `model/graph`."""
    return {f"{path.parts[-3]}/{path.stem}": onnx.load(path) for path in sorted(STORE.glob("*/*/*.onnx"))}


def has_kernel(alone: onnx.ModelProto, device: Device) -> bool:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.log_severity_level = 4
    session: Any = onnxruntime.InferenceSession(
        alone.SerializeToString(), options, providers=device.providers(), enable_fallback=0
    )
    return {part.ep_name for part in session.get_provider_graph_assignment_info()} == {device.provider}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=TABLE, help=f"the table (default: {TABLE.relative_to(ROOT)})")
    arguments = parser.parse_args()
    device = Device(0)
    if reason := why_not(device):
        print(f"no CUDA device: {reason}", file=sys.stderr)
        return 1
    found: dict[str, bool] = {}
    for model in shipped().values():
        for kind, alone in kinds(model):
            if kind not in found:
                found[kind] = has_kernel(alone, device)
    table = {"onnxruntime": check_runtime(), "kernels": dict(sorted(found.items()))}
    arguments.json.write_text(json.dumps(table, indent=1) + "\n")
    missing = [kind for kind, there in found.items() if not there]
    print(f"{len(found)} kinds of nodes, without a CUDA kernel: {', '.join(missing) or 'none'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
