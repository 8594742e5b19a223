"""Build a small random copy of a language model, which shows in a moment on a CPU how the model behaves."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.initialization import no_init_weights

from emollama.models.padded import accepted
from emollama.models.shrinking import WINDOW, shrunken_configs

LENGTHS = (2 * WINDOW + 7, 2 * WINDOW + 1)  # tokens of two samples, longer than a shrunken window or chunk
MAX_PARAMETERS = 60_000_000  # of a shrunken copy, so that the check takes at most a few seconds


@dataclass(frozen=True)
class RandomCopy:
    """A small random copy of a language model.

    Attributes:
        config: its configuration, an object of transformers.
        llm: the copy with eager attention.
        samples: token ids (T,) of two samples.
        expected: the log-probabilities (T, V) that plain transformers computes for each sample, in float32.
    """

    config: Any
    llm: Any
    samples: list[Tensor]
    expected: list[Tensor]

    def build(self, implementation: str) -> Any:
        """Return the copy with another implementation of attention and the same weights."""
        with no_init_weights():
            model = transformers.AutoModelForCausalLM.from_config(
                copy.deepcopy(self.config), attn_implementation=implementation, dtype=torch.float32
            )
        # As in a run.
        model.config.use_cache = False
        model.load_state_dict(self.llm.state_dict(), assign=True)
        return model.eval()


@contextmanager
def isolated() -> Iterator[None]:
    """Leave the random state and the verbosity of transformers as they are, and compute in float32 without gradients."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.CRITICAL)
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float32)
        with torch.random.fork_rng(devices=[]), torch.no_grad(), torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.set_default_dtype(default)
        transformers.logging.set_verbosity(verbosity)


def runnable_copy(config: Any) -> RandomCopy | None:
    """Return a copy that transformers can run and that has modules of all classes, or None if there is none.

    If the encoders of images or audio cannot be shrunk, it is a copy of the text model alone.

    Raises:
        Exception: If transformers cannot build the model itself.
    """
    whole, text = _runnable_copy(config, _module_classes(config)), config.get_text_config()
    if whole is not None or text is config:
        return whole
    try:
        return _runnable_copy(text, _module_classes(text))
    except Exception:
        # The text model cannot be built alone.
        return None


def _runnable_copy(config: Any, classes: set[type]) -> RandomCopy | None:
    for small in shrunken_configs(config):
        try:
            model = random_model(small)
            if not classes <= set(map(type, model.modules())):
                # The copy has no layer of one of the types.
                continue
            rows = min(model.get_input_embeddings().weight.shape[0], small.get_text_config().vocab_size)
            generator = torch.Generator().manual_seed(1)
            # Padding and special tokens can have another meaning, but they are a few of the first and last ids.
            samples = [torch.randint(rows // 4, 3 * rows // 4, (length,), generator=generator) for length in LENGTHS]
            logits = [plain_logits(model, ids).float().log_softmax(-1) for ids in samples]
        # The same as in shrunken_configs: any exception means that this copy cannot be used.
        except Exception:
            continue
        if all(bool(part.isfinite().all()) for part in logits):
            return RandomCopy(small, model, samples, logits)
    return None


def _module_classes(config: Any) -> set[type]:
    """Return the classes of a model's modules."""
    with torch.device("meta"):
        return set(map(type, transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").modules()))


def random_model(config: Any) -> Any:
    """Build a model with random weights and eager attention."""
    build = partial(transformers.AutoModelForCausalLM.from_config, config, attn_implementation="eager", dtype=torch.float32)
    with torch.device("meta"):
        shapes = build()
    if sum(parameter.numel() for parameter in shapes.parameters()) > MAX_PARAMETERS:
        raise ValueError("the copy is too large")
    # torch.manual_seed would also seed the GPUs, whose state is not restored.
    torch.default_generator.manual_seed(0)
    model = build()
    for parameter in model.parameters():
        # Larger than usual initial weights, with which the samples of a row would hardly influence each other.
        if parameter.ndim == 2:
            parameter.normal_(std=parameter.shape[1] ** -0.5)
        elif parameter.ndim > 2:
            parameter.normal_(std=parameter.shape[-2] ** -0.5)
        else:
            # Scales that start at zero would hide what they multiply.
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def plain_logits(llm: Any, ids: Tensor) -> Tensor:
    """Return the logits (T, V) of a sample (T,) alone, from its token ids."""
    logits: Tensor = llm(input_ids=ids[None], **accepted(llm, use_cache=False)).logits[0]
    return logits
