"""Binary tensors of many images through the inference protocol, beside ONNX Runtime alone on the same graph.

    python -m benchmarks.tensors

ONNX Runtime runs batches of 32 in this process, with one thread; the service gets requests of 256 images over one
connection. Repeats alternate. A machine that is busy with something else disturbs the rates of both: CPU time an image
depends less on it.
"""

import argparse
import http.client
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime

from benchmarks import contenders
from benchmarks.load import ROOT, Cores, cpu_seconds, running
from benchmarks.serving import model_folder, picture

BATCH = 32


def alone(session: onnxruntime.InferenceSession, images: np.ndarray, seconds: float) -> tuple[float, float]:
    """images/s and CPU microseconds an image."""
    count, start, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - start < seconds:
        session.run(None, {"image": images[:BATCH]})
        count += BATCH
    return count / (time.perf_counter() - start), (time.process_time() - cpu) / count * 1e6


def served(port: int, process: int, model: str, images: np.ndarray, seconds: float) -> tuple[float, float]:
    """images/s and the server's CPU microseconds an image."""
    tensor = {"name": "image", "shape": images.shape, "datatype": "FP32"}
    tensor["parameters"] = {"binary_data_size": images.nbytes}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    body, headers = head + images.tobytes(), {"Inference-Header-Content-Length": str(len(head))}
    connection = http.client.HTTPConnection("127.0.0.1", port)
    count, start, cpu = 0, time.perf_counter(), cpu_seconds(process)
    while time.perf_counter() - start < seconds:
        connection.request("POST", f"/v2/models/{model}.classify/infer", body, headers)
        response = connection.getresponse()
        answer = response.read()
        if response.status != 200:
            raise SystemExit(f"{response.status}: {answer[:200]!r}")
        count += len(images)
    connection.close()
    return count / (time.perf_counter() - start), (cpu_seconds(process) - cpu) / count * 1e6


def compare(folder: Path, count: int, seconds: float, repeats: int) -> dict[str, float]:
    """Medians over alternating runs, `count` images a request; ratios are medians of pairs."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / "classify.onnx", options, providers=["CPUExecutionProvider"])
    shape = [count, *session.get_inputs()[0].shape[1:]]
    images = np.random.default_rng(0).random(shape, dtype=np.float32)
    runs = []
    with running(contenders.ours(folder), Cores(), picture(folder)) as target:
        for _ in range(repeats):
            one = alone(session, images, seconds)
            runs.append((one, served(target.port, target.process.pid, folder.parent.name, images, seconds)))
    return {
        "alone, images/s": statistics.median(one[0] for one, _ in runs),
        "served, images/s": statistics.median(other[0] for _, other in runs),
        "of the images/s": statistics.median(other[0] / one[0] for one, other in runs),
        "of the images a CPU second": statistics.median(one[1] / other[1] for one, other in runs),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-store", type=Path, default=ROOT / "model_store")
    parser.add_argument("--model", help="default: equivae-mnist, else the first model that classifies")
    parser.add_argument("--images", type=int, default=256, help="in one request (default: 256)")
    parser.add_argument("--seconds", type=float, default=3.0, help="a run (default: 3)")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    folder = model_folder(arguments.model_store, arguments.model)
    print(f"{folder.parent.name}, {arguments.images} images a request, beside ONNX Runtime at batch {BATCH}:")
    for name, value in compare(folder, arguments.images, arguments.seconds, arguments.repeats).items():
        print(f"{name}: {value:,.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
