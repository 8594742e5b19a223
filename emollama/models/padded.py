"""Forward passes of a language model with one sequence per row, padded on the right.

A causal model computes the same values with and without padding on the right, also with layers that are convolutions or
recurrences. Its own attention is used, and no attention mask is needed.

In decoding, the state of the sequences is one of three caches: the keys and values of the batch, padded on the left;
:class:`SequenceCaches`; or :class:`Prefixes`, if the model has no cache that gives the right values.

Shape letters: B = sequences, T = tokens of a sequence, W = tokens of the longest sequence, L = positions of which logits are
needed, H = hidden size, V = size of the vocabulary, Q = new tokens per sequence.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from emollama.data.batch import Batch
from emollama.decoding_state import DecodingState, left_padding_mask
from emollama.models import dropout


class Prefixes:
    """The input embeddings of B sequences, in place of a key-value cache: each new token recomputes its sequence.

    Args:
        sequences: B tensors (T, H).
        batched: run all sequences in one forward pass; if False, one after the other.
    """

    def __init__(self, sequences: Sequence[Tensor], *, batched: bool) -> None:
        self.sequences = list(sequences)
        self.batched = batched

    def append(self, other: Self) -> None:
        """Add the sequences of another object."""
        self.sequences += other.sequences

    def drop(self, row: int, width: int) -> None:
        """Remove a sequence; the last one takes its place."""
        self.sequences[row] = self.sequences[-1]
        self.sequences.pop()


class SequenceCaches:
    """The caches of B sequences, each of which the model itself created in a forward pass of that sequence alone.

    A cache can have any content, such as the state of a recurrence, which cannot be padded, and from which no token can be
    removed.

    Args:
        caches: B dictionaries with the arguments of the model's ``forward`` that continue the sequence.
    """

    def __init__(self, caches: Sequence[dict[str, Any]]) -> None:
        self.caches = list(caches)

    def append(self, other: Self) -> None:
        """Add the caches of another object."""
        self.caches += other.caches

    def drop(self, row: int, width: int) -> None:
        """Remove the cache of a sequence; the last one takes its place."""
        self.caches[row] = self.caches[-1]
        self.caches.pop()


@dataclass(frozen=True)
class Positions:
    """The tokens of B sequences after which logits are needed, sequence after sequence.

    Attributes:
        rows, columns: (L,) the sequence of each token, and its index there, ascending in a sequence.
        counts: number of such tokens of each sequence, which the model would have to wait for the device to find.
        distinct: the different columns, ascending.
    """

    rows: Tensor
    columns: Tensor
    counts: tuple[int, ...]
    distinct: Tensor

    @classmethod
    def of(cls, columns: Sequence[Sequence[int]], device: torch.device) -> Positions:
        """Return the positions for the columns of each sequence."""
        rows = [row for row, of_row in enumerate(columns) for _ in of_row]
        joined = [column for of_row in columns for column in of_row]
        tensors = (torch.tensor(numbers, device=device) for numbers in (rows, joined, sorted(set(joined))))
        return cls(next(tensors), next(tensors), tuple(map(len, columns)), next(tensors))

    @classmethod
    def before_labels(cls, batch: Batch) -> Positions:
        """Return the tokens before those with labels."""
        positions = batch.label_positions - 1
        rows = torch.searchsorted(batch.cu_seqlens[1:].long(), positions, right=True)
        return cls(rows, positions - batch.cu_seqlens.long()[rows], batch.label_counts, batch.label_columns - 1)


def prefix_state(sequences: Sequence[Tensor], *, batched: bool) -> DecodingState:
    """Return the state of sequences (T, H) without a cache."""
    return _state(Prefixes(sequences, batched=batched), sequences)


def prefill_sequences(llm: Any, sequences: Sequence[Tensor]) -> tuple[Tensor, DecodingState]:
    """Run sequences (T, H) one after the other; return their next-token logits, (B, V), and the state with their caches."""
    results = [_continued(llm, sequence, {}) for sequence in sequences]
    caches = SequenceCaches([cache for _, cache in results])
    return torch.stack([logits for logits, _ in results]), _state(caches, sequences)


def _state(cache: Prefixes | SequenceCaches, sequences: Sequence[Tensor]) -> DecodingState:
    return DecodingState(cache, [len(sequence) for sequence in sequences])


def accepted(llm: Any, **arguments: Any) -> dict[str, Any]:
    """Return those keyword arguments that the model's ``forward`` declares."""
    declared = _parameters(getattr(llm.forward, "__func__", llm.forward))
    return {name: value for name, value in arguments.items() if name in declared}


