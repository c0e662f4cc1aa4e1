"""Clients that are refused and ask again at once: who is read when."""

from functools import partial
from unittest.mock import Mock

import pytest

from service import throttle


@pytest.mark.parametrize("pipelined", [1, 100])
def test_a_connection_has_one_turn_however_much_it_asks(pipelined: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "REFUSALS_A_TICK", 2)
    held, loop = throttle.Throttle(), Mock()
    five = [Mock(is_throttled=False, loop=loop, transport=Mock(**{"is_closing.return_value": False})) for _ in range(5)]
    for connection in five:
        connection.flow.write_paused = False
    for connection in five:
        for _ in range(pipelined):
            connection.flow.read_paused = False  # as uvicorn resumes after every answer
            connection.flow.pause_reading.side_effect = partial(setattr, connection.flow, "read_paused", True)
            connection.flow.resume_reading.side_effect = partial(setattr, connection.flow, "read_paused", False)
            held.refused(connection)
    first = [False, False, True, True, True] if pipelined == 1 else [True] * 5
    assert [connection.flow.read_paused for connection in five] == first
    five[-1].transport.is_closing.return_value = True
    while loop.call_later.called:
        (_, tick, of), _ = loop.call_later.call_args
        loop.reset_mock()
        before = sum(connection.flow.resume_reading.called for connection in five)
        tick(of)
        assert sum(connection.flow.resume_reading.called for connection in five) - before <= 2
    assert [connection.flow.read_paused for connection in five] == [False] * 4 + [True]
    assert [connection.flow.resume_reading.call_count for connection in five[:4]] == [
        int(paused) for paused in first[:4]
    ]


def test_who_takes_no_answers_is_not_read_until_he_has() -> None:
    """Or the answers to what he goes on sending would pile up."""
    held, loop = throttle.Throttle(), Mock()
    connection = Mock(is_throttled=False, loop=loop, transport=Mock(**{"is_closing.return_value": False}))
    connection.flow.write_paused = True
    held.refused(connection)
    assert connection.flow.pause_reading.called
    for taken in (False, False, True):
        connection.flow.write_paused = not taken
        (_, tick, of), _ = loop.call_later.call_args
        tick(of)
        assert connection.flow.resume_reading.called == taken and connection.is_throttled != taken
