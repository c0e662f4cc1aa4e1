"""The sizing model: arithmetic that a person can check, and refusals of what makes no sense."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.sizing import Assumptions, Measured, gpu_pays_from, plan, read, verdict

ROOT = Path(__file__).parents[2]
MEASURED = Measured("/classify", cpu_us=500, graph_us=100, memory_mb=150)  # 2,000 a second and core


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
    """Two GPUs cost as much as 40 cores, which run 40 * 10,000 graphs a second, at half their time 200,000."""
    assumed = Assumptions(core_price=0.05, gpu_price=1.0, utilisation=0.5, peak=4)
    from_here = gpu_pays_from(MEASURED, assumed)
    assert from_here == pytest.approx(200_000 / 4 * 86_400)
    less, more = (plan(MEASURED, assumed, from_here * factor) for factor in (0.9, 1.1))
    assert less.cost_with_gpus > less.cost_a_day and more.cost_with_gpus < more.cost_a_day
    slow = dataclasses.replace(assumed, gpu_rate=190_000)  # 19 cores' work for the price of 20
    assert gpu_pays_from(MEASURED, slow) == math.inf and "never pays" in verdict(MEASURED, slow)
    assert gpu_pays_from(MEASURED, dataclasses.replace(assumed, gpu_rate=210_000)) == from_here


@pytest.mark.parametrize(
    "wrong", [{"utilisation": 0.0}, {"utilisation": 1.5}, {"peak": 0.5}, {"gpu_rate": -1.0}, {"core_price": 0.0}]
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        Assumptions(**wrong)  # type: ignore[arg-type]


def test_no_pictures_is_no_load() -> None:
    with pytest.raises(ValueError, match="per_day"):
        plan(MEASURED, Assumptions(), 0)


def test_the_command_plans_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "sizing.json"
    row = {"request": "/classify", "cpu_us": 500, "graph_us": 100, "memory_mb": 150}
    path.write_text(json.dumps({"machine": "x", "measured": [row]}))
    assert read(path) == [MEASURED]
    run = [sys.executable, "-m", "benchmarks.sizing", "plan", str(path), "--per-day", "1e6"]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "| 1,000,000 | 35 | 2 | 2 | 0.3 |" in done.stdout
    assert "100 of 500 us: beside a GPU a core answers about 1.25 times as many requests" in done.stdout
    wrong = subprocess.run([*run, "--peak", "0"], cwd=ROOT, capture_output=True, text=True)
    assert wrong.returncode == 1 and "peak" in wrong.stderr