@functools.cache
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    """Return the names of a function's parameters. Finding them takes a noticeable part of the time of a token."""
    return frozenset(inspect.signature(function).parameters)


def logits_at(llm: Any, sequences: Sequence[Tensor], positions: Positions, *, batched: bool, cache: Any = None) -> Tensor:
    """Return the next-token logits after some tokens, (L, V).

    Args:
        llm: the language model.
        sequences: input embeddings of each sequence, B tensors (T, H).
        positions: the tokens.
        batched: run all sequences in one forward pass; if False, one after the other.
        cache: the key-value cache to fill; only if ``batched``.
    """
    lengths = [len(sequence) for sequence in sequences]
    if not batched and len(sequences) > 1:
        parts, columns = [], positions.columns.split(list(positions.counts))
        for sequence, keys, own in zip(sequences, dropout.split_keys(lengths), columns, strict=True):
            alone = Positions(torch.zeros_like(own), own, (len(own),), own)
            with dropout.use_keys(keys):
                parts.append(logits_at(llm, [sequence], alone, batched=True))
        return torch.cat(parts)
    # Logits are computed only where one of the sequences needs them, because those of all tokens need far more memory.
    options = accepted(llm, logits_to_keep=positions.distinct, use_cache=cache is not None, past_key_values=cache)
    with dropout.use_keys(dropout.padded_keys(lengths)):
        logits: Tensor = llm(inputs_embeds=pad_sequence(list(sequences), batch_first=True), **options).logits
    columns = positions.columns
    if "logits_to_keep" in options:
        columns = torch.searchsorted(positions.distinct, columns)
    return logits[positions.rows, columns]


def decode(llm: Any, ids: Tensor, state: DecodingState, *, keep: bool = True) -> Tensor:
    """Return the logits after each of the next tokens (B, Q), (B, Q, V).

    Args:
        llm: the language model.
        ids: the tokens.
        state: the state of the sequences.
        keep: append the tokens to the state; if False, the state is afterwards as it was before.
    """
    if isinstance(state.cache, Prefixes):
        logits = _decode_prefixes(llm, ids, state.cache, keep)
    elif isinstance(state.cache, SequenceCaches):
        logits = _decode_sequences(llm, ids, state, keep)
    else:
        logits = _decode_batch(llm, ids, state, keep)
    if keep:
        state.extend(ids.shape[1])
    return logits


def _decode_batch(llm: Any, ids: Tensor, state: DecodingState, keep: bool) -> Tensor:
    tokens, device = ids.shape[1], ids.device
    logits: Tensor = llm(
        inputs_embeds=llm.get_input_embeddings()(ids),
        attention_mask=state.mask(tokens, device),
        past_key_values=state.cache,
        use_cache=True,
        **accepted(llm, position_ids=state.positions(tokens, device)),
    ).logits
    if not keep:
        # Without a copy, the cache needs no further memory.
        state.cache.crop(-tokens)
    return logits


def decode_answers(llm: Any, answers: Sequence[Sequence[int]], state: DecodingState) -> list[Tensor]:
    """Return the logits after each token but the last of several answers to each sequence, in one forward pass.

    The answers follow each other, and the mask lets each token attend to the sequence and to the tokens of its own answer.

    Args:
        llm: the language model; its attention accepts a boolean mask (B, 1, Q, W + Q).
        answers: the tokens of each answer, at least two.
        state: the state of the sequences, with the cache of a batch, which is afterwards as it was before.

    Returns:
        For each answer the logits (B, its tokens - 1, V).
    """
    device = llm.get_input_embeddings().weight.device
    inputs = [answer[:-1] for answer in answers]
    ids = torch.tensor([token for answer in inputs for token in answer], device=device)
    owners = torch.tensor([index for index, answer in enumerate(inputs) for _ in answer], device=device)
    offsets = torch.tensor([offset for answer in inputs for offset in range(len(answer))], device=device)
    count, new = len(state.lengths), len(ids)
    own = (owners[:, None] == owners) & (offsets[:, None] >= offsets)
    prompt = left_padding_mask(state.lengths, device).bool()
    parts = [prompt[:, None].expand(count, new, -1), own.expand(count, new, new)]
    logits: Tensor = llm(
        inputs_embeds=llm.get_input_embeddings()(ids).expand(count, new, -1),
        attention_mask=torch.cat(parts, 2)[:, None],
        past_key_values=state.cache,
        use_cache=True,
        position_ids=state.positions(1, device) + offsets,
    ).logits
    state.cache.crop(-new)
    return list(logits.split([len(answer) for answer in inputs], 1))


