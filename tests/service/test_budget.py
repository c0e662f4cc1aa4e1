"""The budget of accepted pictures."""

import pytest

from service import budget as budget_module
from service.budget import Budget
from service.errors import QueueFull


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


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    clock = [100.0]
    monkeypatch.setattr(budget_module.time, "monotonic", lambda: clock[0])
    return clock


def worked(now: list[float]) -> Budget:
    """After half a minute of 10 pictures a second."""
    budget = Budget(images=1000, size=1000)
    for _ in range(300):
        with budget.acquire(1, 1):
            now[0] += 0.1
    return budget


@pytest.mark.parametrize("idle_seconds", [0, 20, 3600])
def test_retry_after_is_the_time_that_the_work_at_hand_takes(now: list[float], idle_seconds: float) -> None:
    budget = worked(now)
    now[0] += idle_seconds
    with budget.acquire(200, 1), pytest.raises(QueueFull) as refusal:
        budget.acquire(900, 1)
    assert refusal.value.extensions["retry_after"] == pytest.approx(20, abs=2)
    assert refusal.value.headers == {"Retry-After": str(refusal.value.extensions["retry_after"])}


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
