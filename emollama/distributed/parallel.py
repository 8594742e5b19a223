"""Data parallelism: the wrapper of a trained model that averages gradients over the ranks."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from emollama.distributed.process_group import World
from emollama.errors import UserError
from emollama.optim import trainable


class Parallel:
    """A model whose gradients are averaged over the ranks.

    Args:
        model: the bare model, on the world's device.
        world: the processes.
        kind: ``ddp``.
    """

    def __init__(self, model: nn.Module, world: World, kind: str = "ddp") -> None:
        if kind != "ddp":
            raise UserError(f"run.parallel: unknown value '{kind}'. Set it to ddp.")
        self.model = model
        self._wrapped: nn.Module = model
        self._trained = list(trainable(model).values())
        if world.size > 1:
            # Every rank has loaded the frozen weights from the same files, so only trained parameters need to be broadcast.
            frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
            buffers = [name for name, _ in model.named_buffers()]
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, frozen + buffers)
            devices = [world.device] if world.device.type == "cuda" else None
            self._wrapped = DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)

    def __call__(self, *args: Any) -> Any:
        """Run the model's forward pass through the wrapper that averages gradients."""
        return self._wrapped(*args)

    def no_sync_unless(self, last: bool) -> AbstractContextManager[Any]:
        """Return a context for forward and backward of a micro-batch; only the last one of a step synchronizes gradients."""
        if last or not isinstance(self._wrapped, DistributedDataParallel):
            return nullcontext()
        return self._wrapped.no_sync()

    def clip_grad_norm(self, limit: float | None) -> Tensor:
        """Return the global L2 norm of the gradients, a scalar, and clip them to ``limit`` unless it is None."""
        if limit is not None:
            return nn.utils.clip_grad_norm_(self._trained, limit)
        return nn.utils.get_total_norm([parameter.grad for parameter in self._trained if parameter.grad is not None])

    def trainable_state(self) -> dict[str, Tensor]:
        """Return name -> trained tensor, which later steps change. Every rank must call it."""
        return {name: parameter.detach() for name, parameter in trainable(self.model).items()}