def _decode_sequences(llm: Any, ids: Tensor, state: DecodingState, keep: bool) -> Tensor:
    positions = state.positions(ids.shape[1], ids.device)
    caches = state.cache.caches
    rows = []
    for index, embeddings in enumerate(llm.get_input_embeddings()(ids)):
        # Models write to the objects in a cache. Only one sequence is copied at a time.
        cache = caches[index] if keep else deepcopy(caches[index])
        logits = []
        # Some recurrences, such as that of Mamba, start again from zero in a forward pass of several tokens.
        for embedding, position in zip(embeddings.split(1), positions[index].split(1), strict=True):
            # Some models, such as Bamba, do not count the tokens in the cache.
            following, cache = _continued(llm, embedding, accepted(llm, position_ids=position[None]) | cache)
            logits.append(following)
        rows.append(torch.stack(logits))
        if keep:
            caches[index] = cache
    return torch.stack(rows)


def _continued(llm: Any, embeddings: Tensor, arguments: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """Run the next tokens (T, H) of one sequence; return the logits after the last one, (V,), and the new cache.

    ``arguments`` are further arguments of the model, such as the cache of the tokens before.
    """
    # Granite's hybrid models have use_cache only among their further keyword arguments.
    out = llm(inputs_embeds=embeddings[None], use_cache=True, **accepted(llm, logits_to_keep=1), **arguments)
    # The cache has a different name in some models: cache_params in Mamba, state in RWKV.
    cache = accepted(llm, **out)
    if not cache:
        raise NotImplementedError("the model returns no cache")
    return out.logits[0, -1], cache


def _decode_prefixes(llm: Any, ids: Tensor, prefixes: Prefixes, keep: bool) -> Tensor:
    pairs = zip(prefixes.sequences, llm.get_input_embeddings()(ids), strict=True)
    sequences = [torch.cat([sequence, new]) for sequence, new in pairs]
    count, new = ids.shape
    positions = Positions.of([range(len(sequence) - new, len(sequence)) for sequence in sequences], ids.device)
    if keep:
        prefixes.sequences = sequences
    return logits_at(llm, sequences, positions, batched=prefixes.batched).view(count, new, -1)


def beam_search(llm: Any, sequences: Sequence[Tensor], eos: int | None, options: Mapping[str, Any]) -> list[list[int]]:
    """Generate continuations of sequences (T, H) with the beam search of transformers.

    Args:
        llm: the language model, with or without the adapters of peft.
        sequences: the input embeddings.
        eos: id of the EOS token.
        options: further keyword arguments of ``generate``.

    Returns:
        The new token ids of each sequence, up to and including the EOS token.
    """
    embeddings = pad_sequence(list(sequences), batch_first=True, padding_side="left")
    mask = left_padding_mask([len(sequence) for sequence in sequences], embeddings.device)
    # The ranks of a sharded model wait for each other before each forward pass (joint_forward_passes), not in this function.
    ends = {"eos_token_id": eos, "pad_token_id": eos, "synced_gpus": False}
    out = llm.generate(inputs_embeds=embeddings, attention_mask=mask, **ends, **options)
    return [_until(ids, eos) for ids in out.tolist()]


def _until(ids: list[int], end: int | None) -> list[int]:
    """Return the ids up to and including the first end token, or all ids if there is none."""
    # Without an EOS token, the beam search of transformers pads shorter answers with -1.
    ids = [token for token in ids if token >= 0]
    return ids[: ids.index(end) + 1] if end in ids else ids
