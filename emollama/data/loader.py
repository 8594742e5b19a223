"""The loading of micro-batches from global sample indices."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from emollama.data.batch import Batch, Sample, collate
from emollama.data.dataset import SampleDataset
from emollama.data.prompts.prompt import PromptFormat
from emollama.data.sampling import MixtureSampler
from emollama.errors import UserError


class TrainingSamples(Dataset[Sample]):
    """Map-style dataset of a training run: item i is the sample with the global index i."""

    def __init__(self, datasets: Sequence[SampleDataset], prompt: PromptFormat, sampler: MixtureSampler) -> None:
        self.datasets = datasets
        self.prompt = prompt
        self.sampler = sampler

    def __getitem__(self, index: int) -> Sample:
        ref = self.sampler.at(index)
        dataset = self.datasets[ref.dataset]
        task, instruction = dataset.pool.draw(ref.rng)
        sample = self.prompt.tokenize(dataset.record(ref.index, task, instruction, ref.rng), rng=ref.rng)
        return replace(sample, dropout_seed=ref.dropout_seed)


@dataclass(frozen=True)
class BatchLayout:
    """How a global batch is split over ranks and micro-batches.

    Attributes:
        batch_size: samples per micro-batch on one rank.
        accumulate: micro-batches per step on one rank.
        world, rank: number of processes, and the index of this one.
    """

    batch_size: int
    accumulate: int
    world: int
    rank: int

    @property
    def global_batch(self) -> int:
        """Number of samples per optimizer step over all ranks."""
        return self.batch_size * self.accumulate * self.world

    def sample_indices(self, first_step: int, end_step: int) -> Iterator[list[int]]:
        """Yield the micro-batches of this rank in these steps, each as a list of global sample indices."""
        for step in range(first_step, end_step):
            for micro in range(self.accumulate):
                first = step * self.global_batch + (micro * self.world + self.rank) * self.batch_size
                yield list(range(first, first + self.batch_size))


class _BatchSampler:
    """The batch sampler of a training run; its length gives the data loader a length."""

    def __init__(self, layout: BatchLayout, first_step: int, end_step: int) -> None:
        self._arguments = (layout, first_step, end_step)

    def __iter__(self) -> Iterator[list[int]]:
        layout, first_step, end_step = self._arguments
        return layout.sample_indices(first_step, end_step)

    def __len__(self) -> int:
        layout, first_step, end_step = self._arguments
        return max(0, end_step - first_step) * layout.accumulate


def training_loader(
    samples: TrainingSamples, layout: BatchLayout, first_step: int, end_step: int, *, num_workers: int, pin_memory: bool
) -> DataLoader[Batch]:
    """Return a data loader of all remaining steps."""
    return DataLoader(
        samples,  # type: ignore[arg-type]
        batch_sampler=_BatchSampler(layout, first_step, end_step),
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=pin_memory,
        # Without a generator of its own, the loader would draw a seed from torch's global generator.
        generator=torch.Generator().manual_seed(0),
        worker_init_fn=_one_thread,
    )


def mix_seed(*numbers: int) -> int:
    """Mix several numbers into one seed."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def step_batches(loader: DataLoader[Batch], accumulate: int) -> Iterator[list[Batch]]:
    """Yield the list of ``accumulate`` micro-batches of each step.

    Raises:
        UserError: If a data worker raised it. The message does not contain the worker's traceback.
    """
    if loader.num_workers:
        # A forked worker would collect the parent's garbage. The destructor of a decoded video frame then waits forever for
        # threads that exist only in the parent.
        gc.collect()
    batches = iter(loader)
    try:
        while step := list(islice(batches, accumulate)):
            yield step
    except UserError as error:
        raise UserError(str(error).rpartition("UserError: ")[2].strip()) from None


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
