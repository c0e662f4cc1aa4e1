"""What the service has accepted and not yet answered, bounded in pictures and in bytes: bodies, decoded pictures."""

import math
import time
from types import TracebackType

from service.errors import QueueFull

_RATE_SECONDS = 5.0  # over how long the drain rate is averaged
_LONGEST_RETRY_SECONDS = 60


class Budget:
    """A permit for every accepted picture. Refusing costs nothing, so it happens before memory grows.

    All of it runs on the event loop: plain numbers need no lock.
    """

    def __init__(self, images: int, size: int) -> None:
        self.image_limit = images
        self.byte_limit = size
        self.images = 0
        self.bytes = 0
        self._rate = 0.0  # pictures answered a second, exponentially averaged
        self._rated_at = time.monotonic()  # up to when; time without work is left out

    def acquire(self, images: int, size: int) -> "Permit":
        """Take room for `images` pictures and `size` bytes; give it back by leaving the permit.

        Raises:
            QueueFull: there is no room; with the seconds after which there should be.
        """
        self.check(images, size)
        if not self.images:
            self._rated_at = time.monotonic()
        self.images += images
        self.bytes += size
        return Permit(self, images, size)

    @property
    def is_full(self) -> bool:
        """Whether there is no room for a single picture."""
        return self.images >= self.image_limit or self.bytes >= self.byte_limit

    def check(self, images: int, size: int = 0) -> None:
        """
        Raises:
            QueueFull: there is no room now for `images` pictures and `size` bytes.
        """
        if self.images + images > self.image_limit or self.bytes + size > self.byte_limit:
            seconds = self.retry_after_seconds()
            raise QueueFull(
                f"{self.images} pictures and {self.bytes:,} bytes are waiting for an answer; try again in {seconds} s",
                headers={"Retry-After": str(seconds)},
                retry_after=seconds,
            )

    def retry_after_seconds(self) -> int:
        """How long the work at hand takes at the rate of the last seconds of work, at least 1."""
        if not self._rate:
            return 1
        rate = self._decayed_rate(time.monotonic())
        seconds = self.images / rate if rate else math.inf
        return max(1, math.ceil(min(_LONGEST_RETRY_SECONDS, seconds)))

    def release(self, images: int, size: int) -> None:
        now = time.monotonic()
        self._rate = self._decayed_rate(now) + images / _RATE_SECONDS
        self._rated_at = now
        self.images -= images
        self.bytes -= size

    def _decayed_rate(self, now: float) -> float:
        return self._rate * math.exp((self._rated_at - now) / _RATE_SECONDS) if self.images else self._rate


class Permit:
    """Room in the budget, held from admission to the answer."""

    __slots__ = ("_budget", "_images", "_size")

    def __init__(self, budget: Budget, images: int, size: int) -> None:
        self._budget = budget
        self._images = images
        self._size = size

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._budget.release(self._images, self._size)
