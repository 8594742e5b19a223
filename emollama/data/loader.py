"""From global sample indices to micro-batches: the Protocol of a dataset, and how a global batch is split and loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from emollama.data.batch import Batch, Record, Sample, collate
from emollama.data.instructions import TaskPool
from emollama.data.problems import Problem
from emollama.data.prompts.prompt import Prompt
from emollama.data.sampling import DatasetSampling, MixtureSampler
from emollama.errors import UserError


class SampleDataset(Protocol):
    """What a registered dataset offers: its tasks, its block (batch_size), lines for the log."""

    pool: TaskPool
    cfg: Any
    notes: list[str]

    def __len__(self) -> int: ...

    def names(self) -> list[str]:
        """The clips' names in order."""
        ...

    def digest(self) -> str:
        """Of what is asked and answered, which a resumed run must find again."""
        ...

    def problems(self) -> list[Problem]:
        """Everything that would stop the run later."""
        ...

    def sampling(self) -> DatasetSampling:
        """How its clips are drawn in training."""
        ...

    def has_reference(self, task: str) -> bool:
        """Whether any clip's answer to a task is known."""
        ...

    def as_answer(self, text: str) -> str:
        """A text as it is trained on where it is an answer."""
        ...

    def user_text(self, index: int, task: str, instruction: str) -> str:
        """What the user says about clip ``index``, as in its record; no feature is read."""
        ...

    def record(self, index: int, task: str, instruction: str, rng: np.random.Generator | None = None) -> Record:
        """Clip ``index`` asked for ``task`` in these words; ``rng`` is for what is random in training, None in evaluation."""
        ...


class TrainingSamples(Dataset[Sample]):
    """Map-style view of a run: item i is the sample with the global index i."""

    def __init__(self, datasets: Sequence[SampleDataset], prompt: Prompt, sampler: MixtureSampler) -> None:
        self.datasets = datasets
        self.prompt = prompt
        self.sampler = sampler

    def __getitem__(self, index: int) -> Sample:
        ref = self.sampler.at(index)
        dataset = self.datasets[ref.dataset]
        task, instruction = dataset.pool.draw(ref.rng)
        return self.prompt.sample(dataset.record(ref.index, task, instruction, ref.rng), rng=ref.rng)


@dataclass(frozen=True)
class BatchLayout:
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

    def sample_indices(self, first_step: int, end_step: int) -> Iterator[list[int]]:
        """This rank's micro-batches of the steps, each a list of global sample indices."""
        for step in range(first_step, end_step):
            for micro in range(self.accumulate):
                first = step * self.global_batch + (micro * self.world + self.rank) * self.batch_size
                yield list(range(first, first + self.batch_size))


class _BatchSampler:
    """The batch sampler of a run: sized, so that the data loader can tell its length."""

    def __init__(self, layout: BatchLayout, first_step: int, end_step: int) -> None:
        self._arguments = (layout, first_step, end_step)

    def __iter__(self) -> Iterator[list[int]]:
        layout, first_step, end_step = self._arguments
        return layout.sample_indices(first_step, end_step)

    def __len__(self) -> int:
        layout, first_step, end_step = self._arguments
        return max(0, end_step - first_step) * layout.accumulate


def training_loader(
    samples: TrainingSamples, layout: BatchLayout, *, first_step: int, end_step: int, num_workers: int, pin_memory: bool
) -> DataLoader[Batch]:
    """One pass over all the steps that are left to do; it takes nothing from the global random generators."""
    return DataLoader(
        samples,  # type: ignore[arg-type]
        batch_sampler=_BatchSampler(layout, first_step, end_step),
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
