"""Mixed precision: the dtype of frozen weights and activations, and the gradient scaler for fp16."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch

from emollama.dtypes import AmpDtype, ComputeDtype


def dtype_of_run(device: torch.device, amp: bool, amp_dtype: AmpDtype) -> torch.dtype:
    """Return the dtype of frozen weights and of autocast; a GPU that this machine does not have is assumed to have bfloat16."""
    if not amp:
        return torch.float32
    is_here = device.type == "cuda" and torch.cuda.is_available()
    # Old GPUs emulate bfloat16, which is slow.
    has_bf16 = not is_here or torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if amp_dtype == "bf16" or (amp_dtype == "auto" and has_bf16) else torch.float16


class Precision:
    """The precision of a run. Trained weights and the optimizer's state are always float32.

    Args:
        device: device of the model.
        amp: use mixed precision; if False, everything is float32.
        amp_dtype: auto is bfloat16 if the device supports it, otherwise float16.

    Attributes:
        frozen_dtype: dtype of frozen weights and of autocast.
        scaler: the gradient scaler, which is only enabled for float16.
    """

    def __init__(self, device: torch.device, amp: bool, amp_dtype: AmpDtype) -> None:
        self.device = device
        self.amp = amp
        self.frozen_dtype = dtype_of_run(device, amp, amp_dtype)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.frozen_dtype == torch.float16)

    @classmethod
    def of_run(cls, run: Any) -> Precision:
        """Return the precision that a run with this ``run`` block has on this machine, without starting processes."""
        on_gpu = run.device != "cpu" and torch.cuda.is_available()
        return cls(torch.device("cuda" if on_gpu else "cpu"), run.amp, run.amp_dtype)

    @property
    def compute_dtype(self) -> ComputeDtype:
        """Name of ``frozen_dtype``."""
        names: dict[torch.dtype, ComputeDtype] = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
        return names[self.frozen_dtype]

    def autocast(self) -> AbstractContextManager[object]:
        """Return the autocast context for a forward pass."""
        return torch.autocast(self.device.type, dtype=self.frozen_dtype if self.amp else torch.bfloat16, enabled=self.amp)
