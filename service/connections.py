"""What all connections share: how many there are, how many there may be, who is told of their problems."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from service.errors import TooManyConnections
from service.headers import RequestIds
from service.ready_answer import ReadyAnswer
from service.throttle import Throttle


@dataclass
class Connections:
    """Changed on the event loop alone.

    Attributes:
        limit: most open ones.
        open: those that count against it.
        lingering: those past it that have had their answer and are about to be closed.
        refused: those past it, since the start.
        throttle: of clients whose requests are refused.
        on_problem: told the slug of every problem that is answered without the app, but for a full queue.
        ids: of requests.
    """

    limit: int
    open: int = 0
    lingering: int = 0
    refused: int = 0
    throttle: Throttle = field(default_factory=Throttle)
    on_problem: Callable[[str], None] = lambda slug: None
    ids: RequestIds = field(default_factory=RequestIds)

    @cached_property
    def no_place(self) -> ReadyAnswer:
        """To a connection too many."""
        detail = f"{self.limit:,} connections are open, which is the limit"
        return ReadyAnswer(TooManyConnections(detail, headers={"retry-after": "1"}))
