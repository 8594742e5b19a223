"""Limits of the connections of a server: clients that send nothing, or too slowly, do not keep others out."""

from __future__ import annotations

import asyncio
import json
import logging
from http import HTTPStatus
from typing import Any, Literal, cast

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from emollama.inference.serve.errors import ApiError, unavailable

BACKLOG = 256  # connections that the system accepts while the server is busy
# Half of the descriptors that a process has by default (1,024): files, downloads and libraries need others.
MAX_CONNECTIONS = 512
HEADER_SECONDS = 20.0  # from the start of a connection, or the first byte of a later request, to the end of its headers
# Longer than clients and proxies keep idle connections (httpx: 5 s, nginx: 60 s), which otherwise may use one that just closes.
KEEP_ALIVE_SECONDS = 75
MAX_HEADERS = 1 << 15  # bytes of the headers of a request


def server_config(app: ASGIApp, *, grace_seconds: int, lifespan: Literal["auto", "off"] = "off") -> uvicorn.Config:
    """Return uvicorn's settings of a server with limited connections, which neither logs URLs nor believes proxies.

    Args:
        app: the application.
        grace_seconds: maximum time that open requests get at the end of the server.
        lifespan: whether the application gets the events of the start and the end (of the ASGI protocol).
    """
    config = uvicorn.Config(
        app,
        http=LimitedConnection,
        ws="none",
        loop="asyncio",
        lifespan=lifespan,
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        h11_max_incomplete_event_size=MAX_HEADERS,
        timeout_graceful_shutdown=grace_seconds,
    )
    # It would log URLs, into which a client may put anything. A handler that is added to it would enable it again.
    logging.getLogger("uvicorn.access").disabled = True
    return config


class LimitedConnection(H11Protocol):
    """A connection whose client must send the headers of a request in time, and which gives way to others while it is idle."""

    _opened = 0.0
    _refused = False
    _header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection. If there are too many, close the oldest idle one, or refuse this one if no other is idle."""
        super().connection_made(transport)
        self._opened = self.loop.time()
        self._watch_headers()
        if len(self.connections) <= MAX_CONNECTIONS:
            return
        others = [cast(LimitedConnection, other) for other in self.connections if other is not self]
        idle = min((other for other in others if other.is_idle), key=lambda other: other._opened, default=None)
        # An error that is sent before the client has sent anything is lost when its request arrives.
        self._refused = idle is None or idle._refused
        if idle is not None:
            idle.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Process a part of a request."""
        if self._refused:
            message = "The server has too many connections. Send the request again later."
            self._reject(unavailable(message, "too_many_connections"))
            return
        super().data_received(data)
        self._watch_headers()

    def on_response_complete(self) -> None:
        """Continue with the next request, of which a part may have arrived already."""
        super().on_response_complete()
        if self.conn.trailing_data[0]:
            self._watch_headers()

    def send_400_response(self, msg: str) -> None:
        """Respond to what is not HTTP."""
        message = f"The request is not valid HTTP/1.1, or its headers take more than {MAX_HEADERS:,} bytes. Correct it."
        self._reject(ApiError(400, message, code="invalid_request"))

    @property
    def is_idle(self) -> bool:
        """Whether no request is being received or answered."""
        return self.transport.is_closing() or self.cycle is None or self.cycle.response_complete

    def abort(self) -> None:
        """Close the connection without sending what the client has not received yet."""
        self.connections.discard(self)
        self.transport.abort()

    def _watch_headers(self) -> None:
        """Start the timer if a client has to send headers, and stop it when they are complete."""
        if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
            self._stop_timer()
        elif self._header_timer is None:
            self._header_timer = self.loop.call_later(HEADER_SECONDS, self._too_slow)

    def _stop_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _too_slow(self) -> None:
        if not self.conn.trailing_data[0]:
            # Without a part of a request, a client would take the error for the response to its next one.
            self.abort()
            return
        message = f"The headers of the request were not complete after {HEADER_SECONDS:g} seconds. Send it again."
        self._reject(ApiError(408, message, code="headers_too_slow"))

    def _reject(self, error: ApiError) -> None:
        """Send an error, and close the connection."""
        self._stop_timer()
        if self.cycle is not None:
            # The application, which may be waiting for the rest of the request, must not send anything after the error.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.transport.is_closing() or self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.abort()
            return
        self.transport.write(self._response(error))
        self.transport.close()

    def _response(self, error: ApiError) -> bytes:
        body = json.dumps(error.body()).encode()
        headers: dict[str, Any] = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
        response = h11.Response(
            status_code=error.status,
            headers=[*(headers | error.headers).items()],
            reason=HTTPStatus(error.status).phrase,
        )
        events = (response, h11.Data(data=body), h11.EndOfMessage())
        return b"".join(self.conn.send(event) or b"" for event in events)
