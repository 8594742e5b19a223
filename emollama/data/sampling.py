"""Which sample comes where: a pure function of the seed and the global sample index.

The global sample index is step x global batch size + position in the global batch. Rank and micro-batch follow from the position,
so a step holds the same samples for any number of processes and accumulated micro-batches, and a resumed run needs only its step.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from emollama.errors import UserError

MIXING_BLOCK = 1024  # samples; within each block of them every dataset has its exact share
# The streams of random numbers. Each has its own first entry after the seed, so no two of them overlap.
_SHUFFLE, _MIX, _SAMPLE, _TIES = 0, 1, 2, 3


@dataclass(frozen=True, eq=False)
class DatasetSampling:
    """How the samples of one dataset are drawn.

    Attributes:
        size: number of samples.
        ratio: share of this dataset among several, on any positive scale.
        shuffle: False is file order (or easy first), starting again at the end.
        shards: (size,) shard number of each sample; shards come in random order, and samples are shuffled within ``window`` of
            them. None: all samples are shuffled together.
        window: number of shards.
        difficulty: (size,) the sort key of a curriculum, small first, NaN last, equal values in random order; None without one.
        phases: number of epochs of the curriculum.
    """

    size: int
    ratio: float = 1.0
    shuffle: bool = True
    shards: np.ndarray | None = None
    window: int = 1
    difficulty: np.ndarray | None = None
    phases: int = 1

    def count(self, phase: int) -> int:
        """Number of samples in a phase of the curriculum: (phase + 1) / phases of all, rounded up."""
        return -(-self.size * (phase + 1) // self.phases)

    def indices(self, phase: int, rng: np.random.Generator) -> np.ndarray:
        """(count,) samples of a phase: all in file order, or in a curriculum the easiest ones; ``rng`` orders equal values."""
        if self.difficulty is None:
            return np.arange(self.size)
        return np.lexsort((rng.permutation(self.size), self.difficulty))[: self.count(phase)]

    def digest(self) -> str | None:
        """Hash of the arrays, which are not part of the configuration; None without any."""
        arrays = [array for array in (self.shards, self.difficulty) if array is not None]
        return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()[:16] if arrays else None


@dataclass(frozen=True)
class SampleRef:
    """A reference to one sample.

    Attributes:
        dataset: number of the dataset.
        index: of the sample in it.
        rng: generator for everything random about this sample.
    """

    dataset: int
    index: int
    rng: np.random.Generator


@dataclass(frozen=True)
class MixtureSampler:
    """The infinite sequence of samples of a run that trains on one or several datasets.

    Attributes:
        seed: the run's seed.
        datasets: how each dataset is sampled.
        samples_per_epoch: length of an epoch, for curricula.

    Raises:
        UserError: the ratios leave a dataset without a sample.
    """

    seed: int
    datasets: tuple[DatasetSampling, ...]
    samples_per_epoch: int = 1
    _shares: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        ratios = np.array([dataset.ratio for dataset in self.datasets])
        exact = ratios / ratios.sum() * MIXING_BLOCK
        shares = np.floor(exact).astype(int)
        for index in np.argsort(shares - exact, kind="stable")[: MIXING_BLOCK - shares.sum()]:
            shares[index] += 1
        if not shares.all():
            raise UserError(f"sample_ratio: {ratios.tolist()} leaves a dataset without one of {MIXING_BLOCK} samples. Raise it.")
        object.__setattr__(self, "_shares", tuple(int(share) for share in shares))

    def at(self, index: int) -> SampleRef:
        """The sample with this global index (from 0)."""
        number = self._dataset(index)
        dataset = self.datasets[number]
        phase = min(index // self.samples_per_epoch, dataset.phases - 1)
        position = self._before(index, number) - self._before(phase * self.samples_per_epoch, number)
        dataset_epoch, offset = divmod(position, dataset.count(phase))
        order = _order(self.seed, dataset, number, phase, dataset_epoch if dataset.shuffle else 0)
        return SampleRef(number, int(order[offset]), _generator(self.seed, _SAMPLE, index))

    def _dataset(self, index: int) -> int:
        """Number of the dataset that the sample comes from."""
        return 0 if len(self.datasets) == 1 else int(_block(self.seed, self._shares, index // MIXING_BLOCK)[index % MIXING_BLOCK])

    def _before(self, index: int, number: int) -> int:
        """How many samples of a dataset come before a global index."""
        if len(self.datasets) == 1:
            return index
        block, offset = divmod(index, MIXING_BLOCK)
        return block * self._shares[number] + int((_block(self.seed, self._shares, block)[:offset] == number).sum())


def _generator(seed: int, stream: int, *numbers: int) -> np.random.Generator:
    return np.random.default_rng([seed, stream, *numbers])


@lru_cache(maxsize=16)
def _block(seed: int, shares: tuple[int, ...], block: int) -> np.ndarray:
    """(MIXING_BLOCK,) dataset number of each sample in a block."""
    numbers = np.repeat(np.arange(len(shares)), shares)
    return numbers[_generator(seed, _MIX, block).permutation(MIXING_BLOCK)]


@lru_cache(maxsize=16)
def _order(seed: int, dataset: DatasetSampling, number: int, phase: int, dataset_epoch: int) -> np.ndarray:
    """The samples of one epoch of a dataset in the order in which they are used."""
    indices = dataset.indices(phase, _generator(seed, _TIES, number))
    if not dataset.shuffle:
        return indices
    rng = _generator(seed, _SHUFFLE, number, dataset_epoch, *([phase] if dataset.phases > 1 else []))
    if dataset.shards is None:
        return indices[rng.permutation(len(indices))]
    shards, shard_of = np.unique(dataset.shards[indices], return_inverse=True)
    window_of = rng.permutation(len(shards))[shard_of] // dataset.window
    return indices[np.lexsort((rng.permutation(len(indices)), window_of))]
