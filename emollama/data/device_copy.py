"""Copies micro-batches to the device of the model."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from emollama.data.batch import Batch


class DeviceCopy:
    """Copies micro-batches to a device. A GPU copies those of a step while it still computes the step before.

    The copies are queued on a CUDA stream of their own. The process queues a step long before the GPU has finished the one
    before, because nothing in the training loop waits for the GPU between log entries.

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
