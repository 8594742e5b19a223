"""The base class of encoders.

Shape letters: D width of an encoder, P patches of an image, F frames or images, S samples of sound.
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
    """The features of an encoder, described before the values of its weights are read.

    Attributes:
        shape: number and dimension of the feature vectors in its arrays, without the class token.
        settings: all settings that change the features, as plain values: encoder, layers, pooling, frames, sizes.
    """

    shape: SlotShape
    settings: dict[str, Any]


class Encoder(ABC):
    """A pretrained encoder of one modality.

    Args:
        cfg: the Config of its block under ``encoders``.
        device: device of the model. On the meta device, only names and shapes of the weights are checked.
        key: dotted name of the block, for messages.

    Attributes:
        SLOTS: the slots that its arrays fill: ``("image", "cls")`` if row 0 is the class token, otherwise one name.
        Config: the Config class of its block.
        cfg: the Config of its block.
        device: device of the model.
        key: dotted name of the block.

    Raises:
        UserError: If weights are missing, or have a different architecture or different shapes.
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
        """Describe the features for a configuration. Read names and shapes of the weights, but no values.

        Args:
            cfg: the Config of the block.
            key: dotted name of the block, for messages.

        Raises:
            UserError: If weights are missing or have a different architecture, or a setting is not possible with them.
        """

    @abstractmethod
    def load(self, source: Source) -> Tensor:
        """Read a clip and prepare it for :meth:`encode`, on the CPU. Called from several threads.

        Raises:
            UnusableMedia: If the clip cannot be encoded.
        """

    @abstractmethod
    def encode(self, loaded: Sequence[Tensor]) -> list[np.ndarray]:
        """Encode clips.

        Args:
            loaded: results of :meth:`load`.

        Returns:
            (D,) or (1 + P, D) float32 for each clip. The features of a clip do not depend on the other clips.
        """

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """Use the configured precision in this block, regardless of an autocast outside."""
        mixed = self.cfg.precision != "fp32"
        dtype = DTYPES[self.cfg.precision] if mixed else torch.bfloat16
        with exact_convolutions(), torch.autocast(self.device.type, dtype=dtype, enabled=mixed):
            yield


def exact_convolutions() -> AbstractContextManager[None]:
    """Use full float32 precision in the convolutions of this block."""
    # By default, PyTorch lets cuDNN round the inputs of float32 convolutions to TF32, with 10 bits of mantissa.
    return torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False)


def in_batches(forward: Callable[[Tensor], Tensor], items: Tensor, size: int) -> Tensor:
    """Apply a function to batches of exactly ``size`` items, and concatenate the results.

    Args:
        forward: (size, ...) -> (size, ...).
        items: (N, ...).
        size: items per batch.

    Returns:
        (N, ...).
    """
    outputs = []
    for first in range(0, len(items), size):
        batch = items[first : first + size]
        # The last batch is filled with copies. Libraries choose kernels by the shape of a batch, and kernels differ in rounding,
        # so an item gets the same bits only in batches of one size.
        fill = batch[-1:].expand(size - len(batch), *batch.shape[1:])
        outputs.append(forward(torch.cat([batch, fill]))[: len(batch)])
    return torch.cat(outputs)
