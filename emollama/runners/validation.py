"""Evaluation during training: when it is due, which checkpoint is the best, and when training ends early.

``eval.jsonl`` contains one line per evaluation, with the number of the last step before it. The best evaluation and the number
of evaluations since then are derived from these lines, so that a resumed run has them, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from emollama import checkpoint
from emollama.distributed.process_group import World
from emollama.errors import UserError
from emollama.evaluation.metrics import metric
from emollama.listing import abbreviated
from emollama.logs.entries import entries_before
from emollama.logs.logger import get_logger
from emollama.logs.run_log import RunLog
from emollama.paths import atomic_write
from emollama.registry import METRICS
from emollama.run_folder import EVALUATIONS, RESULT, PredictionRecord, ValidationRecord, epoch_folder, json_line, parse_all
from emollama.runners import checkpoints
from emollama.runners.evaluation import Evaluation, EvaluationSet
from emollama.suggestions import did_you_mean


class Validation:
    """Evaluates a model between epochs.

    Args:
        cfg: the ``run`` block.
        evaluation: the evaluation to run.
        folder: folder of the run.
        first_step: first step of this process; earlier results from later steps are discarded.

    Raises:
        UserError: If ``run.metric`` is computed by no block, or by several.
    """

    def __init__(self, cfg: Any, evaluation: Evaluation, folder: Path, first_step: int) -> None:
        self._cfg = cfg
        self._evaluation = evaluation
        self._world: World = evaluation.prediction_runner.world
        self._folder = folder
        self._first_step = first_step
        self._key = self._world.on_rank_zero(lambda: monitored_metric(cfg, evaluation.blocks))
        self._metric = None if self._key is None else metric(self._key.rpartition("/")[2])
        earlier = self._world.on_rank_zero(lambda: entries_before(folder / EVALUATIONS, first_step))
        self._past = parse_all(ValidationRecord, earlier)
        self._has_best_checkpoint = self._world.on_rank_zero(self._restore_best_checkpoint)

    def should_evaluate(self, completed_steps: int) -> bool:
        """Return whether to evaluate after this step: at the end of an epoch that has not been evaluated before."""
        cfg = self._cfg
        epochs, rest = divmod(completed_steps, cfg.iters_per_epoch)
        is_end = rest == 0 and epochs > 0 and (epochs % cfg.eval_epoch_interval == 0 or epochs == cfg.max_epoch)
        return is_end and all(record.step != completed_steps - 1 for record in self._past)

    @property
    def should_stop_early(self) -> bool:
        """Whether ``early_stop_patience`` evaluations followed the best one; evaluations without a value are not counted."""
        values = [value for value in self._values() if value is not None]
        patience = self._cfg.early_stop_patience
        return patience is not None and bool(values) and len(values) - 1 - self._index_of_best(values) >= patience

    def best(self) -> tuple[str, float, int] | None:
        """Return key, value and epoch of the best evaluation so far, or None if no evaluation has a value."""
        values = self._values()
        index = self._index_of_best(values)
        value = values[index] if index >= 0 else None
        return None if value is None or self._key is None else (self._key, value, self._past[index].epoch)

    def run(self, completed_steps: int, log: RunLog, save_best: Callable[[], bool | None]) -> None:
        """Evaluate, and save the checkpoint if it is the best so far.

        Args:
            completed_steps: number of steps before the evaluation.
            log: the log of the run.
            save_best: saves the checkpoint; returns whether it fitted on the disk, or None if it cannot be saved later.
        """
        epoch = completed_steps // self._cfg.iters_per_epoch - 1
        model = self._evaluation.prediction_runner.generator.members[0]
        model.eval()
        outcome = self._evaluation.run(self._folder / RESULT / epoch_folder(epoch), log.failures)
        model.train()
        value = None if self._key is None else outcome.metrics[self._key]
        values = [*self._values(), value]
        best_checkpoint_is_missing = self._cfg.save_best and not self._has_best_checkpoint
        is_best = value is not None and (best_checkpoint_is_missing or self._index_of_best(values) == len(values) - 1)
        # The checkpoint is written before its line in eval.jsonl: a run that is killed in between evaluates again.
        saved = save_best() if self._cfg.save_best and is_best else False
        if saved:
            get_logger().info("%s %.4f is the best so far: saved as %s", self._key, value, checkpoint.BEST)
        if saved is None:
            text = "%s %.4f of epoch %d is the best so far, but no file has its weights, because the disk is full"
            get_logger().warning(text, self._key, value, epoch)
        self._has_best_checkpoint |= is_best
        self._past.append(ValidationRecord(completed_steps - 1, epoch, outcome.metrics, is_best, saved is None))
        self._world.on_rank_zero(lambda: self._write(log))
        examples = {block_name: self._examples(predictions) for block_name, predictions in outcome.predictions.items()}
        log.evaluation(completed_steps - 1, epoch, outcome.metrics, examples)
        if value is None and self._key is not None:
            get_logger().warning("%s has no value after epoch %d, so this epoch cannot be the best", self._key, epoch)

    def _values(self) -> list[float | None]:
        """Return the monitored metric of every evaluation so far; None if it was not computed."""
        return [None if self._key is None else record.metrics.get(self._key) for record in self._past]

    def _index_of_best(self, values: Sequence[float | None]) -> int:
        """Return the index of the best value, the first of equal values, or -1 if there is no value."""
        best, best_value = -1, None
        for index, value in enumerate(values):
            if value is not None and (
                best_value is None or (self._metric is not None and self._metric.is_better(value, than=best_value))
            ):
                best, best_value = index, value
        return best

    def _restore_best_checkpoint(self) -> bool:
        """Make sure that checkpoint_best.pth is that of the best evaluation; copy the epoch's checkpoint if it is not.

        Returns:
            Whether checkpoint_best.pth is now that of the best evaluation.
        """
        index, path = self._index_of_best(self._values()), self._folder / checkpoint.BEST
        if not self._cfg.save_best:
            return False
        if index < 0:
            if 0 <= checkpoints.step_of(path) <= self._first_step:
                text = "%s is the best checkpoint, but %s does not contain its evaluation: the next one counts as the best"
                get_logger().warning(text, path, self._folder / EVALUATIONS)
            return False
        best = self._past[index]
        assert best.step is not None
        if checkpoints.step_of(path) == best.step + 1:
            return True
        source = self._folder / f"checkpoint_{best.epoch}.pth"
        if checkpoints.step_of(source) != best.step + 1:
            text = "epoch %d was the best, but its checkpoint is neither %s nor %s: the next evaluation counts as the best"
            get_logger().warning(text, best.epoch, path, source)
            return False
        checkpoint.copy(source, path)
        get_logger().info("copied the checkpoint of epoch %d to %s, because it is the best", best.epoch, path)
        return True

    def _write(self, log: RunLog) -> None:
        path = self._folder / EVALUATIONS
        with log.failures.tolerated(path), atomic_write(path) as file:
            file.writelines(map(json_line, self._past))

    def _examples(self, answers: Sequence[PredictionRecord]) -> list[PredictionRecord]:
        """Return the answers about a few samples, evenly spread over the sorted names."""
        names = list(dict.fromkeys(answer.name for answer in answers))
        count = min(self._cfg.show_clips, len(names))
        chosen = {names[index * len(names) // count] for index in range(count)}
        return [answer for answer in answers if answer.name in chosen]


def monitored_metric(cfg: Any, blocks: Mapping[str, EvaluationSet]) -> str | None:
    """Return the key "block/task/metric" to which ``run.metric`` refers.

    Args:
        cfg: the ``run`` block.
        blocks: block name -> evaluation block.

    Returns:
        The key, or None if ``run.metric`` is null and the loss is not computed exactly once.

    Raises:
        UserError: If ``run.metric`` is computed by no block, or by several.
    """
    *qualifiers, metric_name = (cfg.metric or "loss").split(".")
    computed = [
        (block_name, task, name)
        for block_name, block in blocks.items()
        for task, names in block.scoring.metrics.items()
        for name in names
    ]
    same_metric = [key for key in computed if key[2] == metric_name]
    matches = [key for key in same_metric if set(qualifiers) <= {key[0], key[1]}]
    if len(matches) == 1:
        return "/".join(matches[0])
    if cfg.metric is None:
        return None
    if same_metric:
        problem = "is computed more than once" if matches else "does not name a block or task that computes it"
        raise UserError(f"run.metric: '{cfg.metric}' {problem}. Possible values: {_dotted(matches or same_metric)}.")
    if metric_name in METRICS.names():
        reasons = [f"{block.scoring.key}: {block.scoring.why_not_computed(metric_name)}" for block in blocks.values()]
        raise UserError(f"run.metric: no block computes '{cfg.metric}': {abbreviated(reasons, '; ')}")
    hint = did_you_mean(metric_name, METRICS.names())
    raise UserError(f"run.metric: unknown metric '{cfg.metric}'.{hint} Metrics of this run: {_dotted(computed)}")


def _dotted(keys: list[tuple[str, str, str]]) -> str:
    return abbreviated(".".join(key) for key in keys)
