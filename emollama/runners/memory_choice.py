"""The choice of the layers that recompute their activations, and of the tokens of a micro-batch, from the free memory.

It is made for ``model.use_grad_checkpoint: auto`` and ``run.max_tokens: auto``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from emollama.components import Model
from emollama.config import RunConfig
from emollama.data.batch import IGNORED, Batch, Sample, collate
from emollama.data.dataset import SampleDataset
from emollama.data.loader import BatchLayout, TrainingSamples
from emollama.data.prompts.prompt import PromptFormat
from emollama.data.sampling import MixtureSampler
from emollama.data.validation_cache import ValidationCache, files_of
from emollama.distributed.nodes import software
from emollama.distributed.process_group import World
from emollama.distributed.sharding import end_of_forward_passes, gathered_bytes
from emollama.distributed.worker_variables import integer
from emollama.logs.logger import get_logger
from emollama.memory import GIB, machine_memory, sizes_of
from emollama.optim import trainable
from emollama.precision import Precision
from emollama.recomputation import (
    BUSY_TOKENS,
    USABLE,
    can_choose_layers,
    choices_for,
    fewest_recomputed,
    layers_of,
    recomputed_every,
    recomputed_layers,
    set_recomputation,
    switch,
)
from emollama.runners.datasets import slot_shapes_of_run
from emollama.runners.longest_samples import SampleLengths
from emollama.runners.step_layout import Size, possible_layouts, size_of
from emollama.sharded_tensors import own_part

TRAINING_BYTES = 12  # of a trained parameter: its gradient and the two moments of AdamW, float32
# The backward pass of the loss overwrites the logits with their gradient, a part of 2**22 elements at a time. It holds two more
# tensors of a part in float32, which has at most twice the bytes of the logits' type.
BYTES_OF_PART, LABELS_OF_PART = 2 * 4 * 2**22, 4
MEASURED_LABELS = 64  # more of them would need much memory if the vocabulary is large
CACHED = "step"  # name of the only entry of a cache file


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
    """The memory of the tensors that a forward pass saves.

    Attributes:
        recomputed: bytes of a token if all layers are recomputed.
        layer: additional bytes of a token in a layer that is not recomputed.
        label: additional bytes of a token with a label.
        layers: number of layers.
        constant: bytes that do not depend on the tokens: copies of trained weights in the dtype of autocast.
        layer_constant: bytes of a layer that is not recomputed that do not depend on the tokens.
    """

    recomputed: int
    layer: int
    label: int
    layers: int
    constant: int = 0
    layer_constant: int = 0

    def bytes_of_step(self, every: int, tokens: int, labels: int) -> int:
        """Return the bytes of a micro-batch at the peak of a step if every n-th layer is recomputed."""
        layer = self.layer_constant + self.layer * tokens
        saved = self.constant + self.recomputed * tokens + layer * (self.layers - recomputed_layers(self.layers, every))
        of_labels = labels * self.label + min(BYTES_OF_PART, LABELS_OF_PART * labels * self.label)
        # The backward pass frees the tensors of the labels before it comes to the layers. What it recomputes in one of them has,
        # with the gradients, the size of two layers, one of which has been freed unless all layers are recomputed.
        recomputing = {0: 0, 1: 2}.get(every, 1) * self.layer * tokens
        return saved + max(of_labels, recomputing)

    def best_choice(self, choices: Sequence[int], sizes: Sequence[Size], free: int) -> tuple[int, Size]:
        """Return every how many layers one must be recomputed, and the size of the largest micro-batch.

        Args:
            choices: every how many layers one may be recomputed.
            sizes: the possible sizes of the largest micro-batch, descending.
            free: free bytes.
        """

        def largest(every: int) -> int | None:
            return next((size.tokens for size in sizes if self.bytes_of_step(every, *size) <= free), None)

        every, tokens = fewest_recomputed(choices, min(BUSY_TOKENS, sizes[0].tokens), largest)
        return every, next((size for size in sizes if size.tokens == tokens), sizes[-1])


def fit_to_memory(model: Model, run: Prepared) -> BatchLayout:
    """Choose the recomputed layers, or the tokens of a micro-batch, or both for the smallest free memory of all processes.

    The rule is that of :func:`~emollama.recomputation.fewest_recomputed`. The choice is logged.

    Args:
        model: the model with its weights, before its first step. Its layers are set to recompute or not.
        run: the preparation of the run.

    Returns:
        The layout of a step, which differs from that of the preparation for ``run.max_tokens: auto``.
    """
    model.train()
    llm, layout, world = model.llama_model, run.layout, run.world
    assert isinstance(model, nn.Module)
    assert isinstance(llm, nn.Module)
    lengths = SampleLengths(run.datasets, run.prompt, run.config.model, slot_shapes_of_run(run.config))
    longest = world.on_rank_zero(lambda: lengths.longest(layout.tasks_per_clip))
    layouts = possible_layouts(layout, longest) if run.config.run.max_tokens == "auto" else [layout]
    key = run.config.model.use_grad_checkpoint
    sizes = [size_of(each, longest) for each in layouts]
    if not can_choose_layers(llm):
        # The memory without recomputation cannot be measured safely.
        results = [f"micro-batches of up to {sizes[-1].tokens:,} tokens, the fewest"] if len(layouts) > 1 else []
        if key == "auto":
            results.append(f"recomputation of {'all' if llm.supports_gradient_checkpointing else 'no'} layers")
        text = "memory: %s, because this language model cannot recompute its layers one by one"
        get_logger().info(text, ", ".join(results))
        return layouts[-1]
    task, samples = run.config.task_class(), TrainingSamples(list(run.datasets.values()), run.prompt, run.sampler)

    def loss(batch: Batch) -> Tensor:
        with run.precision.autocast():
            return task.loss(model, batch.to(world.device))

    activations = cached_measurement(run, lambda: measured(model, llm, loss, samples[0]))
    free, total, used = min(world.gather(memory(world.device)))
    trained = sum(own_part(parameter).numel() for parameter in trainable(model).values())
    # The parts of sharded weights may differ in size, and all processes must choose the same.
    (needed,) = world.max(TRAINING_BYTES * trained + gathered_bytes(llm))
    choices = choices_for(len(layers_of(llm))) if key == "auto" else (recomputed_every(key),)
    every, size = activations.best_choice(choices, sizes, int(USABLE * free) - needed)
    set_recomputation(llm, every)
    expected = used + needed + activations.bytes_of_step(every, *size)
    ordinal = {0: "no recomputation", 1: "recomputation of all layers"}.get(every, f"recomputation of one layer in {every}")
    text = "memory: micro-batches of up to %s tokens, %s, expecting %.1f of %.1f GiB"
    get_logger().info(text, f"{size.tokens:,}", ordinal, expected / GIB, total / GIB)
    return layouts[sizes.index(size)]


def cached_measurement(run: Prepared, measure: Callable[[], Activations]) -> Activations:
    """Measure, or return what an earlier run with the same model, software and device has measured. Every rank calls it.

    Args:
        run: the preparation of the run.
        measure: measures on this process.

    Returns:
        The largest numbers of all processes.
    """
    config, world = run.config, run.world
    place = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else world.device.type
    modes = [config.names["run.task"], config.run.parallel, str(world.size), str(run.precision.frozen_dtype), place]
    model = [repr(config.model), files_of(config.model.llama_model)]
    cache = ValidationCache.load("activation-bytes", json.dumps(software()), *modes, *model)
    # If weights are sharded, all processes must run the forward passes.
    if (cached := world.on_rank_zero(lambda: cache.get(CACHED, (1,)))) is not None:
        return Activations(*map(int, cached.split()))
    activations = Activations(*world.max(*astuple(measure())))
    if world.is_main:
        cache.add(CACHED, (1,), " ".join(map(str, astuple(activations))))
        cache.save()
    return activations


def measured(model: nn.Module, llm: nn.Module, loss: Callable[[Batch], Tensor], sample: Sample) -> Activations:
    """Measure the tensors that a forward pass saves, while all layers are recomputed and while all but one are.

    Args:
        model: the model of the run. Its buffers do not change.
        llm: its language model, with a switch in each layer.
        loss: runs the forward pass.
        sample: any sample.
    """
    layers = layers_of(llm)
    constant = {own_part(tensor).untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    # The bytes must not depend on how long the answer of this sample is.
    number = min(MEASURED_LABELS, len(sample.input_ids) - 1)
    one, many, two = with_labels(sample, 1), with_labels(sample, number), with_labels(sample, 1, samples=2)
    tokens, more_labels = len(sample.input_ids), max(1, len(many.label_positions) - 1)

    def saved(batch: Batch) -> int:
        return saved_bytes(lambda: loss(batch), constant)

    with unchanged_buffers(model):
        set_recomputation(llm, 1)
        of_one = saved(one)
        label = (saved(many) - of_one) // more_labels
        # What the second of two equal samples adds does not contain copies of weights.
        of_second = saved(two) - of_one
        switch(layers[0], False)
        with_layer = saved(one)
        second_with_layer = saved(two) - with_layer
    end_of_forward_passes(model)
    recomputed, layer = (of_second - label) // tokens + 1, (second_with_layer - of_second) // tokens + 1
    copies = max(0, of_one - of_second)
    return Activations(recomputed, layer, label, len(layers), copies, max(0, with_layer - second_with_layer - copies))


def with_labels(sample: Sample, number: int, samples: int = 1) -> Batch:
    """Return a micro-batch of copies of a sample in which this number of tokens at the end have labels."""
    labels = torch.full_like(sample.labels, IGNORED)
    labels[-number:] = sample.input_ids[-number:].clamp(min=0)
    return collate([replace(sample, labels=labels)] * samples)


@contextmanager
def unchanged_buffers(model: nn.Module) -> Iterator[None]:
    """Restore the buffers of a model, such as the averages of a batch normalization, after forward passes in training mode."""
    buffers = [(module, name, tensor) for module in model.modules() for name, tensor in module.named_buffers(recurse=False)]
    copies = [tensor.clone() for _, _, tensor in buffers]
    yield
    with torch.no_grad():
        for (module, name, tensor), copy in zip(buffers, copies, strict=True):
            setattr(module, name, tensor.copy_(copy))


def saved_bytes(loss: Callable[[], Tensor], constant: set[int]) -> int:
    """Return the bytes of the tensors that a loss saves for its backward pass, except those at constant addresses."""
    saved: dict[int, Tensor] = {}

    def save(tensor: Tensor) -> Tensor:
        # The tensor is kept, so that no other one gets its address. Weights that were gathered for a layer are freed after it.
        if not isinstance(tensor if tensor._base is None else tensor._base, nn.Parameter):
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        loss()
    return sum(tensor.untyped_storage().nbytes() for address, tensor in saved.items() if address not in constant)


def memory(device: torch.device) -> tuple[int, int, int]:
    """Return the free bytes for this process, all bytes of its device, and those in use.

    On a CPU, the free bytes and all bytes are this process's share of those of the machine, and those in use are its own.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free, total, total - free
    processes, (available, total) = integer("LOCAL_WORLD_SIZE", 1), machine_memory()
    # If the memory is unknown, all layers are recomputed.
    used = sizes_of(Path("/proc/self/status"))["VmRSS"] if total else 0
    return available // processes, total // processes, used
