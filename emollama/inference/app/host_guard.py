"""Which names of the server browsers may use."""

from __future__ import annotations

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from emollama.inference.serve.errors import ApiError
from emollama.inference.serve.guard import Guard


class HostGuard:
    """ASGI middleware that checks the Host and Origin headers as the server of the API does.

    Args:
        app: the application.
        hosts: host names and addresses of the server, in lower case.
        any_address: whether any numeric address may be the host.
    """

    def __init__(self, app: ASGIApp, *, hosts: set[str], any_address: bool) -> None:
        self._guard = Guard(app, key=None, hosts=hosts, any_address=any_address)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request and pass it on."""
        try:
            await self._guard(scope, receive, send)
        except ApiError as error:
            response = PlainTextResponse(str(error), error.status, error.headers)
            await response(scope, receive, send)
