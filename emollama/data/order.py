"""The order of the draw: which clip stands at place k of the run.

It is a pure function of (seed, k) where k = step x global batch + index in the global batch. Rank and micro-batch follow from
the index, so a step holds the same samples for any world size x accumulation, and a resumed run needs nothing but its step.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from emollama.errors import UserError

MIXING_BLOCK = 1024  # draws; within each block of them every dataset has its exact share
_PASS, _MIX, _CLIP, _TIES = 0, 1, 2, 3  # streams of random numbers that never meet


@dataclass(frozen=True, eq=False)
class Deck:
    """The clips of one dataset, as they are drawn.

    Attributes:
        size: clips.
        ratio: share among several datasets, any positive scale.
        shuffle: False is file order (or easy first), wrapping at the end.
        shards: (size,) shard number of each clip; shards come in random order, clips are shuffled within ``window`` of them.
            None: all clips are shuffled together.
        window: shards.
        difficulty: (size,) what a curriculum sorts by, small first, NaN last, equals at random; None without one.
        phases: epochs of the curriculum.
    """

    size: int
    ratio: float = 1.0
    shuffle: bool = True
    shards: np.ndarray | None = None
    window: int = 1
    difficulty: np.ndarray | None = None
    phases: int = 1

    def count(self, phase: int) -> int:
        """Clips of a phase: (phase + 1) / phases of all, rounded up."""
        return -(-self.size * (phase + 1) // self.phases)

    def clips(self, phase: int, rng: np.random.Generator) -> np.ndarray:
        """The clips of a phase: all in file order, or in a curriculum the easiest ones, easy first; ``rng`` parts equals."""
        if self.difficulty is None:
            return np.arange(self.size)
        return np.lexsort((rng.permutation(self.size), self.difficulty))[: self.count(phase)]

    def digest(self) -> str | None:
        """Of everything here that the configuration does not tell; None where it tells all."""
        arrays = [array for array in (self.shards, self.difficulty) if array is not None]
        return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()[:16] if arrays else None


@dataclass(frozen=True)
class Draw:
    """Which clip stands at place k of the run, and the generator for everything random about it."""

    dataset: int
    clip: int
    rng: np.random.Generator


@dataclass(frozen=True)
class Order:
    """The infinite sequence of draws.

    Attributes:
        seed: the run's seed.
        decks: one for each dataset.
        epoch_draws: draws of an epoch, for curricula.

    Raises:
        UserError: the ratios leave a dataset without a draw.
    """

    seed: int
    decks: tuple[Deck, ...]
    epoch_draws: int = 1
    _shares: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        ratios = np.array([deck.ratio for deck in self.decks])
        exact = ratios / ratios.sum() * MIXING_BLOCK
        shares = np.floor(exact).astype(int)
        for index in np.argsort(shares - exact, kind="stable")[: MIXING_BLOCK - shares.sum()]:
            shares[index] += 1
        if not shares.all():
            raise UserError(f"sample_ratio: {ratios.tolist()} leaves a dataset without one of {MIXING_BLOCK} draws. Raise it.")
        object.__setattr__(self, "_shares", tuple(int(share) for share in shares))

    def draw(self, k: int) -> Draw:
        """The k-th draw of the run (k from 0)."""
        dataset = self._dataset(k)
        deck = self.decks[dataset]
        phase = min(k // self.epoch_draws, deck.phases - 1)
        place = self._before(k, dataset) - self._before(phase * self.epoch_draws, dataset)
        lap, index = divmod(place, deck.count(phase))
        sequence = _sequence(self.seed, deck, dataset, phase, lap if deck.shuffle else 0)
        return Draw(dataset, int(sequence[index]), _generator(self.seed, _CLIP, k))

    def _dataset(self, k: int) -> int:
        """Whose turn it is at place k."""
        return 0 if len(self.decks) == 1 else int(_block(self.seed, self._shares, k // MIXING_BLOCK)[k % MIXING_BLOCK])

    def _before(self, k: int, dataset: int) -> int:
        """How many draws of a dataset come before place k."""
        if len(self.decks) == 1:
            return k
        block, index = divmod(k, MIXING_BLOCK)
        return block * self._shares[dataset] + int((_block(self.seed, self._shares, block)[:index] == dataset).sum())


def _generator(seed: int, stream: int, *numbers: int) -> np.random.Generator:
    return np.random.default_rng([seed, stream, *numbers])


@lru_cache(maxsize=16)
def _block(seed: int, shares: tuple[int, ...], block: int) -> np.ndarray:
    """(MIXING_BLOCK,) the datasets in turn."""
    sequence = np.repeat(np.arange(len(shares)), shares)
    return sequence[_generator(seed, _MIX, block).permutation(MIXING_BLOCK)]


@lru_cache(maxsize=16)
def _sequence(seed: int, deck: Deck, dataset: int, phase: int, lap: int) -> np.ndarray:
    """The clips of one pass in the order in which they are drawn."""
    clips = deck.clips(phase, _generator(seed, _TIES, dataset))
    if not deck.shuffle:
        return clips
    rng = _generator(seed, _PASS, dataset, lap, *([phase] if deck.phases > 1 else []))
    if deck.shards is None:
        return clips[rng.permutation(len(clips))]
    shards, shard_of = np.unique(deck.shards[clips], return_inverse=True)
    window_of = rng.permutation(len(shards))[shard_of] // deck.window
    return clips[np.lexsort((rng.permutation(len(clips)), window_of))]
