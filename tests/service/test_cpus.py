"""The CPUs of a container are its quota, not its host's."""

import os
from pathlib import Path

import pytest

from service.cpus import usable_cpus


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
