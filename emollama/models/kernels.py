"""The key ``model.kernels``: with which operations the layers of a language model are computed in training."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from emollama.errors import UserError
from emollama.models import fp8_linear, fused_ops
from emollama.models.configs import KernelsKey, LLMConfig

if TYPE_CHECKING:
    from emollama.models.packing_check import Packing


def require_kernels(cfg: LLMConfig, packing: Packing, device: torch.device, family: str) -> None:
    """Check that the kernels that ``model.kernels`` and ``model.frozen_dtype`` demand can be used.

    Args:
        cfg: the ``model`` block.
        packing: how the language model is run.
        device: device of the run.
        family: type of the language model, for messages.

    Raises:
        UserError: If they cannot.
    """
    fp8_linear.require_fp8(cfg.frozen_dtype, device)
    if cfg.kernels != "liger":
        return
    problem = ""
    if device.type != "cuda":
        problem = f"needs a GPU, but the device is {device.type}"
    elif not fused_ops.has_liger():
        problem = "needs the package liger-kernel (pip install 'emollama[fast]')"
    elif packing.fused_problem:
        problem = f"does not work with models of the type '{family}', because {packing.fused_problem}"
    if problem:
        raise UserError(f"model.kernels: liger {problem}. Set model.kernels: auto to run without it.")


def use_kernels(key: KernelsKey, packing: Packing, llm: Any, device: torch.device) -> bool:
    """Let the layers of a language model compute as the key demands.

    Args:
        key: the value of ``model.kernels``.
        packing: how the language model is run.
        llm: the language model, without the wrapper of peft.
        device: device of the run.

    Returns:
        Whether the layers accept ``output_rows``; see :mod:`emollama.models.fused_layer`.
    """
    if device.type == "cuda" and importlib.util.find_spec("triton") is not None:
        from emollama.models import dropout_kernel  # noqa: F401 (the import registers the kernel)
    if key == "plain" or packing.fused_problem:
        return False
    # Imported here because it takes seconds.
    from emollama.models.fused_layer import use_fused_layers

    liger = device.type == "cuda" and fused_ops.has_liger()
    return not use_fused_layers(llm, fused_ops.liger_ops() if liger else fused_ops.PLAIN)


def selection(positions: Tensor, *, in_last_layer: bool) -> dict[str, Any]:
    """Return the arguments of a language model for logits after these positions of a packed micro-batch.

    Args:
        positions: indices of tokens.
        in_last_layer: whether the last layer computes only the outputs at the positions, which :func:`use_kernels` enables.
    """
    return {"output_rows": positions, "logits_to_keep": 0} if in_last_layer else {"logits_to_keep": positions}
