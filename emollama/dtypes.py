"""Names of dtypes in configuration keys."""

from __future__ import annotations

from typing import Literal

ComputeDtype = Literal["fp32", "bf16", "fp16"]  # dtype in which an encoder computes
AmpDtype = Literal["auto", "bf16", "fp16"]  # dtype of autocast in training
