"""The optimizer's groups, and learning rates as functions of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from emollama.registry import LR_SCHEDULES

NO_DECAY_WORDS = ("bias", "ln", "bn")


@dataclass(frozen=True)
class LRSettings:
    """Learning rates of a run.

    Attributes:
        init_lr, min_lr: where the decay begins and ends.
        warmup_lr: where the warm-up begins.
        warmup_steps: optimizer steps of the warm-up.
        decay_rate: factor per epoch, for the step schedule.
        iters_per_epoch, max_epoch: optimizer steps of an epoch, epochs of the run.
    """

    init_lr: float
    min_lr: float
    warmup_lr: float
    warmup_steps: int
    decay_rate: float
    iters_per_epoch: int
    max_epoch: int


def _warmup(settings: LRSettings, step: int) -> float:
    return settings.warmup_lr + (settings.init_lr - settings.warmup_lr) * step / max(settings.warmup_steps, 1)


@LR_SCHEDULES.register("linear_warmup_cosine_lr")
def linear_warmup_cosine_lr(settings: LRSettings, step: int) -> float:
    """Linear warm-up, then a cosine that is counted from step 0 over the whole run. Source: LAVIS."""
    if step < settings.warmup_steps:
        return _warmup(settings, step)
    progress = step / (settings.max_epoch * settings.iters_per_epoch)
    return (settings.init_lr - settings.min_lr) * 0.5 * (1 + math.cos(math.pi * progress)) + settings.min_lr


@LR_SCHEDULES.register("linear_warmup_step_lr")
def linear_warmup_step_lr(settings: LRSettings, step: int) -> float:
    """Linear warm-up within epoch 0, then init_lr x decay_rate^epoch, not below min_lr. Source: LAVIS."""
    epoch = step // settings.iters_per_epoch
    if epoch == 0:
        return min(settings.init_lr, _warmup(settings, step)) if settings.warmup_steps else settings.init_lr
    return max(settings.min_lr, settings.init_lr * settings.decay_rate**epoch)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """name -> parameter, for those that are trained, in the module tree's order."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def adamw(named: Iterable[tuple[str, nn.Parameter]], *, lr: float, weight_decay: float, beta2: float) -> torch.optim.AdamW:
    """AdamW with weight decay on the weights, none on one-dimensional tensors or names with "bias", "ln" or "bn".

    Args:
        named: (name, parameter) of what is trained.
        lr: the first step's learning rate.
        weight_decay: decoupled, as a share of lr.
        beta2: of the second moment; the first's is 0.9.
    """
    groups: list[dict[str, Any]] = [{"params": [], "weight_decay": weight_decay}, {"params": [], "weight_decay": 0.0}]
    for name, parameter in named:
        plain = parameter.ndim < 2 or any(word in name for word in NO_DECAY_WORDS)
        groups[plain]["params"].append((name, parameter))
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=lr, betas=(0.9, beta2))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr
