"""The budget of accepted pictures."""

import math
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from service import budget as budget_module
from service.budget import Budget
from service.errors import QueueFull, TooManyPixels
from service.settings import Settings


def test_refuses_past_either_limit_and_takes_again_after_a_release() -> None:
    budget = Budget(images=10, size=1000)
    with budget.acquire(8, 100):
        with pytest.raises(QueueFull):
            budget.acquire(3, 1)
        with pytest.raises(QueueFull):
            budget.acquire(1, 901)
        with budget.acquire(2, 900):
            assert (budget.images, budget.bytes) == (10, 1000)
    assert (budget.images, budget.bytes) == (0, 0)


def test_gives_room_back_after_an_error() -> None:
    budget = Budget(images=10, size=1000)
    with pytest.raises(ZeroDivisionError), budget.acquire(10, 1000):
        _ = 1 / 0
    assert (budget.images, budget.bytes) == (0, 0)


def test_what_exceeds_the_whole_budget_with_what_its_request_holds_is_refused_for_good() -> None:
    budget = Budget(images=10, size=1000)
    with pytest.raises(TooManyPixels, match="1,001 bytes"):
        budget.acquire(1, 601, held=400)
    with budget.acquire(0, 400), budget.acquire(1, 500, held=400) as permit:
        permit.grow(60)
        with pytest.raises(QueueFull), budget.acquire(0, 10):
            permit.grow(40)
        with pytest.raises(TooManyPixels):
            permit.grow(41)
        permit.grow(40)
        assert (budget.images, budget.bytes) == (1, 1000)
    assert (budget.images, budget.bytes) == (0, 0)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    clock = [100.0]
    # Of this module alone: an event loop of another test's server would sleep until the real time comes again.
    monkeypatch.setattr(budget_module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    return clock


def worked(now: list[float], wait_seconds: float = math.inf) -> Budget:
    """After half a minute of 10 pictures a second, which are a batch."""
    budget = Budget(images=1000, size=1000, wait_seconds=wait_seconds, batch=10)
    for _ in range(300):
        with budget.acquire(1, 1):
            now[0] += 0.1
    return budget


@pytest.mark.parametrize("idle_seconds", [0, 20, 3600])
def test_retry_after_is_the_time_that_as_many_pictures_take_as_places_are_missing(
    now: list[float], idle_seconds: float
) -> None:
    budget = worked(now)
    now[0] += idle_seconds
    with budget.acquire(300, 1), pytest.raises(QueueFull) as refusal:
        budget.acquire(900, 1)
    assert refusal.value.extensions["retry_after"] == pytest.approx(20, abs=2)
    assert refusal.value.headers == {"Retry-After": str(refusal.value.extensions["retry_after"])}


def test_retry_after_is_the_time_that_those_take_that_come_before(now: list[float]) -> None:
    """Of a large request that is one batch."""
    budget = worked(now, wait_seconds=4)
    with ExitStack() as held:
        held.enter_context(budget.acquire(900, 1))
        while not budget.is_full():
            held.enter_context(budget.acquire(10, 1))
        assert budget.retry_after_seconds() == pytest.approx(4, abs=1)


@pytest.mark.parametrize("stuck_seconds", [60, 3600, 1e6])
def test_retry_after_is_bounded_when_nothing_is_answered(now: list[float], stuck_seconds: float) -> None:
    budget = worked(now)
    with budget.acquire(200, 1):
        now[0] += stuck_seconds
        assert budget.retry_after_seconds() == 60


def test_retry_after_without_any_history() -> None:
    budget = Budget(images=1, size=1)
    with budget.acquire(1, 1), pytest.raises(QueueFull) as refusal:
        budget.acquire(1, 0)
    assert refusal.value.headers["Retry-After"] == "1"


@pytest.mark.parametrize("wait_seconds", [3, 6, 12])
def test_pictures_that_would_wait_too_long_by_the_measured_rate_are_refused(
    now: list[float], wait_seconds: float
) -> None:
    budget = worked(now, wait_seconds)
    with ExitStack() as held:
        accepted = 0
        while not budget.is_full():
            held.enter_context(budget.acquire(5, 1))
            accepted += 5
        assert accepted == pytest.approx(10 * wait_seconds, abs=5)
        with pytest.raises(QueueFull):
            budget.acquire(1, 1)
        budget.acquire(0, 1)  # bytes of a body that was let in before


def test_a_large_request_counts_as_one_batch_since_others_have_their_turns_between(now: list[float]) -> None:
    budget = worked(now, wait_seconds=3)
    with budget.acquire(900, 1):
        assert not budget.is_full()
        with budget.acquire(10, 1), budget.acquire(20, 1):  # 30 pictures ahead, three seconds
            assert budget.is_full(coming=1)


def test_two_batches_never_wait_too_long(now: list[float]) -> None:
    """A short limit on a slow machine must not leave the graphs with batches of one."""
    budget = worked(now, wait_seconds=0.1)
    with budget.acquire(10, 1), budget.acquire(10, 1):
        assert not budget.is_full()
        with budget.acquire(1, 1):
            assert budget.is_full()


@pytest.mark.parametrize("pictures_a_second", [200, 2_000, 20_000])
def test_by_default_overload_lets_nobody_wait_longer_than_64_clients_with_whole_batches_do(
    now: list[float], pictures_a_second: int
) -> None:
    default = Settings()
    batch = default.max_batch
    budget = Budget(default.queue_images, default.queue_bytes, default.queue_seconds, batch)
    for _ in range(1000):
        with budget.acquire(batch, 1):
            now[0] += batch / pictures_a_second
    with ExitStack() as held:
        accepted = 0
        while not budget.is_full():
            held.enter_context(budget.acquire(batch, 1))
            accepted += batch
    in_a_second = max(2 * batch, pictures_a_second)
    assert accepted == pytest.approx(min(64 * batch, in_a_second), abs=batch)


def test_how_long_pictures_wait_is_not_known_before_the_first_answer() -> None:
    budget = Budget(images=1000, size=1000, wait_seconds=0.1, batch=1)
    with budget.acquire(10, 1), budget.acquire(900, 1):
        assert not budget.is_full()


def test_requests_on_their_way_are_taken_to_be_as_small_as_any_of_late() -> None:
    budget = Budget(images=100, size=1000, batch=10)
    assert budget.is_full(coming=100) and not budget.is_full(coming=99)
    for _ in range(40):
        with budget.acquire(20, 1):
            pass
    assert budget.is_full(coming=10) and not budget.is_full(coming=9)  # a batch each, and no more
    with budget.acquire(1, 1):
        assert budget.is_full(coming=99) and not budget.is_full(coming=98)
