"""Answers to a block's clips, each given once over all processes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import chain
from operator import itemgetter
from typing import Any

from emollama.data.loader import ClipDataset
from emollama.data.prompt import Prompt
from emollama.distributed import World
from emollama.logging import progress
from emollama.precision import Precision


@dataclass(frozen=True)
class Answering:
    """What answers clips.

    Attributes:
        task: says how a clip is asked and answered.
        model: in eval mode while it answers.
        prompt: the model's renderer.
        world: the processes; each takes every n-th (clip, task) pair.
        precision: of the model's arithmetic.
        seed: of sampling, where temperature is above 0.
    """

    task: Any
    model: Any
    prompt: Prompt
    world: World
    precision: Precision
    seed: int

    def rows(self, label: str, dataset: ClipDataset, options: Any) -> list[dict[str, Any]]:
        """Answer every clip for every task of its pool.

        Args:
            label: the block's, for the progress bar.
            dataset: the block's clips.
            options: the task's Config: how to generate.

        Returns:
            A dictionary an answer, sorted by name and task, the same on every rank.
        """
        total = len(dataset) * len(dataset.pool.tasks)
        places = range(self.world.rank, total, self.world.size)
        own: list[Any] = []
        with progress(len(places), label, enabled=self.world.is_main) as bar, self.precision.autocast():
            for part in self.task.evaluate(self.model, self.prompt, dataset, options, places, self.world.device, self.seed):
                own += part
                bar.update(len(part))
        return sorted(map(asdict, chain(*self.world.gather(own))), key=itemgetter("name", "task"))
