"""Choose and check the linear layers of a language model that get LoRA adapters.

There is no list of model families. If ``model.lora_target_modules`` is null, each decoder layer gets adapters on its query and
value projections, which have one of a few usual names, or on all of its linear layers if it has none with such a name.

Shape letters: I and O = input and output features of a linear layer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from emollama.errors import UserError
from emollama.listing import abbreviated, listing
from emollama.suggestions import did_you_mean

KEY = "model.lora_target_modules"
# Models in which peft refuses adapters on out_proj, because a fused kernel uses its weights.
NO_OUT_PROJ = {"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"}
FEED_FORWARD = re.compile(r"mlp|expert|feed_forward|ffn|moe")
CROSS_ATTENTION = re.compile(r"encoder_attn|cross_?attn|cross_?attention")
ENCODERS = re.compile(r"(^|\.)(vision|audio|image|visual)")
ALL_LINEAR = "all-linear"  # the value of peft for all linear layers except the output layer

# Names of query and value projections, or of the projection that contains both. The first that a layer has completely is used.
PROJECTIONS = (
    ("q_proj", "v_proj"),
    ("qkv_proj",),
    ("query_key_value",),
    ("Wqkv",),
    ("c_attn",),
    # Multi-head latent attention: the projections from the compressed vectors to the heads.
    ("q_b_proj", "kv_b_proj"),
    ("q_proj", "kv_b_proj"),
    ("q_b_proj", "kv_proj"),
    ("query", "value"),
    ("query_proj", "value_proj"),
    ("project_q", "project_v"),
    ("q_lin", "v_lin"),
    ("Wq", "Wv"),
    ("q", "v"),
    # The input projections of linear attention, state-space and recurrent layers.
    ("in_proj_qkvz",),
    ("in_proj_qkv",),
    ("in_proj",),
    ("receptance", "value"),
    ("linear_x", "linear_y"),
)


def resolve(llm: Any, value: str | Sequence[str] | None) -> list[str]:
    """Return the names for peft's ``target_modules``: the ends of the names of linear layers, or whole names.

    Args:
        llm: the language model without adapters, which may be on the meta device.
        value: the value of ``model.lora_target_modules``.

    Raises:
        UserError: If a layer does not exist, is not linear, or shares its weights with another one.
    """
    if value is None or value == ALL_LINEAR:
        layers = decoder_layers(llm)
        chosen = [name for group in layers.values() for name in _default(group, everything=value is not None)]
        if llm.config.model_type in NO_OUT_PROJ:
            chosen = [name for name in chosen if not matches(name, "out_proj")]
        if any(parameter.ndim > 2 and "expert" in name for name, parameter in llm.named_parameters()):
            # peft would adapt the joint tensors of the experts, too.
            chosen = [name for name in chosen if not FEED_FORWARD.search(name)] or chosen
        if not chosen:
            raise UserError(f"{KEY}: no linear layers were found in the language model. List the names of the layers to adapt.")
        return shortened(llm, chosen)
    targets = [value] if isinstance(value, str) else list(value)
    if not targets:
        raise UserError(f"{KEY} is empty. List layers, or set null for the default layers, or train_llm: none for no adapters.")
    matched = {name for target in targets for name in _check(llm, target)}
    adapted = [name for name in matched if not ENCODERS.search(name)]
    # Names of layers of the decoder are often those of layers of an image encoder, too.
    return targets if len(adapted) in (0, len(matched)) else [name for name, _ in llm.named_modules() if name in adapted]


def decoder_layers(llm: Any) -> dict[str, list[str]]:
    """Return the linear layers that adapters can adapt, by the decoder layer that contains them.

    Encoders of images or audio, cross-attention to their output, routers of experts, and layers that share their weights are
    left out.
    """
    shared = shared_weights(llm)
    layers: dict[str, list[str]] = {}
    with_cross_attention = set()
    for name, module in llm.named_modules():
        layer = re.match(r".*?\.\d+(?=\.)", name)
        if layer and is_linear(module) and name not in shared and "router" not in name:
            if CROSS_ATTENTION.search(name):
                with_cross_attention.add(layer[0])
            else:
                layers.setdefault(layer[0], []).append(name)
    for layer_name in with_cross_attention:
        # A layer with cross-attention alone is not used without images.
        if not any(matches(name, end) for name in layers.get(layer_name, ()) for ends in PROJECTIONS for end in ends):
            layers.pop(layer_name, None)
    lists: dict[str, dict[str, list[str]]] = {}
    for layer_name, names in layers.items():
        lists.setdefault(layer_name.rpartition(".")[0], {})[layer_name] = names
    number = getattr(llm.config.get_text_config(decoder=True), "num_hidden_layers", None)
    decoders = [group for path, group in lists.items() if len(llm.get_submodule(path)) == number]
    # An encoder can have as many layers as the decoder.
    in_decoder = [group for group in decoders if not any(map(ENCODERS.search, group))]
    return {name: names for group in in_decoder or decoders or lists.values() for name, names in group.items()}


def uncovered_layers(llm: Any, targets: list[str]) -> str:
    """Return a line about decoder layers without any adapter, or "" if each has one.

    Args:
        llm: the language model without adapters.
        targets: the result of :func:`resolve`.
    """
    layers = decoder_layers(llm)
    without = [group for group in layers.values() if not any(matches(name, target) for name in group for target in targets)]
    if not without:
        return ""
    names = sorted({name.rpartition(".")[2] for group in without for name in group})
    return (
        f"{KEY}: {len(without)} of {len(layers)} decoder layers have no layer with one of the names {', '.join(targets)}, and"
        f" get no adapters. Their linear layers are {abbreviated(names)}. To adapt each decoder layer, add names, or set {KEY}:"
        " null."
    )


def _default(names: list[str], *, everything: bool) -> list[str]:
    """Return the linear layers to adapt in one decoder layer, of whose linear layers these are the names."""
    by_end: dict[str, list[str]] = {}
    for name in names:
        by_end.setdefault(name.rpartition(".")[2], []).append(name)
    # Layers that share the keys and values of another layer have a part of the projections.
    for enough in () if everything else (all, any):
        for ends in PROJECTIONS:
            if enough(end in by_end for end in ends):
                return [name for end in ends for name in by_end.get(end, ())]
    return names


def shortened(llm: nn.Module, names: Sequence[str]) -> list[str]:
    """Return the ends of the names, or the whole names if an end is also that of another layer."""
    ends = dict.fromkeys(name.rpartition(".")[2] for name in names)
    matched = {name for name, _ in llm.named_modules() for end in ends if matches(name, end)}
    return list(ends) if matched == set(names) else list(names)


def _check(llm: nn.Module, target: str) -> list[str]:
    """Check one target, and return the names of its layers."""
    modules = dict(llm.named_modules())
    matched = {name: module for name, module in modules.items() if matches(name, target)}
    if not matched:
        names = {name.rpartition(".")[2] for name, module in modules.items() if is_linear(module)}
        raise UserError(
            f"{KEY}: the language model has no layer '{target}'.{did_you_mean(target, [*names, ALL_LINEAR])} Linear layers:"
            f" {abbreviated(sorted(names))}. Set null for the query and value projections."
        )
    others = sorted({type(module).__name__ for module in matched.values() if not is_linear(module)})
    if others:
        raise UserError(f"{KEY}: '{target}' is not a linear layer, but {abbreviated(others)}. Remove it.")
    shared = shared_weights(llm)
    if tied := [name for name in matched if name in shared]:
        raise UserError(
            f"{KEY}: the weights of {listing(tied, 'layer')} are tied to those of {shared[tied[0]]}, so that adapters could not"
            f" be merged into the language model. Remove '{target}'."
        )
    return list(matched)


def shared_weights(llm: nn.Module) -> Mapping[str, str]:
    """Return the modules whose weight is also that of another module -> name of the other module."""
    owners: dict[int, list[str]] = {}
    for name, module in llm.named_modules():
        if isinstance(weight := getattr(module, "weight", None), nn.Parameter):
            owners.setdefault(id(weight), []).append(name)
    groups: list[list[str]] = [names for names in owners.values() if len(names) > 1]
    return {name: next(other for other in names if other != name) for names in groups for name in names}


def matches(name: str, target: str) -> bool:
    """Return whether a target is the whole name of a layer or its end, as peft compares them."""
    return name == target or name.endswith(f".{target}")


def is_linear(module: nn.Module) -> bool:
    """Return whether adapters can adapt a layer."""
    return isinstance(module, nn.Linear | Conv1D)


def is_transposed(module: nn.Module) -> bool:
    """Return whether a linear layer stores its weights as (I, O), as in GPT-2 and models derived from it."""
    return isinstance(module, Conv1D)


def adapter_shapes(module: Any, rank: int) -> dict[str, tuple[int, int]]:
    """Return the shapes of the adapters of a linear layer: A (rank, I) and B (O, rank)."""
    outputs, inputs = reversed(module.weight.shape) if is_transposed(module) else module.weight.shape
    return {"A": (rank, inputs), "B": (outputs, rank)}
