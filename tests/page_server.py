"""A server of the page in a thread of the test's process, and a client that sends requests as a browser does."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HANG = 600  # seconds that only a hang reaches
VALUES = [None, "", None, "Why?", None, None, None]  # of the function that analyzes a clip
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


class Client:
    """A browser session: it sends its cookie with every request."""

    def __init__(self, port, password=None):
        self.address, self.headers = ("127.0.0.1", port), {}
        if password is not None:
            self.headers["Authorization"] = "Basic " + base64.b64encode(f"me:{password}".encode()).decode()
        reply = self.send("GET", "/")
        if reply.status == 200:
            self.headers["Cookie"] = reply.headers["Set-Cookie"].partition(";")[0]

    def send(self, method, path, body=None, **headers):
        """Send a request without changing its path, and return the response with its content."""
        connection = http.client.HTTPConnection(*self.address, timeout=HANG)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, self.headers | named)
        response = connection.getresponse()
        response.content = response.read()
        connection.close()
        return response

    def upload(self, content, name="clip.mp4", **headers):
        body, kind = form(content, name)
        return self.send("POST", "/gradio_api/upload", body, Content_Type=kind, **headers)

    def uploaded(self, content, name="clip.mp4"):
        """Upload a file and return its path."""
        (path,) = json.loads(self.upload(content, name).content)
        return path

    def read(self, path):
        return self.send("GET", f"/gradio_api/file={path}")

    def post(self, path, **fields):
        return self.send("POST", f"/gradio_api/{path}", json.dumps(fields), Content_Type="application/json")

    def join(self, page, *data):
        """Call the function that analyzes a clip, as the page does."""
        values = [*data, *VALUES[len(data) :]]
        return self.post("queue/join", data=values, fn_index=0, session_hash=page)

    def results(self, page):
        """Wait for the results of a page, and return all of them."""
        return self.send("GET", f"/gradio_api/queue/data?session_hash={page}").content.decode()

    @contextlib.contextmanager
    def connected(self, path):
        """Receive a response without an end in this context."""
        with self.sending("GET", path) as connection:
            assert b"200 OK" in connection.recv(1000)
            yield

    @contextlib.contextmanager
    def sending(self, method, path, body=b"", **headers):
        """Send a request, or the first part of one, and yield the connection."""
        names = {**self.headers, "Host": "127.0.0.1"} | {name.replace("_", "-"): value for name, value in headers.items()}
        head = "".join(f"{name}: {value}\r\n" for name, value in names.items())
        with socket.create_connection(self.address, timeout=HANG) as connection:
            connection.sendall(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body)
            yield connection

    def open_page(self, page):
        """Keep a page open in this context."""
        return self.connected(f"/gradio_api/heartbeat/{page}")


def form(content, name):
    """Return a multipart form with one file, and its content type."""
    head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    return head + content + b"\r\n--x--\r\n", "multipart/form-data; boundary=x"
