"""The sizing model: arithmetic that a person can check, and refusals of what makes no sense."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.multiply_adds import multiply_adds
from benchmarks.sizing import Assumptions, Measured, gpu_has_to_run, gpus_pay_from, main, plan, read, verdict

ROOT = Path(__file__).parents[2]
ROW = {
    "request": "/classify",
    "graph": "tiny.classify",
    "cpu_us": 500,
    "graph_us": 100,
    "multiply_adds": 10_000_000,
    "memory_mb": 150,
}
MEASURED = Measured(**ROW)  # type: ignore[arg-type]  # 2,000 a second and core


def test_a_small_load_takes_two_replicas() -> None:
    got = plan(MEASURED, Assumptions(), 1e6)
    assert (got.replicas, got.cores, got.gpus) == (2, 2, 2)
    assert got.peak_rate == pytest.approx(34.72, abs=0.01)
    assert got.cost_a_day == pytest.approx(2 * 0.04 * 24)
    assert got.cost_with_gpus == pytest.approx((2 * 0.04 + 2 * 1.0) * 24)


def test_a_large_load_by_hand() -> None:
    got = plan(MEASURED, Assumptions(utilisation=0.5, peak=2.0, replica_cores=2, gpu_rate=20_000), 86_400 * 10_000)
    assert got.peak_rate == pytest.approx(20_000)
    assert (got.replicas, got.cores) == (11, 22)  # 20,000 / (2,000 * 2 * 0.5), and one to spare
    assert got.memory_gb == pytest.approx(1.65)
    assert got.gpus == 3  # 20,000 / (20,000 * 0.5), and one to spare
    assert got.cost_with_gpus == pytest.approx((9 * 2 * 0.04 + 3 * 1.0) * 24)  # 2,500 a core: 8 replicas and one


def test_cost_grows_with_load_and_not_faster() -> None:
    plans = [plan(MEASURED, Assumptions(), per_day) for per_day in (1e6, 1e8, 1e10)]
    assert [each.cores for each in plans] == sorted(each.cores for each in plans)
    assert plans[0].cost_a_million > plans[1].cost_a_million > plans[2].cost_a_million


def test_where_a_gpu_pays() -> None:
    """A GPU costs as much as 20 cores, which run 200,000 graphs a second."""
    assumed = Assumptions(core_price=0.05, gpu_price=1.0, gpu_rate=1_000_000)
    assert gpu_has_to_run(MEASURED, assumed) == pytest.approx(200_000)
    from_here = gpus_pay_from(MEASURED, assumed)
    less, more = (plan(MEASURED, assumed, from_here * factor) for factor in (0.9, 1.1))
    assert less.cost_with_gpus > less.cost_a_day and more.cost_with_gpus < more.cost_a_day
    # two GPUs for 40 cores: at 60 % of their time those run 240,000 graphs, at three times the mean
    assert from_here == pytest.approx(240_000 / 3 * 86_400, rel=0.05)
    assert "runs 1,000,000 and does so from about 6,900,000,000 pictures a day on" in verdict(MEASURED, assumed)
    slow = dataclasses.replace(assumed, gpu_rate=190_000)  # 19 cores' work for the price of 20
    assert gpus_pay_from(MEASURED, slow) == math.inf and "runs 190,000 and does not." in verdict(MEASURED, slow)


def test_an_l4_by_public_figures() -> None:
    """Without a measurement: as many multiply-adds a second as of ResNet-50, and as many as there are."""
    least, most = MEASURED.on_an_l4()
    assert (least, most) == (pytest.approx(358.6 * 409), pytest.approx(1_515_000))
    assert plan(MEASURED, Assumptions(), 1e10).gpus == math.ceil(1e10 / 86_400 * 3 / (least * 0.6)) + 1
    said = verdict(MEASURED, Assumptions())
    assert "more than 250,000 of these" in said and "runs 150,000 and does not; one that" in said
    assert "runs 1,500,000 and does so from about" in said


def test_multiply_adds_by_hand(tmp_path: Path) -> None:
    """1 to 2 channels by 3 x 3 at nine places, 2 to 3 by 2 x 2 at as many, and 108 numbers to four."""
    weights = {"a": (2, 1, 3, 3), "b": (2, 3, 2, 2), "c": (108, 4)}
    nodes = [
        helper.make_node("Conv", ["image", "a"], ["one"]),
        helper.make_node("ConvTranspose", ["one", "b"], ["two"], strides=[2, 2]),
        helper.make_node("Flatten", ["two"], ["flat"]),
        helper.make_node("Gemm", ["flat", "c"], ["answer"]),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, 5, 5])],
        [helper.make_tensor_value_info("answer", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), tmp_path / "graph.onnx")
    assert multiply_adds(tmp_path / "graph.onnx") == 18 * 9 + 24 * 9 + 108 * 4


@pytest.mark.parametrize(
    "wrong", [{"utilisation": 0.0}, {"utilisation": 1.5}, {"peak": 0.5}, {"gpu_rate": -1.0}, {"core_price": 0.0}]
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        Assumptions(**wrong)  # type: ignore[arg-type]


def test_no_pictures_is_no_load() -> None:
    with pytest.raises(ValueError, match="per_day"):
        plan(MEASURED, Assumptions(), 0)


def test_the_command_plans_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "sizing.json"
    path.write_text(json.dumps({"machine": "x", "measured": [ROW]}))
    assert read(path) == [MEASURED]
    words = ["plan", str(path), "--per-day", "1e6"]
    run = [sys.executable, "-m", "benchmarks.sizing", *words]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "| 1,000,000 | 35 | 2 | 2 | 0.3 |" in done.stdout
    assert "100 of 500 us: beside a GPU a core answers about 1.25 times as many requests" in done.stdout
    with pytest.raises(SystemExit, match="peak"):  # words: the interpreter prints them and ends with 1
        main([*words, "--peak", "0"])
    gpu = tmp_path / "gpu.json"
    figures = {"pictures/s by batch": {"1": 20_000.0, "256": 300_000.0}}
    gpu.write_text(json.dumps({"device": "one", "tiny.classify on cuda:0": figures, "tiny.classify on cpu": figures}))
    main([*words, "--gpu", str(gpu)])
    assert "The one that was measured runs 300,000 and does so from about" in capsys.readouterr().out
