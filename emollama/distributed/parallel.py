"""Data parallelism: a model whose gradients are averaged over the ranks, whether its weights are sharded or not."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from emollama.distributed.process_group import World
from emollama.dtypes import ReduceDtype
from emollama.optim import trainable
from emollama.sharded_tensors import is_sharded, whole


class Parallel:
    """A model whose gradients are averaged over the ranks.

    FSDP averages the gradients of weights that are sharded, and DistributedDataParallel those of trained tensors that every
    process has. :func:`~emollama.distributed.sharding.shard` shards all trained tensors, or none.

    Args:
        model: the model on the world's device, which may be sharded.
        world: the processes.
        reduce_dtype: the value of ``run.reduce_dtype``, for trained tensors that are not sharded.
    """

    def __init__(self, model: nn.Module, world: World, reduce_dtype: ReduceDtype = "fp32") -> None:
        self.model = model
        self._world, self._reduce_dtype = world, reduce_dtype
        self._wrapped: nn.Module = model
        self._trained = list(trainable(model).values())
        self._is_sharded = any(map(is_sharded, self._trained))
        # A whole parameter among them would be FSDP's gathered copy of its part, which never gets a gradient.
        assert self._is_sharded == all(map(is_sharded, self._trained)), "only some trained tensors are sharded"
        if world.size > 1 and not self._is_sharded:
            # Every rank has loaded the frozen weights from the same files, so only trained parameters need to be broadcast.
            frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
            buffers = [name for name, _ in model.named_buffers()]
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, frozen + buffers)
            devices = [world.device] if world.device.type == "cuda" else None
            # After its first step, DDP groups the gradients in the order in which the backward pass computes them. Those of the
            # projections, which are the last ones, are then sent while only they themselves are still being computed.
            self._wrapped = DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)
            if reduce_dtype == "bf16":
                self._wrapped.register_comm_hook(None, bf16_compress_hook)

    def __call__(self, *args: Any) -> Any:
        """Run the model's forward pass through the wrapper that averages gradients."""
        return self._wrapped(*args)

    def no_sync_unless(self, last: bool) -> AbstractContextManager[Any]:
        """Return a context for forward and backward of a micro-batch; only the last one of a step synchronizes gradients.

        Gradients of weights that are sharded are divided after each micro-batch, because whole ones would need the memory that
        sharding saves. Only groups of processes with the same parts (hsdp) exchange theirs after the last one.
        """
        if self._is_sharded:
            # Imported here because a run without sharding does not need it.
            from torch.distributed.fsdp import FSDPModule

            assert isinstance(self.model, FSDPModule)
            # FSDP adds gradients up in the dtype of the exchange until then; bfloat16 would lose small ones.
            self.model.set_requires_all_reduce(last or self._reduce_dtype == "bf16")
        if last or not isinstance(self._wrapped, DistributedDataParallel):
            return nullcontext()
        return self._wrapped.no_sync()

    def zero_grad(self, optimizer: Optimizer) -> None:
        """Clear the gradients after a step.

        DDP has gradients in the buffers from which they are exchanged, for the whole run. There, they are only set to zero, so
        that the micro-batches of the next step add theirs up in the same memory instead of in tensors of their own.
        """
        optimizer.zero_grad(set_to_none=not isinstance(self._wrapped, DistributedDataParallel))

    def clip_grad_norm(self, limit: float | None) -> Tensor:
        """Return the global L2 norm of the gradients, a scalar, and clip them to ``limit`` unless it is None."""
        if limit is not None:
            return whole(nn.utils.clip_grad_norm_(self._trained, limit))
        return whole(nn.utils.get_total_norm([parameter.grad for parameter in self._trained if parameter.grad is not None]))

    def trainable_state(self, gathered: bool = True) -> dict[str, Tensor]:
        """Return name -> trained tensor, which later steps may change. Every rank must call it.

        Args:
            gathered: if trained weights are sharded, only rank 0 gets tensors: whole ones, which are copies on the CPU. If
                False, every rank gets the sharded tensors.
        """
        tensors = {name: parameter.detach() for name, parameter in trainable(self.model).items()}
        if not self._is_sharded or not gathered:
            return tensors
        # One after the other, because the device has no memory for all of them.
        wholes = ((name, whole(tensor)) for name, tensor in tensors.items())
        return {name: tensor.cpu() for name, tensor in wholes if self._world.is_main}
