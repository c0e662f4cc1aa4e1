"""A graph as ONNX, by torch's exporter; how that is made to take half the time and less.

model --torch.export--> torch's operators --what ONNX lacks decomposed, types equal--> ONNX --optimised--> proto
"""

from __future__ import annotations

import functools
import logging
import operator
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import torch
from onnxscript import rewriter
from onnxscript.optimizer import optimize, remove_unused_nodes
from onnxscript.rewriter.rules.common import slice_split_rule
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._export.utils import _is_preservable_cia_op
from torch._guards import detect_fake_mode
from torch._ops import OpOverload
from torch._subclasses import fake_impls, fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.fx import config as fx_config
from torch.fx.experimental.proxy_tensor import make_fx
from torch.onnx._internal.exporter import _decomp, _fx_passes
from torch.onnx._internal.exporter._registration import ONNXRegistry
from torch.onnx._internal.fx.passes import type_promotion

from contract.manifest import OPSET
from training.models.base import Graph
from training.networks import folded

__all__ = ["to_onnx"]

log = logging.getLogger(__name__)

aten = torch.ops.aten
_ANY_SIZE = 2**31  # elements
# What gives a batch to an input that has 1 for it, from its other input.
_BROADCASTING = {
    *("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Where", "MatMul"),
    *("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or"),
}


def to_onnx(graph: Graph, example: tuple[Tensor, ...]) -> onnx.ModelProto:
    """The graph with any batch, from inputs of more than one: a batch of 1 would be taken for a constant."""
    graph = folded(graph.cpu().eval())
    with _patched(), torch.no_grad():
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
def _patched() -> Iterator[None]:
    """Leave out what takes torch's exporter and onnxscript's optimiser long and gives these graphs nothing.

    - The exporter parses its own functions, five hundred, for every graph: once a process is enough.
    - It finds the shape of a sampled picture by sampling it, in hundreds of steps.
    - It keeps the shapes of all results, should an operator come again with the same inputs; few do.
    - Two of its passes run the whole graph for the few nodes that they change: `_decompose`, `_promote`.
    - The optimiser tries to join every pair of a graph's Slices to a Split, and finds none.
    """
    shapes = {**fake_impls.get_fast_op_impls(), aten.grid_sampler_2d.default: _sampled}
    rules = getattr(rewriter, "_DEFAULT_REWRITE_RULES", ())
    with (
        _quiet_exporter(),
        _replaced(ONNXRegistry, "from_torchlib", staticmethod(_registry)),
        _replaced(fake_tensor, "get_fast_op_impls", lambda: shapes),
        _replaced(FakeTensorMode, "_cached_dispatch_impl", FakeTensorMode._dispatch_impl),
        _replaced(_fx_passes, "decompose_with_registry", _decompose),
        _replaced(type_promotion._TypePromotionInterpreter, "run_node", _promote),
        _replaced(rewriter, "_DEFAULT_REWRITE_RULES", tuple(rule for rule in rules if rule is not slice_split_rule)),
    ):
        yield


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


@contextmanager
def _replaced(owner: object, name: str, value: object) -> Iterator[None]:
    """What another version no longer has stays as that has it: it takes longer, and the graph is the same."""
    if name not in vars(owner):
        log.warning("%s is not there: the export takes longer", f"{getattr(owner, '__name__', owner)}.{name}")
        yield
        return
    original = vars(owner)[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


_registry = functools.cache(ONNXRegistry.from_torchlib)
_decompose_all = _fx_passes.decompose_with_registry


def _sampled(mode: FakeTensorMode, picture: Tensor, grid: Tensor, *options: object) -> Tensor:
    """What grid_sampler_2d gives, without values."""
    with mode:
        return picture.new_empty((*picture.shape[:2], *grid.shape[1:3]))


def _promote(interpreter: type_promotion._TypePromotionInterpreter, node: fx.Node) -> Any:
    """As torch's, but for a node's result, which is known: a node whose types are changed is run as they are."""
    if node.op != "call_function" or "val" not in node.meta:
        return fx.Interpreter.run_node(interpreter, node)
    with interpreter._set_current_node(node):
        if rule := type_promotion.get_type_promotion_rule(node, interpreter.type_promotion_table):
            interpreter._maybe_promote_node(node, rule)
    return node.meta["val"]


def _decompose(program: ExportedProgram, registry: ONNXRegistry) -> ExportedProgram:
    """As torch's pass, which is left with whatever is not as `_decomposed` expects it."""
    try:
        graph = _decomposed(program, registry)
        outputs: Any = graph.output_node().args[0]
        names = [output.name for output in outputs]
    except Exception:
        return _decompose_all(program, registry)
    program.graph_module.graph = graph
    for spec, name in zip(program.graph_signature.output_specs, names, strict=True):
        spec.arg.name = name
    return program


def _decomposed(program: ExportedProgram, registry: ONNXRegistry) -> fx.Graph:
    """A copy of the program's graph; of a node that torch's pass replaces, the trace of this node alone is copied."""
    known = set(_decomp.get_onnx_implemented_overloads(registry))
    table = _decomp.create_onnx_friendly_decomposition_table(known)
    mode = detect_fake_mode([node.meta.get("val") for node in program.graph.nodes])
    assert mode is not None
    graph = fx.Graph()
    copies: dict[fx.Node, Any] = {}  # a node, or several for an operator of several results
    with mode, enable_python_dispatcher():
        for node in program.graph.nodes:
            target = node.target
            if target is aten.detach_.default:  # of a constant, from its gradient
                copies[node] = copies[node.args[0]]
            elif target is operator.getitem and not isinstance(copies[node.args[0]], fx.Node):
                copies[node] = copies[node.args[0]][node.args[1]]
            elif isinstance(target, OpOverload) and target._schema.is_mutable or node.op == "get_attr":
                raise NotImplementedError(f"{node}: changes in place and graphs inside graphs")
            elif trace := _trace(node, known, table):
                inputs = zip(trace.find_nodes(op="placeholder"), node.all_input_nodes, strict=True)
                copies[node] = graph.graph_copy(trace, {each: copies[given] for each, given in inputs})
            else:
                copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.eliminate_dead_code()
    return graph


def _trace(node: fx.Node, known: set[Any], table: Mapping[Any, Any]) -> fx.Graph | None:
    """What torch's pass makes of a node. None where it leaves the node, or where ONNX lacks something of that only."""
    target = node.target
    if not isinstance(target, OpOverload):
        return None
    if target not in table and (not target._can_decompose() or _is_preservable_cia_op(target)):
        return None

    def call(*values: Any) -> Any:
        given = dict(zip(node.all_input_nodes, values, strict=True))
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), given.__getitem__)
        return target(*args, **kwargs)

    trace = make_fx(call, decomposition_table=table)(*(each.meta["val"] for each in node.all_input_nodes)).graph
    if {each.target for each in trace.nodes if each.op not in {"placeholder", "output"}} <= known:
        return trace
    if target in known:
        return None
    raise NotImplementedError(f"{node}: operators that ONNX lacks")
