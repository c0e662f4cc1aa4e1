"""What the service has accepted and not yet answered, bounded in pictures, in their time and in bytes: bodies, decoded
pictures.
"""

import math
import time
from types import TracebackType

from service.errors import QueueFull, TooManyPixels

_RATE_SECONDS = 5.0  # over how long the drain rate is averaged
_LONGEST_RETRY_SECONDS = 60
# The estimate of pictures per request may grow by 10 % with each request: about forty requests from single pictures to
# whole batches.
_GROWTH = 1.1


class Budget:
    """A permit for every accepted picture. Refusing costs nothing, so it happens before memory grows.

    What changes it runs on the event loop: plain numbers need no lock. `check` may be asked by any thread.

    Attributes:
        images, bytes: of all that is accepted and not yet answered.
        ahead: of these pictures, those that a new one would wait for. Of a large request that is one batch at most,
            since others have their turns between its parts.
    """

    def __init__(self, images: int, size: int, wait_seconds: float = math.inf, batch: int = 1) -> None:
        """
        Args:
            images, size: most pictures and bytes.
            wait_seconds: pictures are refused that would wait longer for those before them, by the measured drain rate.
            batch: pictures that the graphs' devices run at once. What runs and as much again never wait too long, or
                graphs would run small batches and answer even less.
        """
        self.image_limit = images
        self.byte_limit = size
        self.images = 0
        self.bytes = 0
        self.ahead = 0
        self._pictures_per_request = 1.0  # estimated, of requests that have not asked yet
        self._wait_seconds = wait_seconds
        self._batch = batch
        # Pictures answered, and seconds of work; both fade exponentially, so that their ratio is the rate of late.
        self._answered = 0.0
        self._worked = 0.0
        self._rated_at = time.monotonic()  # up to when; time without work is left out

    def acquire(self, images: int, size: int, held: int = 0) -> "Permit":
        """Take room for `images` pictures and `size` bytes; give it back by leaving the permit.

        Args:
            held: bytes that the same request has taken already.

        Raises:
            TooManyPixels: the request would hold more than the whole budget, and there never is room.
            QueueFull: there is no room now; with the seconds after which there should be.
        """
        if held + size > self.byte_limit:
            raise TooManyPixels(
                f"this would take {held + size:,} bytes of memory, the limit is {self.byte_limit:,}: "
                "send fewer pictures in one request, or smaller ones"
            )
        self.check(images, size)
        if not self.images:
            self._rated_at = time.monotonic()
        self.images += images
        self.bytes += size
        self.ahead += min(images, self._batch)
        if images:
            self._pictures_per_request = min(images, self._batch, self._pictures_per_request * _GROWTH)
        return Permit(self, images, size, held)

    def is_full(self, coming: int = 0) -> bool:
        """Whether there is no room for a single picture, after so many requests that have not asked for theirs yet;
        they are taken to be as small as any of late. If that is too few, some are let in and refused when they ask; as
        many as those at hand have would refuse single pictures beside a large batch.
        """
        more = round(coming * self._pictures_per_request)
        full = self.images + more >= self.image_limit or self.bytes >= self.byte_limit
        return full or self._is_slow(self.ahead + more)

    def check(self, images: int, size: int = 0) -> None:
        """
        Raises:
            QueueFull: there is no room now for `images` pictures and `size` bytes.
        """
        if (
            self.images + images > self.image_limit
            or self.bytes + size > self.byte_limit
            or (images and self._is_slow(self.ahead))
        ):
            raise self.refusal(images)

    def refusal(self, images: int = 1) -> QueueFull:
        """What is said where there is no room: always the same but for the seconds."""
        seconds = self.retry_after_seconds(images)
        return QueueFull(
            f"as much work waits as the service accepts; try again in {seconds} s",
            headers={"Retry-After": str(seconds)},
            retry_after=seconds,
        )

    def retry_after_seconds(self, images: int = 1) -> int:
        """Seconds until there should be room: the pictures ahead of the new ones, or the places still missing if those
        are more, divided by the recent rate of answers; from 1 to 60. Behind large requests that may be too soon, but
        one more refusal costs little, and to come back too late leaves the service idle.
        """
        if not self._answered:
            return 1
        rate = self._rate()
        seconds = max(self.ahead, self.images + images - self.image_limit) / rate if rate else math.inf
        return max(1, math.ceil(min(_LONGEST_RETRY_SECONDS, seconds)))

    def release(self, images: int, size: int) -> None:
        """Give back what a call of `acquire` has taken: as a `Permit` does, or a part of its bytes with no pictures."""
        now = time.monotonic()
        self._answered, self._worked = self._faded(now)
        self._answered += images
        self._rated_at = now
        self.images -= images
        self.bytes -= size
        self.ahead -= min(images, self._batch)

    def _is_slow(self, ahead: int) -> bool:
        """Whether one picture more than these would wait too long; before the first answer that is not known."""
        return ahead > 2 * self._batch and bool(self._answered) and ahead > self._rate() * self._wait_seconds

    def _rate(self) -> float:
        """Pictures answered a second of work."""
        answered, worked = self._faded(time.monotonic())
        return answered / worked if worked else math.inf

    def _faded(self, now: float) -> tuple[float, float]:
        """What is left by now of the pictures answered and of the seconds of work."""
        if not self.images:
            return self._answered, self._worked
        kept = math.exp((self._rated_at - now) / _RATE_SECONDS)
        return self._answered * kept, self._worked * kept + _RATE_SECONDS * (1 - kept)


class Permit:
    """Room in the budget, held from admission to the answer. before: bytes that its request had taken already."""

    __slots__ = ("_before", "_budget", "_images", "_size")

    def __init__(self, budget: Budget, images: int, size: int, before: int) -> None:
        self._budget = budget
        self._images = images
        self._size = size
        self._before = before

    def grow(self, size: int) -> None:
        """Take room for `size` bytes more.

        Raises:
            TooManyPixels, QueueFull: see `Budget.acquire`; what was taken before stays.
        """
        self._budget.acquire(0, size, self._before + self._size)
        self._size += size

    def __enter__(self) -> "Permit":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._budget.release(self._images, self._size)
