"""Names of number formats that configuration keys accept."""

from __future__ import annotations

from typing import Literal

Arithmetic = Literal["fp32", "bf16", "fp16"]  # of an encoder
AmpDtype = Literal["auto", "bf16", "fp16"]  # of mixed precision in training
