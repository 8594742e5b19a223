"""A server of the page in a thread of the test's process."""

from __future__ import annotations

import contextlib
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HANG = 120  # seconds that only a hang reaches
VARIABLES = ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY")


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds that other threads or processes bring about."""
    end = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@contextlib.contextmanager
def running(server: Any, temporary: Path, run: Callable[[], None]) -> Iterator[None]:
    """Run a server in this context, with its temporary files in a folder.

    Args:
        server: the server, which listens at 127.0.0.1.
        temporary: an existing folder.
        run: runs the server until it ends.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(temporary))
        for name in VARIABLES:
            patch.setenv(name, "")
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        wait_until(lambda: is_listening(server.port))
        try:
            yield
        finally:
            server.stop()
            thread.join(HANG)
            assert not thread.is_alive()


def is_listening(port: int) -> bool:
    """Whether a program accepts connections at a port of this machine."""
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0
