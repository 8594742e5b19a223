"""Predictions for the samples of an evaluation block; each sample is processed on one of the processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from typing import Any

from emollama.components import EvaluationItem, Task
from emollama.data.dataset import SampleDataset
from emollama.decoding.answer_generator import AnswerGenerator
from emollama.distributed.process_group import World
from emollama.distributed.sharding import joint_forward_passes
from emollama.distributed.stop_requests import STOP_REQUESTS
from emollama.errors import Stopped
from emollama.logs.console import Progress
from emollama.logs.logger import get_logger
from emollama.memory import first_line, is_out_of_memory
from emollama.precision import Precision
from emollama.run_folder import PredictionRecord
from emollama.runners import out_of_memory
from emollama.runners.partial_answers import PartialAnswers

TOO_LARGE = (
    "evaluation block %s: out of memory (%s) with batch_size %d. The evaluation continues with smaller batches, and the answers"
    " are the same. A smaller batch_size avoids the failed attempts."
)


@dataclass(frozen=True)
class PredictionRunner:
    """Runs the model on evaluation blocks.

    Attributes:
        task: the task, which defines the evaluation items and makes a prediction for each.
        generator: the model in eval mode, or an ensemble, with its prompt format.
        world: the processes among which the items are distributed.
        precision: precision of the model's computations.
        seed: random seed of sampling, which is used if the temperature is above 0.
    """

    task: Task
    generator: AnswerGenerator
    world: World
    precision: Precision
    seed: int

    def predict(
        self, block_name: str, dataset: SampleDataset, options: Any, partial: PartialAnswers | None = None
    ) -> list[PredictionRecord]:
        """Make a prediction for every evaluation item of a dataset.

        Args:
            block_name: name of the config block, for the progress bar.
            dataset: the samples.
            options: the task's Config, which defines how answers are generated.
            partial: the answers of this process that an interrupted evaluation has finished.

        Returns:
            The predictions, sorted by name and task; all ranks get the same list.

        Raises:
            Stopped: If a process was asked to stop.
            UserError: If memory is exhausted by a batch of one item. Larger batches are halved; the answers are the same.
        """
        items = self.task.evaluation_items(dataset, options)
        texts = [dataset.user_text(item.index, item.task, item.instruction) for item in items]
        lengths = self.generator.prompt_format.prompt_lengths(texts, options.prompt_layout)
        # Prompts of similar length share a batch, so that little of the padded cache is wasted, and every process gets its
        # share of long prompts.
        by_length = sorted(range(len(items)), key=lambda index: -lengths[index])
        own = by_length[self.world.rank :: self.world.size]
        finished = partial.read() if partial else {}
        if count := sum(map(len, finished)):
            get_logger().info("%s: continuing with %d of %d answers of process %d", block_name, count, len(own), self.world.rank)
        predictions: list[PredictionRecord] = []
        stopped = False
        with (
            joint_forward_passes(self.generator.members[0], self.world),
            Progress(len(own), f"answering {block_name}", enabled=self.world.is_main) as bar,
            self.precision.autocast(),
        ):
            first, size = 0, dataset.cfg.batch_size
            while part := own[first : first + size]:
                answers: list[PredictionRecord] | Exception | None = finished.get(tuple(part))
                if answers is None:
                    if stopped := self._stop_requested():
                        break
                    answers = self._predict_batch(dataset, options, [items[index] for index in part])
                    if partial and isinstance(answers, list):
                        partial.append(part, answers)
                if isinstance(answers, list):
                    predictions += answers
                    first += len(part)
                    bar.update(len(part))
                    continue
                if len(part) == 1:
                    name, tokens = dataset.names()[items[part[0]].index], lengths[part[0]]
                    raise out_of_memory.prediction_error(answers, block_name, name, tokens, self.world)
                if size == dataset.cfg.batch_size:
                    get_logger().warning(TOO_LARGE, block_name, first_line(answers), size)
                size = len(part) // 2
        if self.world.any(stopped):
            raise Stopped(f"{STOP_REQUESTS.agreed_reason(self.world)} while answering {block_name}")
        return sorted(chain(*self.world.gather(predictions)), key=attrgetter("name", "task"))

    def _stop_requested(self) -> bool:
        """Return whether any process was asked to stop, without waiting for the others."""
        own = bool(STOP_REQUESTS.reason)
        return self.world.count("stop requests", int(own)) > 0 or own

    def _predict_batch(
        self, dataset: SampleDataset, options: Any, batch: Sequence[EvaluationItem]
    ) -> list[PredictionRecord] | Exception:
        """Return the predictions for a batch, or the error if memory is exhausted."""
        try:
            return self.task.predict(self.generator, dataset, options, batch, self.seed)
        except (RuntimeError, MemoryError, OSError) as error:
            if not is_out_of_memory(error):
                raise
            # The frames of the traceback refer to the tensors of the batch.
            failure = error.with_traceback(None)
            failure.__context__ = failure.__cause__ = None
        out_of_memory.free_unused()
        return failure
