"""Decoding of media in a separate process, so that a file that crashes a decoder or needs too much memory does no other harm."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from multiprocessing import Pipe
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from emollama.encoders.decoding_worker import MAX_REASON_LENGTH, TENSOR, DecodingLimits, LoaderSettings, Setup
from emollama.logs.logger import get_logger
from emollama.media.source import Source, UnusableMedia

PROGRAM = "from emollama.encoders.decoding_worker import main; main()"
POLL_SECONDS = 0.1  # between the tests whether a clip is still wanted
# Nobody wants the clip any more, but starting another process takes longer than most clips.
PATIENCE_SECONDS = 2.0
START_SECONDS = 600.0  # for the imports, which are slow on network file systems
HEADER_BYTES = 2**16
MARGIN_BYTES = 2**16  # of a file of safetensors, for its header
# The environment variables that the process inherits. The others may be secrets.
VARIABLES = (
    "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "MALLOC_ARENA_MAX", "MALLOC_MMAP_MAX_", "MKL_NUM_THREADS", "OMP_NUM_THREADS",
    "PATH", "TMPDIR", "TZ",
)  # fmt: skip
SETTINGS = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


class DecodingProcess:
    """Loads the inputs of encoders in a separate process, one after the other. Thread-safe.

    The process starts with the first request or :meth:`start`, again after a crash, and ends with this process. It has limits of
    memory, CPU time and time, cannot write files, and inherits no secrets from the environment. Its tensors equal those of the
    encoder's ``load`` in this process bit by bit.

    Args:
        loaders: label -> class and Config of an encoder, or the frame that the model encodes itself.
        limits: what the process may use.
    """

    def __init__(self, loaders: Mapping[str, LoaderSettings], limits: DecodingLimits) -> None:
        self._setup = Setup(os.getpid(), torch.get_num_threads(), limits, dict(loaders))
        self._lock = threading.Lock()
        self._worker: _Worker | None = None
        self._closed = False

    def start(self) -> None:
        """Start the process, without waiting until it has imported its libraries."""
        with self._lock:
            self._running()

    def wait_until_ready(self) -> None:
        """Wait until the process has imported its libraries and built the encoders.

        Raises:
            RuntimeError: If the process cannot be started.
        """
        with self._lock:
            self._running().wait_until_ready()

    def load(
        self, source: Source, labels: Sequence[str], is_over: Callable[[], bool] = lambda: False
    ) -> dict[str, Tensor | UnusableMedia]:
        """Load a clip for several encoders.

        Args:
            source: the clip.
            labels: labels of the encoders.
            is_over: whether nobody wants the clip any more; the process is then ended if it does not finish soon.

        Returns:
            Label -> the result of ``load``, or the reason why there is none. After a crash, the clip is not loaded for the
            remaining labels.

        Raises:
            RuntimeError: If the process cannot be started, for example because an encoder cannot be built, or has been closed.
            CancelledError: If nobody wants the clip any more.
        """
        results: dict[str, Tensor | UnusableMedia] = {}
        with self._turn(is_over):
            for label in labels:
                if is_over():
                    raise CancelledError
                worker = self._running()
                worker.wait_until_ready()
                try:
                    results[label] = worker.load(label, source, is_over)
                except CancelledError:
                    worker.stop()
                    if not self._closed:
                        # The next clip need not wait for all of its start.
                        self._running()
                    raise
                except _Crash as crash:
                    worker.stop()
                    if self._closed:
                        raise RuntimeError("the decoding process has been closed") from None
                    self._running()
                    return results | {rest: UnusableMedia(str(crash)) for rest in labels if rest not in results}
        return results

    def close(self) -> None:
        """End the process, also during a request."""
        self._closed = True
        if (worker := self._worker) is not None:
            worker.process.kill()
        with self._lock:
            if self._worker is not None:
                self._worker.stop()
                self._worker = None

    @contextmanager
    def _turn(self, is_over: Callable[[], bool]) -> Iterator[None]:
        """Wait for the process while it loads the clips of other threads."""
        while not self._lock.acquire(timeout=POLL_SECONDS):
            if is_over():
                raise CancelledError
        try:
            yield
        finally:
            self._lock.release()

    def _running(self) -> _Worker:
        """Return the process after starting it, if it has not been started or has ended."""
        if self._closed:
            raise RuntimeError("the decoding process has been closed")
        if self._worker is None or self._worker.process.poll() is not None:
            if self._worker is not None:
                self._worker.stop()
            self._worker = _Worker(self._setup)
        return self._worker


class _Crash(Exception):
    """The process ended, was ended, or sent an invalid answer. The message is the reason for users."""


class _Worker:
    """One process and the connection to it."""

    def __init__(self, setup: Setup) -> None:
        self.limits = setup.limits
        self.connection, theirs = Pipe()
        variables = {name: os.environ[name] for name in VARIABLES if name in os.environ} | SETTINGS
        variables["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(theirs.fileno())],
                env=variables,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # A signal to the process group, such as Ctrl-C in a terminal, is for the parent, which ends this process.
                start_new_session=True,
            )
        self.ready = False
        self.connection.send(setup)

    def wait_until_ready(self) -> None:
        """Wait until the process has built the encoders.

        Raises:
            RuntimeError: If it could not.
        """
        if self.ready:
            return
        try:
            with _Deadline(self.process, START_SECONDS):
                error, _ = _parse_header(self.connection.recv_bytes(HEADER_BYTES))
        except (EOFError, OSError, _Crash):
            self.process.kill()
            error = f"it ended with status {self.process.wait()}"
        if error is not None:
            self.stop()
            raise RuntimeError(f"the decoding process cannot start: {error}")
        self.ready = True

    def load(self, label: str, source: Source, is_over: Callable[[], bool]) -> Tensor | UnusableMedia:
        """Load a clip for one encoder.

        Raises:
            _Crash: If the process did not send a valid answer in time.
            CancelledError: If nobody wants the clip any more, and the process continues.
        """
        deadline = _Deadline(self.process, self.limits.seconds)
        try:
            with deadline:
                self.connection.send((label, source))
                self._wait_for_answer(is_over)
                error, order = _parse_header(self.connection.recv_bytes(HEADER_BYTES))
                if error is not None:
                    return UnusableMedia(error)
                return _parse_tensor(self.connection.recv_bytes(self.limits.result_bytes + MARGIN_BYTES), order)
        except (EOFError, OSError):
            if deadline.passed:
                raise _Crash(f"decoding it takes longer than {self.limits.seconds:g} seconds") from None
            self.process.kill()
            if (status := self.process.wait()) == -signal.SIGXCPU:
                raise _Crash(f"decoding it takes more than {self.limits.cpu_seconds} seconds of CPU time") from None
            raise _Crash(f"decoding it ended the decoder with {_signal_name(status)}") from None

    def _wait_for_answer(self, is_over: Callable[[], bool]) -> None:
        patience = math.inf
        while not self.connection.poll(POLL_SECONDS):
            if is_over():
                patience = min(patience, time.monotonic() + PATIENCE_SECONDS)
            if time.monotonic() > patience:
                raise CancelledError

    def stop(self) -> None:
        """End the process at once."""
        self.process.kill()
        self.process.wait()
        self.connection.close()


class _Deadline:
    """Kills a process if a block takes too long, so that a read from it in the block ends.

    Attributes:
        passed: whether the process was killed.
    """

    def __init__(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        self.process, self.passed = process, False
        self.timer = threading.Timer(seconds, self._kill)

    def _kill(self) -> None:
        self.passed = True
        self.process.kill()

    def __enter__(self) -> None:
        self.timer.start()

    def __exit__(self, *_: object) -> None:
        self.timer.cancel()


def _parse_header(data: bytes) -> tuple[str | None, list[int]]:
    """Return the error and the order of the dimensions, after checking them, because the process may run foreign code."""
    try:
        header = json.loads(data)
        error, order, fault = header["error"], header["order"], header["fault"]
    except (ValueError, RecursionError, KeyError, TypeError):
        raise _Crash("the decoder sent an invalid answer") from None
    if not (error is None or isinstance(error, str)) or not isinstance(order, list) or not isinstance(fault, str):
        raise _Crash("the decoder sent an invalid answer")
    if fault:
        get_logger().warning("an encoder failed to load a clip: %s", _printable(fault))
    return None if error is None else _printable(error), order


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text[:MAX_REASON_LENGTH])


def _parse_tensor(data: bytes, order: list[Any]) -> Tensor:
    """Return the tensor of an answer with its dimensions in their order, after checking it."""
    try:
        tensors = load(data)
    except (SafetensorError, KeyError, ValueError, RuntimeError):
        raise _Crash("the decoder sent an invalid answer") from None
    if list(tensors) != [TENSOR] or any(type(dimension) is not int for dimension in order):
        raise _Crash("the decoder sent an invalid answer")
    tensor = tensors[TENSOR]
    if sorted(order) != list(range(tensor.ndim)):
        raise _Crash("the decoder sent an invalid answer")
    return tensor.permute([order.index(dimension) for dimension in range(tensor.ndim)])


def _signal_name(status: int) -> str:
    """Return ``SIGSEGV`` for the exit status of a process that this signal ended."""
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"status {status}"
