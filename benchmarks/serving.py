r"""Load a server with many clients at the same time, and compare latency and throughput with one request after the other.

    OMP_NUM_THREADS=1 python benchmarks/serving.py --options model.ckpt=demo_videos/trained/checkpoint_2.pth \
        --video demo_videos/unseen/*.mp4

The default configuration is that of the README's commands for videos. The script starts ``emollama serve``. Each client sends a
request as soon as it has the answer to the previous one, and repeats it if the queue is full (status 429). The exit status is 1
if an answer is missing or differs from the answer of a single client, if the queue exceeds its limit, or if the server's memory
grows by more than 5% between requests 500 and 2,000.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import itertools
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles

import httpx

ROUTE = "/v1/chat/completions"
MEMORY_AT = (500, 2000)  # numbers of answers
MAX_GROWTH = 0.05
START_SECONDS = 600.0
SAMPLE_SECONDS = 0.2


@dataclass
class Load:
    """What the clients saw.

    Attributes:
        seconds: latency of each answer.
        wrong: number of responses without an answer, or with a different one.
        repeated: number of responses with status 429.
        waiting: maximum length of the queue.
        memory: number of answers -> resident memory of the server in KiB.
        duration: time from the first request to the last answer.
    """

    seconds: list[float] = field(default_factory=list)
    wrong: int = 0
    repeated: int = 0
    waiting: int = 0
    memory: dict[int, int] = field(default_factory=dict)
    duration: float = 0.0

    def summary(self) -> str:
        """Return the throughput and the latency in one line."""
        half, most = (1000 * quantiles(self.seconds, n=100)[percent - 1] for percent in (50, 95))
        rate = len(self.seconds) / self.duration
        return f"{len(self.seconds)} answers, {rate:.1f} requests/s, p50 {half:.0f} ms, p95 {most:.0f} ms, {self.wrong} wrong"


def requests_about(videos: list[Path], model: str, tokens: int) -> list[dict[str, object]]:
    """Return the body of a request about each video."""
    bodies: list[dict[str, object]] = []
    for video in videos:
        url = f"data:video/mp4;base64,{base64.b64encode(video.read_bytes()).decode()}"
        message = {"role": "user", "content": [{"type": "video_url", "video_url": {"url": url}}]}
        bodies.append({"model": model, "messages": [message], "max_tokens": tokens})
    return bodies


class Clients:
    """Clients of one server.

    Args:
        url: address of the server.
        pid: its process, whose memory is measured.
        bodies: bodies of requests, which the clients send in turn.
        headers: further headers.
    """

    def __init__(self, url: str, pid: int, bodies: list[dict[str, object]], headers: dict[str, str] | None = None) -> None:
        self._url, self._pid, self._bodies, self._headers = url, pid, bodies, headers
        self._expected: dict[int, str] = {}

    async def run(self, clients: int, seconds: float, requests: int) -> Load:
        """Send requests with a number of clients, for a time and for a number of answers.

        Args:
            clients: number of clients.
            seconds: minimum time.
            requests: minimum number of answers.
        """
        load, start = Load(), time.monotonic()
        limits = httpx.Limits(max_connections=clients + 1)
        async with httpx.AsyncClient(
            base_url=self._url, headers=self._headers, limits=limits, timeout=START_SECONDS, trust_env=False
        ) as client:
            numbers = itertools.count()

            async def work() -> None:
                while time.monotonic() < start + seconds or len(load.seconds) < requests:
                    await self._ask(client, next(numbers) % len(self._bodies), load)

            watcher = asyncio.create_task(self._watch(client, load))
            await asyncio.gather(*(work() for _ in range(clients)))
            watcher.cancel()
        load.duration = time.monotonic() - start
        return load

    async def _ask(self, client: httpx.AsyncClient, index: int, load: Load) -> None:
        start = time.monotonic()
        while (response := await client.post(ROUTE, json=self._bodies[index])).status_code == 429:
            load.repeated += 1
            await asyncio.sleep(float(response.headers["Retry-After"]))
        load.seconds.append(time.monotonic() - start)
        text = response.json()["choices"][0]["message"]["content"] if response.status_code == 200 else None
        load.wrong += text is None or text != self._expected.setdefault(index, text)
        if len(load.seconds) in MEMORY_AT:
            load.memory[len(load.seconds)] = resident_memory(self._pid)

    async def _watch(self, client: httpx.AsyncClient, load: Load) -> None:
        while True:
            metrics = (await client.get("/metrics")).text
            waiting = re.search(r"^emollama_waiting_requests (\S+)", metrics, re.MULTILINE)
            load.waiting = max(load.waiting, int(float(waiting[1])) if waiting else 0)
            await asyncio.sleep(SAMPLE_SECONDS)


def resident_memory(pid: int) -> int:
    """Return the resident memory of a process in KiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0])


