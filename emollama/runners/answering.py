"""Answers to a block's clips, each given once over all processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from operator import itemgetter
from typing import Any

from emollama.data.loader import SampleDataset
from emollama.data.prompts.prompt import Prompt
from emollama.distributed.process_group import World
from emollama.logs.console import Progress
from emollama.precision import Precision


@dataclass(frozen=True)
class Answering:
    """What answers clips.

    Attributes:
        task: says how a clip is asked and answered.
        members: the model in eval mode, or the members of an ensemble.
        prompt: the model's renderer.
        world: the processes, which share the questions out among them.
        precision: of the model's arithmetic.
        seed: of sampling, where temperature is above 0.
    """

    task: Any
    members: Sequence[Any]
    prompt: Prompt
    world: World
    precision: Precision
    seed: int

    def answers(self, label: str, dataset: SampleDataset, options: Any) -> list[dict[str, Any]]:
        """Answer every clip for every task of its pool, the longest prompts first.

        Args:
            label: the block's, for the progress bar.
            dataset: the block's clips.
            options: the task's Config: how to answer.

        Returns:
            A dictionary an answer, sorted by name and task, the same on every rank.
        """
        questions = self.task.questions(dataset, options)
        words = [dataset.user_text(asked.clip, asked.task, asked.instruction) for asked in questions]
        lengths = self.prompt.prompt_lengths(words, options.prompt_layout)
        by_length = sorted(range(len(questions)), key=lambda place: -lengths[place])
        own = [questions[place] for place in by_length[self.world.rank :: self.world.size]]
        answers: list[Any] = []
        with Progress(len(own), f"answering {label}", enabled=self.world.is_main) as bar, self.precision.autocast():
            for first in range(0, len(own), dataset.cfg.batch_size):
                part = own[first : first + dataset.cfg.batch_size]
                answers += self.task.answer(self.members, self.prompt, dataset, options, part, self.seed)
                bar.update(len(part))
        return sorted(map(asdict, chain(*self.world.gather(answers))), key=itemgetter("name", "task"))
