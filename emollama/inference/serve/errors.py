"""Errors of the server as responses in OpenAI's format."""

from __future__ import annotations

import re
import traceback
from typing import Any

from emollama.inference.requests import EngineClosed, QueueFull, RemoteFailure, RequestError, UnusableInput
from emollama.logs.logger import get_logger

INVALID, SERVER = "invalid_request_error", "server_error"
RETRY_SECONDS = 1  # the Retry-After header of answers that a later request may not get
CLIENT_CLOSED_REQUEST = 499  # nginx's status for logs: the client has disconnected, so no response was sent


class ApiError(Exception):
    """An error that a client gets as a response, or as an event if streaming has started.

    Args:
        status: HTTP status.
        message: the problem and the remedy. It contains no paths of the server.
        param: the part of the request that is wrong, such as ``messages[0].content``.
        code: a short identifier of the error for programs.
        headers: further headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, headers or {}

    def body(self) -> dict[str, Any]:
        """Return the error as OpenAI's clients expect it."""
        kind = SERVER if self.status >= 500 else INVALID
        if self.status == 429:
            kind = "rate_limit_error"
        # OpenAI's clients show only the message.
        named = self.param is None or re.search(rf"(?<!\w){re.escape(self.param)}(?!\w)", str(self))
        message = str(self) if named else f"{self.param}: {self}"
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}


class ClientGone(Exception):
    """The client has disconnected, so that no response can be sent."""


def api_error(error: BaseException) -> ApiError:
    """Return the response to an exception. The text of an unexpected exception is not disclosed."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestError):
        status, code = (422, "unusable_input") if isinstance(error, UnusableInput) else (400, "invalid_value")
        return ApiError(status, str(error), param=error.param, code=code)
    if isinstance(error, QueueFull):
        return busy()
    if isinstance(error, TimeoutError):
        return ApiError(504, "The request took too long. Send it again later.", code="timeout")
    if isinstance(error, EngineClosed):
        return unavailable("The server is shutting down. Send the request again later.", "shutting_down")
    if isinstance(error, RemoteFailure):
        # Its text names the other server.
        return ApiError(502, "The server of the language model failed. Send the request again later.", code="bad_gateway")
    return ApiError(500, "The server failed to answer. Its log has the details, under the request id.", code="internal_error")


def busy() -> ApiError:
    """Return the response to a request that exceeds the server's capacity at the moment."""
    message = "Too many requests are waiting. Send the request again later."
    return ApiError(429, message, code="rate_limit_exceeded", headers={"Retry-After": str(RETRY_SECONDS)})


def unavailable(message: str, code: str) -> ApiError:
    """Return a response with status 503."""
    return ApiError(503, message, code=code, headers={"Retry-After": str(RETRY_SECONDS)})


def log_failure(error: BaseException, request_id: str) -> None:
    """Log an exception, unless the client or the load causes it. Its message is left out, because it can contain texts."""
    if not isinstance(error, ApiError | RequestError | QueueFull | EngineClosed | ClientGone | TimeoutError):
        frames = "".join(traceback.format_tb(error.__traceback__))
        get_logger().error("request %s failed with %s:\n%s", request_id, type(error).__name__, frames.rstrip())
