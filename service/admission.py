"""The door: while not one more picture is accepted, who asks for an inference is told so at once."""

from starlette.types import ASGIApp, Receive, Scope, Send

from service.budget import Budget
from service.errors import PROTOCOL_PATH
from service.middleware import CALL, Call, is_small
from service.model_store import CAPABILITIES

_ENDPOINTS = {f"/{capability}": capability for capability in CAPABILITIES}
PROTOCOL_ENDPOINT = "v2_infer"


class Admission:
    """Nothing of a refused request is read, not even its key: refusing has to cost next to nothing, or refusals would
    take the time of what was accepted.
    """

    def __init__(self, app: ASGIApp, budget: Budget) -> None:
        self._app = app
        self._budget = budget

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._budget.is_full and scope["type"] == "http" and (endpoint := _endpoint(scope)):
            call: Call = scope[CALL]
            call.endpoint = endpoint
            call.unread = not is_small(call.headers)
            self._budget.check(1)
        await self._app(scope, receive, send)


def _endpoint(scope: Scope) -> str:
    """The inference that a request asks for, as it is named in the metrics; empty: none."""
    if scope["method"] != "POST":
        return ""
    path: str = scope["path"]
    if path.startswith(PROTOCOL_PATH) and path.endswith("/infer"):
        return PROTOCOL_ENDPOINT
    return _ENDPOINTS.get(path, "")
