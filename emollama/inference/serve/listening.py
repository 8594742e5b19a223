"""A socket that is bound before anything expensive is done, and the server that listens on it until a signal ends it."""

from __future__ import annotations

import contextlib
import errno
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType

import uvicorn

from emollama.errors import UserError
from emollama.inference.serve.settings import addresses
from emollama.logs.logger import get_logger


class SignalledServer(uvicorn.Server):
    """A server that does not repeat the signal that ended it, because that is its regular end, and says what it waits for.

    Attributes:
        last_signal: number of the last signal.
    """

    last_signal = 0

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle SIGTERM and SIGINT in this context."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop accepting connections; at the second signal, end without waiting for requests."""
        self.last_signal = sig
        self.force_exit = self.should_exit
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wait for the requests that were accepted, and log how many they are."""
        if count := len(self.server_state.tasks):
            get_logger().info("stopping: %d %s left", count, "request" if count == 1 else "requests")
        await super().shutdown(sockets)


def bind(host: str, port: int) -> socket.socket:
    """Bind a socket to an address.

    Raises:
        UserError: If the address cannot be used.
    """
    # A name such as localhost can have addresses of both families, of which clients may know only the older one.
    family, _, _, _, address = min(addresses(host), key=lambda entry: entry[0] != socket.AF_INET)
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        with listening_errors(host, port):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address[0], port))
    except BaseException:
        listener.close()
        raise
    return listener


@contextlib.contextmanager
def listening_errors(host: str, port: int) -> Iterator[None]:
    """Convert errors of an address that cannot be used.

    Raises:
        UserError: The error, in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"--port: another program listens on port {port} of {host}. Set another port, or end that program."
            ) from None
        raise UserError(f"--host {host} --port {port}: cannot listen there: {error.strerror}. Set another address.") from None
