"""Copies micro-batches to the device of the model."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from emollama.data.batch import Batch


class DeviceCopy:
    """Copies micro-batches to a device. A GPU copies those of a step while it computes the step before, if that is not finished.

    The copies are queued when the step begins, on a CUDA stream of their own. Nothing in the training loop waits for the GPU
    between log entries, so that the process usually begins a step long before the GPU has finished the one before. In the first
    step, after a log entry, and if the process waits for data, the GPU waits for the copies.

    Args:
        device: the device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batches: Sequence[Batch]) -> list[Batch]:
        """Return the micro-batches on the device. On a GPU, they should be in page-locked memory."""
        if self._stream is None:
            return [batch.to(self._device) for batch in batches]
        with torch.cuda.stream(self._stream):
            copies = [batch.to(self._device) for batch in batches]
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        for batch in copies:
            batch.record_stream(current)
        return copies
