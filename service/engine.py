"""One ONNX graph, ready to run: checked against its manifest, checked against its golden cases, warmed and timed."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np
import numpy.typing as npt

from contract.manifest import GraphSpec, TensorSpec
from service import onnx_file

Array = npt.NDArray[np.float32]

GOLDEN_ATOL, GOLDEN_RTOL = 1e-4, 1e-3
# From a batch of this many on, one more image in a run saves next to nothing of the cost an image.
_ENOUGH_IN_A_BATCH = 8
_TIMED_RUNS = 3
_RANDOM_OPERATORS = {
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
}


class EngineError(Exception):
    """A graph that is refused; the message is the reason in one line."""


class RuntimeUnavailable(Exception):
    """ONNX Runtime cannot be used as it is installed; the message says what to do."""


def check_runtime() -> str:
    """The name and version of the one ONNX Runtime distribution that is installed.

    Raises:
        RuntimeUnavailable: none, or both: they install the same package and overwrite each other's files.
    """
    found = {}
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if not found:
        raise RuntimeUnavailable(
            "ONNX Runtime is not installed: install the extra cpu (pip install 'equipoise[cpu]') or gpu, one of them"
        )
    if len(found) == 2:
        raise RuntimeUnavailable(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files. Keep one: for a CPU "
            "`pip uninstall onnxruntime-gpu`, for a GPU `pip uninstall onnxruntime`, then reinstall the one you keep "
            "with `pip install --force-reinstall`"
        )
    ((name, version),) = found.items()
    return f"{name} {version}"


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """threads: for one run. max_batch: images a run. inline_seconds: longest run that the event loop may stand."""

    threads: int
    max_batch: int
    inline_seconds: float


@dataclass(frozen=True, slots=True)
class Golden:
    """Inputs of a graph and the outputs that torch gave for them, by tensor name, float32 [n, ...]."""

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]


class Engine:
    """A session of ONNX Runtime. `run` is thread-safe.

    Attributes:
        max_batch: most rows in one run.
        inline: a run of `max_batch` rows is short enough for the event loop.
        run_seconds: time of a run of `max_batch` rows, measured when warm.
        nodes: how many nodes of the graph, as ONNX Runtime has optimised it, each execution provider runs.
    """

    def __init__(self, graph: bytes, spec: GraphSpec, opset: int, golden: Golden, options: EngineOptions) -> None:
        """Make the session, hold it to its manifest and its golden cases, warm it.

        Raises:
            EngineError: any of these fails.
        """
        _check_file(graph, opset)
        self.spec = spec
        self.output_names = [output.name for output in spec.outputs]
        self._input_names = [tensor.name for tensor in spec.inputs]
        self._session = _session(graph, options.threads)
        self.nodes = _nodes_by_provider(self._session)
        _check_signature("input", spec.inputs, self._session.get_inputs())
        _check_signature("output", spec.outputs, self._session.get_outputs())
        self._check_golden(golden)
        self.max_batch, self.run_seconds, self.inline = self._warm(options)

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """One run: arrays [n, ...] in the order of the manifest's inputs -> arrays [n, ...] in that of its outputs."""
        outputs: list[Array] = self._session.run(self.output_names, dict(zip(self._input_names, inputs, strict=True)))
        return outputs

    def _check_golden(self, golden: Golden) -> None:
        try:
            inputs = [golden.inputs[name] for name in self._input_names]
            expected = [golden.outputs[name] for name in self.output_names]
        except KeyError as error:
            raise EngineError(f"golden cases lack the tensor {error}") from error
        for name, array in zip([*self._input_names, *self.output_names], [*inputs, *expected], strict=True):
            if not array.size:
                raise EngineError(f"golden {name} has no rows: it proves nothing")
        try:
            outputs = self.run(inputs)
        except Exception as error:  # ONNX Runtime's exceptions share no base of their own
            raise EngineError(f"the golden cases do not run: {_first_line(error)}") from error
        for name, wanted, got in zip(self.output_names, expected, outputs, strict=True):
            if wanted.shape != got.shape:
                raise EngineError(f"golden {name} has shape {wanted.shape}, the graph gives {got.shape}")
            if not np.allclose(got, wanted, rtol=GOLDEN_RTOL, atol=GOLDEN_ATOL):
                worst = float(np.max(np.abs(got - wanted)))
                raise EngineError(f"the graph does not reproduce its golden cases: {name} is off by {worst:.3g}")

    def _warm(self, options: EngineOptions) -> tuple[int, float, bool]:
        """Run every bucket (1, 2, 4, ... max_batch); choose the largest batch that keeps the event loop responsive.

        Where even a batch that already pays for itself takes longer than that, whole batches run in a thread.
        """
        seconds = {size: self._time_run(size) for size in _buckets(options.max_batch)}
        within = [size for size, taken in seconds.items() if taken <= options.inline_seconds]
        inline = bool(within) and max(within) >= min(_ENOUGH_IN_A_BATCH, options.max_batch)
        size = max(within) if inline else options.max_batch
        return size, seconds[size], inline

    def _time_run(self, size: int) -> float:
        inputs = [np.zeros((size, *_inner_shape(tensor)), dtype=np.float32) for tensor in self.spec.inputs]
        taken = []
        try:
            outputs = self.run(inputs)
            for _ in range(_TIMED_RUNS):
                start = time.perf_counter()
                self.run(inputs)
                taken.append(time.perf_counter() - start)
        except Exception as error:  # ONNX Runtime's exceptions share no base of their own
            raise EngineError(f"a batch of {size} does not run: {_first_line(error)}") from error
        for tensor, output in zip(self.spec.outputs, outputs, strict=True):
            if output.shape != (size, *_inner_shape(tensor)):
                raise EngineError(f"of a batch of {size}, {tensor.name} has shape {output.shape}, not {tensor.shape}")
        return min(taken)


