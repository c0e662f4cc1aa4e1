"""One log record for every n-th request, and for every one that the service failed at; no picture, no key in it. That a
probe is told 503 is no failure: it asks every few seconds for as long as there is no model.
"""

import itertools
import logging

from starlette.types import Scope

from service.call import Call
from service.logs import say
from service.middleware import PROBE_PATHS


class AccessLog:
    """What `RequestEdge` calls at the end of a request."""

    def __init__(self, every: int) -> None:
        self._every = every
        self._numbers = itertools.count()

    def __call__(self, call: Call, scope: Scope, seconds: float) -> None:
        failed = call.status >= 500 and scope["path"] not in PROBE_PATHS
        if not failed and next(self._numbers) % self._every:
            return
        facts: dict[str, object] = {
            "request_id": call.request_id,
            "method": scope["method"],
            "endpoint": call.endpoint,
            "status": call.status,
            "milliseconds": round(seconds * 1e3, 3),
        }
        if call.model is not None:
            facts |= {"model": call.model.name, "version": call.model.version}
        if call.key:
            facts["key"] = call.key
        facts |= {f"{name}_milliseconds": round(taken * 1e3, 3) for name, taken in call.stages}
        say(logging.INFO, "request", None, **facts)
