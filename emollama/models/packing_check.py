"""Check how micro-batches of a language model can be run, on a shrunken random copy of the model.

There is no list of model families. The losses of a copy with two layers of each type are compared with those of plain
transformers, which runs each sample alone, from token ids, with its eager attention.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import transformers
from torch import Tensor

from emollama.data.validation_cache import ValidationCache
from emollama.errors import UserError
from emollama.models import attention
from emollama.models.configs import PackingKey
from emollama.models.decoding import empty_cache, left_padded_state, unpacked_state
from emollama.models.padded import Prefixes, accepted, decode_cached, decode_prefixes, logits_at
from emollama.models.random_copy import build, isolated, layer_classes, plain_logits, runnable_copy

TOLERANCE = 1e-4  # largest difference of a token's loss or log-probability
DECODED = 2  # tokens at the end of each sample that are decoded after a prefill of the others
VERSION = "3"  # increase it when the check changes, so that cached results are ignored
Result = Literal["packed", "padded", "rejected"]


@dataclass(frozen=True)
class Packing:
    """How micro-batches of a language model are run.

    Attributes:
        result: packed, padded, or rejected, because no way gives the values of plain transformers.
        attention: name of the attention implementation.
        batched: run padded samples in one forward pass; if False, one after the other.
        cached: generate with a key-value cache; if False, each new token recomputes its sequence.
        reason: why the model is not packed.
    """

    result: Result
    attention: str = attention.NAME
    batched: bool = True
    cached: bool = True
    reason: str = ""

    @property
    def is_packed(self) -> bool:
        """Whether samples are packed into one row."""
        return self.result == "packed"

    def notice(self, family: str) -> str:
        """Return one line about the costs for a log, or an empty string if samples are packed."""
        if self.is_packed:
            return ""
        how = "in padded micro-batches, which compute on padding" if self.batched else "one at a time, which is slower"
        decoding = "" if self.cached else "; generation recomputes the sequence for each new token"
        return f"model.packing: '{family}' runs samples {how}{decoding}. Reason: {self.reason}"


_CHECKED: dict[str, Packing] = {}


def resolve(key: PackingKey, config: Any) -> Packing:
    """Return how to run a language model.

    Args:
        key: the value of ``model.packing``.
        config: the configuration of the language model, an object of transformers.

    Raises:
        UserError: If the model cannot be run correctly, or not in the way that the key demands.
    """
    packing = cached_check(config, try_packed=key != "padded")
    if packing.result == "rejected":
        raise UserError(
            f"model.llama_model: language models of the type '{config.model_type}' do not work here: {packing.reason}."
            " Use another language model."
        )
    if key == "packed" and not packing.is_packed:
        raise UserError(
            f"model.packing is packed, but models of the type '{config.model_type}' cannot process packed samples:"
            f" {packing.reason}. Set model.packing: auto."
        )
    return packing


def cached_check(config: Any, *, try_packed: bool = True) -> Packing:
    """Return the result of the check, from this process or the user's cache folder if the same configuration was checked."""
    content = {name: value for name, value in config.to_dict().items() if name not in ("_name_or_path", "transformers_version")}
    settings = json.dumps([content, try_packed], sort_keys=True, default=str)
    digest = hashlib.sha256(settings.encode()).hexdigest()
    if digest not in _CHECKED:
        cache = ValidationCache.load("packing", VERSION, transformers.__version__, torch.__version__)
        stored = cache.get(digest, (1,))
        _CHECKED[digest] = Packing(**json.loads(stored)) if stored else check(config, try_packed=try_packed)
        if not stored:
            cache.add(digest, (1,), json.dumps(dataclasses.asdict(_CHECKED[digest])))
            cache.save()
    return _CHECKED[digest]


def check(config: Any, *, try_packed: bool = True) -> Packing:
    """Run the check: packed, then padded with the attention implementations of transformers."""
    with isolated():
        try:
            classes = layer_classes(config)
        except Exception as error:
            return Packing("rejected", reason=f"transformers cannot build it ({_one_line(error)})")
        copy = runnable_copy(config, classes) or _copy_of_text_model(config)
        if copy is None:
            reason = "the model could not be checked, because transformers cannot run a small copy of it"
            return Packing("padded", "eager", batched=False, cached=False, reason=reason)
        small, samples, expected = copy
        not_causal = _attempt(lambda: _causality(small, samples[0], expected[0]))
        if not_causal:
            return Packing("rejected", reason=not_causal)
        refused = _attempt(lambda: _feature_tokens(small, samples[0]))
        if refused:
            return Packing("rejected", reason=f"it does not accept feature tokens in place of token ids ({refused})")
        reason = "model.packing is padded"
        if try_packed:
            reason = _attempt(lambda: _packed(small, samples, expected))
        return _padded(small, samples, expected, reason) if reason else Packing("packed")


def _copy_of_text_model(config: Any) -> tuple[Any, list[Tensor], list[Tensor]] | None:
    """Return a copy of the text model alone, for models whose encoders of images or audio cannot be shrunk."""
    text = config.get_text_config()
    try:
        return None if text is config else runnable_copy(text, layer_classes(text))
    except Exception:
        # The text model cannot be built alone.
        return None


