"""One ONNX graph on one device: checked against its manifest, held to its golden cases; then warmed and timed."""

import functools
import math
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
from service.binding import Binding
from service.devices import CPU, Device

Array = npt.NDArray[np.float32]

GOLDEN_ATOL, GOLDEN_RTOL = 1e-4, 1e-3
# From a batch of this many on, one more image in a run saves next to nothing of the cost an image. A run also
# takes the processor's caches from the rest of the service, which shows in the cost of a request in runs of 8.
_ENOUGH_IN_A_BATCH = 16
_TIMED_RUNS = 3
# Twice as many rows as these take at least so many times as long: what cannot be within the limit is not tried, and of
# most graphs that is the costliest try. Fewer rows may take next to as long as one.
_PROPORTIONAL, _GROWTH = 8, 1.5
# How ONNX Runtime begins the report of an error of CUDA itself, after which the process can do no more on that device.
_DEVICE_FAILURES = ("CUDA failure", "CUDNN failure", "CUBLAS failure", "CUDA error")
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
            "ONNX Runtime is not installed: it comes with the extra cpu or the extra gpu, one of them, in the "
            "project's folder `pip install '.[cpu]'`"
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
    device: Device = CPU

    @property
    def cores(self) -> int:
        """That a run takes: beside a GPU one is enough, since it only starts kernels."""
        return self.threads if self.device == CPU else 1


@dataclass(frozen=True, slots=True)
class Golden:
    """Inputs of a graph and the outputs that torch gave for them, by tensor name, float32 [n, ...]."""

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]


class Engine:
    """A session of ONNX Runtime. On the CPU `run` is thread-safe; on a GPU it is the affair of the device's one thread.

    Attributes:
        max_batch: most rows in one run; it and the next two are known from `warm` on.
        inline_batch: most rows of a run that is short enough for the event loop; 0: none is, as on a GPU.
        run_seconds: time of a run of `max_batch` rows, measured when warm, or estimated from the time of fewer rows.
        nodes: how many nodes of the graph, as ONNX Runtime has optimised it, each execution provider runs.
        strays: of a graph on a GPU the nodes, as `name (operator)`, that run on the CPU all the same.
        lost: what CUDA said when it failed a run; from then on every run of the process may fail. Empty: it has not.
    """

    def __init__(self, graph: bytes, spec: GraphSpec, opset: int, golden: Golden, options: EngineOptions) -> None:
        """Make the session, hold it to its manifest and its golden cases.

        Raises:
            EngineError: any of these fails.
        """
        _check_file(graph, opset)
        self.spec = spec
        self.output_names = [output.name for output in spec.outputs]
        self._input_names = [tensor.name for tensor in spec.inputs]
        self.lost = ""
        self._options = options
        self._session = _session(graph, options)
        self.nodes, self.strays = _placement(self._session, options.device)
        _check_signature("input", spec.inputs, self._session.get_inputs())
        _check_signature("output", spec.outputs, self._session.get_outputs())
        self._bindings = self._bind(options) if options.device != CPU else {}
        self._check_golden(golden)

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """One run: arrays [n, ...] in the order of the manifest's inputs -> arrays [n, ...] in that of its outputs."""
        if self._bindings:
            return self._run_bound(inputs)
        outputs: list[Array] = self._session.run(self.output_names, dict(zip(self._input_names, inputs, strict=True)))
        return outputs

    def _run_bound(self, inputs: Sequence[Array]) -> list[Array]:
        """In the smallest bucket that holds all rows; golden cases may need more than one run."""
        parts, largest, rows = [], max(self._bindings), len(inputs[0])
        try:
            for start in range(0, rows, largest):
                part = [array[start : start + largest] for array in inputs]
                size = min(size for size in self._bindings if size >= len(part[0]))
                parts.append(self._bindings[size].run(part))
        except Exception as error:  # ONNX Runtime's exceptions share no base of their own
            if any(word in str(error) for word in _DEVICE_FAILURES):
                self.lost = _first_line(error)
            raise
        return parts[0] if len(parts) == 1 else [np.concatenate(columns) for columns in zip(*parts, strict=True)]

    def _bind(self, options: EngineOptions) -> dict[int, Binding]:
        inputs = {tensor.name: tensor.row_shape for tensor in self.spec.inputs}
        outputs = {tensor.name: tensor.row_shape for tensor in self.spec.outputs}
        try:
            return {
                size: Binding(self._session, size, inputs, outputs, options.device)
                for size in _buckets(options.max_batch)
            }
        except Exception as error:  # ONNX Runtime's exceptions share no base of their own
            raise EngineError(f"no buffers on {options.device.name}: {_first_line(error)}") from error

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

    def warm(self) -> None:
        """Time runs of 1, 2, 4, ... rows and choose the sizes. If a useful batch fits the event loop's time limit, the
        largest that does is `max_batch` and all runs are inline. Otherwise larger batches run in the thread, and only
        those up to `inline_batch` run inline.

        On the CPU nothing is run beyond the first size that takes too long: no choice hangs on it, a first run there
        costs no more than a later one, and `run_seconds` follows from fewer rows. On a GPU every size is.

        Raises:
            EngineError: a batch does not run, or not to the manifest's shapes.
        """
        limit, most = self._options.inline_seconds, self._options.max_batch
        if self._bindings:
            for size in _buckets(most):
                _, self.run_seconds = self._time_run(size, 0.0)
            self.max_batch, self.inline_batch = most, 0
            return
        inline, rows, own, seconds, fitting = 0, 0, 0.0, 0.0, 0.0
        for size in _buckets(most):
            if inline >= _PROPORTIONAL and _GROWTH * own > limit:
                break
            rows, (own, seconds) = size, self._time_run(size, limit)
            if own > limit:
                break
            inline, fitting = size, seconds
        self.inline_batch = inline
        if inline == most or inline >= _ENOUGH_IN_A_BATCH:
            self.max_batch, self.run_seconds = inline, fitting
        else:
            self.max_batch, self.run_seconds = most, seconds * most / rows

    def _time_run(self, size: int, limit: float) -> tuple[float, float]:
        """Seconds of a run: of this thread's CPU time, which no other work on the machine lengthens, and by the clock.

        The least of several, and no more of them than it takes to see one within the limit.
        """
        inputs = [np.zeros((size, *tensor.row_shape), dtype=np.float32) for tensor in self.spec.inputs]
        own = taken = math.inf
        for _ in range(_TIMED_RUNS):
            start, started = time.thread_time(), time.perf_counter()
            try:
                outputs = self.run(inputs)
            except Exception as error:  # ONNX Runtime's exceptions share no base of their own
                raise EngineError(f"a batch of {size} does not run: {_first_line(error)}") from error
            own, taken = min(own, time.thread_time() - start), min(taken, time.perf_counter() - started)
            if own <= limit:
                break
        for tensor, output in zip(self.spec.outputs, outputs, strict=True):
            if output.shape != (size, *tensor.row_shape):
                raise EngineError(f"of a batch of {size}, {tensor.name} has shape {output.shape}, not {tensor.shape}")
        return own, taken


