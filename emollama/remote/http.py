"""Download of files by HTTP and HTTPS, with a timeout and several attempts."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, BinaryIO, TypeVar
from urllib.parse import urlsplit

from emollama.errors import DownloadError, FileAbsent, ServerFailure, UserError
from emollama.heartbeat import beat
from emollama.remote.transport import RESTART, Version, shown
from emollama.variables import HTTP_TIMEOUT

if TYPE_CHECKING:
    from requests import Response, Session

T = TypeVar("T")
TIMEOUT = 30.0  # seconds
ATTEMPTS = 5
_TEMPORARY = (408, 425, 429)  # statuses with which it helps to try again, besides those of a failing server (5xx)
_CHUNK = 1 << 16  # bytes


class _AttemptFailed(Exception):
    """An attempt failed in a way that another one may not.

    Attributes:
        answered: whether the server answered.
    """

    def __init__(self, reason: str, answered: bool) -> None:
        super().__init__(reason)
        self.answered = answered


class Http:
    """Downloads files by HTTP and HTTPS. Implements :class:`emollama.remote.transport.Transport`.

    Proxies and certificates are those that the library requests reads from the environment, and passwords those of ``~/.netrc``.

    Args:
        attempts: how often a request is made.
        pause: seconds before the second attempt; each further pause is twice as long.
    """

    def __init__(self, attempts: int = ATTEMPTS, pause: float = 1.0) -> None:
        self._attempts, self._pause = attempts, pause

    def version(self, url: str) -> Version:
        """Return the version of a file without reading it."""

        def attempt(timeout: float) -> Version:
            with _request("HEAD", url, timeout) as response:
                if response.status_code not in (403, 405, 501):
                    _require_success(response, url)
                    return _version(response)
            # Some servers allow only GET, for example for signed URLs. The content is not read.
            with _request("GET", url, timeout) as response:
                _require_success(response, url)
                return _version(response)

        return self._repeat(url, attempt)

    def read(self, url: str, begin: int, size: int) -> tuple[bytes, Version]:
        """Return a part of a file, and the version of the file."""
        headers = {"Accept-Encoding": "identity", "Range": f"bytes={begin}-{begin + size - 1}"}

        def attempt(timeout: float) -> tuple[bytes, Version]:
            with _request("GET", url, timeout, headers) as response:
                if response.status_code == 416:
                    raise DownloadError(f"'{shown(url)}': the file ends before byte {begin + size:,}. {RESTART}")
                if response.status_code != 206:
                    _require_success(response, url)
                    text = "the server sends only whole files (it ignores the header Range), so the file cannot be streamed"
                    raise DownloadError(f"'{shown(url)}': {text}. Set stream: False, or use another server.")
                content = BytesIO()
                _copy(response, content, size, timeout)
                total = response.headers.get("Content-Range", "").rpartition("/")[2]
                version = dataclasses.replace(_version(response), size=int(total) if total.isdecimal() else None)
                if content.tell() != size:
                    raise DownloadError(f"'{shown(url)}': the file ends before byte {begin + size:,}. {RESTART}")
                return content.getvalue(), version

        return self._repeat(url, attempt)

    def download(self, url: str, earlier: Version | None, file: BinaryIO) -> Version | None:
        """Write the content of a file to ``file``, and return its version; None if it still has the version ``earlier``."""
        headers = {"Accept-Encoding": "identity"}
        # Without an ETag, date and size of the answer are compared. A server would compare only the date, which is in seconds.
        if earlier is not None and earlier.etag:
            headers["If-None-Match"] = earlier.etag

        def attempt(timeout: float) -> Version | None:
            with _request("GET", url, timeout, headers) as response:
                if earlier is not None and response.status_code == 304:
                    return None
                _require_success(response, url)
                version = _version(response)
                if version == earlier and version.is_reliable:
                    return None
                _require_length(response, url)
                logging.getLogger("emollama").info("downloading %s", shown(url))
                file.seek(0)
                file.truncate()
                _copy(response, file, version.size, timeout)
                return version

        return self._repeat(url, attempt)

    def _repeat(self, url: str, attempt: Callable[[float], T]) -> T:
        """Call ``attempt`` with the timeout until it succeeds, and return its result."""
        if "@" in urlsplit(url).netloc:
            without = url.replace(urlsplit(url).netloc, urlsplit(url).netloc.rpartition("@")[2])
            raise DownloadError(f"'{shown(without)}': the URL contains a password. Write the password into ~/.netrc instead.")
        timeout, pause = _timeout(), self._pause
        for left in reversed(range(self._attempts)):
            try:
                return attempt(timeout)
            except _AttemptFailed as error:
                failure = error
            if left:
                time.sleep(pause)
                pause *= 2
        text = f"'{shown(url)}': {failure}; {self._attempts} attempts failed."
        remedy = "Check the network and the server, and start again"
        if "timed out" in text:
            remedy += f", or allow more time than {timeout:g} s with the environment variable {HTTP_TIMEOUT}"
        raise ServerFailure(f"{text} {remedy}.", failure.answered)


def _timeout() -> float:
    text = os.environ.get(HTTP_TIMEOUT) or str(TIMEOUT)
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise UserError(f"the environment variable {HTTP_TIMEOUT} is '{text}'. Set it to a positive number of seconds.")
    return seconds


@functools.lru_cache(maxsize=1)
def _session(process: int) -> Session:
    """Return the session of a process. A forked process must not use the connections of its parent."""
    from requests import Session

    return Session()


@contextmanager
def _request(method: str, url: str, timeout: float, headers: dict[str, str] | None = None) -> Iterator[Response]:
    """Make a request and close the response.

    Raises:
        _AttemptFailed: If there is no answer.
        DownloadError: If the URL is invalid, or redirects in a circle.
    """
    from requests import exceptions

    try:
        response = _session(os.getpid()).request(method, url, headers=headers, timeout=timeout, stream=True, allow_redirects=True)
    except (exceptions.ConnectionError, exceptions.Timeout, exceptions.ChunkedEncodingError) as error:
        raise _AttemptFailed(_reason(error, timeout), answered=False) from None
    except (exceptions.RequestException, ValueError) as error:
        reason = str(error).replace(url, shown(url))
        raise DownloadError(f"'{shown(url)}': {reason}. Correct the URL.") from None
    with response:
        yield response


def _require_success(response: Response, url: str) -> None:
    status = f"{response.status_code} {response.reason}"
    # Other statuses of success, such as 206, come with a part of the file or with none of it.
    if response.status_code == 200:
        return
    if response.status_code in (404, 410):
        raise FileAbsent(f"'{shown(url)}': the server has no such file ({status}). Correct the URL, or upload the file.")
    if response.status_code in (401, 403):
        remedy = "Correct the URL, or write the password of the server into ~/.netrc."
        raise DownloadError(f"'{shown(url)}': the server refuses access ({status}). {remedy}")
    if response.status_code in _TEMPORARY or response.status_code >= 500:
        raise _AttemptFailed(f"the server failed ({status})", answered=True)
    raise DownloadError(f"'{shown(url)}': the server answered {status}. Correct the URL.")


def _require_length(response: Response, url: str) -> None:
    """Check that an interrupted download of this response can be detected."""
    if (
        not response.headers.get("Content-Length", "").isdecimal()
        and "chunked" not in response.headers.get("Transfer-Encoding", "").lower()
    ):
        text = "the server does not state the size of the file (Content-Length), so an incomplete download would not be noticed"
        raise DownloadError(
            f"'{shown(url)}': {text}. Use a server that does, or download the file yourself and name the local copy."
        )


def _version(response: Response) -> Version:
    size = response.headers.get("Content-Length", "")
    return Version(response.headers.get("ETag"), response.headers.get("Last-Modified"), int(size) if size.isdecimal() else None)


def _copy(response: Response, file: BinaryIO, size: int | None, timeout: float) -> None:
    """Write the content of a response to a file.

    Raises:
        _AttemptFailed: If the connection ends before the content is complete, which urllib3 compares with Content-Length.
    """
    from requests import exceptions

    chunks = response.iter_content(_CHUNK)
    while True:
        try:
            chunk = next(chunks, b"")
        except exceptions.RequestException as error:
            received = f"{response.raw.tell():,}" + ("" if size is None else f" of {size:,}")
            raise _AttemptFailed(f"{_reason(error, timeout)} after {received} bytes", answered=True) from None
        if not chunk:
            return
        file.write(chunk)
        beat()


def _reason(error: Exception, timeout: float) -> str:
    """Return why there was no complete answer, from an exception of requests and its causes."""
    from requests.exceptions import Timeout

    causes: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in causes:
        causes.append(current)
        arguments = (argument for argument in current.args if isinstance(argument, BaseException))
        current = current.__cause__ or current.__context__ or next(arguments, None)
    if any(isinstance(cause, Timeout | TimeoutError) for cause in causes):
        return f"the connection timed out (no data for {timeout:g} s)"
    reason = next((cause.strerror for cause in reversed(causes) if isinstance(cause, OSError) and cause.strerror), None)
    return f"the connection failed ({reason})" if reason else "the connection was dropped"
