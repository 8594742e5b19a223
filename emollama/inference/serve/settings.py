"""The settings of a server, which are the options of ``emollama serve``."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from emollama.errors import UserError
from emollama.variables import API_KEY

MEBIBYTE = 1 << 20
LIMITS = ("max_body_mb", "max_seconds", "max_frames", "max_pixels", "max_waiting", "max_batch_size", "timeout", "body_timeout")


@dataclass(frozen=True)
class ServeSettings:
    """The settings of a server.

    Attributes:
        host: address or name to listen on.
        port: port to listen on; 0 selects a free one.
        model: the name of the model in requests.
        preload: load the model before the server listens.
        allow_files: folder whose files clients may name; None for none.
        allow_urls: networks that clients' URLs may reach in addition to public addresses; None allows no URLs.
        allowed_hosts: further names of the server in Host headers.
        insecure: listen on other addresses than those of loopback without an API key.
        max_body_mb: maximum size of a body and of a file, in MiB.
        max_seconds: maximum duration of a video or audio track.
        max_frames: maximum number of frames of a video.
        max_pixels: maximum width times height of a frame or an image.
        max_waiting: maximum number of requests in the queue.
        max_batch_size: maximum number of requests that are answered together.
        timeout: maximum time of an answer, in seconds.
        body_timeout: maximum time of receiving a body or downloading a URL, in seconds.
        engine_url: address of a vLLM server that runs the language model; None runs it here.
        key: the API key; None requires no key.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    model: str = "emollama"
    preload: bool = False
    allow_files: str | None = None
    allow_urls: Sequence[str] | None = None
    allowed_hosts: Sequence[str] = ()
    insecure: bool = False
    max_body_mb: int = 100
    max_seconds: float = 300.0
    max_frames: int = 18000
    max_pixels: int = 4096 * 2304
    max_waiting: int = 64
    max_batch_size: int = 32
    timeout: float = 120.0
    body_timeout: float = 60.0
    engine_url: str | None = None
    key: str | None = None

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UserError: If a value is out of its range, or the server would be open to everybody.
        """
        for name in LIMITS:
            if not 0 < (value := getattr(self, name)) < float("inf"):
                raise UserError(f"--{name.replace('_', '-')} is {value:g}; it must be above 0 and finite.")
        if not 0 <= self.port < 1 << 16:
            raise UserError(f"--port is {self.port}; a port is a number from 0 to 65535.")
        if self.key is not None and not (self.key.isascii() and self.key.isprintable() and self.key.strip() == self.key != ""):
            raise UserError(f"{API_KEY}: a key consists of printable ASCII characters, without spaces at both ends.")
        if self.key is None and not self.insecure and not is_loopback(self.host):
            raise UserError(
                f"--host {self.host}: other machines can reach this address. Set the environment variable {API_KEY} to a key that"
                " clients have to send, listen on 127.0.0.1, or add --insecure to let everybody use the server."
            )
        self.networks()

    @property
    def max_bytes(self) -> int:
        """Maximum size of a body and of a file."""
        return self.max_body_mb * MEBIBYTE

    def networks(self) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
        """Return the networks of ``allow_urls``.

        Raises:
            UserError: If a text is not a network.
        """
        try:
            return [ipaddress.ip_network(text) for text in self.allow_urls or ()]
        except ValueError as error:
            raise UserError(f"--allow-urls: {error}. A network has the form 10.1.0.0/16.") from None


def is_loopback(host: str) -> bool:
    """Return whether all addresses of a host are loopback addresses.

    Raises:
        UserError: If the name has no address.
    """
    return all(ipaddress.ip_address(address[4][0]).is_loopback for address in addresses(host))


def addresses(host: str) -> list[tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[str, int]]]:
    """Return the addresses of a host as ``socket.getaddrinfo`` does.

    Raises:
        UserError: If the name has no address.
    """
    try:
        return socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)  # type: ignore[return-value]
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "invalid name"
        raise UserError(f"--host: '{host}' is not an address of this machine: {reason}. Use 127.0.0.1 or a name.") from None


def read_key() -> str | None:
    """Return the API key of the environment, and remove it there, so that no child process gets it."""
    return os.environ.pop(API_KEY, None)
