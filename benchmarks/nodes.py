"""Where a graph's time goes, by ONNX Runtime's own profiler: one thread, batches of 32.

    python -m benchmarks.nodes mcevae-mnist-so2.canonicalize equivae-mnist.classify --json results/nodes.json

Nodes of one operator with outputs of one shape are a row; a graph's time is that of its nodes, without what is between
them. The rate of convolutions and matrix products is told in multiplications with addition (MAC); `least_us` is what
all of them would take at the rate of the fastest row. The profiler does not tell the weights of a ConvTranspose.
"""

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from benchmarks.load import ROOT
from benchmarks.serving import machine, model_folder
from contract.manifest import read_manifest
from service.devices import CPU, Device

BATCH = 32
_RUNS = 20
_LEAST_SHARE = 1.0  # percent; rows below are one


@dataclass(frozen=True)
class Node:
    """microseconds: of a run. macs: multiplications with addition of a run; 0 for what is no convolution or product."""

    name: str
    operator: str
    provider: str
    shape: tuple[int, ...]
    microseconds: float
    macs: int


def profile(folder: Path, capability: str, device: Device, batch: int = BATCH) -> list[Node]:
    """The nodes of a graph as ONNX Runtime has optimised it."""
    spec = read_manifest(folder).graphs[capability]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_profiling = True
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as scratch:
        options.profile_file_prefix = f"{scratch}/profile"
        session = onnxruntime.InferenceSession(
            (folder / spec.file).read_bytes(), options, providers=device.providers(), enable_fallback=0
        )
        inputs = {tensor.name: np.zeros((batch, *tensor.row_shape), np.float32) for tensor in spec.inputs}
        for _ in range(_RUNS):
            session.run(None, inputs)
        events = json.loads(Path(session.end_profiling()).read_text())
    runs: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            runs.setdefault(event["name"].removesuffix("_kernel_time"), []).append(event)
    return [_node(name, found) for name, found in runs.items()]


def _node(name: str, events: Sequence[dict[str, Any]]) -> Node:
    facts = events[0]["args"]
    operator = facts.get("op_name", "?")
    inputs, outputs = (
        [next(iter(tensor.values()), []) for tensor in facts.get(f"{side}_type_shape", [])]
        for side in ("input", "output")
    )
    macs = 0
    if operator.endswith("Conv"):
        macs = math.prod(outputs[0]) * math.prod(inputs[1][1:])
    elif operator.endswith(("MatMul", "Gemm")):
        macs = math.prod(outputs[0]) * inputs[0][-1]
    return Node(
        name=name,
        operator=operator,
        provider=facts.get("provider", "?").removesuffix("ExecutionProvider"),
        shape=tuple(outputs[0][1:]) if outputs else (),
        microseconds=float(np.median([event["dur"] for event in events])),
        macs=macs,
    )


def figures(nodes: Sequence[Node], batch: int = BATCH) -> dict[str, Any]:
    """Microseconds of a picture, and the rows: largest first, what is below a percent in the last one."""
    total = sum(node.microseconds for node in nodes)
    groups: dict[tuple[str, tuple[int, ...]], list[Node]] = {}
    for node in nodes:
        groups.setdefault((node.operator, node.shape), []).append(node)
    rows, small = [], []
    for (operator, shape), those in groups.items():
        taken = sum(node.microseconds for node in those)
        if 100 * taken / total < _LEAST_SHARE:
            small += those
            continue
        row = {"nodes": len(those), "operator": operator, "shape": list(shape), "share": round(100 * taken / total, 1)}
        macs = sum(node.macs for node in those)
        rows.append(row | {"gmacs": round(macs / taken / 1e3, 1) if macs else None})
    rows.sort(key=lambda row: -row["share"])
    share = round(100 * sum(node.microseconds for node in small) / total, 1)
    macs = sum(node.macs for node in nodes)
    fastest = max((row["gmacs"] for row in rows if row["gmacs"]), default=math.inf)
    return {
        "us": round(total / batch, 1),
        "macs": macs // batch,
        "fastest_gmacs": fastest,
        "least_us": round(macs / fastest / batch / 1e3, 1),
        "rows": rows,
        "others": {"nodes": len(small), "share": share},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graphs", nargs="+", metavar="MODEL.GRAPH", help="of the model store")
    parser.add_argument("--model-store", type=Path, default=ROOT / "model_store")
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    arguments = parser.parse_args()
    found: dict[str, Any] = {"machine": machine(), "batch": BATCH, "graphs": {}}
    for graph in arguments.graphs:
        name, _, capability = graph.rpartition(".")
        folder = model_folder(arguments.model_store, name, capability)
        found["graphs"][graph] = figures(profile(folder, capability, CPU))
        print(json.dumps({graph: found["graphs"][graph]}, indent=1), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
