"""Evaluation while training: when it is due, which checkpoint is the best, when to stop.

What was found stands in ``eval.jsonl``, a line an evaluation, under the number of the last step before it. Which one is the
best, and how many came after it, is read from those lines, so that a resumed run knows it too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from emollama import checkpoint
from emollama.distributed.process_group import World
from emollama.errors import UserError
from emollama.evaluation.metrics import metric
from emollama.listing import abbreviated, listing
from emollama.logs.logger import get_logger
from emollama.logs.run_log import RunLog, entries_before
from emollama.paths import atomic_write
from emollama.registry import METRICS, did_you_mean
from emollama.runners.evaluation import Evaluation, EvaluationSet


class Validation:
    """Evaluates a model between epochs.

    Args:
        cfg: the ``run`` block.
        evaluation: what to answer, and how.
        folder: of the run.
        first_step: where this process begins; evaluations behind it are forgotten.

    Raises:
        UserError: ``run.metric`` is computed by no block, or by several.
    """

    def __init__(self, cfg: Any, evaluation: Evaluation, folder: Path, first_step: int) -> None:
        self._cfg = cfg
        self._evaluation = evaluation
        self._world: World = evaluation.answering.world
        self._folder = folder
        self._key = self._world.on_rank_zero(lambda: watched_key(cfg, evaluation.blocks))
        self._metric = None if self._key is None else metric(self._key.rpartition("/")[2])
        self._past = self._world.on_rank_zero(lambda: entries_before(folder / "eval.jsonl", first_step))
        self._kept = self._world.on_rank_zero(self._best_on_disk)

    def due(self, done: int) -> bool:
        """Whether to evaluate after ``done`` steps: at the ends of epochs, and not if this was done before."""
        cfg = self._cfg
        epochs, rest = divmod(done, cfg.iters_per_epoch)
        ends = rest == 0 and epochs > 0 and (epochs % cfg.eval_epoch_interval == 0 or epochs == cfg.max_epoch)
        return ends and all(entry["step"] != done - 1 for entry in self._past)

    @property
    def exhausted(self) -> bool:
        """Whether as many evaluations as ``early_stop_patience`` came after the best one; those without a value do not count."""
        values = [value for value in self._values() if value is not None]
        patience = self._cfg.early_stop_patience
        return patience is not None and bool(values) and len(values) - 1 - self._place_of_best(values) >= patience

    def best(self) -> tuple[str, float, int] | None:
        """Key, value and epoch of the best evaluation so far; None where no evaluation has a value."""
        values = self._values()
        place = self._place_of_best(values)
        value = values[place] if place >= 0 else None
        return None if value is None or self._key is None else (self._key, value, self._past[place]["epoch"])

    def run(self, done: int, log: RunLog, save_best: Callable[[], None]) -> None:
        """Evaluate after ``done`` steps, and keep the checkpoint if it is the best so far.

        The checkpoint is written before the line that calls it the best: a run that is killed in between evaluates again.
        """
        epoch = done // self._cfg.iters_per_epoch - 1
        model = self._evaluation.answering.members[0]
        model.eval()
        outcome = self._evaluation.run(self._folder / "result" / f"epoch_{epoch}")
        model.train()
        value = None if self._key is None else outcome.metrics[self._key]
        known = [*self._values(), value]
        lost = self._cfg.save_best and not self._kept  # no checkpoint of a better one is there
        is_best = value is not None and (lost or self._place_of_best(known) == len(known) - 1)
        if self._cfg.save_best and is_best:
            save_best()
            self._kept = True
            get_logger().info("%s %.4f is the best so far: kept as %s", self._key, value, checkpoint.BEST)
        self._past.append({"step": done - 1, "epoch": epoch, "metrics": outcome.metrics, "best": is_best})
        self._world.on_rank_zero(self._write)
        log.evaluation(done - 1, epoch, outcome.metrics, {label: self._shown(rows) for label, rows in outcome.rows.items()})
        if value is None and self._key is not None:
            get_logger().warning("%s has no value after epoch %d: it cannot be the best", self._key, epoch)

    def _values(self) -> list[float | None]:
        """What is watched, at every evaluation so far; None where it was not computed."""
        return [None if self._key is None else entry["metrics"].get(self._key) for entry in self._past]

    def _place_of_best(self, values: Sequence[float | None]) -> int:
        """Where the best of some values stands, the first of equal ones; -1 where there is none."""
        best, top = -1, None
        for place, value in enumerate(values):
            if value is not None and (top is None or (self._metric is not None and self._metric.better(value, top))):
                best, top = place, value
        return best

    def _best_on_disk(self) -> bool:
        """Whether checkpoint_best.pth is that of the best evaluation so far; it is fetched from that epoch's where it is not."""
        best = self._place_of_best(self._values())
        if best < 0 or not self._cfg.save_best:
            return False
        wanted, path = self._past[best]["step"] + 1, self._folder / checkpoint.BEST
        if checkpoint.step_of(path) == wanted:
            return True
        source = self._folder / f"checkpoint_{self._past[best]['epoch']}.pth"
        if checkpoint.step_of(source) != wanted:
            text = "epoch %d was the best, but neither %s nor %s is of it: the next evaluation counts as the best"
            get_logger().warning(text, self._past[best]["epoch"], path, source)
            return False
        checkpoint.copy(source, path)
        get_logger().info("%s is now that of epoch %d", path, self._past[best]["epoch"])
        return True

    def _write(self) -> None:
        with atomic_write(self._folder / "eval.jsonl") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in self._past)

    def _shown(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The answers about a few clips, evenly spread over the names."""
        names = list(dict.fromkeys(row["name"] for row in rows))
        count = min(self._cfg.show_clips, len(names))
        chosen = {names[place * len(names) // count] for place in range(count)}
        return [row for row in rows if row["name"] in chosen]


def watched_key(cfg: Any, blocks: Mapping[str, EvaluationSet]) -> str | None:
    """The key "block/task/metric" that ``run.metric`` names.

    Args:
        cfg: the ``run`` block.
        blocks: label -> evaluation block.

    Returns:
        None if ``run.metric`` is null and the loss is not computed exactly once.

    Raises:
        UserError: ``run.metric`` is computed by no block, or by several.
    """
    wanted = (cfg.metric or "loss").split(".")
    known = [
        (label, task, name) for label, block in blocks.items() for task, names in block.scoring.metrics.items() for name in names
    ]
    named = [key for key in known if key[2] == wanted[-1]]
    meant = [key for key in named if set(wanted[:-1]) <= {key[0], key[1]}]
    if len(meant) == 1:
        return "/".join(meant[0])
    if cfg.metric is None:
        return None
    if named:
        which = "is computed more than once" if meant else "names no block or task that computes it"
        raise UserError(f"run.metric: '{cfg.metric}' {which}. Name one of {_dotted(meant or named)}.")
    if wanted[-1] in METRICS.names():
        needs = [f"{block.scoring.key} needs {block.scoring.needs(wanted[-1])}" for block in blocks.values()]
        raise UserError(f"run.metric: no block computes '{cfg.metric}': {abbreviated(needs, '; ')}")
    hint = did_you_mean(wanted[-1], METRICS.names())
    raise UserError(f"run.metric: unknown metric '{cfg.metric}'.{hint} Computed here: {_dotted(known)}")


def _dotted(keys: list[tuple[str, str, str]]) -> str:
    return listing([".".join(key) for key in keys])
