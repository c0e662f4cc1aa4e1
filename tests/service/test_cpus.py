"""The CPUs of a container are its quota, not its host's."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.app import create_store
from service.budget import Budget
from service.cpus import usable_cpus
from service.devices import Devices
from service.life import Life
from service.observability import Metrics
from service.settings import Settings


@pytest.fixture
def many_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))


@pytest.mark.usefixtures("many_cpus")
@pytest.mark.parametrize(
    ("text", "cpus"),
    [("200000 100000", 2), ("150000 100000", 2), ("50000 100000", 1), ("max 100000", 16), ("3200000 100000", 16)],
)
def test_cgroup_version_2(tmp_path: Path, text: str, cpus: int) -> None:
    (tmp_path / "cpu.max").write_text(text + "\n")
    assert usable_cpus(tmp_path) == cpus


@pytest.mark.usefixtures("many_cpus")
@pytest.mark.parametrize(("quota", "cpus"), [(400000, 4), (-1, 16)])
def test_cgroup_version_1(tmp_path: Path, quota: int, cpus: int) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert usable_cpus(tmp_path) == cpus


@pytest.mark.usefixtures("many_cpus")
def test_no_cgroup(tmp_path: Path) -> None:
    assert usable_cpus(tmp_path) == 16


@pytest.mark.parametrize(("cpus", "setting", "threads"), [(2, 0, 2), (64, 0, 8), (64, 16, 16), (2, 4, 4)])
def test_a_graph_has_a_thread_a_cpu_and_no_more_than_eight_unless_told_so(
    cpus: int, setting: int, threads: int, monkeypatch: pytest.MonkeyPatch, executor: ThreadPoolExecutor
) -> None:
    """Each of thirty graphs has a pool of its own: on a host of 64 cores they were two thousand threads."""
    monkeypatch.setattr("service.app.usable_cpus", lambda: cpus)
    settings = Settings(inference_threads=setting)
    store = create_store(settings, Metrics(Budget(1, 1)), Devices("cpu"), [executor], executor, Life())
    assert [options.threads for options in store.options] == [threads]