def _buckets(largest: int) -> list[int]:
    return [1 << power for power in range(largest.bit_length()) if 1 << power < largest] + [largest]


def _inner_shape(tensor: TensorSpec) -> tuple[int, ...]:
    return tuple(int(size) for size in tensor.shape[1:])


def _check_file(graph: bytes, opset: int) -> None:
    try:
        facts = onnx_file.inspect(graph)
    except onnx_file.OnnxFileError as error:
        raise EngineError(str(error)) from error
    if facts.external:
        raise EngineError("the graph keeps weights in another file (external data), which is refused")
    if facts.opsets.get("") != opset:
        raise EngineError(f"the graph is of opset {facts.opsets.get('')}, the manifest says {opset}")
    if random := facts.operators & _RANDOM_OPERATORS:
        raise EngineError(f"the graph draws random numbers: {', '.join(sorted(random))}")


def _session(graph: bytes, threads: int) -> Any:
    import onnxruntime  # after check_runtime had its say, and not for `--help`

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # Spinning threads eat the quota of a container between requests.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no base of their own
        raise EngineError(f"ONNX Runtime refuses the graph: {_first_line(error)}") from error


def _nodes_by_provider(session: Any) -> dict[str, int]:
    nodes: Counter[str] = Counter()
    for subgraph in session.get_provider_graph_assignment_info():
        nodes[subgraph.ep_name] += len(subgraph.get_nodes())
    return dict(nodes)


def _check_signature(side: str, specs: Sequence[TensorSpec], nodes: Sequence[Any]) -> None:
    names, wanted = [node.name for node in nodes], [spec.name for spec in specs]
    if names != wanted:
        raise EngineError(f"the graph's {side}s are {names}, the manifest says {wanted}")
    for spec, node in zip(specs, nodes, strict=True):
        if node.type != "tensor(float)":
            raise EngineError(f"{side} {spec.name} is {node.type}, only float32 tensors are served")
        shape = list(node.shape)
        batch_is_free = bool(shape) and not isinstance(shape[0], int)
        if not batch_is_free or len(shape) != len(spec.shape):
            raise EngineError(f"{side} {spec.name} has shape {shape}, the manifest says {list(spec.shape)}")
        for size, wanted_size in zip(shape[1:], spec.shape[1:], strict=True):
            # An output whose size ONNX could not infer is held to the manifest when the graph is warmed.
            if size != wanted_size and (isinstance(size, int) or side == "input"):
                raise EngineError(f"{side} {spec.name} has shape {shape}, the manifest says {list(spec.shape)}")


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0][:300]
