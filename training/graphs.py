"""A model's ONNX graphs: one a capability, checked against torch, with golden cases.

model --torch.onnx.export--> graph --read back--> opset, names, no random node, no external data
                                   --ONNX Runtime at batch 1, 7 and 32--> parity with torch
"""

from __future__ import annotations

import functools
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnxscript import rewriter
from onnxscript.optimizer import optimize, remove_unused_nodes
from onnxscript.rewriter.rules.common import slice_split_rule
from sklearn.datasets import load_digits
from torch import Tensor
from torch.fx import config as fx_config
from torch.nn import functional as F
from torch.onnx._internal.exporter._registration import ONNXRegistry

from contract.manifest import GOLDEN_FILE, OPSET, Capability, GraphSpec, InputSpec, TensorSpec
from training.errors import TrainingError
from training.models.base import Graph
from training.networks import folded

__all__ = ["ATOL", "RTOL", "ExportError", "Exported", "digit_pictures", "export_graphs"]

ATOL, RTOL = 1e-4, 1e-3
PARITY_BATCHES = (1, 7, 32)
GOLDEN_CASES = 8
_ANY_SIZE = 2**31  # elements
# What gives a batch to an input that has 1 for it, from its other input.
_BROADCASTING = {
    *("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Where", "MatMul"),
    *("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or"),
}
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
    graph = folded(graph.cpu().eval())
    # A batch of 1 would be taken for a constant.
    pictures = torch.rand(3 * len(graph.inputs), spec.channels, spec.height, spec.width)
    example = tuple(_inputs(graph, pictures, 3).values())
    with _quiet_exporter(), _registry_kept(), torch.no_grad():
        program = torch.onnx.export(
            graph,
            example,
            dynamo=True,
            opset_version=OPSET,
            external_data=False,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_shapes=tuple({0: torch.export.Dim("N")} for _ in graph.inputs),
            optimize=False,
            verbose=False,
        )
        assert program is not None  # None comes back only where a file name was given
        proto = _simplified(program.model_proto)
    _name_outputs(proto, graph.outputs)
    return _stripped(proto)


def _simplified(proto: onnx.ModelProto) -> onnx.ModelProto:
    """With what depends on weights alone worked out, however large it is: within the optimiser's own limits
    convolutions stay apart from batch norms where a weight is reshaped. And without shapes that are computed, see
    `_expand_by_constants`.
    """
    with _quick_rewriter():
        proto = optimize(proto, input_size_limit=_ANY_SIZE, output_size_limit=_ANY_SIZE)
    _expand_by_constants(proto)
    remove_unused_nodes(proto)
    return proto


def _expand_by_constants(proto: onnx.ModelProto) -> None:
    """Give every Expand a constant shape, with 1 for the batch, where nothing is lost by it, in place.

    That is where the tensor that is expanded has the batch itself, or what it meets next brings it by broadcasting.
    ONNX Runtime computes shapes on the CPU, beside a GPU too.
    """
    graph = onnx.shape_inference.infer_shapes(proto).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    shapes = {value.name: value.type.tensor_type.shape.dim for value in values}
    outputs = {value.name for value in graph.output}
    computed = {name for node in graph.node for name in node.output if node.op_type != "Constant"}
    for node in proto.graph.node:
        if node.op_type != "Expand" or node.input[1] not in computed:
            continue
        wanted = shapes[node.output[0]]
        given = shapes.get(node.input[0], ())[-len(wanted) :]
        has_batch = all(
            size.dim_value or i < len(given) and not given[-1 - i].dim_value for i, size in enumerate(reversed(wanted))
        )
        met_by = {other.op_type for other in proto.graph.node if node.output[0] in other.input}
        if has_batch or met_by <= _BROADCASTING and node.output[0] not in outputs:
            name = f"{node.output[0]}_shape"
            sizes = np.array([size.dim_value or 1 for size in wanted], np.int64)
            proto.graph.initializer.append(onnx.numpy_helper.from_array(sizes, name))
            node.input[1] = name


def _name_outputs(proto: onnx.ModelProto, names: tuple[str, ...]) -> None:
    """Give outputs their names back, in place: two that are one tensor leave the optimiser under names of its own."""
    for output, name in zip(proto.graph.output, names, strict=True):
        for node in proto.graph.node if output.name != name else ():
            for values in (node.input, node.output):
                values[:] = [name if value == output.name else value for value in values]
        output.name = name


def _stripped(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Without the exporter's notes: they hold stack traces with this machine's paths."""
    graph = proto.graph
    for entry in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info):
        del entry.metadata_props[:]
        entry.doc_string = ""
    return proto


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Hold back what the exporter says of its own internals: deprecations inside torch, torchvision's absence; and what
    it notes of where each node comes from, which takes long and is taken out again.
    """
    logger = logging.getLogger("torch.onnx._internal.exporter")
    level, emit = logger.level, fx_config.do_not_emit_stack_traces
    logger.setLevel(logging.ERROR)
    fx_config.do_not_emit_stack_traces = True
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            warnings.filterwarnings("ignore", message=r"# The axis name: N will not be used")
            yield
    finally:
        logger.setLevel(level)
        fx_config.do_not_emit_stack_traces = emit


_registry = functools.cache(ONNXRegistry.from_torchlib)


@contextmanager
def _registry_kept() -> Iterator[None]:
    """Let the exporter parse its own functions once a process, not for every graph: it has five hundred, which takes as
    long as a small graph's export.
    """
    original = ONNXRegistry.__dict__["from_torchlib"]
    ONNXRegistry.from_torchlib = staticmethod(_registry)  # type: ignore[method-assign]
    try:
        yield
    finally:
        ONNXRegistry.from_torchlib = original  # type: ignore[method-assign]


@contextmanager
def _quick_rewriter() -> Iterator[None]:
    """Leave out the optimiser's rule that joins Slices to a Split: it tries every pair of a graph's Slices, which takes
    most of the optimiser's time and a quarter of the whole export's, and finds none here.
    """
    rules = rewriter._DEFAULT_REWRITE_RULES
    rewriter._DEFAULT_REWRITE_RULES = tuple(rule for rule in rules if rule is not slice_split_rule)
    try:
        yield
    finally:
        rewriter._DEFAULT_REWRITE_RULES = rules


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
