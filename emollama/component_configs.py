"""The Protocols of Config classes: the keys and methods that other modules read; further keys are up to the component.

The ``Config`` of a dataset implements :class:`emollama.data.dataset.DatasetConfig`. A runner derives its ``Config`` from
:class:`emollama.runners.run_config.RunnerConfig`, an encoder from :class:`emollama.encoders.configs.EncoderConfig`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, Protocol, runtime_checkable

from emollama.errors import UserError


class ModelConfig(Protocol):
    """What the ``Config`` of a model must provide. :class:`emollama.models.configs.LLMConfig` documents the keys."""

    @property
    def llama_model(self) -> str:
        """Folder of the language model and its tokenizer."""
        ...

    @property
    def ckpt(self) -> str | list[str] | None:
        """One or several checkpoints, or None."""
        ...

    @property
    def ensemble(self) -> str:
        """``predictions`` or ``weights``."""
        ...

    @property
    def ckpt_allow_missing(self) -> list[str]:
        """Glob patterns of trainable tensors that may be missing from ``ckpt``."""
        ...

    @property
    def low_resource(self) -> bool:
        """Whether the language model is loaded in 8 bits."""
        ...

    @property
    def load_in_4bit(self) -> bool:
        """Whether the language model is loaded in 4 bits."""
        ...

    @property
    def merge_adapters(self) -> bool:
        """Whether inference calls the method ``merge_adapters`` of the model."""
        ...

    @property
    def use_grad_checkpoint(self) -> bool | int | str:
        """Whether activations are recomputed in the backward pass: in all layers, every n-th one, or as needed (auto)."""
        ...

    @property
    def max_txt_len(self) -> int:
        """Maximum number of tokens of an answer, including the end symbol."""
        ...

    @property
    def max_context_len(self) -> int:
        """Maximum number of text tokens of a prompt; feature tokens are not counted."""
        ...

    def require_layout(self, name: str, key: str) -> None:
        """Check that the prompt format has a layout.

        Raises:
            UserError: If it does not. The message starts with ``key``.
        """
        ...


@runtime_checkable
class RecognizesCheckpoints(Protocol):
    """What the ``Config`` of a model provides in addition if messages should say that a checkpoint belongs to this model.

    Attributes:
        checkpoint_description: name of the model's checkpoints in messages; "" for the value of ``arch``.
    """

    checkpoint_description: str

    @classmethod
    def recognizes(cls, stored: Collection[str], expected: Collection[str]) -> bool:
        """Return whether tensor names suggest that a checkpoint belongs to this model.

        Args:
            stored: names of the checkpoint's tensors.
            expected: names of the tensors of the model that the checkpoint does not fit, possibly of a different architecture.
        """
        ...


class TaskConfig(Protocol):
    """What the ``Config`` of a task must provide. :class:`emollama.tasks.configs.ImageTextPretrainConfig` documents the keys."""

    @property
    def prompt_layout(self) -> str:
        """Layout of the prompt format."""
        ...

    @property
    def instruction(self) -> str:
        """``first``, or the instruction itself."""
        ...

    @property
    def max_new_tokens(self) -> int:
        """Maximum number of tokens of an answer."""
        ...

    @property
    def num_beams(self) -> int:
        """Number of beams of the beam search; 1 without one."""
        ...

    @property
    def aliases(self) -> Mapping[str, str]:
        """Word in an answer -> label that it stands for."""
        ...

    @property
    def mask_slots(self) -> Sequence[str]:
        """Slots whose features are replaced by zeros."""
        ...


class ExtractorConfig(Protocol):
    """What the ``Config`` of an extractor must provide."""

    @property
    def videos(self) -> str:
        """Folder of videos."""
        ...

    @property
    def output(self) -> str:
        """Output folder."""
        ...

    @property
    def device(self) -> str:
        """``auto``, ``cuda`` or ``cpu``."""
        ...

    @property
    def num_workers(self) -> int:
        """Number of threads that read videos, per process; ``emollama predict`` uses it, too."""
        ...


class PromptFormatConfig(Protocol):
    """What the ``Config`` of a prompt format must provide."""

    @property
    def layout_names(self) -> Sequence[str]:
        """The values that ``prompt_layout`` of an evaluation block can have."""
        ...


def quantized_bits(cfg: ModelConfig) -> Literal[4, 8] | None:
    """Return the bits of the language model's frozen weights; None if they are not quantized."""
    return 8 if cfg.low_resource else 4 if cfg.load_in_4bit else None


def require_quantizer(bits: Literal[4, 8] | None) -> None:
    """Check that the package for quantized weights is installed, if they are needed.

    Raises:
        UserError: If it is not.
    """
    if bits is not None and importlib.util.find_spec("bitsandbytes") is None:
        key = "load_in_4bit" if bits == 4 else "low_resource"
        raise UserError(f"model.{key} needs the package bitsandbytes: pip install bitsandbytes (or set {key}: False)")
