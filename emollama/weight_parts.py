"""Load only one process's part of each weight of a language model that FSDP divides among processes.

transformers maps the files of the weights into memory and makes one tensor after the other a parameter. Each parameter is
replaced at that moment by a placeholder, which has its shape but takes no memory, and only this process's part is copied. The
rest is not even read from the files, unless transformers must convert a tensor (a different dtype, experts that are stored one by
one): then it needs memory for this tensor until the next one. After ``fully_shard``, the parts become the parameters.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from emollama.sharded_tensors import part_like

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

PART = "_emollama_part"  # attribute of a placeholder
LOADED = "_is_hf_initialized"  # attribute that transformers gives to a parameter whose values are those of the file
# Without this variable, transformers converts tensors in threads, which can hold many converted tensors at a time.
SEQUENTIAL = "HF_DEACTIVATE_ASYNC_LOAD"


@dataclass(frozen=True)
class WeightShare:
    """The part of one process: each tensor is divided along its first dimension, as FSDP divides it.

    Attributes:
        index: number of the part.
        count: number of parts.
    """

    index: int
    count: int

    def of(self, tensor: Tensor) -> Tensor:
        """Return a view of this part. If the rows cannot be divided equally, the last parts have fewer rows, or none."""
        rows = -(-len(tensor) // self.count)
        return tensor[self.index * rows : (self.index + 1) * rows]


# Which weights of a language model a process loads: "embeddings" is only the embedding table of a model that runs elsewhere.
Weights: TypeAlias = Literal["all", "embeddings"] | WeightShare


@dataclass(frozen=True)
class Part:
    """The values behind a placeholder.

    Attributes:
        share: which part of the whole tensor they are.
        values: the values, on the device of the model.
    """

    share: WeightShare
    values: Tensor


def part_of(parameter: Tensor) -> Part | None:
    """Return what this process has loaded of the parameter that a placeholder stands for; None if it is not a placeholder."""
    part: Part | None = getattr(parameter, PART, None)
    return part


def fill(parameter: Tensor, whole: Tensor) -> None:
    """Copy the values of a whole tensor into a parameter, or into the part of it that this process has or has loaded."""
    part = part_of(parameter)
    if part is None:
        parameter.copy_(part_like(whole, parameter))
    else:
        part.values.copy_(part.share.of(whole))


@contextmanager
def loading(share: WeightShare, device: torch.device, whole: Collection[torch.Size]) -> Iterator[None]:
    """Replace parameters by placeholders as soon as transformers has loaded them.

    Args:
        share: the part of this process.
        device: device of the parts.
        whole: shapes of tensors that remain whole until :func:`keep_parts`, because transformers compares their values.
    """

    def replace(_module: nn.Module, _name: str, parameter: nn.Parameter) -> nn.Parameter | None:
        return None if parameter.shape in whole else _placeholder(parameter, share, device)

    before = os.environ.get(SEQUENTIAL)
    handle = register_module_parameter_registration_hook(replace)  # type: ignore[arg-type]  # it may return a parameter
    os.environ[SEQUENTIAL] = "1"
    try:
        yield
    finally:
        handle.remove()
        if before is None:
            del os.environ[SEQUENTIAL]
        else:
            os.environ[SEQUENTIAL] = before


def keep_parts(model: nn.Module, share: WeightShare, device: torch.device) -> None:
    """Replace the remaining loaded parameters by placeholders, and move everything else to the device."""
    replaced: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None or part_of(parameter) is not None:
                continue
            if parameter not in replaced:
                placeholder = _placeholder(parameter, share, device)
                # Values that are not in the files, such as sinusoidal positions, are whole.
                whole = nn.Parameter(parameter.detach().to(device), requires_grad=parameter.requires_grad)
                replaced[parameter] = whole if placeholder is None else placeholder
            setattr(module, name, replaced[parameter])
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)


def _placeholder(parameter: nn.Parameter, share: WeightShare, device: torch.device) -> nn.Parameter | None:
    """Return a placeholder with this process's part of a parameter; None if there is nothing to divide."""
    if parameter.is_meta or not parameter.ndim or part_of(parameter) is not None or not getattr(parameter, LOADED, False):
        return None
    part = share.of(parameter.detach())
    values = torch.empty_like(part, device=device, memory_format=torch.contiguous_format).copy_(part)
    # Nothing may compute with a placeholder: NaN would show it.
    nothing = torch.full((), float("nan"), dtype=parameter.dtype, device=device)
    placeholder = nn.Parameter(nothing.expand(parameter.shape), requires_grad=parameter.requires_grad)
    setattr(placeholder, LOADED, True)
    setattr(placeholder, PART, Part(share, values))
    return placeholder


@contextmanager
def filled_in(model: nn.Module, mesh: DeviceMesh) -> Iterator[None]:
    """Within the block, placeholders are on the meta device, and ``fully_shard`` divides them; afterwards they get their values.

    Placeholders that the block does not shard become whole parameters. Every rank calls it.

    Args:
        model: the model that the block shards.
        mesh: the mesh with which it is sharded; the last dimension has as many processes as there are parts.
    """
    parts: dict[str, Part] = {}
    empty: dict[nn.Parameter, nn.Parameter] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if (part := part_of(parameter)) is not None:
            parts[name] = part
            shape = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
            empty[parameter] = nn.Parameter(shape, requires_grad=parameter.requires_grad)
    for module in model.modules() if empty else ():
        for name, own in module._parameters.items():
            if own is not None and own in empty:
                setattr(module, name, empty[own])
    yield
    filled: dict[nn.Parameter, nn.Parameter] = {}
    state = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in parts:
            if parameter not in filled:
                filled[parameter] = _filled(parameter, parts[name].values, mesh)
            state[name] = filled[parameter]
    model.load_state_dict(state, strict=False, assign=True)


def _filled(parameter: nn.Parameter, values: Tensor, mesh: DeviceMesh) -> nn.Parameter:
    """Return the parameter with the values of which ``values`` are this process's part."""
    # Imported here because it takes a second, and runs without sharding do not need it.
    from torch.distributed.tensor import DTensor, Replicate, Shard

    placements = (*[Replicate()] * (mesh.ndim - 1), Shard(0))
    tensor: Any = DTensor.from_local(values, mesh, placements, run_check=False, shape=parameter.shape, stride=parameter.stride())
    if not isinstance(parameter, DTensor):
        tensor = tensor.full_tensor()
    elif tuple(parameter.placements) != placements or parameter.device_mesh != mesh:
        raise RuntimeError(f"the parameter is sharded as {parameter.placements}, but was loaded as {placements}")
    return nn.Parameter(tensor, requires_grad=parameter.requires_grad)
