"""Media of a request: data: URLs, files below an allowed folder, and URLs."""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
import re
from typing import Literal

from emollama.inference.serve.allowed_files import AllowedFiles
from emollama.inference.serve.bodies import Admission
from emollama.inference.serve.downloads import UrlReader
from emollama.inference.serve.errors import ApiError

MediaKind = Literal["video", "image", "audio"]
KINDS: tuple[MediaKind, ...] = ("video", "image", "audio")
DATA_URL = re.compile(r"data:(?P<type>[^;,]{0,100})(?:;[^;,]{1,100}){0,5}?;base64,", re.ASCII | re.IGNORECASE)
# The container is detected from the content. The declared type only shows that a client sends something else on purpose.
ANY_TYPE = ("", "application/octet-stream")


class MediaInputs:
    """Reads the media that requests contain or name.

    Args:
        files: the files of the server that clients may name.
        downloads: downloads URLs; None if they are not allowed.
    """

    def __init__(self, files: AllowedFiles, downloads: UrlReader | None) -> None:
        self._files, self._downloads = files, downloads

    async def read(self, url: str, kind: MediaKind, admission: Admission, param: str) -> bytes:
        """Return the content of a URL.

        Args:
            url: a data: URL, an http(s) URL, a file:// URL or a path below the allowed folder.
            kind: the kind of media that is expected.
            admission: the request.
            param: the part of the request that contains the URL, for errors.

        Raises:
            ApiError: If the URL is invalid or not allowed.
        """
        scheme = url[:10].partition(":")[0].lower()
        if scheme == "data":
            return await asyncio.to_thread(_data_url_content, url, kind, param)
        if scheme in ("http", "https"):
            if self._downloads is None:
                message = "URLs are not allowed. Send a data: URL, or start the server with --allow-urls."
                raise ApiError(400, message, param=param, code="urls_not_allowed")
            return await self._downloads.read(url, admission.count, param)
        with self._files.open(url, param) as file:
            size = os.fstat(file.fileno()).st_size
            admission.count(size)
            return await asyncio.to_thread(file.read, size)


async def decoded(text: str, param: str) -> bytes:
    """Decode base64 text.

    Raises:
        ApiError: If it is not base64, or empty.
    """
    return await asyncio.to_thread(_decoded, text, param)


def require_type(declared: str, kind: MediaKind, param: str) -> None:
    """Check the declared media type of a file.

    Raises:
        ApiError: If it is of another kind.
    """
    declared = declared.partition(";")[0].strip().lower()
    if declared not in ANY_TYPE and not declared.startswith(f"{kind}/"):
        message = f"The declared media type is not {kind}/* or application/octet-stream."
        others = [other for other in KINDS if declared.startswith(f"{other}/")]
        message += f" Send the file as {others[0]}." if others else " Send a video, an image or audio."
        raise ApiError(400, message, param=param, code="invalid_media_type")


def declared_kind(declared: str) -> MediaKind:
    """Return the kind of a file whose field allows any, from its media type, or from the beginning of a data: URL."""
    declared = declared.strip().lower().removeprefix("data:")
    return next((kind for kind in KINDS if declared.startswith(f"{kind}/")), "video")


def _data_url_content(url: str, kind: MediaKind, param: str) -> bytes:
    matched = DATA_URL.match(url)
    if matched is None:
        raise ApiError(400, f"A data: URL has the form data:{kind}/...;base64,CONTENT.", param=param, code="invalid_url")
    require_type(matched["type"], kind, param)
    return _decoded(url[matched.end() :], param)


def _decoded(text: str, param: str) -> bytes:
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(400, "The content is not valid base64.", param=param, code="invalid_base64") from None
    if not content:
        raise ApiError(400, "The content is empty.", param=param, code="empty_file")
    return content
