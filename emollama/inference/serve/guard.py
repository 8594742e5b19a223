"""Which requests the server processes at all: their Host and Origin headers and the API key are checked first."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from emollama.inference.serve.errors import ApiError
from emollama.text_encoding import encodable

HEALTH = "/health"  # the only route that needs no key
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


class Guard:
    """ASGI middleware that rejects requests of other web pages, and requests without the API key.

    A web page of another site can let a browser send requests to this server, also to its loopback address, under a name of that
    site (DNS rebinding). Such requests have the name of the site in their Host or Origin header.

    Args:
        app: the application.
        key: the API key; None requires no key.
        hosts: host names and addresses of the server, in lower case.
        any_address: whether any numeric address may be the host, because the server listens on all addresses of the machine. A
            numeric address cannot be rebound.
    """

    def __init__(self, app: ASGIApp, *, key: str | None, hosts: Collection[str], any_address: bool) -> None:
        self._app, self._hosts, self._any_address = app, LOCAL_NAMES | frozenset(hosts), any_address
        self._key = None if key is None else key.encode("ascii")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request and pass it on.

        Raises:
            ApiError: If it is rejected.
        """
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            self._check_host(headers)
            _check_origin(headers)
            if "transfer-encoding" in headers and "content-length" in headers:
                # Proxies and servers differ in which one they believe.
                message = "A request has either Content-Length or Transfer-Encoding."
                raise ApiError(400, message, code="invalid_headers", headers={"Connection": "close"})
            if scope["path"] != HEALTH:
                self._check_key(headers)
        await self._app(scope, receive, send)

    def _check_host(self, headers: Headers) -> None:
        values = headers.getlist("host")
        name = _host_name(values[0]) if len(values) == 1 else None
        if name is None or not (name in self._hosts or (self._any_address and _is_address(name))):
            message = "The Host header is not a name of this server. Add the name with --allowed-host NAME."
            raise ApiError(403, message, code="host_not_allowed")

    def _check_key(self, headers: Headers) -> None:
        if self._key is None:
            return
        values = headers.getlist("authorization")
        scheme, _, sent = values[0].partition(" ") if len(values) == 1 else ("", "", "")
        # The time of the comparison does not tell how many characters are right.
        if not hmac.compare_digest(encodable(sent.strip()).encode(), self._key) or scheme.lower() != "bearer":
            message = "The API key is missing or wrong. Send it as 'Authorization: Bearer KEY'."
            raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def _check_origin(headers: Headers) -> None:
    """Reject requests of pages of other sites. Browsers send the header, other clients do not."""
    host = headers["host"].lower()
    if any(origin.lower() not in (f"http://{host}", f"https://{host}") for origin in headers.getlist("origin")):
        raise ApiError(403, "Requests of pages of other sites are not allowed.", code="origin_not_allowed")


def _host_name(host: str) -> str | None:
    """Return the name or address of a Host header, without the port; None if it is invalid."""
    try:
        parts = urlsplit(f"//{host}")
        has_port_only = parts.port is None or parts.port > 0
        return parts.hostname if has_port_only and parts.netloc == host and parts.username is None else None
    except ValueError:
        return None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
