"""Weights that are divided among the processes: PyTorch's FSDP2 on the language model of a run.

What is sharded depends on what is trained:

* Adapters and projections, or projections alone: the frozen weights of the language model are sharded. The trained tensors are
  small and stay whole in every process, as does everything that only they need: their gradients are averaged by
  DistributedDataParallel, and optimizer and checkpoints are the same as without sharding.
* All weights of the language model (``train_llm: full``): all trained tensors are sharded, with their gradients and the state of
  the optimizer.

Each decoder layer, the embedding table and the output layer are gathered when they are used, and freed afterwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from emollama import weight_parts
from emollama.distributed.groups import group_size
from emollama.distributed.process_group import World, joined
from emollama.dtypes import ReduceDtype
from emollama.parallel_modes import ParallelMode
from emollama.recomputation import layers_of
from emollama.sharded_tensors import is_sharded
from emollama.weight_parts import WeightShare

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

# Methods of a model that run its language model, besides forward.
GENERATION = ("prefill", "decode", "decode_answers", "beam_search")


def device_mesh(world: World, mode: ParallelMode, shard_size: int | None) -> DeviceMesh | None:
    """Return the arrangement of the processes for sharding, or None if weights are not sharded. Every rank calls it.

    Raises:
        UserError: If the processes cannot be divided into groups of ``shard_size``.
    """
    size = group_size(mode, shard_size, world.size, world.nodes)
    if mode == "ddp" or not joined():
        return None
    from torch.distributed.device_mesh import init_device_mesh

    if mode == "fsdp":
        return init_device_mesh(world.device.type, (size,), mesh_dim_names=("shard",))
    return init_device_mesh(world.device.type, (world.size // size, size), mesh_dim_names=("replicate", "shard"))


def unsupported(llm: nn.Module) -> str:
    """Return why a language model, which may be on the meta device, cannot be sharded; "" if it can."""
    layers = layers_to_gather(llm)
    if not layers:
        return "it has no decoder layers that can be gathered one by one"
    owners: dict[int, int] = {}
    for index, layer in enumerate(layers):
        for parameter in layer.parameters():
            if owners.setdefault(id(parameter), index) != index:
                return "its decoder layers share weights"
    if any(id(parameter) in owners for table in tables(llm) for parameter in table.parameters()):
        return "a decoder layer shares weights with the embedding table"
    paths = Counter(id(module) for _, module in llm.named_modules(remove_duplicate=False))
    return "a decoder layer is used more than once" if any(paths[id(layer)] > 1 for layer in layers) else ""


def outermost(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Return the modules that are not inside another one of them."""
    modules = list(modules)
    inner = {id(child) for module in modules for child in module.modules() if child is not module}
    return [module for module in modules if id(module) not in inner]


def tables(llm: Any) -> list[nn.Module]:
    """Return the embedding table and the output layer of a language model, which may be the same or share their weights."""
    ends = (llm.get_input_embeddings(), llm.get_output_embeddings())
    return list({id(module): module for module in ends if module is not None}.values())


def _shard_language_model(llm: Any, fully_shard: Callable[..., object], ignored_params: set[nn.Parameter]) -> None:
    """Shard the decoder layers, the embedding table and the output layer, except for parameters that stay whole."""
    for layer in layers_to_gather(llm):
        fully_shard(layer, ignored_params=ignored_params)
    ends = tables(llm)
    tied = len({id(parameter) for table in ends for parameter in table.parameters()}) < len(ends)
    for group in [ends] if tied and len(ends) > 1 else [[table] for table in ends]:
        fully_shard(group if len(group) > 1 else group[0], ignored_params=ignored_params)


