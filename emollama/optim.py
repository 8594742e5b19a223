"""The optimizer and its parameter groups."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from emollama.sharded_tensors import is_sharded, part_like, whole

NO_DECAY = ("bias", "ln", "bn")  # parts of the names of parameters without weight decay, as in LAVIS


class HasParameters(Protocol):
    """A :class:`torch.nn.Module`, or another object with named parameters."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Return name and parameter, in the order of the module tree."""
        ...


def trainable(model: HasParameters) -> dict[str, nn.Parameter]:
    """Return name -> parameter for the trained parameters, in the order of the module tree."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def adamw(named: Iterable[tuple[str, nn.Parameter]], *, lr: float, weight_decay: float, beta2: float) -> torch.optim.AdamW:
    """Create AdamW without weight decay on one-dimensional tensors and on names that contain "bias", "ln" or "bn".

    Args:
        named: pairs of name and trained parameter.
        lr: learning rate of the first step.
        weight_decay: weight decay of the other tensors.
        beta2: decay rate of the second moment; that of the first moment is 0.9.
    """
    groups: list[dict[str, Any]] = [{"params": [], "weight_decay": weight_decay}, {"params": [], "weight_decay": 0.0}]
    for name, parameter in named:
        has_no_decay = parameter.ndim < 2 or any(part in name for part in NO_DECAY)
        groups[has_no_decay]["params"].append((name, parameter))
    # Only the fused implementation can skip a step without reading a value from the GPU.
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=lr, betas=(0.9, beta2), fused=True)


def step_unless(optimizer: torch.optim.AdamW, skipped: Tensor) -> None:
    """Step the optimizer, unless a boolean scalar on its device is true. The process does not wait for its value.

    Args:
        optimizer: the result of :func:`adamw`.
        skipped: whether to skip the step.
    """
    optimizer.found_inf = skipped.float()  # type: ignore[attr-defined]  # read by the fused implementation
    optimizer.step()


def whole_state(optimizer: torch.optim.AdamW, *, is_rank_zero: bool) -> dict[str, Any]:
    """Return the state of the optimizer with whole tensors. Every rank must call it.

    Args:
        optimizer: the result of :func:`adamw`.
        is_rank_zero: whether this process saves them; if False, tensors that are sharded are left out.
    """
    content = optimizer.state_dict()
    state: dict[int, dict[str, Any]] = {}
    for index, values in content["state"].items():
        state[index] = {}
        for name, value in values.items():
            # One tensor at a time, so that the device holds only one whole tensor.
            tensor = whole(value).cpu() if is_sharded(value) else value
            if is_rank_zero or not is_sharded(value):
                state[index][name] = tensor
    return content | {"state": state}


def load_state(optimizer: torch.optim.AdamW, state: dict[str, Any]) -> None:
    """Load the state of the optimizer from a checkpoint, also from one that another implementation of AdamW has written.

    The checkpoint has whole tensors, of which an optimizer of sharded tensors keeps its part. Those on the meta device become
    tensors without values.
    """
    groups = [group | {"fused": True, "foreach": None} for group in state["param_groups"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    indices = [index for group in groups for index in group["params"]]
    of_parameter = dict(zip(indices, parameters, strict=False))
    values = {
        index: {
            name: _part_of_value(value, of_parameter[index]) if value.shape == of_parameter[index].shape else value
            for name, value in stored.items()
        }
        for index, stored in state["state"].items()
    }
    optimizer.load_state_dict(state | {"state": values, "param_groups": groups})


def _part_of_value(value: Tensor, parameter: Tensor) -> Tensor:
    return torch.empty_like(parameter.detach(), dtype=value.dtype) if value.is_meta else part_like(value, parameter)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = lr
