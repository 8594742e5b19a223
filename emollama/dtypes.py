"""Names of dtypes in configuration keys."""

from __future__ import annotations

from typing import Literal

ComputeDtype = Literal["fp32", "bf16", "fp16"]  # dtype in which an encoder or a run computes
LARGEST: dict[ComputeDtype, float] = {"fp32": 3.4028234663852886e38, "bf16": 3.3895313892515355e38, "fp16": 65504.0}
AmpDtype = Literal["auto", "bf16", "fp16"]  # dtype of autocast in training
ReduceDtype = Literal["fp32", "bf16"]  # dtype in which processes exchange gradients
