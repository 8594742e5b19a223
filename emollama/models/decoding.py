"""Continuing several prompts at once: token by token, or along given answers. One model or several that vote.

Letters: B unfinished sequences, W width of the padded cache, Q new tokens a sequence, V vocabulary.

Prompts are read packed, without padding; what the language model remembers of them is then padded on the left, one row a
sequence. A sequence that is finished leaves the batch. Several models (an ensemble) speak with one voice: the mean of their
next-token distributions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, LogitsProcessorList
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from emollama.data.batch import Batch
from emollama.models.sampling_params import SamplingParams


def empty_cache() -> Any:
    """Keys and values of nothing yet, to be filled by a forward pass."""
    return DynamicCache()


@dataclass
class DecodingState:
    """Where B sequences stand.

    Attributes:
        cache: the language model's keys and values, (B, heads, W, head width) a layer, padded on the left.
        mask: (B, W) int64, 0 where a row is padded.
    """

    cache: Any
    mask: Tensor

    @classmethod
    def from_packed(cls, packed: Any, lengths: list[int]) -> DecodingState:
        """Row by row what a packed forward pass left in its cache, (1, heads, T, head width) a layer."""
        cache = DynamicCache()
        for number, layer in enumerate(packed.layers):
            cache.update(_unpack(layer.keys, lengths), _unpack(layer.values, lengths), number)
        sizes = torch.tensor(lengths, device=packed.layers[0].keys.device)
        width = int(sizes.max())
        return cls(cache, (torch.arange(width, device=sizes.device) >= width - sizes[:, None]).long())

    def extended(self, tokens: int) -> tuple[Tensor, Tensor]:
        """(mask, position_ids) for ``tokens`` more a sequence: (B, W + tokens) and (B, tokens). The object itself stays."""
        ones = self.mask.new_ones(len(self.mask), tokens)
        return torch.cat([self.mask, ones], 1), self.mask.sum(1, keepdim=True) + ones.cumsum(1) - 1

    def select(self, rows: Tensor) -> None:
        """Drop all sequences but these (their numbers)."""
        self.cache.batch_select_indices(rows)
        self.mask = self.mask[rows]

    def forget(self, tokens: int) -> None:
        """Take back the last tokens of every sequence, in the cache; the mask is the caller's."""
        self.cache.crop(-tokens)


class DecoderModel(Protocol):
    """What decoding asks of a model."""

    def prefill(self, batch: Batch) -> tuple[Tensor, DecodingState]:
        """Read B prompts: next-token logits (B, V) float32, and where the sequences stand."""
        ...

    def decode(self, ids: Tensor, state: DecodingState) -> Tensor:
        """Read (B, Q) more tokens into ``state.cache``: logits behind each of them, (B, Q, V) float32."""
        ...


@torch.inference_mode()
def continued(
    readers: Sequence[DecoderModel],
    batch: Batch,
    choice: SamplingParams,
    is_finished: Callable[[list[int]], bool],
    seeds: Sequence[int],
) -> list[list[int]]:
    """Continue each prompt until it is finished.

    Args:
        readers: one model, or the members of an ensemble.
        batch: B prompts without answers.
        choice: how tokens are chosen.
        is_finished: new ids of a sequence -> whether the last one ended it.
        seeds: of each sequence's sampling, so that it does not depend on its neighbours.

    Returns:
        B lists of new ids, the end included.
    """
    device = batch.input_ids.device
    begun = [reader.prefill(batch) for reader in readers]
    states = [state for _, state in begun]
    scores = _voted([logits for logits, _ in begun])
    processors = _processors(choice)
    generators = [torch.Generator(device).manual_seed(seed) for seed in seeds] if choice.temperature > 0 else []
    answers: list[list[int]] = [[] for _ in batch.names]
    rows = list(range(len(answers)))  # which sequence each row of the caches belongs to
    while True:
        if processors:
            so_far: Any = torch.tensor([answers[row] for row in rows], device=device, dtype=torch.long).view(len(rows), -1)
            scores = processors(so_far, scores)
        chosen = _sampled(scores, [generators[row] for row in rows]) if generators else scores.argmax(-1)
        for row, token in zip(rows, chosen.tolist(), strict=True):
            answers[row].append(token)
        full = len(answers[rows[0]]) == choice.max_new_tokens
        open_ones = [] if full else [i for i, row in enumerate(rows) if not is_finished(answers[row])]
        if not open_ones:
            return answers
        if len(open_ones) < len(rows):
            kept = torch.tensor(open_ones, device=device)
            for state in states:
                state.select(kept)
            rows, chosen = [rows[i] for i in open_ones], chosen[kept]
        scores = _voted([_advanced(reader, chosen[:, None], state)[:, -1] for reader, state in zip(readers, states, strict=True)])


@torch.inference_mode()
def likelihoods(readers: Sequence[DecoderModel], batch: Batch, answers: Sequence[list[int]]) -> Tensor:
    """Probability of each of L given answers among them, (B, L) float64; the mean over the readers.

    Args:
        readers: one model, or the members of an ensemble.
        batch: B prompts without answers.
        answers: token ids of each answer, its end included.
    """
    return torch.stack([_log_likelihoods(reader, batch, answers).softmax(-1) for reader in readers]).mean(0)


def _log_likelihoods(reader: DecoderModel, batch: Batch, answers: Sequence[list[int]]) -> Tensor:
    """(B, L) float64: log-probability of each answer after each prompt."""
    first, state = reader.prefill(batch)
    columns = []
    for answer in answers:
        ids = torch.tensor(answer, device=first.device).expand(len(first), -1)
        logits = first[:, None]
        if len(answer) > 1:
            logits = torch.cat([logits, reader.decode(ids[:, :-1], state)], 1)
            state.forget(len(answer) - 1)
        columns.append(logits.double().log_softmax(-1).gather(2, ids[:, :, None]).sum((1, 2)))
    return torch.stack(columns, 1)


def _advanced(reader: DecoderModel, ids: Tensor, state: DecodingState) -> Tensor:
    logits = reader.decode(ids, state)
    state.mask, _ = state.extended(ids.shape[1])
    return logits


def _voted(logits: list[Tensor]) -> Tensor:
    """Logarithm of the mean distribution; of a single model its logits as they are."""
    if len(logits) == 1:
        return logits[0]
    return torch.stack([part.log_softmax(-1) for part in logits]).logsumexp(0) - math.log(len(logits))


def _sampled(scores: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    drawn = [torch.multinomial(row, 1, generator=own) for row, own in zip(scores.softmax(-1), generators, strict=True)]
    return torch.cat(drawn)


def _unpack(packed: Tensor, lengths: list[int]) -> Tensor:
    """(1, heads, T, E) -> (B, heads, W, E), padded with zeros on the left."""
    pieces = packed[0].transpose(0, 1).split(lengths)
    return pad_sequence(list(pieces), batch_first=True, padding_side="left").transpose(1, 2)


def _processors(choice: SamplingParams) -> LogitsProcessorList:
    """transformers' own processors of (ids so far, scores)."""
    found = LogitsProcessorList()
    if choice.repetition_penalty != 1:
        found.append(RepetitionPenaltyLogitsProcessor(choice.repetition_penalty))
    if choice.temperature > 0:
        found.append(TemperatureLogitsWarper(choice.temperature))
        if choice.top_p < 1:
            found.append(TopPLogitsWarper(choice.top_p))
    return found
