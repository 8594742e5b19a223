"""What every encoder offers, and the keys that all of them share.

Letters: D an encoder's width, P patches of an image, F frames or images, S samples of sound.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from emollama.data.slots import SlotShape
from emollama.encoders.configs import EncoderConfig
from emollama.media.source import Source

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class EncoderDescription:
    """What an encoder makes, known before its weights are read.

    Attributes:
        shape: rows and width of its arrays, the class row not counted.
        recipe: every setting that changes the numbers, as plain values: encoder, layers, pooling, frames, sizes.
    """

    shape: SlotShape
    recipe: dict[str, Any]


class Encoder(ABC):
    """A pretrained encoder of one modality.

    Args:
        cfg: the block under ``encoders``.
        device: where it computes; on the meta device names and shapes of the weights are looked at, and nothing can be encoded.
        key: the block's dotted name, for messages.

    Attributes:
        SLOTS: what its arrays fill; ``("image", "cls")`` for arrays whose row 0 is the class token, else one name.

    Raises:
        UserError: weights that are missing, of another architecture, or do not fit.
    """

    SLOTS: ClassVar[tuple[str, ...]]
    Config: ClassVar[type[EncoderConfig]]

    def __init__(self, cfg: Any, *, device: torch.device, key: str) -> None:
        self.cfg = cfg
        self.device = device
        self.key = key

    @classmethod
    @abstractmethod
    def describe(cls, cfg: Any, key: str) -> EncoderDescription:
        """What an encoder configured so makes; looks at names and shapes of the weights, not at their values.

        Args:
            cfg: the block.
            key: the block's dotted name, for messages.

        Raises:
            UserError: no weights there, those of another architecture, or settings that do not fit them.
        """

    @abstractmethod
    def load(self, source: Source) -> Tensor:
        """Read a clip and bring it into the form that :meth:`encode` takes, on the CPU; called in several threads.

        Raises:
            UnusableMedia: nothing can be made of the clip.
        """

    @abstractmethod
    def encode(self, loaded: Sequence[Tensor]) -> list[np.ndarray]:
        """Features of some clips: (D,) float32 each, or (1 + P, D). Those of a clip do not depend on the others."""

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """Around a forward pass: the configured precision, whatever is set outside."""
        mixed = self.cfg.precision != "fp32"
        dtype = DTYPES[self.cfg.precision] if mixed else torch.bfloat16
        with exact_convolutions(), torch.autocast(self.device.type, dtype=dtype, enabled=mixed):
            yield


def exact_convolutions() -> AbstractContextManager[None]:
    """Around a forward pass: convolutions of float32 values keep all of their bits, which cuDNN cuts to 10 unless told."""
    return torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False)


def in_batches(forward: Callable[[Tensor], Tensor], items: Tensor, size: int) -> Tensor:
    """``forward`` over (N, ...) items, ``size`` at a time; what it gives, joined.

    The last batch is filled up with copies, so that an item is always one of ``size``: kernels that are chosen by the batch's
    shape then give it the same numbers whatever its company.
    """
    parts = []
    for first in range(0, len(items), size):
        part = items[first : first + size]
        fill = part[-1:].expand(size - len(part), *part.shape[1:])
        parts.append(forward(torch.cat([part, fill]))[: len(part)])
    return torch.cat(parts)
