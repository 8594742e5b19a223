"""Check how micro-batches of a language model can be run, on a shrunken random copy of the model.

There is no list of model families. The losses of a copy with two layers of each type are compared with those of plain
transformers (:mod:`emollama.models.packing_comparisons`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from typing import Any, Literal

import torch

from emollama.data.validation_cache import ValidationCache
from emollama.errors import UserError
from emollama.json_io import parse_json
from emollama.models import attention, copy_properties, fused_layer, packing_comparisons, prefix_comparisons
from emollama.models.configs import PackingKey
from emollama.models.packing_comparisons import Forward, packed_logits, padded_logits
from emollama.models.random_copy import RandomCopy, isolated, runnable_copy

VERSION = "10"  # increase it when the check changes, so that cached results are ignored
CPU = torch.device("cpu")
Result = Literal["packed", "padded", "rejected"]
Cache = Literal["batch", "sequence", "none"]


@dataclass(frozen=True)
class Packing:
    """How micro-batches of a language model are run.

    Attributes:
        result: packed, padded, or rejected, because no way gives the values of plain transformers.
        attention: name of the attention implementation.
        batched: run padded samples in one forward pass; if False, one after the other.
        cache: how generation avoids recomputing a sequence for each new token: with the keys and values of the batch, or with
            the model's own cache of each sequence, one sequence after the other; none if neither gives the right values.
        beam_problem: why the beam search of transformers, which uses the model's own cache, cannot be used; "" if it can.
        reason: why the model is not packed.
        random_training: whether random numbers in training depend on how a global batch is divided.
        max_tokens: number of tokens for which the model has learned or stored positions; None if it has no such table.
        joint_answers: compute all candidate answers to a prompt in one forward pass; if False, one after the other.
        fused_problem: why the layers cannot be computed by :mod:`emollama.models.fused_layer`; "" if they can.
        shared_prompts: whether samples of a micro-batch can share the beginning of a prompt.
    """

    result: Result
    attention: str = attention.NAME
    batched: bool = True
    cache: Cache = "batch"
    beam_problem: str = ""
    reason: str = ""
    random_training: bool = False
    max_tokens: int | None = None
    joint_answers: bool = False
    fused_problem: str = ""
    shared_prompts: bool = False

    @property
    def is_packed(self) -> bool:
        """Whether samples are packed into one row."""
        return self.result == "packed"

    @property
    def is_padded(self) -> bool:
        """Whether the samples of a micro-batch are padded to the longest one; False if they run one after the other."""
        return not self.is_packed and self.batched

    def require_beam_search(self, family: str) -> None:
        """Check that the beam search of transformers gives the right values.

        Raises:
            UserError: If it does not.
        """
        if self.beam_problem:
            raise UserError(
                f"num_beams: the beam search of transformers does not work with models of the type '{family}'"
                f" ({self.beam_problem}). Set num_beams: 1."
            )

    def require_shared_prompts(self, family: str) -> None:
        """Check that samples can share the beginning of a prompt.

        Raises:
            UserError: If they cannot.
        """
        if not self.shared_prompts:
            reason = self.reason or "log-probabilities change"
            text = f"samples of models of the type '{family}' cannot share a prompt ({reason}). Set run.tasks_per_clip: 1."
            raise UserError(f"run.tasks_per_clip: {text}")

    def notices(self, family: str) -> list[str]:
        """Return lines for a log: about the costs if samples are not packed, and about random numbers in training."""
        lines = []
        if not self.is_packed:
            padded = "in padded micro-batches, which also compute on the padding"
            how = padded if self.batched else "one at a time, which is slower"
            lines.append(f"model.packing: '{family}' runs samples {how}{_DECODING[self.cache]}. Reason: {self.reason}")
        if self.random_training:
            lines.append(
                f"model.llama_model: '{family}' draws random numbers in training (dropout inside a layer, noise of a router) that"
                " depend on how a global batch is divided into micro-batches. To get the same losses for each division, set the"
                " probabilities in its config.json to 0."
            )
        return lines


_DECODING = {
    "batch": "",
    "sequence": "; generation runs one sequence at a time",
    "none": "; generation recomputes the sequence for each new token",
}
_CHECKED: dict[str, Packing] = {}


def resolve(key: PackingKey, config: Any, device: torch.device = CPU, dtype: torch.dtype = torch.float32) -> Packing:
    """Return how to run a language model.

    Args:
        key: the value of ``model.packing``.
        config: the configuration of the language model, an object of transformers.
        device: device of the run; the meta device stands for a CPU.
        dtype: dtype of frozen weights and of autocast.

    Raises:
        UserError: If the model cannot be run correctly, or not in the way that the key demands.
    """
    packing = cached_check(config, "auto" if key == "packed" else key, CPU if device.type == "meta" else device, dtype)
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


def cached_check(config: Any, key: PackingKey, device: torch.device, dtype: torch.dtype) -> Packing:
    """Return the result of the check, from this process or the user's cache folder if the same configuration was checked."""
    content = {name: value for name, value in config.to_dict().items() if name not in ("_name_or_path", "transformers_version")}
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    settings = json.dumps([content, key, place, str(dtype)], sort_keys=True, default=str)
    digest = hashlib.sha256(settings.encode()).hexdigest()
    if digest not in _CHECKED:
        cache = ValidationCache.load("packing", VERSION, *_versions())
        stored = _stored(cache.get(digest, (1,)))
        _CHECKED[digest] = stored or check(config, key, device, dtype)
        # A rejection can have a passing cause, and the run ends, so that nothing is gained by storing it.
        if not stored and _CHECKED[digest].result != "rejected":
            cache.add(digest, (1,), json.dumps(dataclasses.asdict(_CHECKED[digest])))
            cache.save()
    return _CHECKED[digest]