@contextmanager
def server(arguments: list[str]) -> Iterator[tuple[str, int]]:
    """Start a server; yield its address and its process id."""
    command = [sys.executable, "-m", "emollama", "serve", "--port", "0", "--preload", *arguments]
    with tempfile.NamedTemporaryFile("r+") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            yield wait_for_address(process, Path(log.name)), process.pid
        finally:
            process.terminate()


def wait_for_address(process: subprocess.Popen[bytes], log: Path) -> str:
    """Return the address from the log of a server, once it listens."""
    while process.poll() is None:
        if match := re.search(r"listening on (\S+)/v1", log.read_text()):
            return match[1]
        time.sleep(SAMPLE_SECONDS)
    raise SystemExit(f"the server did not start:\n{log.read_text()}")


def main() -> None:
    """Print the figures of a single client and of many."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg-path", default="train_configs/demo_videos.yaml", help="configuration of the server")
    parser.add_argument("--options", nargs="*", default=[], help="values of the configuration")
    parser.add_argument("--video", nargs="+", type=Path, required=True, help="videos of the requests")
    parser.add_argument("--clients", type=int, default=50, help="number of clients (default: 50)")
    parser.add_argument("--seconds", type=float, default=60.0, help="minimum time of the load (default: 60)")
    parser.add_argument("--requests", type=int, default=2000, help="minimum number of requests of the load (default: 2000)")
    parser.add_argument("--tokens", type=int, default=12, help="maximum number of tokens of an answer (default: 12)")
    parser.add_argument("--max-waiting", type=int, default=64, help="limit of the queue (default: 64)")
    arguments = parser.parse_args()
    line = ["--cfg-path", arguments.cfg_path, "--max-waiting", str(arguments.max_waiting), "--model-name", "served"]
    with server([*line, "--options", *arguments.options]) as (url, pid):
        clients = Clients(url, pid, requests_about(arguments.video, "served", arguments.tokens))
        asyncio.run(clients.run(1, 0.0, len(arguments.video)))  # a warm-up
        single = asyncio.run(clients.run(1, arguments.seconds / 6, 0))
        load = asyncio.run(clients.run(arguments.clients, arguments.seconds, arguments.requests))
    sys.stdout.write(f"1 client: {single.summary()}\n")
    sys.stdout.write(f"{arguments.clients} clients: {load.summary()}\n")
    sys.stdout.write(f"queue: at most {load.waiting} of {arguments.max_waiting}, {load.repeated} requests repeated after 429\n")
    memory = [load.memory[count] for count in MEMORY_AT if count in load.memory]
    growth = memory[-1] / memory[0] - 1 if len(memory) > 1 else 0.0
    sys.stdout.write(f"server's memory at {MEMORY_AT} answers: {[f'{kib / 1024:.0f} MiB' for kib in memory]}, {growth:+.1%}\n")
    raise SystemExit(single.wrong + load.wrong > 0 or load.waiting > arguments.max_waiting or growth > MAX_GROWTH)


if __name__ == "__main__":
    main()