def _buckets(largest: int) -> list[int]:
    return [1 << power for power in range(largest.bit_length()) if 1 << power < largest] + [largest]


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


def _session(graph: bytes, engine_options: EngineOptions) -> Any:
    import onnxruntime  # after check_runtime had its say, and not for `--help`

    device = engine_options.device
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = engine_options.cores
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # Spinning threads eat the quota of a container between requests.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if device == CPU:
        _share_arena()
        options.add_session_config_entry("session.use_env_allocators", "1")
        # Weights lie outside of it, so that a closed version leaves no holes there.
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    options.log_severity_level = 3
    try:
        # Without enable_fallback=0 a provider that fails is replaced by the CPU, with a word to standard output.
        session = onnxruntime.InferenceSession(graph, options, providers=device.providers(), enable_fallback=0)
    except Exception as error:  # ONNX Runtime's exceptions share no base of their own
        raise EngineError(f"ONNX Runtime refuses the graph: {_first_line(error)}") from error
    if device.provider not in session.get_providers():
        raise EngineError(f"ONNX Runtime made a session without {device.provider}: its own log says why")
    return session


@functools.cache
def _share_arena() -> None:
    """Give the runs of all graphs one arena: each of their own keeps the most memory that a run ever took."""
    from onnxruntime import OrtAllocatorType, OrtMemoryInfo, OrtMemType, create_and_register_allocator

    memory = OrtMemoryInfo("Cpu", OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, OrtMemType.DEFAULT)
    create_and_register_allocator(memory, None)


def _placement(session: Any, device: Device) -> tuple[dict[str, int], list[str]]:
    """Nodes by execution provider, and those that should be on a GPU and are not."""
    nodes: Counter[str] = Counter()
    strays: list[str] = []
    for subgraph in session.get_provider_graph_assignment_info():
        nodes[subgraph.ep_name] += len(subgraph.get_nodes())
        if subgraph.ep_name != device.provider:
            strays += [f"{node.name} ({node.op_type})" for node in subgraph.get_nodes()]
    return dict(nodes), strays


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
