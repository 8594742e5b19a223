"""Download the file of a client's URL without reaching addresses that only the server can reach (``--allow-urls``).

The server resolves the name, checks all addresses, and connects to a checked address, so that the name cannot have another
address for the connection. Redirects are followed by the same steps.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from urllib.parse import SplitResult, urljoin, urlsplit

import h11

from emollama.inference.serve.addresses import Network, may_connect
from emollama.inference.serve.errors import ApiError

PORTS = {"http": 80, "https": 443}
MAX_REDIRECTS = 5
MAX_HEADERS = 1 << 14  # bytes
CHUNK = 1 << 16  # bytes
RESOLVERS = 8  # threads that wait for answers to names
RESOLVER_SECONDS = 10.0  # for one name; the system's resolver can take much longer
REDIRECTS = (301, 302, 303, 307, 308)


class UrlReader:
    """Downloads the URLs of clients.

    Args:
        seconds: maximum time of one download, with all redirects.
        networks: networks that are allowed in addition to public addresses.
    """

    def __init__(self, seconds: float, networks: Sequence[Network] = ()) -> None:
        self._seconds, self._networks = seconds, networks
        # Threads of its own, because names with slow servers would otherwise occupy those that decode bodies.
        self._resolvers = ThreadPoolExecutor(RESOLVERS, thread_name_prefix="emollama-resolve")

    async def read(self, url: str, count: Callable[[int], None], param: str) -> bytes:
        """Return the content of a URL.

        Args:
            url: the URL, which starts with http:// or https://.
            count: receives the size of each part of the content, and raises an error if it is too large.
            param: the part of the request that contains the URL, for errors.

        Raises:
            ApiError: If the URL is not allowed, cannot be downloaded, or exceeds a limit.
        """
        try:
            async with asyncio.timeout(self._seconds):
                for _ in range(MAX_REDIRECTS + 1):
                    response = await self._get(_parsed(url), count)
                    if isinstance(response, bytes):
                        return response
                    url = urljoin(url, response)
            why = f"it has more than {MAX_REDIRECTS} redirects"
        except _UnusableUrl as refused:
            why = str(refused)
        except TimeoutError:
            why = f"its download takes longer than {self._seconds:g} seconds"
        except (OSError, h11.ProtocolError, ValueError):
            # The reason would tell a client about the network of the server.
            why = "it cannot be downloaded"
        raise ApiError(400, f"The URL cannot be used: {why}.", param=param, code="invalid_url")

    async def _get(self, parts: SplitResult, count: Callable[[int], None]) -> bytes | str:
        """Request a URL; return its content, or the address of a redirect."""
        host, port = str(parts.hostname), parts.port or PORTS[parts.scheme]
        address = await self._checked_address(host, port)
        context = ssl.create_default_context() if parts.scheme == "https" else None
        name = host if context else None
        reader, writer = await asyncio.open_connection(address, port, ssl=context, server_hostname=name)
        try:
            connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEADERS)
            path = (parts.path or "/").replace(" ", "%20") + (f"?{parts.query}" if parts.query else "")
            authority = f"[{host}]" if ":" in host else host
            headers = [("Host", authority if port == PORTS[parts.scheme] else f"{authority}:{port}"), ("User-Agent", "emollama")]
            headers += [("Accept-Encoding", "identity"), ("Connection", "close")]
            for event in (h11.Request(method="GET", target=path, headers=headers), h11.EndOfMessage()):
                writer.write(connection.send(event) or b"")
            await writer.drain()
            return await _response(connection, reader, count)
        finally:
            writer.close()

    async def _checked_address(self, host: str, port: int) -> str:
        """Resolve a name and return its first address, if the server may connect to all of them."""
        resolve = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        try:
            async with asyncio.timeout(RESOLVER_SECONDS):
                entries = await asyncio.get_running_loop().run_in_executor(self._resolvers, resolve)
        except TimeoutError:
            raise _UnusableUrl(f"the address of its host is not known after {RESOLVER_SECONDS:g} seconds") from None
        addresses = [str(entry[4][0]) for entry in entries]
        if not addresses or not all(may_connect(address, self._networks) for address in addresses):
            raise _UnusableUrl("its host does not have a public address")
        return addresses[0]


class _UnusableUrl(Exception):
    """A URL that cannot be used; the message says why."""


def _parsed(url: str) -> SplitResult:
    """Split a URL, after checks that need no network."""
    parts = urlsplit(url)
    if parts.scheme not in PORTS:
        raise _UnusableUrl("only http:// and https:// are allowed")
    if parts.username is not None or parts.password is not None:
        raise _UnusableUrl("it contains a user name or a password")
    if not parts.hostname or not url.isascii() or not url.isprintable():
        raise _UnusableUrl("it is not a valid URL")
    return parts


async def _response(connection: h11.Connection, reader: asyncio.StreamReader, count: Callable[[int], None]) -> bytes | str:
    """Read a response; return its content, or the address of a redirect."""
    content = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(CHUNK))
        elif isinstance(event, h11.Response):
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers}
            if event.status_code in REDIRECTS and "location" in headers:
                return headers["location"]
            if event.status_code != 200 or headers.get("content-encoding", "identity") != "identity":
                raise _UnusableUrl("its server does not send the file")
        elif isinstance(event, h11.Data):
            count(len(event.data))
            content += event.data
        elif isinstance(event, h11.EndOfMessage):
            return bytes(content)
        elif isinstance(event, h11.ConnectionClosed):
            raise _UnusableUrl("its server closed the connection")
