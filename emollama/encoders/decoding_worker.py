"""The process that decodes media for :mod:`emollama.encoders.decoding_process`.

It trusts the process that started it, which does not trust it: it receives pickled objects, and sends tensors as safetensors.
"""

from __future__ import annotations

import json
import math
import os
import queue
import resource
import sys
import threading
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Protocol

import torch
from safetensors.torch import save
from torch import Tensor

from emollama.encoders.encoder import Encoder
from emollama.media.frame_pixels import FramePixels
from emollama.media.source import Source, UnusableMedia

LoaderSettings = tuple[type[Encoder], Any] | FramePixels  # an encoder's class and Config, or a frame that the model encodes
TENSOR = "tensor"  # name of the only tensor in an answer
MAX_REASON_LENGTH = 300  # characters
LOGGED_FRAMES = 4  # of an unexpected exception
OPEN_FILES = 256


@dataclass(frozen=True)
class DecodingLimits:
    """What the decoding process may use. The limits of the media themselves are part of a ``Source``.

    Attributes:
        memory_bytes: address space, beyond that of the idle process.
        cpu_seconds: CPU time for one encoder's input.
        seconds: time for one encoder's input.
        result_bytes: size of one encoder's input.
    """

    memory_bytes: int = 4 * 2**30
    cpu_seconds: int = 120
    seconds: float = 120.0
    result_bytes: int = 2**30


@dataclass(frozen=True)
class Setup:
    """The first message to the process.

    Attributes:
        parent: id of the process that started it.
        threads: number of threads of PyTorch.
        limits: what it may use.
        loaders: label -> what reads the input of an encoder.
    """

    parent: int
    threads: int
    limits: DecodingLimits
    loaders: Mapping[str, LoaderSettings]


class _Loader(Protocol):
    def load(self, source: Source) -> Tensor: ...


def main() -> None:
    """Answer requests on the connection whose descriptor is the first argument, until the other side closes it."""
    connection = Connection(int(sys.argv[1]))
    try:
        setup: Setup = connection.recv()
        torch.set_num_threads(setup.threads)
        loaders = {label: _build(label, settings) for label, settings in setup.loaders.items()}
    except Exception as error:
        connection.send_bytes(_header(f"{type(error).__name__}: {error}"))
        return
    requests: queue.SimpleQueue[tuple[str, Source]] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, setup.parent, requests), daemon=True).start()
    _restrict(setup.limits)
    connection.send_bytes(_header(None))
    while True:
        label, source = requests.get()
        _limit_cpu_time(setup.limits.cpu_seconds)
        header, content = _answer(loaders[label], source, setup.limits)
        connection.send_bytes(header)
        if content is not None:
            connection.send_bytes(content)


def _build(label: str, settings: LoaderSettings) -> _Loader:
    if isinstance(settings, FramePixels):
        return settings
    encoder, cfg = settings
    return encoder(cfg, device=torch.device("meta"), key=f"encoders.{label}")


def _receive(connection: Connection, parent: int, requests: queue.SimpleQueue[tuple[str, Source]]) -> None:
    """Pass requests on, and end this process, also during a request, when the process that started it has ended."""
    try:
        while True:
            # Another process that it has forked may keep the connection open.
            while not connection.poll(1.0):
                if os.getppid() != parent:
                    os._exit(0)
            requests.put(connection.recv())
    except (EOFError, OSError):
        os._exit(0)


def _restrict(limits: DecodingLimits) -> None:
    with open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    for kind, value in (
        (resource.RLIMIT_AS, used + limits.memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
    ):
        _, hard = resource.getrlimit(kind)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def _limit_cpu_time(seconds: int) -> None:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(usage.ru_utime + usage.ru_stime) + seconds, hard))


def _answer(loader: _Loader, source: Source, limits: DecodingLimits) -> tuple[bytes, bytes | None]:
    try:
        tensor = loader.load(source)
        if tensor.nbytes > limits.result_bytes:
            raise UnusableMedia(f"its decoded content takes {tensor.nbytes:,} bytes, more than {limits.result_bytes:,}")
        # The order of the dimensions in memory is preserved, because it can change the rounding of a model.
        strides = tensor.stride()
        order = sorted(range(tensor.ndim), key=lambda dimension: -strides[dimension])
        return _header(None, order), save({TENSOR: tensor.permute(order).contiguous()})
    except UnusableMedia as error:
        return _header(str(error)), None
    except MemoryError:
        return _header(f"decoding it takes more than {limits.memory_bytes:,} bytes of memory"), None
    except Exception as error:  # a library may raise anything for a broken file
        name = type(error).__name__
        # Its message may contain paths and texts, so that only the place goes to the log.
        frames = traceback.extract_tb(error.__traceback__)[-LOGGED_FRAMES:]
        places = " < ".join(f"{os.path.basename(frame.filename)}:{frame.lineno} {frame.name}" for frame in reversed(frames))
        return _header(f"decoding it failed with {name}", fault=f"{name} in {places}"), None


def _header(error: str | None, order: list[int] | None = None, fault: str = "") -> bytes:
    """Return the first part of an answer.

    Args:
        error: the reason why there is no tensor, for users.
        order: order of the dimensions of the tensor in memory.
        fault: description of an unexpected exception, for the log.
    """
    text = None if error is None else " ".join(error.split())[:MAX_REASON_LENGTH]
    return json.dumps({"error": text, "order": order or [], "fault": fault[:MAX_REASON_LENGTH]}).encode()