def shard(root: Any, mesh: DeviceMesh, reduce_dtype: ReduceDtype) -> None:
    """Shard a model. Every rank calls it.

    Args:
        root: the model. Of the weights of its language model, ``llama_model``, each process may have loaded only its part.
        mesh: the result of :func:`device_mesh`.
        reduce_dtype: the value of ``run.reduce_dtype``, for trained tensors that are sharded.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    llm = root.llama_model
    policy = MixedPrecisionPolicy(reduce_dtype=torch.bfloat16 if reduce_dtype == "bf16" else None)
    divided = partial(fully_shard, mesh=mesh, mp_policy=policy)
    is_frozen = not all(weight.requires_grad for weight in llm.parameters())
    with weight_parts.filled_in(root, mesh):
        _shard_language_model(llm, divided, {weight for weight in llm.parameters() if weight.requires_grad == is_frozen})
        # Frozen weights outside the layers are few. Trained ones must all be sharded, or none of them.
        ignored = {weight for weight in root.parameters() if is_frozen or not weight.requires_grad}
        divided(root, ignored_params=ignored)
    for name in GENERATION:
        register_fsdp_forward_method(root, name)
    # The first gathering creates the whole parameters. If that happened in inference mode, training could not use them.
    root._get_fsdp_state()._lazy_init()
    for module in (*layers_to_gather(llm), *tables(llm), root):
        module.unshard()
        module.reshard()


def share_of(mesh: DeviceMesh) -> WeightShare:
    """Return the part of each weight that this process has."""
    return WeightShare(mesh.get_local_rank("shard"), mesh["shard"].size())


def layers_to_gather(llm: nn.Module) -> list[Any]:
    """Return the layers of a language model in the order in which a forward pass runs them."""
    return outermost(layers_of(llm))


def gathered_bytes(llm: nn.Module) -> int:
    """Return the bytes of the whole weights that a process has at a time, besides its parts of all weights."""
    sizes = [
        [sum(weight.nbytes for weight in module.parameters() if is_sharded(weight)) for module in modules]
        for modules in (layers_to_gather(llm), tables(llm))
    ]
    # The next layer is gathered while one is used.
    return sum(sorted(sizes[0])[-2:]) + sum(sizes[1])


@contextmanager
def joint_forward_passes(root: Any, world: World) -> Iterator[None]:
    """Let the ranks run different numbers of forward passes of the language model inside the block, without gradients.

    The layers of a sharded model are gathered by all ranks together. Each forward pass of the language model therefore waits
    until every rank is ready for one, and a rank that has left the block early only gathers the layers, until all ranks have
    left it. Everything but the layers stays whole meanwhile. Without sharding, nothing is changed.

    Args:
        root: the model, in eval mode.
        world: the processes, all of which enter the block.
    """
    if not hasattr(root, "unshard"):
        yield
        return
    llm = root.llama_model
    layers, others = layers_to_gather(llm), [*tables(llm), root]
    for module in others:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    passes = _Passes(layers, world)
    hooks = [layer.register_forward_pre_hook(passes.before_layer) for layer in layers]
    bare = llm.get_base_model() if hasattr(llm, "get_base_model") else llm
    hooks += [
        bare.register_forward_pre_hook(passes.before_forward),
        bare.register_forward_hook(passes.after_forward, always_call=True),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    while world.any(False):
        passes.gather(layers)
    for module in others:
        module.set_reshard_after_forward(module is not root, recurse=False)
    end_of_forward_passes(root)


def end_of_forward_passes(root: Any) -> None:
    """Divide the weights of a model again after forward passes without a backward pass. Without sharding, nothing is done.

    FSDP keeps the root's weights whole for a backward pass, and replaces its parameters by them until then.
    """
    if not hasattr(root, "unshard"):
        return
    for module in (*tables(root.llama_model), root):
        module.reshard()
    if hasattr(root, "reset_iter_state"):
        # PyTorch remembers each forward pass until a backward pass.
        root.reset_iter_state()


class _Passes:
    """The forward passes of a rank in :func:`joint_forward_passes`, and how many layers the current one has gathered."""

    def __init__(self, layers: Sequence[Any], world: World) -> None:
        self._layers, self._world = layers, world
        self._gathered = len(layers)

    def before_forward(self, *_: Any) -> None:
        """Wait until all other ranks begin a forward pass, or gather its layers."""
        assert self._gathered == len(self._layers), "a forward pass has not gathered all layers"
        self._world.any(True)
        self._gathered = 0

    def before_layer(self, *_: Any) -> None:
        """Count a layer that is gathered now."""
        self._gathered += 1

    def after_forward(self, _module: nn.Module, _args: Any, output: Any) -> None:
        """Gather the other layers if the forward pass failed, for example because memory was exhausted."""
        if output is None:
            for layer in self._layers:
                layer.reshard()
            self.gather(self._layers[self._gathered :])
            self._gathered = len(self._layers)

    @staticmethod
    def gather(layers: Sequence[Any]) -> None:
        """Take part in the gathering of layers that only other ranks use."""
        for layer in layers:
            layer.unshard()
            layer.reshard()
