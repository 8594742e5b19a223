"""In each process of a group: train with sharded weights, and evaluate."""

from __future__ import annotations

from pathlib import Path

from emollama.config import load


def train(paths: list[str], scale: float | None = None) -> None:
    """Train one configuration after the other, with an initial scale of the gradients of float16."""
    import torch

    for path in paths:
        config = load(path)
        runner = config.runner_class(config)
        if scale is not None:
            runner.precision.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        runner.train()


def first_gradients(paths: list[str], scale: float | None = None) -> None:
    """Write <config's folder>/gradients.pt with the gradients of the first step, for each configuration.

    With an initial scale of the gradients of float16, they are multiplied by it.
    """
    import torch

    from emollama.optim import trainable
    from emollama.sharded_tensors import whole

    for path in paths:
        config = load(path)
        runner = config.runner_class(config)
        if scale is not None:
            runner.precision.scaler = torch.amp.GradScaler(runner.world.device.type, init_scale=scale)
        with runner.lock:
            micro_batches = next(runner._step_batches())
            runner._gradients(0, micro_batches, *runner.world.totals(sum(batch.total_weight for batch in micro_batches)))
        gradients = {name: whole(parameter.grad) for name, parameter in trainable(runner.model).items()}
        if runner.world.is_main:
            torch.save(gradients, Path(path).parent / "gradients.pt")


def evaluate(path: str, failures: int = 0) -> int:
    """Evaluate a configuration. On rank 1, a number of forward passes fail in the last or first layer for lack of memory.

    Returns:
        The number of forward passes of the language model on this rank.
    """
    config = load(path)
    runner = config.runner_class(config, training=False)
    llm = runner.model._llm
    layers = llm.model.layers
    count, left = [0], [failures if runner.world.rank == 1 else 0]

    def counted(*_):
        count[0] += 1

    def failing(module, _):
        if left[0] and module is layers[-left[0] % 2].mlp:
            left[0] -= 1
            raise MemoryError("out of memory")

    llm.register_forward_hook(counted)
    for layer in layers:
        layer.mlp.register_forward_pre_hook(failing)
    runner.evaluate()
    return count[0]


def layer_bytes(path: str) -> tuple[int, int]:
    """Return the bytes of the language model's weights in this process, and those of the whole model."""
    config = load(path)
    runner = config.runner_class(config)
    with runner.lock:
        weights = list(runner.model.llama_model.parameters())
    own = sum(weight.to_local().nbytes if hasattr(weight, "to_local") else weight.nbytes for weight in weights)
    return own, sum(weight.nbytes for weight in weights)


def train_counting(path: str) -> tuple[int, int, list[bool]]:
    """Train a configuration with an evaluation after each epoch.

    Returns:
        How often sharded tensors were gathered, the bytes of this process in a checkpoint, and whether the checkpoint of the
        epoch existed when each evaluation began.
    """
    import pytest
    from torch.distributed.tensor import DTensor

    from emollama import checkpoint_parts

    config = load(path)
    runner = config.runner_class(config)
    gathered, sizes, write, full = [0], [0], checkpoint_parts.write, DTensor.full_tensor
    complete, evaluate = [], runner.validation.run

    def evaluated(step, *others):
        complete.append((runner.folder / f"checkpoint_{step - 1}.pth").is_file())
        number = gathered[0]
        evaluate(step, *others)
        gathered[0] = number  # an evaluation computes a digest of the weights, one after the other

    def counted(tensor, **options):
        gathered[0] += tensor.ndim > 0  # the norm of gradients is a scalar
        return full(tensor, **options)

    def measured(path, tensors, *others):
        sizes[0] = sum(tensor.nbytes for tensor in tensors.values())
        return write(path, tensors, *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DTensor, "full_tensor", counted)
        patch.setattr(checkpoint_parts, "write", measured)
        patch.setattr(runner.validation, "run", evaluated)
        runner.train()
    return gathered[0], sizes[0], complete
