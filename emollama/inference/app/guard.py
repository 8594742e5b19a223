"""Which requests of browsers reach Gradio: a list of routes, within limits, and only for files of the same session."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from emollama.errors import UserError
from emollama.inference.app.session_files import SessionFiles
from emollama.inference.serve.errors import ApiError
from emollama.inference.serve.guard import Guard

API = "/gradio_api"
FILE, UPLOAD, HEARTBEAT = f"{API}/file=", f"{API}/upload", f"{API}/heartbeat/"
READ = re.compile(
    rf"/|/(?:assets|static)/[\w./-]+|/theme\.css|/favicon\.ico|/manifest\.json"
    rf"|{API}/(?:theme\.css|startup-events|queue/data|upload_progress|heartbeat/\w+|file=.+)"
)
WRITE = re.compile(rf"{API}/(?:queue/join|cancel|reset|upload)")
PAGE = re.compile(r"[\w-]{1,64}", re.ASCII)  # identifier of a page, which Gradio chooses at random
MAX_JSON = 1 << 20  # bytes
FORM_SLACK = 1 << 16  # bytes of a form in addition to its file
# The browser sends no request to other servers, even if the page contains one. Gradio needs inline scripts and styles.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "connect-src 'self' blob: data:",
        "img-src 'self' data: blob:",
        "media-src 'self' blob:",
        "font-src 'self' data:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


class Refused(Exception):
    """A request that the server refuses, with a status and a message."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers


