"""An encoder whose ``load`` obeys the content of the file, for tests of the process that decodes media."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass

import numpy as np
import torch

from emollama.encoders.configs import EncoderConfig
from emollama.encoders.encoder import Encoder
from emollama.media.source import UnusableMedia


class Obedient(Encoder):
    """Loads (N,) bytes: the content of the file, or a result of the command in it."""

    @dataclass
    class Config(EncoderConfig):
        buildable: bool = True

    def __init__(self, cfg, *, device, key):
        super().__init__(cfg, device=device, key=key)
        if not cfg.buildable:
            raise ValueError("no weights")

    @classmethod
    def describe(cls, cfg, key):
        raise NotImplementedError

    def load(self, source):
        command = source.video.read_text()
        if command == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif command == "memory":
            np.ones(2**33, np.uint8)
        elif command == "compute":
            while True:
                pass
        elif command == "wait":
            time.sleep(3600)
        elif command == "write":
            (source.video.parent / "written").write_text("x")
        elif command == "unusable":
            raise UnusableMedia("a\nb\x1b[31m")
        elif command == "environment":
            command = "\n".join(sorted(os.environ))
        elif command == "process":
            command = str(os.getpid())
        elif command == "large":
            return torch.zeros(2**21)
        return torch.tensor(list(command.encode()), dtype=torch.uint8)

    def encode(self, loaded):
        raise NotImplementedError
