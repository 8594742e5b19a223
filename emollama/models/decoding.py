"""Batched generation, and probabilities of candidate answers, with one model or an ensemble.

Shape letters: B = unfinished sequences, T = tokens of all prompts, W = width of the padded cache, Q = new tokens per sequence,
V = vocabulary size, L = candidate answers.

Prompts are prefilled packed, without padding; then keys and values are padded on the left, one row per sequence. Models that
cannot be packed have other states (:mod:`emollama.models.padded`). Finished sequences are removed from the batch. An ensemble
averages the next-token distributions of its members.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, LogitsProcessorList
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from emollama.components import DecodingState, Model
from emollama.data.batch import Batch
from emollama.models.sampling_params import SamplingParams


def empty_cache() -> Any:
    """Return an empty key-value cache for a forward pass to fill."""
    return DynamicCache()


def left_padding_mask(lengths: Sequence[int], device: torch.device) -> Tensor:
    """Return the attention mask (B, W) of sequences with these numbers of tokens: 0 at the padding, which is on the left."""
    sizes = torch.tensor(lengths, device=device)
    width = int(sizes.max())
    return (torch.arange(width, device=device) >= width - sizes[:, None]).long()


def unpacked_state(packed: Any, lengths: list[int]) -> DecodingState:
    """Unpack and pad the cache of a packed forward pass, (1, heads, T, head_dim) per layer."""
    return _state(packed, lengths, _unpack)


def left_padded_state(padded: Any, lengths: list[int]) -> DecodingState:
    """Move the padding of a cache, (B, heads, W, head_dim) per layer, from the right to the left."""
    return _state(padded, lengths, _left_padded)


@torch.inference_mode()
def generate(
    models: Sequence[Model],
    batch: Batch,
    params: SamplingParams,
    is_finished: Callable[[list[int]], bool],
    seeds: Sequence[int],
) -> list[list[int]]:
    """Generate a continuation of each prompt.

    Args:
        models: one model, or the members of an ensemble.
        batch: B prompts without answers.
        params: parameters of token selection.
        is_finished: returns whether the last of a sequence's new ids ended it.
        seeds: one random seed per sequence, so that a sampled answer does not depend on the other sequences of the batch.

    Returns:
        B lists of new ids, including the end of the answer.
    """
    device = batch.input_ids.device
    prefilled = [model.prefill(batch) for model in models]
    states = [state for _, state in prefilled]
    scores = _ensemble_log_probs([logits for logits, _ in prefilled])
    processors = _processors(params)
    generators = [torch.Generator(device).manual_seed(seed) for seed in seeds] if params.temperature > 0 else []
    answers: list[list[int]] = [[] for _ in batch.names]
    active = list(range(len(answers)))  # index of the sequence in each row of the caches
    while True:
        if processors:
            new_ids: Any = torch.tensor([answers[index] for index in active], device=device, dtype=torch.long)
            # At the first token the tensor has no columns; view gives it the shape (B, 0), which the processors need.
            scores = processors(new_ids.view(len(active), -1), scores)
        tokens = _sample(scores, [generators[index] for index in active]) if generators else scores.argmax(-1)
        for index, token in zip(active, tokens.tolist(), strict=True):
            answers[index].append(token)
        reached_limit = len(answers[active[0]]) == params.max_new_tokens
        unfinished = [] if reached_limit else [row for row, index in enumerate(active) if not is_finished(answers[index])]
        if not unfinished:
            return answers
        if len(unfinished) < len(active):
            rows = torch.tensor(unfinished, device=device)
            for state in states:
                state.select(rows)
            active, tokens = [active[row] for row in unfinished], tokens[rows]
        logits = [model.decode(tokens[:, None], state)[:, -1] for model, state in zip(models, states, strict=True)]
        scores = _ensemble_log_probs(logits)


@torch.inference_mode()
def candidate_probabilities(models: Sequence[Model], batch: Batch, answers: Sequence[list[int]]) -> Tensor:
    """Compute the probability of each of L candidate answers, normalized over the candidates and averaged over the models.

    Args:
        models: one model, or the members of an ensemble.
        batch: B prompts without answers.
        answers: token ids of each candidate, including its end.

    Returns:
        (B, L) float64; each row adds up to 1.
    """
    return torch.stack([_log_likelihoods(model, batch, answers).softmax(-1) for model in models]).mean(0)


def _log_likelihoods(model: Model, batch: Batch, answers: Sequence[list[int]]) -> Tensor:
    """Return the log-probability of each answer after each prompt, (B, L) float64."""
    first, state = model.prefill(batch)
    columns = []
    for answer in answers:
        ids = torch.tensor(answer, device=first.device).expand(len(first), -1)
        logits = first[:, None]
        if len(answer) > 1:
            # The prompts are prefilled once, so the state must not keep the tokens of an answer.
            logits = torch.cat([logits, model.decode(ids[:, :-1], state, keep=False)], 1)
        columns.append(logits.double().log_softmax(-1).gather(2, ids[:, :, None]).sum((1, 2)))
    return torch.stack(columns, 1)


def _ensemble_log_probs(logits: list[Tensor]) -> Tensor:
    """Return the log-probabilities of the mean distribution; for a single model, its logits, which differ by a constant."""
    if len(logits) == 1:
        return logits[0]
    return torch.stack([part.log_softmax(-1) for part in logits]).logsumexp(0) - math.log(len(logits))


def _sample(scores: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    # One call per row, because torch.multinomial takes a single generator and each sequence has its own.
    probabilities = scores.softmax(-1)
    return torch.cat(
        [torch.multinomial(row, 1, generator=generator) for row, generator in zip(probabilities, generators, strict=True)]
    )


def _state(filled: Any, lengths: list[int], convert: Callable[[Tensor, list[int]], Tensor]) -> DecodingState:
    cache = DynamicCache()
    for index, layer in enumerate(filled.layers):
        cache.update(convert(layer.keys, lengths), convert(layer.values, lengths), index)
    return DecodingState(cache, left_padding_mask(lengths, filled.layers[0].keys.device))


def _unpack(packed: Tensor, lengths: list[int]) -> Tensor:
    """Convert (1, heads, T, head_dim) to (B, heads, W, head_dim), padded with zeros on the left."""
    pieces = packed[0].transpose(0, 1).split(lengths)
    return pad_sequence(list(pieces), batch_first=True, padding_side="left").transpose(1, 2)


def _left_padded(padded: Tensor, lengths: list[int]) -> Tensor:
    pieces = [row[:, :length].transpose(0, 1) for row, length in zip(padded, lengths, strict=True)]
    return pad_sequence(pieces, batch_first=True, padding_side="left").transpose(1, 2)


def _processors(params: SamplingParams) -> LogitsProcessorList:
    """Return the logits processors of transformers that the parameters need."""
    processors = LogitsProcessorList()
    if params.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    if params.temperature > 0:
        processors.append(TemperatureLogitsWarper(params.temperature))
        if params.top_p < 1:
            processors.append(TopPLogitsWarper(params.top_p))
    return processors
