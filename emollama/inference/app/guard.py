"""Which requests of browsers reach Gradio: a list of routes, within limits, and only for files of the same session."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from emollama.errors import UserError
from emollama.inference.app.bodies import Refused, in_time, read_body
from emollama.inference.app.failures import log_failure
from emollama.inference.app.headers import HEADERS
from emollama.inference.app.listeners import Listeners
from emollama.inference.app.session_files import DELETED, SessionFiles

API = "/gradio_api"
FILE, UPLOAD, HEARTBEAT = f"{API}/file=", f"{API}/upload", f"{API}/heartbeat/"
JOIN, RESULTS = f"{API}/queue/join", f"{API}/queue/data"
# Routes that every visitor may read. All others need the session that the page sets.
PUBLIC = re.compile(
    rf"/|/(?:assets|static)/[\w./-]{{1,200}}|/theme\.css|/favicon\.ico|/manifest\.json|{API}/(?:theme\.css|startup-events)"
)
PROGRESS = f"{API}/upload_progress"
MAX_QUERY = 100  # characters; Gradio keeps the identifiers of uploads
RANGE = re.compile(r"|bytes=(?:\d{1,15}-\d{0,15}|-\d{1,15})", re.ASCII)
FORM = re.compile(r"multipart/form-data; ?boundary=[\w'()+,./:=?-]{1,100}", re.ASCII)
READ = re.compile(rf"{API}/(?:queue/data|upload_progress|heartbeat/\w+|file=.+)")
WRITE = re.compile(rf"{API}/(?:queue/join|cancel|reset|upload)")
PAGE = re.compile(r"[\w-]{1,64}", re.ASCII)  # identifier of a page, which Gradio chooses at random
MAX_REQUESTS = 32  # of a session at a time; browsers open six connections to a server
FORM_SLACK = 1 << 16  # bytes of a form in addition to its file


@dataclass(frozen=True)
class GuardOptions:
    """How requests are checked.

    Attributes:
        cookie: name of the cookie with the session.
        password: the password; None requires none.
        max_bytes: maximum size of an upload.
        seconds: maximum time of receiving a request.
    """

    cookie: str
    password: str | None
    max_bytes: int
    seconds: float


class PageGuard:
    """ASGI middleware around Gradio's application.

    Args:
        app: the application.
        numbers_of_values: index of each function of the page -> number of its values.
        files: the files of the sessions.
        listeners: the connections of pages for results.
        options: how requests are checked. Host and Origin are checked before (:class:`HostGuard`).
    """

    def __init__(
        self, app: ASGIApp, numbers_of_values: Mapping[int, int], files: SessionFiles, listeners: Listeners, options: GuardOptions
    ) -> None:
        self._app, self._numbers_of_values = app, numbers_of_values
        self._files, self._listeners, self._options = files, listeners, options
        self._connections: set[asyncio.Future[None]] = set()
        self._requests: Counter[str] = Counter()  # session -> requests that have not ended
        self._is_ending = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request and pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        cookie = request.cookies.get(self._options.cookie, "")
        session = cookie if self._files.is_session(cookie) else None
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(raw=list(message["headers"]))
                headers.update(HEADERS)
                if not scope["path"].startswith(("/assets/", "/static/")):
                    headers["cache-control"] = "no-store"
                if session is None and scope["path"] == "/":
                    value = f"{self._options.cookie}={self._files.new_session()}"
                    headers.append("set-cookie", f"{value}; Path=/; HttpOnly; SameSite=Strict")
                message = {**message, "headers": headers.raw}
            await send(message)

        try:
            self._check_password(request.headers)
            await self._pass_on(request, session, send_with_headers)
        except ClientDisconnect:
            # The client has gone while it was sending.
            return
        except Exception as error:
            refused = error if isinstance(error, Refused) else Refused(500, "The server failed. Its log has the details.")
            if refused is not error:
                log_failure(error)
            if not started:
                await _response(refused, scope["path"])(scope, receive, send_with_headers)

    def _check_password(self, headers: Headers) -> None:
        if self._options.password is None:
            return
        scheme, _, encoded = headers.get("authorization", "").partition(" ")
        try:
            sent = base64.b64decode(encoded, validate=True).partition(b":")[2]
        except (ValueError, binascii.Error):
            sent = b""
        # The time of the comparison does not tell how many characters are right.
        if not hmac.compare_digest(sent, self._options.password.encode()) or scheme.lower() != "basic":
            message = "The password is missing or wrong. Enter any user name, and the password of this server."
            raise Refused(401, message, {"www-authenticate": 'Basic realm="emollama", charset="UTF-8"'})

    async def _pass_on(self, request: Request, session: str | None, send: Send) -> None:
        scope, path, method = request.scope, request.scope["path"], request.scope["method"]
        reads = method in ("GET", "HEAD")
        if reads and PUBLIC.fullmatch(path):
            # Gradio would read the state of a page from a folder that the query of the address names.
            async with in_time(self._options.seconds):
                await self._app({**scope, "query_string": b""} if path == "/" else scope, request.receive, send)
            return
        if not (READ.fullmatch(path) if reads else method == "POST" and WRITE.fullmatch(path)):
            raise Refused(404, "There is no such page.")
        if session is None:
            raise Refused(403, "The session is unknown: cookies are blocked, or the server was restarted. Reload the page.")
        with self._counted(session):
            await self._pass_on_of(session, request, send)

    async def _pass_on_of(self, session: str, request: Request, send: Send) -> None:
        """Pass on a request of a session."""
        scope, path = request.scope, request.scope["path"]
        if not RANGE.fullmatch(request.headers.get("range", "")):
            raise Refused(416, "Only a single range of bytes is supported.")
        if path == PROGRESS and len(scope["query_string"]) > MAX_QUERY:
            raise Refused(400, "The identifier of the upload is too long.")
        if path.startswith(FILE) and not self._files.may_read(session, path.removeprefix(FILE)):
            raise Refused(404, "There is no such file. It may have been deleted; upload it again.")
        if path == UPLOAD:
            await self._upload(request, session, send)
        elif path.startswith(HEARTBEAT):
            await self._heartbeat(request, session, send)
        elif path == RESULTS:
            await self._results(request, session, send)
        elif scope["method"] == "POST":
            await self._app(scope, await self._checked_json(request, session), send)
        else:
            await self._app(scope, request.receive, send)

    @contextmanager
    def _counted(self, session: str) -> Iterator[None]:
        """Count a request of a session in this context, so that no browser occupies all connections of the server."""
        if self._requests[session] >= MAX_REQUESTS:
            raise Refused(429, "Too many pages of this browser are open. Close some of them.", {"retry-after": "10"})
        self._requests[session] += 1
        try:
            yield
        finally:
            self._requests -= Counter([session])

    async def _heartbeat(self, request: Request, session: str, send: Send) -> None:
        """Keep the files of a session while one of its pages is open."""
        self._check_page(session, request.scope["path"].removeprefix(HEARTBEAT))
        self._files.open_page(session)
        connection = asyncio.ensure_future(self._app(request.scope, request.receive, send))
        self._connections.add(connection)
        try:
            await asyncio.wait({connection})
        finally:
            connection.cancel()
            self._connections.discard(connection)
            if not self._is_ending:
                self._files.close_page(session)

    def close_pages(self) -> None:
        """End the connections of idle pages, because the server ends. Answers still need the files."""
        self._is_ending = True
        for connection in self._connections:
            connection.cancel()

    async def _results(self, request: Request, session: str, send: Send) -> None:
        """Send the results of a page."""
        pages = parse_qs(request.scope["query_string"].decode("latin-1"), keep_blank_values=True).get("session_hash", [])
        page = self._check_page(session, pages[0] if len(pages) == 1 else "")
        with self._listeners.listening(session, page):
            await self._app(request.scope, request.receive, send)

    async def _upload(self, request: Request, session: str, send: Send) -> None:
        """Receive a file of limited size, and note the session that it belongs to."""
        length, max_bytes = request.headers.get("content-length", ""), self._options.max_bytes
        if not (length.isascii() and length.isdigit()):
            raise Refused(411, "An upload needs a Content-Length header.")
        if not FORM.fullmatch(request.headers.get("content-type", "")):
            raise Refused(415, "An upload has to be a form (multipart/form-data).")
        if int(length) > max_bytes + FORM_SLACK:
            raise Refused(413, f"The file is larger than {max_bytes >> 20} MiB. Upload a shorter or smaller recording.")
        body = bytearray()
        status = 500

        async def send_and_read(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            body.extend(message.get("body", b""))
            # After a response with the status 500, Gradio raises the exception.
            if status != 500:
                await send(message)

        try:
            self._files.begin_upload(session)
        except UserError as error:
            raise Refused(429, str(error), {"retry-after": "10"}) from None
        try:
            async with in_time(self._options.seconds):
                await self._app(request.scope, request.receive, send_and_read)
        except (AttributeError, TypeError, ValueError):
            # Gradio expects the fields that its browser code sends.
            raise Refused(400, "The form is not one of this page. Reload it.") from None
        finally:
            # If the client went while it received the response, the body is not complete.
            paths: list[str] = []
            with suppress(ValueError):
                paths = json.loads(body) if status == 200 else []
            self._files.end_upload(session, paths)

    async def _checked_json(self, request: Request, session: str) -> Receive:
        """Read a JSON body, check its files and its page, and return a function from which the application reads it again."""
        async with in_time(self._options.seconds):
            body = await read_body(request, self._numbers_of_values)
        if body.page is not None:
            self._check_page(session, body.page)
        if not all(isinstance(path, str) and self._files.may_read(session, path) for path in body.paths):
            raise Refused(403, DELETED)
        if request.scope["path"] == JOIN and body.page is not None:
            try:
                self._listeners.add_event(session, body.page)
            except UserError as error:
                raise Refused(429, str(error), {"retry-after": "10"}) from None
        sent = False

        async def receive() -> Message:
            nonlocal sent
            if sent:
                return await request.receive()
            sent = True
            return {"type": "http.request", "body": body.encoded, "more_body": False}

        return receive

    def _check_page(self, session: str, page: str) -> str:
        """Return the identifier of a page of a session."""
        if not PAGE.fullmatch(page):
            raise Refused(400, "The identifier of the page is invalid. Reload it.")
        if not self._files.claim_page(session, page):
            raise Refused(403, "This page belongs to another session. Reload it.")
        return page


def _response(error: Refused, path: str) -> Response:
    """Return the response to a refused request, of which Gradio's browser code shows the message."""
    if WRITE.fullmatch(path) and path != UPLOAD:
        return JSONResponse({"detail": str(error)}, error.status, error.headers)
    return PlainTextResponse(str(error), error.status, error.headers)