class PageGuard:
    """ASGI middleware around Gradio's application.

    Args:
        app: the application, which already checks Host and Origin (:class:`emollama.inference.serve.guard.Guard`).
        files: the files of the sessions.
        cookie: name of the cookie with the session.
        password: the password; None requires none.
        max_bytes: maximum size of an upload.
    """

    def __init__(self, app: ASGIApp, *, files: SessionFiles, cookie: str, password: str | None, max_bytes: int) -> None:
        self._app, self._files, self._cookie = app, files, cookie
        self._password, self._max_bytes = password, max_bytes
        self._connections: set[asyncio.Future[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request and pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        session = request.cookies.get(self._cookie, "")
        is_new = not self._files.is_session(session)
        session = self._files.new_session() if is_new else session

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=list(message["headers"]))
                headers.update(HEADERS)
                if not scope["path"].startswith(("/assets/", "/static/")):
                    headers["cache-control"] = "no-store"
                if is_new and scope["path"] == "/":
                    headers.append("set-cookie", f"{self._cookie}={session}; Path=/; HttpOnly; SameSite=Strict")
                message = {**message, "headers": headers.raw}
            await send(message)

        try:
            self._check_password(request.headers)
            await self._pass_on(request, session, send_with_headers)
        except Refused as error:
            response = PlainTextResponse(str(error), error.status, error.headers)
            await response(scope, receive, send_with_headers)
        except ClientDisconnect:
            # The client has gone while it was sending.
            return

    def _check_password(self, headers: Headers) -> None:
        if self._password is None:
            return
        scheme, _, encoded = headers.get("authorization", "").partition(" ")
        try:
            sent = base64.b64decode(encoded, validate=True).partition(b":")[2]
        except (ValueError, binascii.Error):
            sent = b""
        # The time of the comparison does not tell how many characters are right.
        if not hmac.compare_digest(sent, self._password.encode()) or scheme.lower() != "basic":
            message = "The password is missing or wrong. Enter any user name, and the password of this server."
            raise Refused(401, message, {"www-authenticate": 'Basic realm="emollama", charset="UTF-8"'})

    async def _pass_on(self, request: Request, session: str, send: Send) -> None:
        scope, path = request.scope, request.scope["path"]
        routes = {"GET": READ, "HEAD": READ, "POST": WRITE}.get(scope["method"])
        if routes is None or not routes.fullmatch(path):
            raise Refused(404, "There is no such page.")
        if path.startswith(FILE) and not self._files.may_read(session, path.removeprefix(FILE)):
            raise Refused(404, "There is no such file. It may have been deleted; upload it again.")
        if path == UPLOAD:
            await self._upload(request, session, send)
        elif path.startswith(HEARTBEAT):
            await self._heartbeat(request, session, send)
        elif scope["method"] == "POST":
            await self._app(scope, await self._checked_json(request, session), send)
        else:
            page = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True).get("session_hash", [])
            self._check_pages(session, page)
            # Gradio would read the state of a page from a folder that the query of the address names.
            await self._app({**scope, "query_string": b""} if path == "/" else scope, request.receive, send)

    async def _heartbeat(self, request: Request, session: str, send: Send) -> None:
        """Keep the files of a session while one of its pages is open."""
        self._check_pages(session, [request.scope["path"].removeprefix(HEARTBEAT)])
        self._files.open_page(session)
        connection = asyncio.ensure_future(self._app(request.scope, request.receive, send))
        self._connections.add(connection)
        try:
            await asyncio.wait({connection})
        finally:
            connection.cancel()
            self._connections.discard(connection)
            self._files.close_page(session)

    def close_pages(self) -> None:
        """End the connections of idle pages, because the server ends."""
        for connection in self._connections:
            connection.cancel()

    async def _upload(self, request: Request, session: str, send: Send) -> None:
        """Receive a file of limited size, and note the session that it belongs to."""
        length = request.headers.get("content-length", "")
        if not (length.isascii() and length.isdigit()):
            raise Refused(411, "An upload needs a Content-Length header.")
        if int(length) > self._max_bytes + FORM_SLACK:
            raise Refused(413, f"The file is larger than {self._max_bytes >> 20} MiB. Upload a shorter or smaller recording.")
        body = bytearray()
        status = 500

        async def send_and_read(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            body.extend(message.get("body", b""))
            await send(message)

        try:
            self._files.begin_upload()
        except UserError as error:
            raise Refused(429, str(error), {"retry-after": "10"}) from None
        try:
            await self._app(request.scope, request.receive, send_and_read)
        finally:
            self._files.end_upload(session, json.loads(body) if status == 200 else [])

    async def _checked_json(self, request: Request, session: str) -> Receive:
        """Read a JSON body, check its files and its page, and return a function from which the application reads it again."""
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_JSON:
                raise Refused(413, f"The request is larger than {MAX_JSON:,} bytes.")
        try:
            content = json.loads(body)
            paths, pages = list(_values(content, "path")), list(_values(content, "session_hash"))
        except (ValueError, RecursionError):
            raise Refused(400, "The request is not JSON.") from None
        self._check_pages(session, pages)
        if not all(isinstance(path, str) and self._files.may_read(session, path) for path in paths):
            raise Refused(
                403, "The recording was deleted, because the page was closed or another one was uploaded. Upload it again."
            )
        sent = False

        async def receive() -> Message:
            nonlocal sent
            if sent:
                return await request.receive()
            sent = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        return receive

    def _check_pages(self, session: str, pages: list[Any]) -> None:
        if len(pages) > 1 or not all(isinstance(page, str) and PAGE.fullmatch(page) for page in pages):
            raise Refused(400, "The identifier of the page is invalid. Reload it.")
        if not all(self._files.claim_page(session, page) for page in pages):
            raise Refused(403, "This page belongs to another session. Reload it.")


class HostGuard:
    """ASGI middleware that checks the Host and Origin headers as the server of the API does.

    Args:
        app: the application.
        hosts: host names and addresses of the server, in lower case.
        any_address: whether any numeric address may be the host.
    """

    def __init__(self, app: ASGIApp, *, hosts: set[str], any_address: bool) -> None:
        self._guard = Guard(app, key=None, hosts=hosts, any_address=any_address)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request and pass it on."""
        try:
            await self._guard(scope, receive, send)
        except ApiError as error:
            response: Response = PlainTextResponse(str(error), error.status)
            await response(scope, receive, send)


def _values(content: Any, key: str) -> Iterator[Any]:
    """Yield the values of a key in all objects of a JSON document."""
    if isinstance(content, dict):
        for name, value in content.items():
            if name == key:
                yield value
            else:
                yield from _values(value, key)
    elif isinstance(content, list):
        for item in content:
            yield from _values(item, key)
