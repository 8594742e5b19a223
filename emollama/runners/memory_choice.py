"""The choice of the layers that recompute their activations from the free memory, for ``model.use_grad_checkpoint: auto``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from emollama.components import Model
from emollama.config import RunConfig
from emollama.data.batch import collate
from emollama.data.dataset import SampleDataset
from emollama.data.loader import BatchLayout, TrainingSamples
from emollama.data.prompts.prompt import PromptFormat
from emollama.data.sampling import MixtureSampler
from emollama.distributed.process_group import World
from emollama.distributed.worker_variables import integer
from emollama.logs.logger import get_logger
from emollama.optim import trainable
from emollama.precision import Precision
from emollama.recomputation import layers_of, recomputed_layers, set_recomputation, switch
from emollama.runners.datasets import slot_shapes_of_run
from emollama.runners.longest_samples import longest_sample

CHOICES = (0, 4, 3, 2, 1)  # every how many layers one is recomputed, from the fastest to the one with the least memory
USABLE = 0.9  # share of the free memory; the rest is for temporary tensors and unused blocks of the allocator
TRAINING_BYTES = 12  # of a trained parameter: its gradient and the two moments of AdamW, float32
GIB = 2**30


class Prepared(Protocol):
    """The attributes of a preparation from which the memory is computed."""

    config: RunConfig
    world: World
    precision: Precision
    prompt: PromptFormat
    datasets: dict[str, SampleDataset]
    sampler: MixtureSampler
    layout: BatchLayout


@dataclass(frozen=True)
class Activations:
    """The memory of the tensors that a forward pass saves for each token.

    Attributes:
        recomputed: bytes of a token if all layers are recomputed.
        layer: additional bytes of a token in a layer that is not recomputed.
        layers: number of layers.
    """

    recomputed: int
    layer: int
    layers: int

    def bytes_per_token(self, every: int) -> int:
        """Return the bytes of a token in a step if every n-th layer is recomputed."""
        # The backward pass also holds the tensors of one more layer: those that it recomputes, or their gradients.
        return self.recomputed + self.layer * (self.layers - recomputed_layers(self.layers, every) + 1)

    def best_choice(self, tokens: int, free: int) -> int:
        """Return every how many layers one must be recomputed for this number of tokens and of free bytes; 0 is none."""
        return next((every for every in CHOICES if self.bytes_per_token(every) * tokens <= free), CHOICES[-1])


def recompute_as_needed(model: Model, run: Prepared) -> None:
    """Let as few layers recompute their activations as fit into the smallest free memory of all processes, and log the choice.

    Args:
        model: the model with its weights, before its first step.
        run: the preparation of the run.
    """
    model.train()
    llm, layout, world = model.llama_model, run.layout, run.world
    assert isinstance(model, nn.Module)
    assert isinstance(llm, nn.Module)
    if not layers_of(llm):
        # All layers have one switch, so that the memory without recomputation cannot be measured safely.
        return
    task, samples = run.config.task_class(), TrainingSamples(list(run.datasets.values()), run.prompt, run.sampler)
    batch = collate([samples[0]]).to(world.device)

    def loss() -> Tensor:
        with run.precision.autocast():
            return task.loss(model, batch)

    activations = measured(model, llm, loss, len(batch.input_ids))
    shapes = slot_shapes_of_run(run.config)
    longest = world.on_rank_zero(lambda: longest_sample(run.datasets, run.prompt, run.config.model, shapes))
    tokens = most_tokens(layout, longest)
    free, total = memory(world.device)
    recomputed, layer, not_free = world.max(activations.recomputed, activations.layer, -free)
    activations, free = Activations(recomputed, layer, activations.layers), -not_free
    needed = TRAINING_BYTES * sum(parameter.numel() for parameter in trainable(model).values())
    every = activations.best_choice(tokens, int(USABLE * free) - needed)
    set_recomputation(llm, every)
    expected = total - free + needed + activations.bytes_per_token(every) * tokens
    ordinal = {0: "no recomputation", 1: "recomputation of all layers"}.get(every, f"recomputation of one layer in {every}")
    text = "memory: micro-batches of up to %s tokens, %s, expecting %.1f of %.1f GiB"
    get_logger().info(text, f"{tokens:,}", ordinal, expected / GIB, total / GIB)


def most_tokens(layout: BatchLayout, longest: int) -> int:
    """Return a number of tokens that no micro-batch exceeds if a sample has at most ``longest`` tokens."""
    if layout.max_tokens is None:
        return longest * layout.batch_size
    # The samples about a clip are in one micro-batch, even if they have more tokens.
    return min(max(layout.max_tokens, longest * layout.tasks_per_clip), longest * layout.batch_size * layout.accumulate)


def measured(model: nn.Module, llm: nn.Module, loss: Callable[[], Tensor], tokens: int) -> Activations:
    """Measure the tensors that a forward pass saves, while all layers are recomputed and while all but one are.

    Args:
        model: the model of the run.
        llm: its language model, with a switch in each layer.
        loss: runs the forward pass.
        tokens: number of tokens of the forward pass.
    """
    layers, constant = layers_of(llm), {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    set_recomputation(llm, 1)
    recomputed = saved_bytes(loss, constant)
    switch(layers[0], False)
    layer = saved_bytes(loss, constant) - recomputed
    return Activations(recomputed // tokens + 1, layer // tokens + 1, len(layers))


def saved_bytes(loss: Callable[[], Tensor], constant: set[int]) -> int:
    """Return the bytes of the tensors that a loss saves for its backward pass, except those at constant addresses."""
    saved: dict[int, Tensor] = {}

    def save(tensor: Tensor) -> Tensor:
        # The tensor is kept, so that no other one gets its address.
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        loss()
    return sum(tensor.untyped_storage().nbytes() for address, tensor in saved.items() if address not in constant)


def memory(device: torch.device) -> tuple[int, int]:
    """Return the free bytes for this process and all bytes of its device, or this process's share of those of the machine."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device), total
    processes = integer("LOCAL_WORLD_SIZE", 1)
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            sizes = {name: 1024 * int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in file)}
        return sizes["MemAvailable"] // processes, sizes["MemTotal"] // processes
    except (OSError, KeyError):
        return 0, 0  # not Linux: all layers are recomputed
