"""The settings that all HTTP servers of this package share."""

from __future__ import annotations

import math
from typing import Literal

import uvicorn
from starlette.types import ASGIApp

BACKLOG = 256  # connections that the system accepts while the server is busy
MAX_CONNECTIONS = 1000
# Longer than clients and proxies keep idle connections (httpx: 5 s, nginx: 60 s), which otherwise may use one that just closes.
KEEP_ALIVE_SECONDS = 75
MAX_HEADERS = 1 << 15  # bytes of the headers of a request


def server_config(app: ASGIApp, seconds: float, lifespan: Literal["auto", "off"]) -> uvicorn.Config:
    """Return the settings of a server that logs no requests, and limits its connections.

    Args:
        app: the application.
        seconds: maximum time of the requests that are open when the server ends.
        lifespan: whether the application gets events when the server starts and ends.
    """
    return uvicorn.Config(
        app,
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan=lifespan,
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        h11_max_incomplete_event_size=MAX_HEADERS,
        timeout_graceful_shutdown=math.ceil(seconds),
    )