def _padded(small: Any, samples: list[Tensor], expected: list[Tensor], reason: str) -> Packing:
    """Return how to run the model padded, with the first way that gives the values of plain transformers."""
    problem = ""
    for name in ("sdpa", "eager"):
        for batched in (True, False):
            problem = _attempt(partial(_padded_losses, small, samples, expected, name, batched))
            if not problem:
                cached = batched and not _attempt(partial(_padded_decoding, small, samples, expected, name))
                return Packing("padded", name, batched, cached, reason)
    return Packing("rejected", reason=f"it differs from plain transformers even for a single sample ({problem})")


def _attempt(function: Callable[[], str]) -> str:
    """Return the problem that a comparison returns, or the exception that it raises, in one line; "" if there is none."""
    try:
        return function()
    except Exception as error:
        # Models raise every kind of exception for arguments that they do not support.
        return _one_line(error)


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


def _difference(logits: Tensor, expected: Tensor, what: str) -> str:
    change = float((logits.float().log_softmax(-1) - expected).abs().max())
    return "" if change <= TOLERANCE else f"{what} changes by {change:.2g}"


def _causality(small: Any, ids: Tensor, expected: Tensor) -> str:
    prefix = plain_logits(build(small, "eager"), ids[:-DECODED])
    return _difference(prefix, expected[:-DECODED], "it is not causal: with later tokens, the log-probability of a token")


def _feature_tokens(small: Any, ids: Tensor) -> str:
    """Run embeddings that are those of no token. Models with inputs for each layer look up the token of an embedding."""
    llm = build(small, "eager")
    embeddings = llm.get_input_embeddings()(ids)[None]
    logits = llm(inputs_embeds=embeddings + torch.randn_like(embeddings), **accepted(llm, use_cache=False)).logits
    return "" if bool(logits.isfinite().all()) else "the logits are not finite"


def _packed(small: Any, samples: list[Tensor], expected: list[Tensor]) -> str:
    """Compare one sample alone, two packed samples, and decoding after a packed prefill."""
    with attention.recorded_calls() as calls:
        model = build(small, attention.RECORDED)
        alone = _packed_logits(model, samples[:1])
        problem = _difference(alone, expected[0], "alone, the log-probability of a token")
        if problem:
            return problem
        packed = _packed_logits(model, samples)
        leak = _difference(packed, torch.cat(expected), "next to another sample, the log-probability of a token")
        without = sorted({name for name, has_boundaries in calls if not has_boundaries})
        if without or not calls:
            layers = f"the attention layers {', '.join(without)} do not receive" if without else "no attention layer receives"
            return "; ".join(filter(None, [f"{layers} the boundaries of packed samples", leak]))
        return leak or _packed_decoding(model, samples, expected)


def _packed_logits(llm: Any, samples: list[Tensor], **cache: Any) -> Tensor:
    lengths = [len(ids) for ids in samples]
    logits: Tensor = llm(
        inputs_embeds=llm.get_input_embeddings()(torch.cat(samples)).unsqueeze(0),
        position_ids=torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0),
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32),
        max_length=max(lengths),
        logits_to_keep=torch.arange(sum(lengths)),
        **({"use_cache": False} | cache),
    ).logits[0]
    return logits


def _packed_decoding(llm: Any, samples: list[Tensor], expected: list[Tensor]) -> str:
    cache = empty_cache()
    prompts = [ids[:-DECODED] for ids in samples]
    _packed_logits(llm, prompts, past_key_values=cache, use_cache=True)
    state = unpacked_state(cache, [len(ids) for ids in prompts])
    return _decoding(decode_cached(llm, _last(samples), state), expected)


def _padded_losses(small: Any, samples: list[Tensor], expected: list[Tensor], implementation: str, batched: bool) -> str:
    """Compare two padded samples, and decoding without a cache."""
    model = build(small, implementation)
    sequences = [model.get_input_embeddings()(ids) for ids in samples]
    lengths = torch.tensor([len(ids) for ids in samples])
    rows = torch.arange(len(samples)).repeat_interleave(lengths)
    columns = torch.cat([torch.arange(length) for length in lengths.tolist()])
    logits = logits_at(model, sequences, rows, columns, batched=batched)
    problem = _difference(logits, torch.cat(expected), "the log-probability of a token")
    if problem:
        return problem
    prefixes = Prefixes([sequence[:-DECODED] for sequence in sequences])
    return _decoding(decode_prefixes(model, _last(samples), prefixes, batched=batched), expected)


def _padded_decoding(small: Any, samples: list[Tensor], expected: list[Tensor], implementation: str) -> str:
    model = build(small, implementation)
    prompts = [ids[:-DECODED] for ids in samples]
    ends = torch.tensor([len(ids) - 1 for ids in prompts])
    cache = empty_cache()
    sequences = [model.get_input_embeddings()(ids) for ids in prompts]
    logits_at(model, sequences, torch.arange(len(samples)), ends, batched=True, cache=cache)
    return _decoding(decode_cached(model, _last(samples), left_padded_state(cache, [len(ids) for ids in prompts])), expected)


def _last(samples: list[Tensor]) -> Tensor:
    return torch.stack([ids[-DECODED:] for ids in samples])


def _decoding(logits: Tensor, expected: list[Tensor]) -> str:
    return _difference(logits, torch.stack([part[-DECODED:] for part in expected]), "in decoding, the log-probability of a token")
