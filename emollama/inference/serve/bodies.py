"""Admit requests within limits of number, memory and time, and parse JSON bodies."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from emollama.inference.serve.errors import ApiError, ClientGone, busy

Model = TypeVar("Model", bound=BaseModel)
# Elements of all lists and objects of a JSON body together. Each takes far more memory than its few bytes in the body.
MAX_JSON_ITEMS = 10_000
# The bodies and media of all requests together may take this multiple of the maximum of one request.
REQUESTS_OF_MAXIMUM_SIZE = 4


class Bodies:
    """Limits of the requests that the server has at the same time, from their headers to their answers.

    Args:
        max_bytes: maximum size of the body of one request, with the files and URLs that it names.
        seconds: maximum time from the headers of a request to the end of its body.
        max_requests: maximum number of requests whose body is complete. The others are limited by their bytes and connections,
            so that clients which send slowly do not keep others out.
    """

    def __init__(self, max_bytes: int, seconds: float, max_requests: int) -> None:
        self.max_bytes, self.seconds, self._max_requests = max_bytes, seconds, max_requests
        self._complete = self._reserved = 0

    @contextmanager
    def admitted(self, request: Request) -> Iterator[Admission]:
        """Admit a request in this context.

        Raises:
            ApiError: If the body is too large (413) or compressed (415), or the server has too many requests (429).
        """
        if any(encoding.strip().lower() != "identity" for encoding in request.headers.getlist("content-encoding")):
            raise ApiError(415, "Compressed bodies are not supported. Remove Content-Encoding.", code="unsupported_encoding")
        self._require_place()
        # Before the client sends it.
        self.require_size(int(request.headers.get("content-length", "0")))
        admission = Admission(self, request)
        try:
            yield admission
        finally:
            self._complete -= admission.is_complete
            self._reserved -= admission.reserved

    def complete(self) -> None:
        """Count a request whose body is complete.

        Raises:
            ApiError: If there are too many (429).
        """
        self._require_place()
        self._complete += 1

    def require_size(self, size: int) -> None:
        """Check the size of a request.

        Raises:
            ApiError: If it is too large (413).
        """
        if size > self.max_bytes:
            message = f"The request is larger than {self.max_bytes:,} bytes. Send a shorter or smaller recording."
            raise ApiError(413, message, code="request_too_large")

    def reserve(self, size: int) -> None:
        """Reserve memory for a part of a request.

        Raises:
            ApiError: If all requests together would take too much.
        """
        if self._reserved + size > REQUESTS_OF_MAXIMUM_SIZE * self.max_bytes:
            raise busy()
        self._reserved += size

    def _require_place(self) -> None:
        if self._complete >= self._max_requests:
            raise busy()


class Admission:
    """An admitted request. Its bytes are counted as they arrive, because a client can declare a wrong size or none.

    Attributes:
        request: the HTTP request; reading its body raises errors with the statuses 408, 413 and 429.
        reserved: the memory that is reserved for it, in bytes.
        is_complete: whether its body has arrived.
    """

    def __init__(self, bodies: Bodies, request: Request) -> None:
        self._bodies, self._receive = bodies, request.receive
        self._deadline = asyncio.get_running_loop().time() + bodies.seconds
        self.reserved, self.is_complete = 0, False
        self.request = Request(request.scope, self._receive_within_limits)

    def count(self, size: int) -> None:
        """Reserve memory for further bytes of the request, such as those of a file that it names.

        Raises:
            ApiError: If it is too much for one request, or for all together.
        """
        self._bodies.require_size(self.reserved + size)
        self._bodies.reserve(size)
        self.reserved += size

    async def _receive_within_limits(self) -> Message:
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            text = f"The body was not complete after {self._bodies.seconds:g} seconds. Send it faster, or a smaller recording."
            raise ApiError(408, text, code="body_too_slow") from None
        self.count(len(message.get("body", b"")))
        if message["type"] == "http.request" and not message.get("more_body", False):
            self._bodies.complete()
            self.is_complete = True
        return message


def media_type(request: Request) -> str:
    """Return the media type of a body, such as ``application/json``, without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_json(request: Request, model: type[Model]) -> Model:
    """Read a JSON body and check it against a schema.

    Raises:
        ApiError: If the body is not JSON, or does not fit the schema. The message does not contain the values of the body.
        ClientGone: If the client disconnected.
    """
    if media_type(request) != "application/json":
        raise ApiError(415, "The body must be JSON, with Content-Type: application/json.", code="unsupported_media_type")
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
    except ClientDisconnect:
        raise ClientGone from None
    return await asyncio.to_thread(parse_json, body, model)


def parse_json(body: bytes | bytearray, model: type[Model]) -> Model:
    """Parse a JSON body and check it against a schema; pydantic limits its depth.

    Raises:
        ApiError: As in :func:`read_json`.
    """
    # Text in strings is counted, too, but base64 contains none of these characters.
    if sum(body.count(character) for character in (b",", b"[", b"{")) > MAX_JSON_ITEMS:
        message = f"The body has more than {MAX_JSON_ITEMS:,} commas and brackets. Shorten it."
        raise ApiError(400, message, code="body_too_complex")
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise invalid_body(error) from None


def invalid_body(error: ValidationError) -> ApiError:
    """Return the response to a body that does not fit its schema. It does not contain the values of the body."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    message = "This field does not exist." if first["type"] == "extra_forbidden" else f"{first['msg']}."
    return ApiError(400, message, param=_param(first["loc"]), code="invalid_body")


def _param(location: tuple[int | str, ...]) -> str | None:
    """Return the path to a value, such as ``messages[0].content``."""
    path = ""
    for step in location:
        path += f"[{step}]" if isinstance(step, int) else f".{step[:100]}"
    return path.removeprefix(".") or None
