"""The steps of a training run that were skipped, because their loss or gradient was not finite."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from emollama.data.batch import Batch
from emollama.distributed.process_group import World
from emollama.listing import listing


class SkippedSteps:
    """Counts skipped steps on the device, which decides whether to skip a step, so that no step waits for it.

    Args:
        device: the device.
        total: the skipped steps of the run so far.
        consecutive: the skipped steps since the last one that was not skipped.

    Attributes:
        total, consecutive: the current numbers, int64 scalars.
    """

    def __init__(self, device: torch.device, total: int = 0, consecutive: int = 0) -> None:
        self.total, self.consecutive = (torch.full((), number, device=device) for number in (total, consecutive))

    def count(self, skipped: Tensor) -> None:
        """Count a step, which was skipped or not: a boolean scalar."""
        self.total = self.total + skipped
        self.consecutive = (self.consecutive + 1) * skipped

    def numbers(self) -> list[int]:
        """Return ``total`` and ``consecutive`` as integers, as checkpoints contain them."""
        return [int(self.total), int(self.consecutive)]

    def require_below(self, limit: int, world: World, micro_batches: Sequence[Batch]) -> None:
        """Check the number of consecutive skipped steps. Every rank calls it.

        Args:
            limit: ``run.max_skipped_steps``.
            world: the processes.
            micro_batches: the samples of the last step on this rank, for the message.

        Raises:
            UserError: If the limit is reached.
        """
        consecutive = int(self.consecutive)
        if consecutive < limit:
            return
        names = list(chain(*world.gather([name for batch in micro_batches for name in batch.names])))
        raise world.user_error(
            f"the loss or gradient was not finite in {consecutive} consecutive steps. Lower run.init_lr, set"
            f" run.max_grad_norm, or check the features in the last step ({listing(names, 'sample')})"
        )
