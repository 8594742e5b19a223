"""Mixed precision: which dtype frozen weights and activations have, and the scaler that fp16 needs."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from emollama.dtypes import AmpDtype


class Precision:
    """Numbers of a run. Trained weights and the optimizer's state are float32 always.

    Args:
        device: where the model computes.
        amp: False computes and keeps everything in float32.
        amp_dtype: auto is bfloat16 where the device has it, else float16.
    """

    def __init__(self, device: torch.device, amp: bool, amp_dtype: AmpDtype) -> None:
        has_bf16 = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
        half = torch.bfloat16 if amp_dtype == "bf16" or (amp_dtype == "auto" and has_bf16) else torch.float16
        self.device = device
        self.amp = amp
        self.frozen_dtype = half if amp else torch.float32
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp and half == torch.float16)

    def autocast(self) -> AbstractContextManager[object]:
        """Around a forward pass."""
        return torch.autocast(self.device.type, dtype=self.frozen_dtype if self.amp else torch.bfloat16, enabled=self.amp)
