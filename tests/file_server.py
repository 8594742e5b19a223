"""A real HTTP server on this machine, whose answers tests can spoil."""

from __future__ import annotations

import functools
import hashlib
import http.server
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class FileServer:
    """Serves the files of a folder at ``url`` until :meth:`stop`.

    Attributes:
        url: its address.
        requests: "GET /path 200" for each request that has been answered; a body that was sent completely adds "complete".
        spoil: path -> what happens to the next requests for it, in order; each is called with the request's handler.
        parts: (path, position, bytes) of each part of a file that was requested.
        has_ranges: whether parts of files can be requested.
        sends: headers that the server sends: any of "ETag", "Last-Modified", "Content-Length".
    """

    def __init__(self, folder: Path) -> None:
        self.requests: list[str] = []
        self.spoil: dict[str, list[Callable[[Handler], None]]] = defaultdict(list)
        self.parts: list[tuple[str, int, int]] = []
        self.has_ranges = True
        self.sends = {"ETag", "Last-Modified", "Content-Length"}
        self.stopped, self.lock = threading.Event(), threading.Lock()
        handler = functools.partial(Handler, self, directory=str(folder))
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the server; connections are refused from now on."""
        self.stopped.set()
        if self._thread.is_alive():
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    def bodies(self, path: str) -> int:
        """How often a file was sent completely."""
        return self.requests.count(f"GET {path} 200 complete")


class Handler(http.server.SimpleHTTPRequestHandler):
    """Answers a request."""

    def __init__(self, server: FileServer, *arguments: object, directory: str) -> None:
        self.files = server
        super().__init__(*arguments, directory=directory)  # type: ignore[arg-type]

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(super().do_HEAD)

    def do_GET(self) -> None:
        self._answer(super().do_GET)

    def _answer(self, usual: Callable[[], None]) -> None:
        todo = self.files.spoil[self.path]
        with suppress(ConnectionError):
            if todo:
                return todo.pop(0)(self)
            if self.command == "GET" and self.headers["If-None-Match"] == self.etag():
                self.send_response(304)
                self.end_headers()
                return
            if self.command == "GET" and self.files.has_ranges and "Range" in self.headers:
                return self.send_part()
            usual()

    def send_part(self) -> None:
        """Send the bytes that the header Range asks for."""
        content = Path(self.translate_path(self.path)).read_bytes()
        first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        part = content[first : last + 1]
        self.send_response(206 if part else 416)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
        self.end_headers()
        with self.files.lock:
            self.files.parts.append((self.path, first, len(part)))
        self.wfile.write(part)

    def etag(self) -> str:
        """The ETag of the requested file."""
        path = Path(self.translate_path(self.path))
        return f'"{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"' if path.is_file() else ""

    def send_header(self, keyword: str, value: str) -> None:
        if keyword not in {"Last-Modified", "Content-Length"} - self.files.sends:
            super().send_header(keyword, value)

    def end_headers(self) -> None:
        if "ETag" in self.files.sends and self.etag():
            self.send_header("ETag", self.etag())
        super().end_headers()

    def log_request(self, code: object = "-", size: object = "-") -> None:
        # Several requests may be answered at the same time, each by a handler of its own.
        with self.files.lock:
            self.number = len(self.files.requests)
            self.files.requests.append(f"{self.command} {self.path} {int(str(getattr(code, 'value', code)))}")

    def copyfile(self, source: object, outputfile: object) -> None:
        super().copyfile(source, outputfile)  # type: ignore[arg-type,type-var]
        self.files.requests[self.number] += " complete"


def status(code: int) -> Callable[[Handler], None]:
    """The server fails with a status."""
    return lambda handler: handler.send_error(code)


def drop(sent: int) -> Callable[[Handler], None]:
    """The connection ends after some bytes of the file."""

    def answer(handler: Handler) -> None:
        content = Path(handler.translate_path(handler.path)).read_bytes()
        handler.send_response(206 if "Range" in handler.headers else 200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[:sent])

    return answer


def silence(sent: int | None = None) -> Callable[[Handler], None]:
    """The server sends nothing more until it stops: no answer at all, or none after some bytes of the file."""

    def answer(handler: Handler) -> None:
        if sent is not None:
            drop(sent)(handler)
            handler.wfile.flush()
        handler.files.stopped.wait()

    return answer


@contextmanager
def serving(folder: Path) -> Iterator[FileServer]:
    """A server for the duration of a block."""
    server = FileServer(folder)
    try:
        yield server
    finally:
        server.stop()
