"""The order of samples in training, a pure function of the seed and the global sample index.

The global sample index is step x global batch size + position in the global batch. Rank and micro-batch follow from the position.
With a fixed global batch size, a step therefore contains the same samples for any division into processes and micro-batches, and
a resumed run needs only its step number.

With several tasks per clip, consecutive samples form a group: k samples about one clip, which have the same augmentation. Clips
are then drawn for groups, and a mixture or a curriculum counts groups.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from emollama.errors import UserError

# Number of consecutive samples in which every dataset has its exact share.
MIXING_WINDOW = 1024
# Number of orders that are kept for each dataset: that of the current epoch, and of the next or the last one.
ORDERS = 2
# Each use of random numbers has its own entry after the seed, so that no two streams overlap.
_SHUFFLE, _MIX, _SAMPLE, _TIE_BREAK, _DROPOUT = 0, 1, 2, 3, 4


@dataclass(frozen=True, eq=False)
class DatasetSampling:
    """How the samples of one dataset are drawn.

    Attributes:
        size: number of samples.
        ratio: relative share of this dataset in a mixture, on any positive scale.
        shuffle: whether samples are shuffled; otherwise they come in file order (with a curriculum: easy ones first), repeatedly.
        shards: (size,) shard index of each sample; shards come in random order, and samples are shuffled within ``window``
            shards. None: all samples are shuffled together.
        window: number of shards whose samples are shuffled together.
        difficulty: (size,) sort key of a curriculum: ascending, NaN last, equal values in random order. None: no curriculum.
        phases: number of epochs of the curriculum.
        orders: the last orders of samples that were computed.
    """

    size: int
    ratio: float = 1.0
    shuffle: bool = True
    shards: np.ndarray | None = None
    window: int = 1
    difficulty: np.ndarray | None = None
    phases: int = 1
    orders: dict[tuple[int, ...], np.ndarray] = field(default_factory=dict, init=False, repr=False)

    def count(self, phase: int) -> int:
        """Return the number of samples in a phase of the curriculum: (phase + 1) / phases of all, rounded up."""
        return -(-self.size * (phase + 1) // self.phases)

    def indices(self, phase: int, rng: np.random.Generator) -> np.ndarray:
        """Return the (count,) samples of a phase: all in file order, or the easiest of a curriculum, ties ordered by ``rng``."""
        if self.difficulty is None:
            return np.arange(self.size)
        return np.lexsort((rng.permutation(self.size), self.difficulty))[: self.count(phase)]

    def digest(self) -> str | None:
        """Return a hash of the arrays, which are not part of the configuration; None if there are no arrays."""
        arrays = [array for array in (self.shards, self.difficulty) if array is not None]
        return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()[:16] if arrays else None


@dataclass(frozen=True)
class SampleRef:
    """A reference to one sample.

    Attributes:
        dataset: index of the dataset in the mixture.
        index: index of the sample in the dataset.
        rng: generator of all random numbers for this sample, except for dropout; that of its group, from the start.
        dropout_seed: signed integer of 32 bits from which the model's dropout is computed.
    """

    dataset: int
    index: int
    rng: np.random.Generator
    dropout_seed: int


@dataclass(frozen=True)
class MixtureSampler:
    """The infinite sequence of samples in a training run on one or several datasets.

    Attributes:
        seed: the run's seed.
        datasets: how each dataset is sampled.
        samples_per_epoch: number of samples per epoch, for curricula.
        names: names of the datasets in error messages, such as ``datasets.merr``.
        tasks_per_clip: number of samples of a group; ``samples_per_epoch`` is a multiple of it.

    Raises:
        UserError: If the ratio of a dataset is too small for one sample per mixing window.
    """

    seed: int
    datasets: tuple[DatasetSampling, ...]
    samples_per_epoch: int = 1
    names: tuple[str, ...] = ()
    tasks_per_clip: int = 1
    _shares: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        ratios = np.array([dataset.ratio for dataset in self.datasets])
        exact = ratios / ratios.sum() * MIXING_WINDOW
        shares = np.floor(exact).astype(int)
        # Largest remainder method: the samples lost by rounding down go to the datasets that lost most.
        for index in np.argsort(shares - exact, kind="stable")[: MIXING_WINDOW - shares.sum()]:
            shares[index] += 1
        if not shares.all():
            index = int(shares.argmin())
            name = self.names[index] if self.names else f"datasets[{index}]"
            text = f"{exact[index]:.2g} of every {MIXING_WINDOW} samples. Increase it to at least 1 sample."
            raise UserError(f"{name}.sample_ratio is too small: {text}")
        object.__setattr__(self, "_shares", tuple(int(share) for share in shares))

    def at(self, index: int) -> SampleRef:
        """Return the sample with this global index (from 0)."""
        group, groups_per_epoch = index // self.tasks_per_clip, max(1, self.samples_per_epoch // self.tasks_per_clip)
        dataset_index = self._dataset_index(group)
        dataset = self.datasets[dataset_index]
        phase = min(group // groups_per_epoch, dataset.phases - 1)
        position = self._count_before(group, dataset_index) - self._count_before(phase * groups_per_epoch, dataset_index)
        dataset_epoch, offset = divmod(position, dataset.count(phase))
        order = _order(self.seed, dataset, dataset_index, phase, dataset_epoch if dataset.shuffle else 0)
        dropout_seed = int(_generator(self.seed, _DROPOUT, index).integers(-(2**31), 2**31))
        return SampleRef(dataset_index, int(order[offset]), _generator(self.seed, _SAMPLE, group), dropout_seed)

    def _dataset_index(self, group: int) -> int:
        """Return the index of the dataset that a group comes from."""
        if len(self.datasets) == 1:
            return 0
        window, offset = divmod(group, MIXING_WINDOW)
        return int(_mixing_window(self.seed, self._shares, window)[offset])

    def _count_before(self, group: int, dataset_index: int) -> int:
        """Return how many groups of a dataset come before a group."""
        if len(self.datasets) == 1:
            return group
        window, offset = divmod(group, MIXING_WINDOW)
        in_window = (_mixing_window(self.seed, self._shares, window)[:offset] == dataset_index).sum()
        return window * self._shares[dataset_index] + int(in_window)


def _generator(seed: int, stream: int, *numbers: int) -> np.random.Generator:
    return np.random.default_rng([seed, stream, *numbers])


@lru_cache(maxsize=16)
def _mixing_window(seed: int, shares: tuple[int, ...], window: int) -> np.ndarray:
    """Return the (MIXING_WINDOW,) dataset index of each sample in a mixing window."""
    dataset_indices = np.repeat(np.arange(len(shares)), shares)
    return dataset_indices[_generator(seed, _MIX, window).permutation(MIXING_WINDOW)]


def _order(seed: int, dataset: DatasetSampling, dataset_index: int, phase: int, dataset_epoch: int) -> np.ndarray:
    """Return the samples of one dataset epoch in the order of their use, as uint32."""
    key = seed, dataset_index, phase, dataset_epoch
    if key not in dataset.orders:
        # Each data worker has its own, so that millions of samples need memory for few.
        while len(dataset.orders) >= ORDERS:
            del dataset.orders[next(iter(dataset.orders))]
        dataset.orders[key] = _new_order(seed, dataset, dataset_index, phase, dataset_epoch).astype(np.uint32)
    return dataset.orders[key]


def _new_order(seed: int, dataset: DatasetSampling, dataset_index: int, phase: int, dataset_epoch: int) -> np.ndarray:
    indices = dataset.indices(phase, _generator(seed, _TIE_BREAK, dataset_index))
    if not dataset.shuffle:
        return indices
    rng = _generator(seed, _SHUFFLE, dataset_index, dataset_epoch, *([phase] if dataset.phases > 1 else []))
    if dataset.shards is None:
        return indices[rng.permutation(len(indices))]
    shards, shard_of = np.unique(dataset.shards[indices], return_inverse=True)
    window_of = rng.permutation(len(shards))[shard_of] // dataset.window
    return indices[np.lexsort((rng.permutation(len(indices)), window_of))]
