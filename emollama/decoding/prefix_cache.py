"""The states of finished sequences, from which the next turn of the same conversation continues."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from emollama.data.batch import Sample
from emollama.decoding_state import DecodingState

Key = tuple[bytes, tuple[int, ...]]  # digest of the features, ids


@dataclass(frozen=True)
class Prefix:
    """The beginning of a prompt that need not be processed again.

    Attributes:
        num_tokens: its number of tokens.
        states: the state of each model after these tokens, for a single sequence.
    """

    num_tokens: int
    states: list[DecodingState]


class PrefixCache:
    """The states of the last sequences that were finished.

    Args:
        capacity: number of sequences. Each needs the memory of the keys and values of its tokens.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._states: OrderedDict[Key, list[DecodingState]] = OrderedDict()

    def longest(self, sample: Sample) -> Prefix | None:
        """Return the longest beginning of a prompt that is also the beginning of a stored sequence; None without one.

        The rest of the prompt has at least one token, and no feature tokens.
        """
        features, ids = _digest(sample), sample.input_ids.tolist()
        best, best_length = None, 0
        for key, states in self._states.items():
            length = min(_common_length(key[1], ids), len(ids) - 1) if key[0] == features else 0
            if length > best_length and min(ids[length:]) >= 0:
                best, best_length = (key, states), length
        if best is None:
            return None
        key, states = best
        self._states.move_to_end(key)
        return Prefix(best_length, [state.copied(0, best_length) for state in states])

    def add(self, sample: Sample, new_ids: Sequence[int], states: list[DecodingState]) -> None:
        """Store the states of a finished sequence, which include all tokens but the last one."""
        self._states[_digest(sample), (*sample.input_ids.tolist(), *new_ids[:-1])] = states
        if len(self._states) > self._capacity:
            self._states.popitem(last=False)


def _digest(sample: Sample) -> bytes:
    digest = hashlib.sha256()
    for slot, vectors in sorted(sample.slots.items()):
        digest.update(f"{slot} {tuple(vectors.shape)} ".encode())
        digest.update(vectors.contiguous().numpy().tobytes())
    return digest.digest()


def _common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Return the number of equal ids at the beginning of two sequences."""
    return next((index for index, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))
