"""Evaluate the blocks of a run: predict, score, and write predictions and metrics.

``emollama eval``, the entry scripts and validation during training share this code.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from emollama import __version__
from emollama.component_errors import ComponentFailed
from emollama.config import RunConfig
from emollama.data.dataset import ClipsToPredict, SampleDataset
from emollama.data.prompts.configs import TRAIN
from emollama.data.slots import PIXELS, without_pixels
from emollama.distributed.process_group import World
from emollama.distributed.stop_requests import STOP_REQUESTS
from emollama.errors import UserError
from emollama.evaluation.prediction_files import write_metrics, write_predictions
from emollama.evaluation.predictions import Prediction
from emollama.evaluation.scoring import Scoring
from emollama.listing import abbreviated, listing
from emollama.logs.log_files import WriteFailures
from emollama.logs.logger import get_logger
from emollama.run_folder import PredictionRecord, metrics_file, predictions_file
from emollama.runners.datasets import build_datasets
from emollama.runners.model_ckpt import is_ensemble
from emollama.runners.partial_answers import PartialAnswers, file_stamps, identity_of, input_stamps
from emollama.runners.prediction_runner import PredictionRunner


@dataclass(frozen=True)
class EvaluationSet:
    """The dataset of an evaluation block, with its options.

    Attributes:
        dataset: the samples.
        options: the task's Config, which defines how answers are generated.
        scoring: the task's scoring, which computes metrics from predictions.
    """

    dataset: SampleDataset
    options: Any
    scoring: Scoring


@dataclass(frozen=True)
class Outcome:
    """Results of an evaluation.

    Attributes:
        metrics: "block/task/metric" -> value, or None if the metric could not be computed.
        predictions: block -> predictions, sorted by name and task.
        files: the files that were written.
        unreachable: block -> reason why its judge could not be reached, for blocks with such a judge.
    """

    metrics: dict[str, float | None]
    predictions: dict[str, list[PredictionRecord]]
    files: list[Path]
    unreachable: dict[str, str]

    def require_judges(self, world: World, folder: Path) -> None:
        """Check that all judges could be reached. Every rank calls it.

        Raises:
            UserError: If a judge could not be reached. The message names the folder with the answers and the other scores.
        """
        if self.unreachable:
            reasons = "; ".join(f"{block_name}: {reason}" for block_name, reason in self.unreachable.items())
            raise world.user_error(
                f"{reasons} The answers and all other scores are in {folder}; to judge the answers later, use 'emollama score'."
            )


def answer_settings(config: RunConfig) -> dict[str, Any]:
    """Return everything on which the answers of an evaluation depend, besides the data and the trained tensors."""
    tree, model = config.resolved(), config.model
    weights = [model.llama_model, *(getattr(model, key, None) for key in ("vit_weights", "q_former_model"))]
    modules = [getattr(sys.modules.get(name), "__file__", None) for name in tree.get("imports", [])]
    return {
        "model": tree["model"],
        "run": {key: tree["run"][key] for key in ("task", "seed", "amp", "amp_dtype")},
        "blocks": [tree.get("evaluation_datasets"), tree.get("datasets")],
        "files": file_stamps(*weights, *modules),
        "version": __version__,
    }


def build_blocks(config: RunConfig, *, check: bool, clips: ClipsToPredict | None = None) -> dict[str, EvaluationSet]:
    """Build the blocks under ``evaluation_datasets``, or, if there are none, the held-out samples of ``datasets``.

    Args:
        config: the resolved configuration.
        check: check the files of all samples, which only rank 0 does.
        clips: new clips that replace the samples of the blocks.

    Returns:
        block name -> block.

    Raises:
        UserError: If there is no block, or the data or options of a block cannot be used.
    """
    task = config.task_class
    blocks = {f"evaluation_datasets.{block_name}": block for block_name, block in config.evaluation_datasets.items()} or {
        f"datasets.{block_name}": config.default_block(cfg) for block_name, cfg in config.datasets.items() if cfg.held_out
    }
    classes = {key: (config.dataset_class(key), block.dataset) for key, block in blocks.items()}
    datasets = build_datasets(config, classes, training=False, check=check, clips=clips)
    slots = list(without_pixels(config.model_class.slot_shapes(config.model)))
    sets = {}
    for key, block in blocks.items():
        dataset = datasets[key]
        unknown = [slot for slot in block.task.mask_slots if slot not in slots]
        if unknown:
            raise UserError(
                f"{key}.mask_slots: {listing(unknown, 'unknown slot')}. The slots of this model are {abbreviated(slots)}."
            )
        config.model.require_layout(block.task.prompt_layout, f"{key}.prompt_layout")
        computed = {slot for source in dataset.features if PIXELS in source.slots for slot in source.filled_slots}
        if computed & {*block.task.mask_slots}:
            raise UserError(
                f"{key}.mask_slots: image features that the model computes from frames cannot be masked. Extract them"
                " beforehand (emollama extract)."
            )
        if block.task.num_beams > 1 and is_ensemble(config.model):
            raise UserError(
                f"{key}.num_beams: beam search does not support an ensemble. Set num_beams: 1, or model.ensemble: weights."
            )
        inputs = {name: _available_inputs(dataset, name, block.task) for name in dataset.pool.tasks}
        scoring = task.scoring(block.scoring, labels=dataset.cfg.labels, aliases=block.task.aliases, tasks=inputs, key=key)
        sets[key.partition(".")[2]] = EvaluationSet(dataset, block.task, scoring)
    return sets


def warn_of_training_samples(blocks: Mapping[str, EvaluationSet], trained: Mapping[str, SampleDataset]) -> None:
    """Warn about evaluation samples that are also training samples, which makes their metrics too good."""
    for block_name, block in blocks.items():
        names = set(block.dataset.names())
        for other, dataset in trained.items():
            if common := names & set(dataset.names()):
                text = (
                    "evaluation_datasets.%s: %d of its %d samples are also training samples of datasets.%s: set held_out in both"
                    " blocks"
                )
                get_logger().warning(text, block_name, len(common), len(names), other)


def _available_inputs(dataset: SampleDataset, task: str, options: Any) -> list[str]:
    """Return which metric inputs the answers to a task contain: references, and losses in the layout of training."""
    if not dataset.has_reference(task):
        return []
    return ["reference", "loss"] if options.prompt_layout == TRAIN else ["reference"]


@dataclass(frozen=True)
class Evaluation:
    """Makes predictions for evaluation blocks and scores them.

    Attributes:
        blocks: block name -> block.
        prediction_runner: the model, and the processes that run it.
        source: name of the evaluated checkpoint in the metrics files; None during training.
        settings: what the answers depend on, besides the data and the trained tensors, as JSON values.
    """

    blocks: dict[str, EvaluationSet]
    prediction_runner: PredictionRunner
    source: str | None
    settings: Any

    def run(self, folder: Path, failures: WriteFailures | None = None) -> Outcome:
        """Predict and score every block, and write predictions and metrics into a folder.

        If a judge cannot be reached, its metrics are None. Until all blocks are complete, the folder also contains the answers of
        each process, so that an interrupted evaluation continues from them.

        Args:
            folder: the folder.
            failures: records errors of writing, which then do not end the evaluation.

        Raises:
            Stopped: If a process was asked to stop.
        """
        world = self.prediction_runner.world
        outcome = Outcome({}, {}, [], {})
        # Every rank computes it, because each may have only a part of the tensors.
        identity = world.gather(identity_of(self.settings, self.prediction_runner.generator.members))[0]
        unfinished = []
        for block_name, block in self.blocks.items():
            block_identity = world.on_rank_zero(partial(self._identity, identity, block.dataset))
            partial_answers = PartialAnswers(folder, block_name, block_identity, world.rank, world.size)
            unfinished.append(partial_answers)
            predictions = self.prediction_runner.predict(block_name, block.dataset, block.options, partial_answers)
            write = partial(_write_predictions, folder, block_name, predictions, failures)
            outcome.files.extend(world.on_rank_zero(write))
            score = partial(self._score, folder, block_name, predictions, failures)
            metrics, unreachable, path = world.on_rank_zero(score)
            outcome.metrics.update(metrics)
            outcome.unreachable.update(unreachable)
            outcome.files.append(path)
            outcome.predictions[block_name] = predictions
        for partial_answers in unfinished:
            partial_answers.remove()
        return outcome

    def _identity(self, identity: str, dataset: SampleDataset) -> str:
        """Return a digest of everything on which the answers of a block depend."""
        runner = self.prediction_runner
        environment = [runner.world.device.type, runner.precision.compute_dtype]
        return identity_of(
            [identity, dataset.digest(), runner.generator.prompt_format.digest(), input_stamps(dataset), environment], ()
        )

    def _score(
        self, folder: Path, block_name: str, predictions: Sequence[PredictionRecord], failures: WriteFailures | None
    ) -> tuple[dict[str, float | None], dict[str, str], Path]:
        """Return metrics by their full names, the reason if the judge could not be reached, and the metrics file.

        Raises:
            ComponentFailed: If a metric or a metric input raised an exception. The message names the file of the predictions.
            Stopped: If this process was asked to stop.
        """
        inputs = [Prediction(row.name, row.task, row.prediction, row.reference, row.loss) for row in predictions]
        try:
            # A judge can take hours. Its answers are stored, so that nothing is lost if it is interrupted.
            with STOP_REQUESTS.immediate():
                scores = self.blocks[block_name].scoring.score(inputs, tolerant=True)
            path = folder / metrics_file(block_name)
            with _tolerated(failures, path):
                write_metrics(folder, block_name, scores, self.source)
        except ComponentFailed as error:
            path = folder / predictions_file(block_name)
            text = f"{error} The predictions are in {path}; to score them later, use 'emollama score'."
            raise ComponentFailed(text) from error.__cause__
        metrics = {
            f"{block_name}/{task}/{name}": value for task, score in scores.items() for name, value in score.metrics.items()
        }
        reasons = [score.judge["unreachable"] for score in scores.values() if "unreachable" in score.judge]
        unreachable = {block_name: reasons[0]} if reasons else {}
        return metrics, unreachable, path


def _tolerated(failures: WriteFailures | None, path: Path) -> AbstractContextManager[None]:
    return nullcontext() if failures is None else failures.tolerated(path)


def _write_predictions(
    folder: Path, block_name: str, predictions: Sequence[PredictionRecord], failures: WriteFailures | None
) -> list[Path]:
    with _tolerated(failures, folder / predictions_file(block_name)):
        return write_predictions(folder, block_name, predictions)
    return []
