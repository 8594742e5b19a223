"""The order of the draw: which clips make which step.

It is a pure function of (seed, k) where k = step x global batch + index in the global batch. Rank and micro-batch follow from
the index, so a step holds the same samples for any world size x accumulation, and a resumed run needs nothing but its step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from emollama.data.batch import Batch, Record, Sample, collate
from emollama.data.instructions import TaskPool
from emollama.data.prompt import Prompt
from emollama.errors import UserError

MIXING_BLOCK = 1024  # draws; within each block of them every dataset has its exact share
_PASS, _MIX, _CLIP = 0, 1, 2  # streams of random numbers that never meet


class ClipDataset(Protocol):
    """What a registered dataset offers: its tasks, its block (batch_size, shuffle, sample_ratio), lines for the log."""

    pool: TaskPool
    cfg: Any
    notes: list[str]

    def __len__(self) -> int: ...

    def names(self) -> list[str]:
        """The clips' names in order."""
        ...

    def problems(self) -> list[str]:
        """Everything that would stop the run later, a line each."""
        ...

    def record(self, index: int, task: str, wording: str) -> Record:
        """Clip ``index`` asked for ``task`` in these words."""
        ...


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
        sizes: clips in each dataset.
        ratios: share of each dataset, any positive scale.
        shuffle: per dataset; False is file order, wrapping at the end.
    """

    seed: int
    sizes: tuple[int, ...]
    ratios: tuple[float, ...]
    shuffle: tuple[bool, ...]
    _shares: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        exact = np.array(self.ratios) / sum(self.ratios) * MIXING_BLOCK
        shares = np.floor(exact).astype(int)
        for index in np.argsort(shares - exact, kind="stable")[: MIXING_BLOCK - shares.sum()]:
            shares[index] += 1
        if not shares.all():
            raise UserError(f"sample_ratio: {self.ratios} leaves a dataset without one of {MIXING_BLOCK} draws. Raise it.")
        object.__setattr__(self, "_shares", tuple(int(share) for share in shares))

    @classmethod
    def over(cls, datasets: Sequence[ClipDataset], seed: int) -> Order:
        """The order of these datasets' clips, as their blocks configure it."""
        return cls(
            seed=seed,
            sizes=tuple(len(dataset) for dataset in datasets),
            ratios=tuple(dataset.cfg.sample_ratio for dataset in datasets),
            shuffle=tuple(dataset.cfg.shuffle for dataset in datasets),
        )

    def draw(self, k: int) -> Draw:
        """The k-th draw of the run (k from 0)."""
        dataset, place = (0, k) if len(self.sizes) == 1 else self._mixed(k)
        lap, index = divmod(place, self.sizes[dataset])
        clip = index
        if self.shuffle[dataset]:
            clip = int(_permutation(self.seed, dataset, lap, self.sizes[dataset])[index])
        return Draw(dataset, clip, _generator(self.seed, _CLIP, k))

    def _mixed(self, k: int) -> tuple[int, int]:
        """(dataset, how many draws of it came before the k-th)."""
        block, index = divmod(k, MIXING_BLOCK)
        sequence = np.repeat(np.arange(len(self.sizes)), self._shares)
        sequence = sequence[_generator(self.seed, _MIX, block).permutation(MIXING_BLOCK)]
        dataset = int(sequence[index])
        return dataset, block * self._shares[dataset] + int((sequence[:index] == dataset).sum())


def _generator(seed: int, stream: int, *numbers: int) -> np.random.Generator:
    return np.random.default_rng([seed, stream, *numbers])


@lru_cache(maxsize=8)
def _permutation(seed: int, dataset: int, lap: int, size: int) -> np.ndarray:
    return _generator(seed, _PASS, dataset, lap).permutation(size)


class TrainingSamples(Dataset[Sample]):
    """Map-style view of the draws: item k is the sample at place k of the run."""

    def __init__(self, datasets: Sequence[ClipDataset], prompt: Prompt, order: Order) -> None:
        self.datasets = datasets
        self.prompt = prompt
        self.order = order

    def __getitem__(self, k: int) -> Sample:
        draw = self.order.draw(k)
        dataset = self.datasets[draw.dataset]
        task, wording = dataset.pool.draw(draw.rng)
        return self.prompt.sample(dataset.record(draw.clip, task, wording))


@dataclass(frozen=True)
class Split:
    """How a global batch is split over ranks and micro-batches.

    Attributes:
        batch_size: samples of a micro-batch on one rank.
        accumulate: micro-batches of a step on one rank.
        world, rank: number of processes, and which of them this one is.
    """

    batch_size: int
    accumulate: int
    world: int
    rank: int

    @property
    def global_batch(self) -> int:
        """Samples of one optimizer step over all ranks."""
        return self.batch_size * self.accumulate * self.world

    def places(self, first_step: int, end_step: int) -> Iterator[list[int]]:
        """This rank's micro-batches of the steps, each a list of places k."""
        for step in range(first_step, end_step):
            for micro in range(self.accumulate):
                first = step * self.global_batch + (micro * self.world + self.rank) * self.batch_size
                yield list(range(first, first + self.batch_size))


class _Places:
    """The batch sampler of a run: sized, so that the data loader can tell its length."""

    def __init__(self, split: Split, first_step: int, end_step: int) -> None:
        self._arguments = (split, first_step, end_step)

    def __iter__(self) -> Iterator[list[int]]:
        split, first_step, end_step = self._arguments
        return split.places(first_step, end_step)

    def __len__(self) -> int:
        split, first_step, end_step = self._arguments
        return max(0, end_step - first_step) * split.accumulate


def training_loader(
    samples: TrainingSamples, split: Split, *, first_step: int, end_step: int, num_workers: int, pin_memory: bool
) -> DataLoader[Batch]:
    """One pass over all the steps that are left to do; it takes nothing from the global random generators."""
    return DataLoader(
        samples,  # type: ignore[arg-type]
        batch_sampler=_Places(split, first_step, end_step),
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=pin_memory,
        generator=torch.Generator().manual_seed(0),
        worker_init_fn=_one_thread,
    )


def seed_of(*numbers: int) -> int:
    """One seed from several numbers, well mixed."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def step_batches(loader: DataLoader[Batch], accumulate: int) -> Iterator[list[Batch]]:
    """The micro-batches of each step, ``accumulate`` at a time.

    Raises:
        UserError: what a worker met, in its own words, without the worker's traceback.
    """
    batches = iter(loader)
    try:
        while step := list(islice(batches, accumulate)):
            yield step
    except UserError as error:
        raise UserError(str(error).rpartition("UserError: ")[2].strip()) from None


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
