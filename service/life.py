"""What the app and the server tell each other of the end of the process."""

from dataclasses import dataclass


@dataclass
class Life:
    """Three facts, each set once.

    Attributes:
        draining: the end has begun: the service is not ready, and every answer closes its connection.
        hung: a run of a graph never ended.
        busy: at the end a thread still did what nobody waits for.
    """

    draining: bool = False
    hung: bool = False
    busy: bool = False
