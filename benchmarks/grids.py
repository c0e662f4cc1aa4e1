"""Images a second of one canonicaliser in ONNX Runtime, with the grid of training/lie.py and with F.affine_grid.

    python benchmarks/grids.py

Both graphs are the same small convolutional estimator of a rotation (random weights: the time does not depend on
them), the grid and GridSample. One thread; the two run in turn, and the medians over the turns are printed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn import functional as F

if __name__ == "__main__":  # run as a file, whose folder alone Python has on its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from contract.manifest import OPSET
from training.lie import exponential, grid

SIDE = 28


def decomposed(matrix: Tensor, side: int) -> Tensor:
    """The same grid by torch's own function, which the exporter takes apart."""
    return F.affine_grid(matrix, [matrix.shape[0], 1, side, side], align_corners=False)


class Canonicaliser(nn.Module):
    """[N,1,28,28] -> the image turned upright [N,1,28,28]"""

    def __init__(self, make_grid: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.make_grid = make_grid
        self.network = nn.Sequential(
            *(nn.Conv2d(1, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()),
            *(nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 1)),
        )

    def forward(self, image: Tensor) -> Tensor:
        where = self.make_grid(exponential("SO2", self.network(image)), SIDE)
        return F.grid_sample(image, where, align_corners=False)


def session(make_grid: Callable[[Tensor, int], Tensor]) -> onnxruntime.InferenceSession:
    torch.manual_seed(0)
    program = torch.onnx.export(
        Canonicaliser(make_grid).eval(),
        (torch.rand(3, 1, SIDE, SIDE),),
        dynamo=True,
        opset_version=OPSET,
        dynamic_shapes=({0: torch.export.Dim("N")},),
        input_names=["image"],
        verbose=False,
    )
    assert program is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(program.model_proto.SerializeToString(), options)


def seconds(run: onnxruntime.InferenceSession, images: np.ndarray, calls: int) -> float:
    """Mean time of a call."""
    start = time.perf_counter()
    for _ in range(calls):
        run.run(None, {"image": images})
    return (time.perf_counter() - start) / calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32], help="batch sizes")
    parser.add_argument("--turns", type=int, default=15, help="measurements of each graph")
    options = parser.parse_args()
    sessions = {"training.lie.grid": session(grid), "F.affine_grid": session(decomposed)}
    for batch in options.batches:
        images = np.random.default_rng(0).random((batch, 1, SIDE, SIDE), dtype=np.float32)
        outputs = [run.run(None, {"image": images})[0] for run in sessions.values()]
        difference = float(np.abs(outputs[0] - outputs[1]).max())
        times: dict[str, list[float]] = {name: [] for name in sessions}
        for _ in range(options.turns):
            for name, run in sessions.items():
                times[name].append(seconds(run, images, max(1, 640 // batch)))
        rates = {name: batch / statistics.median(values) for name, values in times.items()}
        listed = ", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items())
        first, second = rates.values()
        print(f"batch {batch}: {listed} images/s; ratio {first / second:.2f}; pictures differ by {difference:.1e}")


if __name__ == "__main__":
    main()
