"""Learning rates as functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from emollama.registry import LR_SCHEDULES, did_you_mean


@dataclass(frozen=True)
class LRSettings:
    """Learning rates of a run.

    Attributes:
        init_lr, min_lr: where the decay begins and ends.
        warmup_lr: where the warm-up begins.
        warmup_steps: optimizer steps of the warm-up.
        decay_rate: factor per epoch, for the step schedule.
        iters_per_epoch, epochs: optimizer steps of an epoch, epochs of the run or of a stage of it.
    """

    init_lr: float
    min_lr: float
    warmup_lr: float
    warmup_steps: int
    decay_rate: float
    iters_per_epoch: int
    epochs: int


def _warmup(settings: LRSettings, step: int) -> float:
    return settings.warmup_lr + (settings.init_lr - settings.warmup_lr) * step / max(settings.warmup_steps, 1)


def linear_warmup_cosine_lr(settings: LRSettings, step: int) -> float:
    """Linear warm-up, then a cosine that is counted from step 0 over the whole run. Source: LAVIS."""
    if step < settings.warmup_steps:
        return _warmup(settings, step)
    progress = step / (settings.epochs * settings.iters_per_epoch)
    return (settings.init_lr - settings.min_lr) * 0.5 * (1 + math.cos(math.pi * progress)) + settings.min_lr


def linear_warmup_step_lr(settings: LRSettings, step: int) -> float:
    """Linear warm-up within epoch 0, then init_lr x decay_rate^epoch, not below min_lr. Source: LAVIS."""
    epoch = step // settings.iters_per_epoch
    if epoch == 0:
        return min(settings.init_lr, _warmup(settings, step)) if settings.warmup_steps else settings.init_lr
    return max(settings.min_lr, settings.init_lr * settings.decay_rate**epoch)


STAGE_KEYS = ("init_lr", "epochs", "min_lr", "warmup_lr", "warmup_steps")


@dataclass(frozen=True)
class LearningRate:
    """The learning rate of a run, stage after stage.

    Attributes:
        schedule: registered; (settings, step within the stage) -> learning rate.
        stages: settings of each stage in turn.
    """

    schedule: Callable[[LRSettings, int], float]
    stages: tuple[LRSettings, ...]

    def __call__(self, step: int) -> float:
        """The learning rate of an optimizer step (from 0); each stage's schedule counts from its own beginning."""
        for stage in self.stages[:-1]:
            steps = stage.epochs * stage.iters_per_epoch
            if step < steps:
                return self.schedule(stage, step)
            step -= steps
        return self.schedule(self.stages[-1], step)


def learning_rate(cfg: Any) -> LearningRate:
    """The learning rate that a ``run`` block describes; a stage takes from the run what it does not name itself."""
    stages = []
    for stage in cfg.stages or [{"init_lr": cfg.init_lr, "epochs": cfg.max_epoch}]:
        warmup_lr = stage["init_lr"] if cfg.warmup_lr is None else cfg.warmup_lr
        run = {"min_lr": cfg.min_lr, "warmup_lr": warmup_lr, "warmup_steps": cfg.warmup_steps}
        stages.append(LRSettings(**{**run, **stage}, decay_rate=cfg.lr_decay_rate, iters_per_epoch=cfg.iters_per_epoch))
    return LearningRate(LR_SCHEDULES.get(cfg.lr_sched), tuple(stages))


def total_epochs(stages: Sequence[Mapping[str, Any]], max_epoch: int) -> int:
    """Epochs of a run: the stages' sum, or ``max_epoch`` where there are none.

    Raises:
        ValueError: unknown or missing keys, values that are no numbers of their kind, or a ``max_epoch`` of its own beside the
            stages; names the stage (from 0) and the key.
    """
    for index, stage in enumerate(stages):
        for key, value in stage.items():
            kinds = (int,) if key in ("epochs", "warmup_steps") else (int, float)
            if key not in STAGE_KEYS:
                known = ", ".join(STAGE_KEYS)
                raise ValueError(f"stages[{index}]: unknown key '{key}'.{did_you_mean(str(key), STAGE_KEYS)} Known: {known}")
            least = 1 if key == "epochs" else 0
            if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value < math.inf:
                number = "whole number" if len(kinds) == 1 else "number"
                raise ValueError(f"stages[{index}].{key} is {value!r}; it must be a {number}, at least {least} and finite")
        for key in ("init_lr", "epochs"):
            if key not in stage:
                raise ValueError(f"stages[{index}] lacks {key}: a stage is {{init_lr: 1e-5, epochs: 15}}")
    total = sum(stage["epochs"] for stage in stages) or max_epoch
    if max_epoch not in (1, total):
        raise ValueError(f"max_epoch is {max_epoch}, but the stages have {total} epochs. Leave max_epoch out.")
    return total
