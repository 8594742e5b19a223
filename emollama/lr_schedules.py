"""Learning rate schedules, as functions of the step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from emollama.registry import LR_SCHEDULES
from emollama.suggestions import did_you_mean


@dataclass(frozen=True)
class LRSettings:
    """Settings of a learning rate schedule.

    Attributes:
        init_lr, min_lr: learning rates at the start and at the end of the decay.
        warmup_lr: learning rate at the start of the warm-up.
        warmup_steps: number of optimizer steps of the warm-up.
        decay_rate: factor per epoch of the step schedule.
        iters_per_epoch: number of optimizer steps of an epoch.
        epochs: number of epochs of the run, or of a stage.
    """

    init_lr: float
    min_lr: float
    warmup_lr: float
    warmup_steps: int
    decay_rate: float
    iters_per_epoch: int
    epochs: int


class LRSchedule(Protocol):
    """What a registered learning rate schedule, a function, must provide."""

    def __call__(self, settings: LRSettings, step: int, /) -> float:
        """Return the learning rate of an optimizer step, counted from 0 within the stage of ``settings``."""
        ...


def _warmup(settings: LRSettings, step: int) -> float:
    return settings.warmup_lr + (settings.init_lr - settings.warmup_lr) * step / max(settings.warmup_steps, 1)


def linear_warmup_cosine_lr(settings: LRSettings, step: int) -> float:
    """Return the learning rate of a linear warm-up and a cosine decay. Source: LAVIS."""
    # As in LAVIS, the cosine starts at step 0 and not at the end of the warm-up.
    if step < settings.warmup_steps:
        return _warmup(settings, step)
    progress = step / (settings.epochs * settings.iters_per_epoch)
    return (settings.init_lr - settings.min_lr) * 0.5 * (1 + math.cos(math.pi * progress)) + settings.min_lr


def linear_warmup_step_lr(settings: LRSettings, step: int) -> float:
    """Return the learning rate of a linear warm-up in epoch 0 and a decay by a factor per epoch. Source: LAVIS.

    After epoch 0 it is init_lr x decay_rate^epoch, but at least min_lr.
    """
    epoch = step // settings.iters_per_epoch
    if epoch == 0:
        return min(settings.init_lr, _warmup(settings, step)) if settings.warmup_steps else settings.init_lr
    return max(settings.min_lr, settings.init_lr * settings.decay_rate**epoch)


STAGE_KEYS = ("init_lr", "epochs", "min_lr", "warmup_lr", "warmup_steps")


@dataclass(frozen=True)
class LearningRate:
    """The learning rate of a run with one or more stages.

    Attributes:
        schedule: the registered schedule.
        stages: settings of the stages in order.
    """

    schedule: LRSchedule
    stages: tuple[LRSettings, ...]

    def __call__(self, step: int) -> float:
        """Return the learning rate of an optimizer step (from 0). Each stage starts its schedule again."""
        for stage in self.stages[:-1]:
            steps = stage.epochs * stage.iters_per_epoch
            if step < steps:
                return self.schedule(stage, step)
            step -= steps
        return self.schedule(self.stages[-1], step)


def learning_rate(cfg: Any) -> LearningRate:
    """Create the learning rate of a ``run`` block. Keys that a stage does not set have the value of the run."""
    stages = []
    for stage in cfg.stages or [{"init_lr": cfg.init_lr, "epochs": cfg.max_epoch}]:
        warmup_lr = stage["init_lr"] if cfg.warmup_lr is None else cfg.warmup_lr
        run = {"min_lr": cfg.min_lr, "warmup_lr": warmup_lr, "warmup_steps": cfg.warmup_steps}
        stages.append(LRSettings(**{**run, **stage}, decay_rate=cfg.lr_decay_rate, iters_per_epoch=cfg.iters_per_epoch))
    return LearningRate(LR_SCHEDULES.get(cfg.lr_sched), tuple(stages))


def total_epochs(stages: Sequence[Mapping[str, Any]], max_epoch: int) -> int:
    """Return the number of epochs of a run: the sum over its stages, or ``max_epoch`` without stages.

    Raises:
        ValueError: If keys of a stage are unknown or missing, a value is invalid, or ``max_epoch`` is not the sum of the stages;
            the message names the stage (from 0) and the key.
    """
    for index, stage in enumerate(stages):
        for key, value in stage.items():
            kinds = (int,) if key in ("epochs", "warmup_steps") else (int, float)
            if key not in STAGE_KEYS:
                hint = did_you_mean(str(key), STAGE_KEYS)
                raise ValueError(f"stages[{index}]: unknown key '{key}'.{hint} Keys of a stage: {', '.join(STAGE_KEYS)}")
            minimum = 1 if key == "epochs" else 0
            if isinstance(value, bool) or not isinstance(value, kinds) or not minimum <= value < math.inf:
                number = "whole number" if len(kinds) == 1 else "finite number"
                raise ValueError(f"stages[{index}].{key} is {value!r}; it must be a {number} of at least {minimum}")
        for key in ("init_lr", "epochs"):
            if key not in stage:
                raise ValueError(f"stages[{index}]: {key} is missing. A stage is, for example, {{init_lr: 1e-5, epochs: 15}}")
    total = sum(stage["epochs"] for stage in stages) or max_epoch
    if max_epoch not in (1, total):
        raise ValueError(f"max_epoch is {max_epoch}, but the stages have {total} epochs. Remove max_epoch.")
    return total
