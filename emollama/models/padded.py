"""Forward passes of a language model with one sequence per row, padded on the right.

A causal model computes the same values with and without padding on the right, also with layers that are convolutions or
recurrences. Its own attention is used, and no attention mask is needed.

Shape letters: B = sequences, T = tokens of a sequence, W = tokens of the longest sequence, L = positions of which logits are
needed, H = hidden size, V = size of the vocabulary, Q = new tokens per sequence.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from emollama.components import DecodingState
from emollama.models import dropout


class Prefixes:
    """The input embeddings of B sequences, in place of a key-value cache: each new token recomputes its sequence.

    Args:
        sequences: B tensors (T, H).
    """

    def __init__(self, sequences: Sequence[Tensor]) -> None:
        self.sequences = list(sequences)

    def batch_select_indices(self, rows: Tensor) -> None:
        """Keep only the sequences at these indices."""
        self.sequences = [self.sequences[index] for index in rows.tolist()]

    def crop(self, max_length: int) -> None:
        """Remove ``-max_length`` tokens at the end of each sequence; the argument is that of transformers' caches."""
        self.sequences = [sequence[:max_length] for sequence in self.sequences]


def accepted(llm: Any, **arguments: Any) -> dict[str, Any]:
    """Return those keyword arguments that the model's ``forward`` declares."""
    model = llm.get_base_model() if hasattr(llm, "get_base_model") else llm
    parameters = inspect.signature(model.forward).parameters
    return {name: value for name, value in arguments.items() if name in parameters}


def logits_at(
    llm: Any, sequences: Sequence[Tensor], rows: Tensor, columns: Tensor, *, batched: bool, cache: Any = None
) -> Tensor:
    """Return the next-token logits after some tokens, (L, V).

    Args:
        llm: the language model.
        sequences: input embeddings of each sequence, B tensors (T, H).
        rows: (L,) the sequence of each position, ascending.
        columns: (L,) the token of each position, from 0 in each sequence.
        batched: run all sequences in one forward pass; if False, one after the other.
        cache: the key-value cache to fill; only if ``batched``.
    """
    lengths = [len(sequence) for sequence in sequences]
    if not batched and len(sequences) > 1:
        parts = []
        for index, keys in enumerate(dropout.split_keys(lengths)):
            of_sequence = columns[rows == index]
            with dropout.use_keys(keys):
                parts.append(logits_at(llm, [sequences[index]], torch.zeros_like(of_sequence), of_sequence, batched=True))
        return torch.cat(parts)
    # Logits are computed only where one of the sequences needs them, because those of all tokens need far more memory.
    kept, index_of = columns.unique(return_inverse=True)
    options = accepted(llm, logits_to_keep=kept, use_cache=cache is not None, past_key_values=cache)
    with dropout.use_keys(dropout.padded_keys(lengths)):
        logits: Tensor = llm(inputs_embeds=pad_sequence(list(sequences), batch_first=True), **options).logits
    return logits[rows, index_of if "logits_to_keep" in options else columns]


def decode_cached(llm: Any, ids: Tensor, state: DecodingState) -> Tensor:
    """Append tokens (B, Q) to the key-value cache of the state; return the logits after each of them, (B, Q, V)."""
    mask, positions = state.extended(ids.shape[1])
    logits: Tensor = llm(
        inputs_embeds=llm.get_input_embeddings()(ids),
        attention_mask=mask,
        past_key_values=state.cache,
        use_cache=True,
        **accepted(llm, position_ids=positions),
    ).logits
    return logits


def decode_prefixes(llm: Any, ids: Tensor, prefixes: Prefixes, *, batched: bool) -> Tensor:
    """Append tokens (B, Q) to the prefixes; return the logits after each of them, (B, Q, V)."""
    pairs = zip(prefixes.sequences, llm.get_input_embeddings()(ids), strict=True)
    prefixes.sequences = [torch.cat([sequence, new]) for sequence, new in pairs]
    count, new = ids.shape
    ends = torch.tensor([len(sequence) for sequence in prefixes.sequences], device=ids.device)
    columns = ends[:, None] - new + torch.arange(new, device=ids.device)
    rows = torch.arange(count, device=ids.device).repeat_interleave(new)
    return logits_at(llm, prefixes.sequences, rows, columns.flatten(), batched=batched).view(count, new, -1)
