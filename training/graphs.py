"""A model's ONNX graphs: one a capability, checked against torch, with golden cases.

model --torch.onnx.export--> graph --read back--> opset, names, no random node, no external data
                                   --ONNX Runtime at batch 1, 7 and 32, upright and turned pictures--> parity with torch
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnxscript.optimizer import remove_unused_nodes
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from contract.manifest import GOLDEN_FILE, OPSET, Capability, GraphSpec, InputSpec, TensorSpec
from training.errors import TrainingError
from training.exporter import to_onnx
from training.models.base import Graph
from training.turned import move, similarity, uniform

__all__ = ["ATOL", "RTOL", "ExportError", "Exported", "digit_pictures", "export_graphs"]

ATOL, RTOL = 1e-4, 1e-3
PARITY_BATCHES = (1, 7, 32)
GOLDEN_CASES = 8
# The values of these differ from run to run: a graph that holds one cannot be checked, and its answers repeat nothing.
RANDOM_OPERATORS = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli", "Dropout"}
)


class ExportError(TrainingError):
    """A graph that must not be served; the message says which check failed."""


@dataclass(frozen=True)
class Exported:
    """What a model folder is made of.

    contents: file name -> bytes; parity: the largest absolute difference from torch, a capability.
    """

    graphs: dict[Capability, GraphSpec]
    contents: dict[str, bytes]
    parity: dict[Capability, float]


def export_graphs(capabilities: Mapping[Capability, Graph], spec: InputSpec, whole: Graph | None = None) -> Exported:
    """Export and check every graph of a model on the CPU, in evaluation mode.

    Args:
        whole: a graph of the same model with the outputs of several of them at once, which are then cut out of it: the
            exporter takes seconds for each.

    Raises:
        ExportError: a graph differs from torch, or is not what a model folder may hold.
    """
    pictures = digit_pictures(spec, 2 * max(PARITY_BATCHES))
    pictures = torch.cat([pictures[: 2 * GOLDEN_CASES], _turned(pictures[2 * GOLDEN_CASES :])])
    graphs: dict[Capability, GraphSpec] = {}
    contents: dict[str, bytes] = {}
    parity: dict[Capability, float] = {}
    golden: dict[str, Any] = {}  # Any: numpy's stub takes the names of **arrays for its own options
    protos = _protos(capabilities, spec, whole)
    for capability, graph in capabilities.items():
        data = protos[capability].SerializeToString()
        _check_graph(capability, data, graph)
        parity[capability] = _parity(capability, data, graph, pictures)
        inputs, outputs = _run_torch(graph, pictures, GOLDEN_CASES)
        golden |= {f"{capability}/in/{name}": value for name, value in inputs.items()}
        golden |= {f"{capability}/out/{name}": value for name, value in outputs.items()}
        file = f"{capability}.onnx"
        contents[file] = data
        graphs[capability] = GraphSpec(file=file, inputs=_specs(inputs), outputs=_specs(outputs))
    archive = io.BytesIO()
    np.savez(archive, **golden)
    contents[GOLDEN_FILE] = archive.getvalue()
    return Exported(graphs, contents, parity)


def digit_pictures(spec: InputSpec, count: int) -> Tensor:
    """Scikit-learn's first digits, resized to the model's input: float32 [count,C,H,W] in [0,1]."""
    digits = torch.from_numpy(load_digits().images[:count]).float()[:, None] / 16
    resized = F.interpolate(digits, (spec.height, spec.width), mode="bilinear", antialias=True).clamp(0, 1)
    return resized.expand(-1, spec.channels, -1, -1).contiguous()


def _turned(pictures: Tensor) -> Tensor:
    """By random angles, the same at every export: the whole circle is what a model of poses answers for."""
    angles = uniform(len(pictures), math.pi, torch.Generator().manual_seed(0))
    return move(pictures, similarity(angles))


def _protos(
    capabilities: Mapping[Capability, Graph], spec: InputSpec, whole: Graph | None
) -> dict[Capability, onnx.ModelProto]:
    """A graph whose outputs another one has too is cut out of it."""
    protos: dict[Capability, onnx.ModelProto] = {}
    exported = [] if whole is None else [(whole, _to_onnx(whole, spec))]
    for capability, graph in sorted(capabilities.items(), key=lambda entry: -len(entry[1].outputs)):
        wider = (
            _part(proto, graph)
            for other, proto in exported
            if set(graph.inputs) <= set(other.inputs) and set(graph.outputs) <= set(other.outputs)
        )
        protos[capability] = next(wider, None) or _to_onnx(graph, spec)
        exported.append((graph, protos[capability]))
    return protos


def _part(whole: onnx.ModelProto, graph: Graph) -> onnx.ModelProto:
    """What the outputs of `graph` take of a wider one."""
    part = onnx.ModelProto()
    part.CopyFrom(whole)
    del part.graph.output[:]
    part.graph.output.extend(value for name in graph.outputs for value in whole.graph.output if value.name == name)
    remove_unused_nodes(part)
    del part.graph.input[:]
    part.graph.input.extend(value for name in graph.inputs for value in whole.graph.input if value.name == name)
    return part


def _to_onnx(graph: Graph, spec: InputSpec) -> onnx.ModelProto:
    pictures = torch.rand(3 * len(graph.inputs), spec.channels, spec.height, spec.width)
    return to_onnx(graph, tuple(_inputs(graph, pictures, 3).values()))


def _check_graph(capability: str, data: bytes, graph: Graph) -> None:
    """The facts that a model folder promises of every graph, read from the file and not from the request for it."""
    proto = onnx.load_from_string(data)
    onnx.checker.check_model(proto)
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    if opsets != {"": OPSET}:
        raise ExportError(f"{capability}: the exporter wrote operator sets {opsets}, asked for {OPSET}")
    names = tuple(value.name for value in proto.graph.input), tuple(value.name for value in proto.graph.output)
    if names != (graph.inputs, graph.outputs):
        raise ExportError(f"{capability}: inputs and outputs are {names}, not {(graph.inputs, graph.outputs)}")
    for value in (*proto.graph.input, *proto.graph.output):
        if not value.type.tensor_type.shape.dim[0].dim_param:
            raise ExportError(f"{capability}: the batch axis of {value.name} is fixed")
    random = RANDOM_OPERATORS & {node.op_type for node in proto.graph.node}
    if random:
        raise ExportError(f"{capability}: random nodes {sorted(random)}")
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in proto.graph.initializer):
        raise ExportError(f"{capability}: weights lie outside the file")


def _inputs(graph: Graph, pictures: Tensor, count: int) -> dict[str, Tensor]:
    """`count` pictures for every input, content and style from different ones; for `noise` what a caller would draw."""
    inputs = {name: pictures[index * count : (index + 1) * count] for index, name in enumerate(graph.inputs)}
    if graph.noise is not None:
        inputs["noise"] = torch.randn((count, *graph.noise), generator=torch.Generator().manual_seed(count))
    return inputs


def _run_torch(graph: Graph, pictures: Tensor, count: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Named inputs and outputs as arrays."""
    inputs = _inputs(graph, pictures, count)
    with torch.no_grad():
        result = graph(*inputs.values())
    values = result if isinstance(result, tuple) else (result,)
    outputs = {name: value.numpy() for name, value in zip(graph.outputs, values, strict=True)}
    return {name: value.numpy() for name, value in inputs.items()}, outputs


def _parity(capability: str, data: bytes, graph: Graph, pictures: Tensor) -> float:
    """The largest absolute difference between ONNX Runtime and torch over the batch sizes."""
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    worst = 0.0
    for count in PARITY_BATCHES:
        inputs, expected = _run_torch(graph, pictures, count)
        got = dict(zip(graph.outputs, session.run(list(graph.outputs), inputs), strict=True))
        for name, want in expected.items():
            if got[name].shape != want.shape or not np.allclose(got[name], want, RTOL, ATOL):
                raise ExportError(f"{capability}: {name} differs from torch at batch {count}{_gap(got[name], want)}")
            worst = max(worst, float(np.abs(got[name] - want).max()))
    return worst


def _gap(got: np.ndarray, want: np.ndarray) -> str:
    if got.shape != want.shape:
        return f": shape {got.shape} for {want.shape}"
    return f" by up to {np.abs(got - want).max():.2g}"


def _specs(tensors: Mapping[str, np.ndarray]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name=name, shape=("N", *value.shape[1:])) for name, value in tensors.items())
