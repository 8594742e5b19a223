"""The keys ``model.kernels`` and ``model.compile``: how the layers of a language model are computed in training."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import sys
import sysconfig
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from emollama.errors import UserError
from emollama.models import fp8_linear, fused_ops
from emollama.models.configs import LLMConfig
from emollama.models.dropout import CounterDropout
from emollama.models.fused_ops import FusedOps

if TYPE_CHECKING:
    from emollama.models.packing_check import Packing


VOLTA = (7, 0)  # lowest compute capability for which torch.compile creates kernels


def check_kernels(
    cfg: LLMConfig, packing: Packing, family: str, device: torch.device, frozen_dtype: torch.dtype, *, compiled: bool
) -> list[str]:
    """Check that the kernels that ``model.kernels``, ``model.compile`` and ``model.frozen_dtype`` demand can be used.

    Args:
        cfg: the ``model`` block.
        packing: how the language model is run.
        family: type of the language model, for messages.
        device: device of the run; the meta device stands for a GPU that this machine does not have.
        frozen_dtype: dtype of frozen weights.
        compiled: whether the run trains with ``model.compile: True``.

    Returns:
        A line if the run on a GPU does without kernels of Triton, or ``model.kernels: auto`` without those of Liger, although it
        could use them.

    Raises:
        UserError: If they cannot.
    """
    fp8_linear.require_fp8(cfg.frozen_dtype, device, frozen_dtype)
    unlike_llama = f"does not work with models of the type '{family}', because {packing.fused_problem}"
    if compiled and (problem := unlike_llama if packing.fused_problem else _compiler_problem(device)):
        raise UserError(f"model.compile: True {problem}. Set model.compile: False to run without it.")
    if cfg.kernels == "liger" and (problem := unlike_llama if packing.fused_problem else _liger_problem(device)):
        other = "run.device: auto on a machine with a GPU, or " if device.type == "cpu" and not packing.fused_problem else ""
        raise UserError(f"model.kernels: liger {problem}. Set {other}model.kernels: auto to run without it.")
    if device.type != "cuda":
        return []
    if problem := _triton_problem(device):
        return [f"This run computes dropout and layers without kernels of Triton, because it {problem}."]
    if cfg.kernels != "auto" or packing.fused_problem or not (problem := _liger_problem(device)):
        return []
    return [f"model.kernels: auto runs without the kernels of Liger, because it {problem}."]


def _liger_problem(device: torch.device) -> str:
    """Return why the operations of Liger cannot be used; "" if they can, or if the device is that of another machine."""
    if device.type == "meta":
        return ""
    if device.type != "cuda":
        return f"needs a GPU, but the device is {device.type}"
    ops = _triton_problem(device) or _liger()
    return ops if isinstance(ops, str) else ""


def _triton_problem(device: torch.device) -> str:
    """Return why kernels of Triton cannot be used on a GPU; "" if they can. Then it also registers the one of dropout."""
    # Triton compiles a part of itself in C when it runs its first kernel.
    if problem := _compiler_problem(device):
        return problem
    try:
        # The import registers the kernel.
        from emollama.models import dropout_kernel  # noqa: F401
    except Exception as error:
        # With another version, any exception is possible.
        return f"needs another version of triton; its import raises {_in_one_line(error)}"
    return ""


def _liger() -> FusedOps | str:
    """Return the operations of Liger, or why they cannot be used."""
    try:
        return fused_ops.liger_ops()
    except Exception as error:
        # With a version of Triton that does not fit, any exception is possible.
        if isinstance(error, ModuleNotFoundError) and error.name == "liger_kernel":
            return "needs the package liger-kernel (pip install 'emollama[fast]')"
        return f"needs other versions of liger-kernel or triton; their import raises {_in_one_line(error)}"


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0].rstrip(". ")


def _compiler_problem(device: torch.device) -> str:
    """Return what torch.compile and Triton lack for a device; "" if nothing, or if the device is that of another machine."""
    if device.type == "meta":
        return ""
    on_gpu = device.type == "cuda"
    if on_gpu and (capability := torch.cuda.get_device_capability(device)) < VOLTA:
        minimum, actual = (".".join(map(str, numbers)) for numbers in (VOLTA, capability))
        return f"needs a GPU with compute capability {minimum} or higher, but {torch.cuda.get_device_name(device)} has {actual}"
    if on_gpu and importlib.util.find_spec("triton") is None:
        return "needs the package triton (pip install triton)"
    variable, names = ("CC", ["gcc", "clang"]) if on_gpu else ("CXX", ["clang++" if sys.platform == "darwin" else "g++"])
    if not any(map(shutil.which, [os.environ[variable]] if os.environ.get(variable) else names)):
        return f"needs a compiler ({' or '.join(names)}, or another one in the variable {variable})"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "needs the header files of Python (on Debian and Ubuntu, the package python3-dev)"
    return ""


def use_kernels(cfg: LLMConfig, packing: Packing, llm: Any, device: torch.device) -> bool:
    """Let the layers of a language model compute as the ``model`` block demands.

    Args:
        cfg: the ``model`` block.
        packing: how the language model is run.
        llm: the language model, without the wrapper of peft.
        device: device of the run.

    Returns:
        Whether the layers accept ``output_rows``; see :mod:`emollama.models.fused_layer`.
    """
    has_triton = device.type == "cuda" and not _triton_problem(device)
    if cfg.kernels == "plain" or packing.fused_problem:
        return False
    # Imported here because it takes seconds.
    from emollama.models.fused_layer import use_fused_layers

    if cfg.compile:
        # torch.compile imports this module, which warns on every machine with CUDA's files but without a GPU.
        logging.getLogger("torch.utils.cpp_extension").addFilter(_is_not_about_cuda)
    ops = _liger() if has_triton else fused_ops.PLAIN
    for module in llm.modules() if cfg.compile else ():
        if isinstance(module, CounterDropout):
            module.prepare_compilation(device)
    return not use_fused_layers(llm, fused_ops.PLAIN if isinstance(ops, str) else ops, compiled=cfg.compile)


def _is_not_about_cuda(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("No CUDA runtime is found")


def selection(positions: Tensor, *, in_last_layer: bool) -> dict[str, Any]:
    """Return the arguments of a language model for logits after these positions of a packed micro-batch.

    Args:
        positions: indices of tokens.
        in_last_layer: whether the last layer computes only the outputs at the positions, which :func:`use_kernels` enables.
    """
    return {"output_rows": positions, "logits_to_keep": 0} if in_last_layer else {"logits_to_keep": positions}


def uncached_autocast(cfg: Any, device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which autocast keeps no copies of the language model's trained weights.

    Otherwise it would keep those of all layers until the end of the forward pass, 2 bytes for each weight, although each is
    used once. Layers that are not recomputed keep them anyway, for their backward pass.

    Args:
        cfg: the ``model`` block.
        device: device of the model.
    """
    if cfg.train_llm != "full" or not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.get_autocast_dtype(device.type), cache_enabled=False)
