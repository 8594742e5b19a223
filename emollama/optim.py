"""The optimizer and its parameter groups."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

NO_DECAY_WORDS = ("bias", "ln", "bn")


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
