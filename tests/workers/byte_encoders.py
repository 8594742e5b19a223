"""Encoders of files that are not videos, for tests of the extraction around them: they multiply byte counts by a matrix.

A file begins with ``clip``, or it cannot be read. The next word may cause an error: ``broken`` (reading fails), ``heavy``
(encoding fails), ``hungry`` (the device memory is too small), ``endless`` (features are NaN), ``wide`` (wrong shape),
``large`` (beyond float16).
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from emollama.data.slots import SlotShape
from emollama.encoders.configs import EncoderConfig
from emollama.encoders.encoder import Encoder, EncoderDescription
from emollama.media.source import UnusableMedia
from emollama.registry import ENCODERS


@ENCODERS.register("bytes")
class Bytes(Encoder):
    """Features of shape (D,). Reading the clip ``stuck`` ends when a file ``go`` exists next to the weights."""

    SLOTS = ("face",)

    @dataclass
    class Config(EncoderConfig):
        folder: str = "bytes"
        width: int = 24
        seconds: float = 0.0
        stuck: str = ""
        hungry_process: int = -1
        layers: list[int] = field(default_factory=lambda: [-1])

    def __init__(self, cfg, *, device, key):
        super().__init__(cfg, device=device, key=key)
        rng = np.random.default_rng(list(Path(cfg.weights).read_bytes()))
        self.matrix = torch.from_numpy(rng.standard_normal((256, cfg.width), np.float32)).to(device)

    @classmethod
    def describe(cls, cfg, key):
        return EncoderDescription(SlotShape(1, cfg.width), {"encoder": "bytes", "layers": cfg.layers})

    def load(self, source):
        time.sleep(self.cfg.seconds)
        if source.name == self.cfg.stuck:
            wait_until(Path(self.cfg.weights).with_name("go").exists)
        content = source.video.read_bytes()
        if content.startswith(b"clip broken"):
            raise OSError("a bad sector")
        if not content.startswith(b"clip"):
            raise UnusableMedia("no clip")
        return torch.frombuffer(bytearray(content), dtype=torch.uint8)

    def encode(self, loaded):
        if any(first_bytes(content).startswith(b"clip heavy") for content in loaded):
            raise RuntimeError("too\nheavy")
        hungry = int(os.environ.get("RANK", 0)) == self.cfg.hungry_process
        if hungry or any(first_bytes(content).startswith(b"clip hungry") for content in loaded):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [self.rows(content) for content in loaded]

    def rows(self, content):
        counts = torch.bincount(content.long(), minlength=256).float().to(self.device)
        features = (counts @ self.matrix).cpu().numpy()
        if first_bytes(content).startswith(b"clip wide"):
            return np.concatenate([features, features])
        factors = {b"clip endless": np.nan, b"clip large": 1e6}
        return features * next(
            (factor for start, factor in factors.items() if first_bytes(content).startswith(start)), np.float32(1)
        )


@ENCODERS.register("series")
class Series(Bytes):
    """Features of shape (n, D) of a slot that only a configuration declares; n is the number of words of the file."""

    SLOTS = ("gaze",)

    @dataclass
    class Config(Bytes.Config):
        folder: str = "series"

    @classmethod
    def describe(cls, cfg, key):
        return EncoderDescription(SlotShape(None, cfg.width), {"encoder": "series"})

    def rows(self, content):
        vector, words = super().rows(content), len(bytes(content.tolist()).split())
        return np.stack([vector] * words)


@ENCODERS.register("grid")
class Grid(Bytes):
    """Features of shape (1 + 4, D)."""

    SLOTS = ("image", "cls")

    @dataclass
    class Config(Bytes.Config):
        folder: str = "grid"

    @classmethod
    def describe(cls, cfg, key):
        return EncoderDescription(SlotShape(4, cfg.width), {"encoder": "grid"})

    def rows(self, content):
        return np.stack([super(Grid, self).rows(content[row:]) for row in range(5)])


@ENCODERS.register("meeting")
class Meeting(Bytes):
    """Features (D,) of any file. With a ``meeting_folder``, no process reads before ``processes`` of them are there."""

    SLOTS = ("other",)

    @dataclass
    class Config(Bytes.Config):
        folder: str = "meeting"
        meeting_folder: str = ""
        processes: int = 1

    def load(self, source):
        if self.cfg.meeting_folder:
            self._meet(Path(self.cfg.meeting_folder))
        return torch.frombuffer(bytearray(source.video.read_bytes() + b"."), dtype=torch.uint8)

    def _meet(self, meeting_folder):
        (meeting_folder / os.environ["RANK"]).touch()
        wait_until(lambda: len(list(meeting_folder.iterdir())) == self.cfg.processes)


def wait_until(condition):
    """Wait for the condition; five minutes are longer than any successful test takes."""
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def first_bytes(content):
    return bytes(content[:16].numpy())
