"""The loading of micro-batches from global sample indices."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from emollama.data.batch import Batch, Sample, collate
from emollama.data.dataset import ReadsAhead, SampleDataset
from emollama.data.prompts.prompt import PromptFormat
from emollama.data.sampling import MixtureSampler
from emollama.data.shared_prompts import records_of, share_prompts
from emollama.data.token_budget import group_by_tokens, num_tokens, split_into
from emollama.data.workers import PREFETCH, WorkerReports, require_space_for_workers
from emollama.errors import UserError

LOADS_AHEAD = 2  # loads of a process that it starts to read before it needs them, besides those that are prefetched as batches


class TrainingSamples(Dataset[Sample]):
    """Map-style dataset of a training run: item i is the sample with the global index i.

    A data loader gets the samples about one clip together, with the first index, so that their features are read once.
    """

    def __init__(self, datasets: Sequence[SampleDataset], prompt: PromptFormat, sampler: MixtureSampler) -> None:
        self.datasets = datasets
        self.prompt = prompt
        self.sampler = sampler
        self.reports = WorkerReports()
        self._ahead: tuple[int, int] | None = None
        self._started: dict[int, None] = {}  # indices of the samples that this process has started to read, in order

    def __getitem__(self, index: int) -> Sample:
        member = index % self.sampler.tasks_per_clip
        return self._about_one_clip(index - member)[member]

    def read_ahead(self, stride: int, end: int) -> None:
        """Let each process that loads samples start to read those of its next loads, if their datasets can.

        Args:
            stride: difference between the global indices of two consecutive loads of a rank.
            end: the global index at which the run ends.
        """
        if any(isinstance(dataset, ReadsAhead) and dataset.is_streamed for dataset in self.datasets):
            self._ahead = (stride, end)

    def _start_to_read(self, indices: list[int]) -> None:
        """Start to read the samples of a load and of the next ones of this process."""
        if self._ahead is None:
            return
        stride, end = self._ahead
        # Data workers get the loads in turn.
        worker = get_worker_info()
        stride *= worker.num_workers if worker else 1
        for index in (index + load * stride for load in range(LOADS_AHEAD + 1) for index in indices):
            if index < end and index not in self._started:
                self._started[index] = None
                ref = self.sampler.at(index)
                dataset = self.datasets[ref.dataset]
                if isinstance(dataset, ReadsAhead):
                    dataset.read_ahead(ref.index)
        while len(self._started) > (LOADS_AHEAD + 1) * len(indices):
            del self._started[next(iter(self._started))]

    def __getitems__(self, indices: list[int]) -> list[list[Sample]]:
        """Return the samples about one clip for each index, which is that of the first of them."""
        self._start_to_read(indices)
        return [share_prompts(self._about_one_clip(index)) for index in indices]

    def _about_one_clip(self, first: int) -> list[Sample]:
        ref, *others = [self.sampler.at(first + member) for member in range(self.sampler.tasks_per_clip)]
        dataset = self.datasets[ref.dataset]
        questions = dataset.pool.draw_different(ref.rng, 1 + len(others))
        with self.reports.reading(first):
            records = records_of(dataset, ref.index, questions, ref.rng)
            samples = [self.prompt.tokenize(record, rng=ref.rng) for record in records]
        seeds = [ref.dropout_seed, *(other.dropout_seed for other in others)]
        return [replace(sample, dropout_seed=seed) for sample, seed in zip(samples, seeds, strict=True)]

    def description(self, index: int) -> str:
        """Return the name of the sample with a global index, for messages."""
        ref = self.sampler.at(index)
        return f"sample '{self.datasets[ref.dataset].names()[ref.index]}'"


@dataclass(frozen=True)
class BatchLayout:
    """How a global batch is split over ranks and micro-batches.

    Attributes:
        batch_size: samples per micro-batch on one rank.
        accumulate: micro-batches per step on one rank.
        world, rank: number of processes, and the index of this one.
        max_tokens: tokens per micro-batch on one rank. If it is set, batch_size and accumulate only determine which samples a
            rank gets in a step, and :func:`~emollama.data.token_budget.group_by_tokens` forms the micro-batches.
        tasks_per_clip: number of consecutive samples that are loaded together, and are in the same micro-batch; batch_size is a
            multiple of it.
        padded: whether the language model pads the samples of a micro-batch to the longest one. The padding counts as tokens.
    """

    batch_size: int
    accumulate: int
    world: int
    rank: int
    max_tokens: int | None = None
    tasks_per_clip: int = 1
    padded: bool = False

    @property
    def global_batch(self) -> int:
        """Number of samples per optimizer step over all ranks."""
        return self.batch_size * self.accumulate * self.world

    @property
    def loads_per_step(self) -> int:
        """Number of lists of samples that are loaded for a step: one per micro-batch, or a single one for ``max_tokens``."""
        return self.accumulate if self.max_tokens is None else 1

    def sample_indices(self, first_step: int, end_step: int) -> Iterator[list[int]]:
        """Yield lists of global sample indices that this rank loads together in these steps; see ``loads_per_step``.

        Of the samples about one clip, only the first index is included.
        """
        for step in range(first_step, end_step):
            starts = [
                step * self.global_batch + (micro * self.world + self.rank) * self.batch_size for micro in range(self.accumulate)
            ]
            micro_batches = [list(range(first, first + self.batch_size, self.tasks_per_clip)) for first in starts]
            yield from micro_batches if self.max_tokens is None else [list(chain.from_iterable(micro_batches))]

    @property
    def load_stride(self) -> int:
        """Difference between the global indices of two consecutive loads of this rank."""
        return self.world * self.batch_size if self.max_tokens is None else self.global_batch

    def collate(self, clips: list[list[Sample]]) -> list[Batch]:
        """Return the micro-batches of samples that were loaded together, those about one clip in a list."""
        if self.max_tokens is None:
            return [collate(list(chain.from_iterable(clips)))]
        lengths = [num_tokens([len(sample.input_ids) for sample in clip], padded=self.padded) for clip in clips]
        groups = group_by_tokens(lengths, self.max_tokens, padded=self.padded)
        return [collate([sample for index in group for sample in clips[index]]) for group in groups]

    def split_into(self, batches: Sequence[Batch], number: int) -> list[Batch]:
        """Split the micro-batches of a step on this rank until there are ``number``."""
        return split_into(batches, number, tasks_per_clip=self.tasks_per_clip, padded=self.padded)


class _BatchSampler:
    """The batch sampler of a training run; its length gives the data loader a length."""

    def __init__(self, layout: BatchLayout, first_step: int, end_step: int) -> None:
        self._arguments = (layout, first_step, end_step)

    def __iter__(self) -> Iterator[list[int]]:
        layout, first_step, end_step = self._arguments
        return layout.sample_indices(first_step, end_step)

    def __len__(self) -> int:
        layout, first_step, end_step = self._arguments
        return max(0, end_step - first_step) * layout.loads_per_step


@dataclass(frozen=True)
class WorkerOptions:
    """How a process loads its batches.

    Attributes:
        num_workers: number of data workers; 0 loads in this process.
        pin_memory: whether batches are copied to page-locked memory.
        hang_seconds: time after which the process stops waiting for a batch of a worker; 0 waits forever.
    """

    num_workers: int = 0
    pin_memory: bool = False
    hang_seconds: float = 0.0


def training_loader(
    samples: TrainingSamples, layout: BatchLayout, options: WorkerOptions, *, first_step: int, end_step: int
) -> DataLoader[list[Batch]]:
    """Return a data loader of all remaining steps, whose elements are lists of micro-batches; see :func:`step_batches`."""
    num_workers = options.num_workers
    samples.read_ahead(layout.load_stride, end_step * layout.global_batch)
    if num_workers:
        samples.reports.open()
    return DataLoader(
        samples,  # type: ignore[arg-type]
        batch_sampler=_BatchSampler(layout, first_step, end_step),
        collate_fn=layout.collate,
        num_workers=num_workers,
        prefetch_factor=PREFETCH if num_workers else None,
        pin_memory=options.pin_memory,
        timeout=options.hang_seconds if num_workers else 0,
        # Without a generator of its own, the loader would draw a seed from torch's global generator.
        generator=torch.Generator().manual_seed(0),
        worker_init_fn=samples.reports.start,
    )


def first_batches(samples: TrainingSamples, layout: BatchLayout, first_step: int) -> list[Batch]:
    """Return what this rank loads first from a step on, loaded in this process."""
    return layout.collate(samples.__getitems__(next(layout.sample_indices(first_step, first_step + 1))))


def mix_seed(*numbers: int) -> int:
    """Mix several numbers into one seed."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def step_batches(loader: DataLoader[list[Batch]], loads_per_step: int) -> Iterator[list[Batch]]:
    """Yield the micro-batches of each step.

    Args:
        loader: the result of :func:`training_loader`.
        loads_per_step: that of its layout.

    Raises:
        UserError: If data workers cannot be started, or if one raised it; the message does not contain the worker's traceback.
    """
    if loader.num_workers:
        # A forked worker would collect the parent's garbage. The destructor of a decoded video frame then waits forever for
        # threads that exist only in the parent.
        gc.collect()
        require_space_for_workers(loader.num_workers)
    try:
        batches = iter(loader)
    except OSError as error:
        raise UserError(f"data workers cannot be started: {error.strerror or error}. Lower run.num_workers.") from error
    try:
        while step := [batch for loaded in islice(batches, loads_per_step) for batch in loaded]:
            yield step
    except UserError as error:
        raise UserError(str(error).rpartition("UserError: ")[2].strip()) from None
