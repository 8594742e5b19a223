"""A served model for tests: its configuration, requests to it, and a server in a new process."""

from __future__ import annotations

import base64
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from ranks import HANG, Launched, environment, start
from video_world import only

MODEL = "tiny"
BLOCK = "evaluation_datasets.answers"
# Two tasks with generated answers; one encoder, because building it and encoding with it take time.
OPTIONS = [
    f"{BLOCK}.answer_by=generate",
    f"{BLOCK}.max_new_tokens=12",
    f"{BLOCK}.task_pool=[emotion,reason]",
    f"{BLOCK}.instructions.reason=[Tell why.]",
    *only("mae"),
]


def data_url(content: bytes, media_type: str = "video/mp4") -> str:
    """Return a data: URL."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def user(url: str | None, *texts: str) -> dict[str, Any]:
    """Return a message of the user with a video."""
    parts: list[dict[str, Any]] = [{"type": "text", "text": text} for text in texts]
    return {"role": "user", "content": [*([{"type": "video_url", "video_url": {"url": url}}] if url else []), *parts]}


def chat(url: str | None, *texts: str, **more: Any) -> dict[str, Any]:
    """Return the body of a chat completion about a video."""
    return {"model": MODEL, "messages": [user(url, *texts)]} | more


def wait_until(condition: Callable[[], Any]) -> None:
    """Wait for a condition, up to a limit that only a hang reaches."""
    end = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@contextmanager
def running(server: Any) -> Iterator[httpx.Client]:
    """Run a server in a thread of this process; yield a client once it listens."""
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        with httpx.Client(base_url=server.url.removesuffix("/v1"), timeout=HANG, trust_env=False) as client:
            wait_until(lambda: is_listening(client) or not thread.is_alive())
            yield client
    finally:
        server.stop()
        thread.join()


def is_listening(client: httpx.Client) -> bool:
    """Return whether a server answers."""
    try:
        return client.get("/health").status_code == 200
    except httpx.ConnectError:
        return False


@contextmanager
def listening(
    config: Path, *arguments: str, options: Sequence[str] = (), **variables: str
) -> Iterator[tuple[Launched, httpx.Client]]:
    """Run ``emollama serve`` in a new process; yield it with a client once it listens, while it loads the model.

    Args:
        config: the configuration.
        arguments: further arguments.
        options: further values of the configuration.
        variables: further environment variables. ``EMOLLAMA_API_KEY`` is also the key of the client.
    """
    line = ["-m", "emollama", "serve", "--cfg-path", str(config), "--port", "0", "--model-name", MODEL]
    process = start(*line, *arguments, "--options", *OPTIONS, *options, env=environment() | variables)
    try:
        wait_until(lambda: re.search(r"listening on (\S+)/v1", process.stderr()) or process.poll() is not None)
        found = re.search(r"listening on (\S+)/v1", process.stderr())
        assert found, process.stderr()
        key = variables.get("EMOLLAMA_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        with httpx.Client(base_url=found[1], headers=headers, timeout=HANG, trust_env=False) as client:
            yield process, client
    finally:
        process.kill()


@contextmanager
def launched(config: Path, *arguments: str, **variables: str) -> Iterator[tuple[Launched, httpx.Client]]:
    """Run ``emollama serve`` as :func:`listening` does; yield it once the model is loaded."""
    with listening(config, *arguments, **variables) as (process, client):
        wait_until(lambda: client.get("/ready").status_code == 200 or process.poll() is not None)
        yield process, client


def metric(client: httpx.Client, name: str) -> float:
    """Return the value of a metric, such as ``emollama_engine_requests_total{outcome="cancelled"}``."""
    lines = client.get("/metrics").text.splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} "))
