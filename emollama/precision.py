"""Mixed precision: the dtype of frozen weights and activations, and the gradient scaler for fp16."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from emollama.dtypes import AmpDtype


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
        # Old GPUs emulate bfloat16, which is slow.
        has_bf16 = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
        half = torch.bfloat16 if amp_dtype == "bf16" or (amp_dtype == "auto" and has_bf16) else torch.float16
        self.device = device
        self.amp = amp
        self.frozen_dtype = half if amp else torch.float32
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp and half == torch.float16)

    def autocast(self) -> AbstractContextManager[object]:
        """Return the autocast context for a forward pass."""
        return torch.autocast(self.device.type, dtype=self.frozen_dtype if self.amp else torch.bfloat16, enabled=self.amp)
