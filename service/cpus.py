"""How many CPUs this process may really use: its affinity and its cgroup quota, not what the host has."""

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def usable_cpus(cgroup: Path = _CGROUP) -> int:
    """At least 1; a quota of one and a half CPUs counts as 2, since a thread more than the quota only waits."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(cgroup)
    return available if quota is None else max(1, min(available, math.ceil(quota)))


def _quota(cgroup: Path) -> float | None:
    """CPUs by the cgroup's CFS quota (version 2, then version 1); None where there is no quota."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        quota_v1 = int((cgroup / "cpu" / "cpu.cfs_quota_us").read_text())
        return quota_v1 / int((cgroup / "cpu" / "cpu.cfs_period_us").read_text()) if quota_v1 > 0 else None
    except (OSError, ValueError):
        return None
