"""The JSON bodies that a page sends: each is checked completely, because Gradio logs what it cannot use."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

MAX_JSON = 1 << 20  # bytes
INVALID = "The request is not one of this page. Reload it."
FILE_META = {"_type": "gradio.FileData"}
# The fields that Gradio's browser code sends, except those that this page does not use.
FIELDS: dict[str, dict[str, type]] = {
    "join": {"session_hash": str, "fn_index": int, "data": list},
    "cancel": {"session_hash": str, "fn_index": int, "event_id": str},
    "reset": {"event_id": str},
}


class Refused(Exception):
    """A request that the server refuses, with a status and a message."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers


@dataclass(frozen=True)
class Body:
    """A body that was checked.

    Attributes:
        encoded: the body with the fields that it may have.
        page: the page that sent it; None if the route needs none.
        paths: the files that it names.
    """

    encoded: bytes
    page: str | None
    paths: tuple[str, ...]


@asynccontextmanager
async def in_time(seconds: float) -> AsyncIterator[None]:
    """Limit the time of receiving a request.

    Raises:
        Refused: If it was not complete in time.
    """
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        message = f"The request was not complete after {seconds:g} seconds. Use a faster connection or a smaller recording."
        raise Refused(408, message, {"connection": "close"}) from None


async def read_body(request: Request, numbers_of_values: Mapping[int, int]) -> Body:
    """Read a JSON body and check it.

    Args:
        request: the request.
        numbers_of_values: index of each function of the page -> number of its values.

    Raises:
        Refused: If the body is too large or is not one that the page sends. The message contains no value of the body.
        ClientDisconnect: If the client disconnected.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_JSON:
            raise Refused(413, f"The request is larger than {MAX_JSON:,} bytes. Shorten the question.")
    try:
        content = json.loads(body)
        files = tuple(_files(content))
    except (ValueError, RecursionError):
        raise Refused(400, "The request is not JSON.") from None
    if not all(isinstance(file.get("path"), str) and file.get("meta") == FILE_META for file in files):
        raise Refused(400, INVALID)
    paths = tuple(file["path"] for file in files)
    kinds = FIELDS[request.scope["path"].rpartition("/")[2]]
    if not isinstance(content, dict) or any(type(content.get(name)) is not kind for name, kind in kinds.items()):
        raise Refused(400, INVALID)
    if "fn_index" in kinds and content["fn_index"] not in numbers_of_values:
        raise Refused(400, f"fn_index: {INVALID}")
    if "data" in kinds and len(content["data"]) != numbers_of_values[content["fn_index"]]:
        raise Refused(400, f"data: {INVALID}")
    checked = {name: content[name] for name in kinds}
    try:
        encoded = json.dumps(checked, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise Refused(400, "The request contains characters that are not Unicode. Remove them.") from None
    return Body(encoded, checked.get("session_hash"), paths)


def _files(content: Any) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON document other than its top level, all of which have to be files."""
    items = list(content.values()) if isinstance(content, dict) else [content]
    while items:
        item = items.pop()
        if isinstance(item, list):
            items += item
        elif isinstance(item, dict):
            yield item
