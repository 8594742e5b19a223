"""Counts the memory and the operations of a training step by running it on tensors without data.

The step is that of the real model and its real code, at its true widths. Only its layers are fewer, if they are all alike: what
one of them adds is counted, too. PyTorch's FakeTensorMode computes shapes and dtypes, and each tensor that an operation returns
counts from then on until it is freed. What an operation allocates inside itself is not counted.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from emollama.data.batch import Batch
from emollama.models.attention import one_sequence_per_row
from emollama.recomputation import layers_of, set_recomputation

CPU = torch.device("cpu")
# Of a forward pass; a thousand are usual. Models that compute one token after the other have many, which would take minutes.
MAX_OPERATIONS = 10_000


@dataclass(frozen=True)
class StepMemory:
    """Bytes of the tensors of a micro-batch at the peak of its forward and backward pass, and its operations.

    Attributes:
        activations: tensors that are saved for the backward pass, without the logits.
        logits: logits of the tokens with labels.
        temporary: other tensors at the peak, such as gradients and what a layer recomputes.
        flops: floating-point operations of forward and backward pass.
    """

    activations: int
    logits: int
    temporary: int
    flops: int


@dataclass(frozen=True)
class CountedStep:
    """What is counted.

    Attributes:
        loss: (model, batch) -> loss.
        batch: a micro-batch, whose feature vectors may be on the meta device.
        autocast: dtype of mixed precision; None computes in float32.
        every: every how many layers one is recomputed; 0 for none.
    """

    loss: Callable[[Any, Batch], Tensor]
    batch: Batch
    autocast: torch.dtype | None
    every: int


def count(model: nn.Module, step: CountedStep) -> StepMemory:
    """Count the memory of a step.

    Args:
        model: the model on the meta device, which does not change.
        step: what is counted.

    Raises:
        Exception: Any exception of a language model whose code reads values of tensors, which do not exist here; RuntimeError if
            it has too many operations.
    """
    layers = layers_of(model.llama_model)  # type: ignore[arg-type]
    period = max(1, step.every)
    number = period + (len(layers) - 1) % period + 1
    container = _container(model, layers)
    if container is None or number >= len(layers) or not _alike(layers):
        number, container = len(layers), None
    mode = FakeTensorMode(allow_non_fake_inputs=True)

    def fake(tensor: Tensor) -> Tensor:
        return FakeTensor(mode, tensor.to("meta"), CPU)

    with _fewer_layers(container, number):
        copied = copy.deepcopy(model)
    copied._apply(fake).train()
    set_recomputation(copied.llama_model, step.every)  # type: ignore[arg-type]
    parameters = list(copied.parameters())
    for parameter in parameters:
        # The gradients of a step's earlier micro-batches, or the buckets of DDP, exist all the time.
        parameter.grad = fake(torch.empty_like(parameter, device="meta")) if parameter.requires_grad else None
    batch = step.batch.mapped(fake)
    head: Any = copied.llama_model.get_output_embeddings().weight  # type: ignore[operator, union-attr]
    logits = (step.autocast or head.dtype).itemsize * len(batch.label_positions) * head.shape[0]
    constant = [*parameters, *(parameter.grad for parameter in parameters), *copied.buffers(), *batch.tensors]
    # torch.compile does not support such tensors.
    with one_sequence_per_row(), torch.compiler.set_stance("force_eager"), mode, _Counter(constant) as counter:
        marks = _run(copied, batch, step, counter)
    return marks.extrapolated(logits, period, (len(layers) - number) // period)


def _run(model: nn.Module, batch: Batch, step: CountedStep, counter: _Counter) -> _Marks:
    """Run the forward and backward pass, and return the counts at some points."""
    marks, hooks = _Marks(), []

    def before_layer(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if marks.saved is not None:
            return  # the layer is recomputed
        counter.require_few_operations()
        index = len(marks.forward)
        marks.forward.append(counter.now())
        hidden = arguments[0] if arguments else keywords.get("hidden_states")
        if isinstance(hidden, Tensor) and hidden.requires_grad:
            hooks.append(hidden.register_hook(lambda _: after_layer(index)))

    def after_layer(index: int) -> None:
        marks.backward[index] = counter.now()
        if index == 0:
            # From here on, the memory does not depend on the number of layers.
            marks.peak_of_layers, counter.peak = counter.peak, 0

    for layer in layers_of(model.llama_model):  # type: ignore[arg-type]
        hooks.append(layer.register_forward_pre_hook(before_layer, with_kwargs=True))
    with _autocast(step.autocast):
        loss = step.loss(model, batch)
    marks.peak_of_forward, counter.peak = counter.peak, 0
    marks.saved = counter.live
    counter.require_few_operations()
    loss.backward()
    marks.peak_of_rest = counter.peak
    if marks.peak_of_layers is None:
        marks.peak_of_layers = counter.peak
    marks.flops = counter.flops
    for hook in hooks:
        hook.remove()
    return marks


class _Marks:
    """Counts at points of a step.

    Attributes:
        forward: (bytes, operations) before each layer.
        backward: index of a layer -> (bytes, operations) after its backward pass.
        saved: bytes after the forward pass.
        peak_of_forward, peak_of_layers, peak_of_rest: largest number of bytes in the forward pass, in the backward pass of the
            layers, and after it.
        flops: operations of the step.
    """

    def __init__(self) -> None:
        self.forward: list[tuple[int, int]] = []
        self.backward: dict[int, tuple[int, int]] = {}
        self.saved: int | None = None
        self.peak_of_forward = self.peak_of_rest = self.flops = 0
        self.peak_of_layers: int | None = None

    def extrapolated(self, logits: int, period: int, further: int) -> StepMemory:
        """Return the memory with further layers, of which each ``period`` adds what the first ones did."""
        assert self.saved is not None
        assert self.peak_of_layers is not None
        # In the forward pass, autocast also keeps its copies of weights.
        in_forward = in_backward = flops = 0
        if further:
            in_forward = self.forward[period][0] - self.forward[0][0]
            in_backward = self.backward[period][0] - self.backward[0][0]
            flops = self.forward[period][1] - self.forward[0][1] + self.backward[0][1] - self.backward[period][1]
        saved = self.saved + further * in_backward
        peak = max(self.peak_of_forward + further * in_forward, self.peak_of_layers + further * in_backward, self.peak_of_rest)
        return StepMemory(saved - logits, logits, peak - saved, self.flops + further * flops)


class _Counter(TorchDispatchMode):
    """Counts bytes of tensors, and floating-point operations, inside ``with``.

    Args:
        constant: tensors that do not count.

    Attributes:
        live: bytes of all tensors that operations have returned and that exist.
        peak: largest value of ``live``, since it was set to 0.
        flops: floating-point operations of all products.
    """

    def __init__(self, constant: list[Tensor | None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = self.flops = self._operations = 0
        # The tensors are kept, so that no other one gets the address of a storage.
        self._constant = constant
        self._sizes = dict.fromkeys((tensor.untyped_storage()._cdata for tensor in constant if tensor is not None), 0)

    def require_few_operations(self) -> None:
        """Raise a RuntimeError if there were too many operations.

        An exception in the operation itself could end the process, because some of PyTorch's functions must not raise one.
        """
        if self._operations > MAX_OPERATIONS:
            raise RuntimeError("the step has too many operations")

    def now(self) -> tuple[int, int]:
        """Return bytes and operations."""
        return self.live, self.flops

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count its results."""
        self._operations += 1
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if formula := flop_registry.get(function._overloadpacket):
            self.flops += formula(*args, **kwargs, out_val=result)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (address := (storage := tensor.untyped_storage())._cdata) not in self._sizes:
                self._sizes[address] = storage.nbytes()
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._freed, address)
        return result

    def _freed(self, address: int) -> None:
        self.live -= self._sizes.pop(address)


def _autocast(dtype: torch.dtype | None) -> AbstractContextManager[object]:
    return torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def _container(model: nn.Module, layers: list[nn.Module]) -> nn.ModuleList | None:
    """Return the list that contains exactly these layers; None without one."""
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == len(layers))
    return next((each for each in lists if layers and list(each) == layers), None)


def _alike(layers: list[nn.Module]) -> bool:
    """Return whether all layers have the same parameters."""
    kinds = {
        tuple((name, value.shape, value.dtype, value.requires_grad) for name, value in layer.named_parameters())
        for layer in layers
    }
    return len(kinds) == 1


@contextmanager
def _fewer_layers(container: nn.ModuleList | None, number: int) -> Iterator[None]:
    """Inside ``with``, a list contains the first ones of its layers, and the last one, which may compute only some tokens."""
    if container is None:
        yield
        return
    layers = container._modules
    chosen = [*list(layers.values())[: number - 1], list(layers.values())[-1]]
    container._modules = {str(index): layer for index, layer in enumerate(chosen)}
    try:
        yield
    finally:
        container._modules = layers