def _versions() -> list[str]:
    """Return the versions of the packages that compute the layers of language models, "" for those that are not installed."""
    versions = []
    for package in ("torch", "transformers", "kernels", "causal_conv1d", "mamba_ssm", "flash_linear_attention", "flash_attn"):
        try:
            versions.append(metadata.version(package))
        except metadata.PackageNotFoundError:
            versions.append("")
    return versions


def _stored(text: str | None) -> Packing | None:
    """Return the result of an entry of the cache; None for an entry that is missing or that another version wrote."""
    try:
        return None if text is None else Packing(**parse_json(text))
    except (ValueError, TypeError):
        return None


def check(config: Any, key: PackingKey = "auto", device: torch.device = CPU, dtype: torch.dtype = torch.float32) -> Packing:
    """Run the check: packed, then padded with the attention implementations of transformers, then one sample at a time.

    Args:
        config: the configuration of the language model, an object of transformers.
        key: auto tries all ways, padded all but the first, and off only the last.
        device: device of the run.
        dtype: dtype of frozen weights and of autocast.
    """
    with isolated():
        try:
            copy = runnable_copy(config)
        except Exception as error:
            return Packing("rejected", reason=f"transformers cannot build it ({_one_line(error)})")
        if copy is None:
            reason = "the model could not be checked, because transformers cannot run a small copy of it"
            return Packing("padded", "eager", batched=False, cache="none", beam_problem=reason, reason=reason)
        not_causal = _attempt(lambda: packing_comparisons.causality(copy))
        if not_causal:
            return Packing("rejected", reason=not_causal)
        refused = _attempt(lambda: packing_comparisons.feature_tokens(copy))
        if refused:
            return Packing("rejected", reason=f"it does not accept feature tokens in place of token ids ({refused})")
        return _first_way(copy, key, device, dtype)


def _first_way(copy: RandomCopy, key: PackingKey, device: torch.device, dtype: torch.dtype) -> Packing:
    """Return the first way to run the model that gives the values of plain transformers."""
    reason, problem = "" if key == "auto" else f"model.packing is {key}", ""
    for packing, forward, compare in _ways(copy, key):
        problem = _attempt(compare)
        if not problem and (device, dtype) != (CPU, torch.float32):
            run = partial(packing_comparisons.in_precision, copy, packing.attention, forward, device, dtype)
            problem = _attempt(run)
        if problem:
            reason = reason or problem
            continue
        cache = _cache(copy, packing, device, dtype)
        beams = _attempt(partial(packing_comparisons.beams, copy, packing.attention, together=packing.is_packed))
        random = bool(_attempt(partial(packing_comparisons.training_depends_on_the_batch, copy, packing.attention, forward)))
        return dataclasses.replace(
            packing,
            cache=cache,
            beam_problem=beams,
            reason=reason,
            random_training=random,
            max_tokens=copy_properties.position_table(copy),
            joint_answers=packing.is_packed and not _attempt(partial(prefix_comparisons.joint_answers, copy)),
            fused_problem=_attempt(partial(fused_layer.difference, copy)) if packing.is_packed else "samples are not packed",
            shared_prompts=packing.is_packed and not _attempt(partial(prefix_comparisons.shared_prompts, copy, device, dtype)),
        )
    where = _attempt(partial(copy_properties.first_different_layer, copy))
    return Packing("rejected", reason=f"it differs from plain transformers even for a single sample ({problem}; {where})")


def _cache(copy: RandomCopy, packing: Packing, device: torch.device, dtype: torch.dtype) -> Cache:
    """Return the cache of generation that gives the values of plain transformers; the comparison of packed samples covers it."""
    if packing.is_packed:
        return "batch"
    if packing.batched and not _attempt(partial(packing_comparisons.padded_decoding, copy, packing.attention)):
        return "batch"
    problem = _attempt(partial(packing_comparisons.sequence_decoding, copy, packing.attention))
    if not problem and (device, dtype) != (CPU, torch.float32):
        forward, last = packing_comparisons.sequence_logits, packing_comparisons.DECODED_IN_PRECISION
        problem = _attempt(partial(packing_comparisons.in_precision, copy, packing.attention, forward, device, dtype, last=last))
    return "none" if problem else "sequence"


def _ways(copy: RandomCopy, key: PackingKey) -> Iterator[tuple[Packing, Forward, Callable[[], str]]]:
    """Yield the ways to run a model, the best first, with the function of the logits and the comparison in float32."""
    if key == "auto":
        yield Packing("packed"), packed_logits, partial(packing_comparisons.packed, copy)
    for batched in (True, False) if key != "off" else (False,):
        for name in ("sdpa", "eager"):
            compare = partial(packing_comparisons.padded, copy, name, batched=batched)
            yield Packing("padded", name, batched), partial(padded_logits, batched=batched), compare


def _attempt(function: Callable[[], str]) -> str:
    """Return the problem that a comparison returns, or the exception that it raises, in one line; "" if there is none."""
    try:
        return function()
    except (MemoryError, torch.OutOfMemoryError, ImportError):
        # These say nothing about the model.
        raise
    except Exception as error:
        # Models raise every kind of exception for arguments that they do not support.
        return _one_line(error)


def _one_line(error: Exception) -> str:
    if isinstance(error, NotImplementedError):
        return str(error)
    if isinstance(error, KeyError) and attention.RECORDED in str(error):
        return "transformers does not let its attention be replaced"
    lines = str(error).strip().splitlines() or [""]
    return f"transformers raises {type(error).__name__}: {lines[0][:200].rstrip('.')}"
