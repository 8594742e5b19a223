"""The outermost layer of the server: request ids, the access log, errors as responses, and headers of all responses."""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from emollama.inference.serve.errors import CLIENT_CLOSED_REQUEST, ClientGone, api_error, log_failure
from emollama.inference.serve.metrics import Metrics
from emollama.logs.logger import get_logger

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
UNKNOWN_ROUTE = "other"
STATE = "request_id"  # the key of the request id in the state of an ASGI scope
METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"})
# A response to a body that was not read completely ends the connection. Closing it while the client is still sending would
# discard the response in the client's system, so that a part of the body is read and ignored before.
LINGER_SECONDS = 2.0


class Outermost:
    """ASGI middleware around everything else, so that no exception leaves it.

    Args:
        app: the application.
        metrics: the metrics of the server.
        seconds: maximum time of a request, including slow clients.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics, seconds: float) -> None:
        self._app, self._metrics, self._seconds = app, metrics, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Process a request and log it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send)
        start = time.monotonic()
        try:
            async with asyncio.timeout(self._seconds):
                await self._app(scope, exchange.receive, exchange.send)
        except asyncio.CancelledError:
            exchange.status = CLIENT_CLOSED_REQUEST
            raise
        except Exception as error:
            await self._respond(exchange, error)
        finally:
            seconds = time.monotonic() - start
            method = scope["method"] if scope["method"] in METHODS else UNKNOWN_ROUTE
            self._metrics.request(exchange.route, method, exchange.status, seconds)
            # The path and its query are not logged, because a client may put anything into them.
            log = get_logger()
            log.info("%s %s %d %.3f s, request %s", method, exchange.route, exchange.status, seconds, exchange.request_id)

    async def _respond(self, exchange: _Exchange, error: Exception) -> None:
        """Send an error if that is still possible."""
        log_failure(error, exchange.request_id)
        if isinstance(error, ClientGone):
            exchange.status = CLIENT_CLOSED_REQUEST
        elif not exchange.started:
            response = api_error(error)
            body = json.dumps(response.body()).encode()
            headers = {"content-type": "application/json", "content-length": str(len(body))} | response.headers
            raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
            await exchange.send({"type": "http.response.start", "status": response.status, "headers": raw})
            await exchange.send({"type": "http.response.body", "body": body})


class _Exchange:
    """One request and its response.

    Attributes:
        request_id: the client's id of the request, or a new one.
        status: status of the response.
        started: whether its headers were sent.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        headers = Headers(scope=scope)
        sent = headers.get("x-request-id", "")
        self.request_id = sent if REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex
        self.status, self.started = CLIENT_CLOSED_REQUEST, False
        self._unread = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        self._closes = False
        scope.setdefault("state", {})[STATE] = self.request_id

    @property
    def route(self) -> str:
        """The route without values of parameters; paths that do not exist have the same name."""
        return str(getattr(self._scope.get("route"), "path", UNKNOWN_ROUTE))

    async def receive(self) -> Message:
        """Return the next message of the client."""
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._unread = False
        return message

    async def send(self, message: Message) -> None:
        """Send a message of the response, with the headers that all responses have."""
        if message["type"] == "http.response.start":
            self.started, self.status, self._closes = True, message["status"], self._unread
            headers = MutableHeaders(raw=list(message.get("headers", [])))
            headers["x-request-id"] = self.request_id
            headers["x-content-type-options"] = "nosniff"
            headers["cache-control"] = "no-store"
            if self._closes:
                headers["connection"] = "close"
            message = {**message, "headers": headers.raw}
        elif self._closes and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    async def _linger(self) -> None:
        """Ignore the rest of the body for a short time."""
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                while self._unread:
                    await self.receive()
        except TimeoutError:
            pass
