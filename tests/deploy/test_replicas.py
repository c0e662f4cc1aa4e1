"""Three real replicas behind a real nginx: nothing is lost when they are killed, rolled, given new models or scaled."""

import asyncio
import re
from pathlib import Path

import pytest

from benchmarks import replicas

pytestmark = [
    pytest.mark.skipif(not Path(replicas.NGINX).exists(), reason="nginx is not installed: apt-get install nginx"),
    pytest.mark.timeout(900),
]


def test_no_request_is_lost_or_mixed(tmp_path: Path) -> None:
    clients, pause_seconds = 4, 0.03
    phases = asyncio.run(replicas.run(tmp_path, seconds=1.0, clients=clients, pause_seconds=pause_seconds))
    assert [phase.name for phase in phases] == list(replicas.ACTS)
    for phase in phases:
        assert phase.requests > 0
        assert (phase.lost, phase.mixed) == (0, 0), (phase.name, phase.reasons)
    by_name = {phase.name: phase for phase in phases}
    assert by_name["steady"].retried == by_name["swap_all"].retried == 0
    # What was in flight on the killed one, at most one a client; then what finds nobody there: three tries until nginx
    # takes it for dead (max_fails), and one every two seconds (fail_timeout) to see whether it is back.
    killed = by_name["kill_one"]
    lasted = (sum(killed.milliseconds) / 1e3 + killed.requests * pause_seconds) / clients
    assert 0 < killed.retried <= clients + 3 + lasted / 2
    assert len(by_name["swap_all"].versions) >= 3


def test_without_the_retry_a_killed_replica_loses_requests(tmp_path: Path) -> None:
    """What the first test shows is the configuration's doing, and it would notice a loss."""
    whole = replicas.CONFIGURATION.read_text()
    without = re.sub(r"proxy_next_upstream error .*;", "proxy_next_upstream off;", whole)
    assert without != whole
    (phase,) = asyncio.run(
        replicas.run(tmp_path, seconds=1.0, clients=4, pause_seconds=0.03, acts=["kill_one"], configuration=without)
    )
    assert phase.lost > 0
