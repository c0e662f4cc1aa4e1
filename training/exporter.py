"""A graph as ONNX, by torch's exporter.

model --torch.export--> torch's operators --what ONNX lacks decomposed, types equal--> ONNX --optimised--> proto
"""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import onnx
import torch
from onnxscript import rewriter
from onnxscript.optimizer import optimize, remove_unused_nodes
from onnxscript.rewriter.rules.common import slice_split_rule
from torch import Tensor
from torch.fx import config as fx_config
from torch.onnx._internal.exporter._registration import ONNXRegistry

from contract.manifest import OPSET
from training.models.base import Graph
from training.networks import folded

__all__ = ["to_onnx"]

_ANY_SIZE = 2**31  # elements
# What gives a batch to an input that has 1 for it, from its other input.
_BROADCASTING = {
    *("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Where", "MatMul"),
    *("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or"),
}


def to_onnx(graph: Graph, example: tuple[Tensor, ...]) -> onnx.ModelProto:
    """The graph with any batch, from inputs of more than one: a batch of 1 would be taken for a constant."""
    graph = folded(graph.cpu().eval())
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
