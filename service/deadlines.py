"""Until when an answer is of use, and whether anybody still waits for it."""

import time

from service.errors import DeadlineExceeded, InvalidHeader

TIMEOUT_HEADER = "X-Request-Timeout-Ms"
_DIGITS = 9
MOST_MILLISECONDS = 10**_DIGITS - 1
_HEADER = TIMEOUT_HEADER.lower().encode()
_LATEST_WEIGHT = 0.2


class CallerGone(Exception):
    """The caller left before its work was begun; nobody is waiting for an answer."""


class Deadline:
    """at: on the clock of `time.perf_counter`, seconds."""

    __slots__ = ("at",)

    def __init__(self, at: float) -> None:
        self.at = at

    def seconds_left(self) -> float:
        """Negative where it has passed."""
        return self.at - time.perf_counter()

    def shorten(self, seconds: float) -> None:
        """Let it pass in so many seconds, if it would not earlier."""
        self.at = min(self.at, time.perf_counter() + seconds)

    def check(self, wait_seconds: float = 0.0) -> None:
        """
        Raises:
            DeadlineExceeded: it has passed, or will have after so long a wait.
        """
        left = self.seconds_left()
        if left <= 0:
            raise DeadlineExceeded("the deadline has passed")
        if wait_seconds > left:
            raise DeadlineExceeded(
                f"the answer would wait about {wait_seconds:.2f} s for its turn, past the deadline in {left:.2f} s",
                wait_seconds=round(wait_seconds, 3),
            )


def read_deadline(headers: dict[bytes, bytes], start: float, longest_seconds: float) -> Deadline:
    """The deadline of a request that began at `start`: what its header asks for, at most `longest_seconds`.

    Raises:
        InvalidHeader: it is not a number of milliseconds, from 1 to MOST_MILLISECONDS.
    """
    given = headers.get(_HEADER)
    if given is None:
        return Deadline(start + longest_seconds)
    if not (given.isdigit() and len(given) <= _DIGITS and int(given) > 0):
        raise InvalidHeader(
            f"{TIMEOUT_HEADER} is {given.decode('latin-1')[:40]!r}; it is a whole number of milliseconds from 1 to "
            f"{MOST_MILLISECONDS:,}, in at most {_DIGITS} digits",
            header=TIMEOUT_HEADER,
        )
    return Deadline(start + min(int(given) / 1e3, longest_seconds))


def smoothed(average: float, latest: float) -> float:
    """The exponential average of durations, seconds; the first one as it is."""
    return average + _LATEST_WEIGHT * (latest - average) if average else latest
