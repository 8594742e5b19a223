"""Builds the fusion module of a ``model`` block, and checks that its layout and the module agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from emollama.component_errors import reported, source_file
from emollama.data.batch import PackedFeatures
from emollama.data.fusion_layout import FusionLayout
from emollama.data.slots import SlotShape
from emollama.errors import UserError
from emollama.listing import listing
from emollama.registry import FUSIONS

KEY = "model.fusion"
LENGTHS_OF_ANY_NUMBER = (4, 8)  # vectors of two invented samples in slots that accept any number
T = TypeVar("T")
# The value of ``model.fusion``: a registered name, or a block with ``type``.
FusionKey = str | Mapping[str, Any]


def fusion_layout(fusion: FusionKey, slots: Mapping[str, SlotShape]) -> FusionLayout:
    """Return the layout of a fusion module without building it.

    Args:
        fusion: the value of ``model.fusion``.
        slots: slot -> shape of its feature vectors.

    Raises:
        UserError: If the module is unknown, has no such keys, or does not accept these slots.
    """
    fusion_class, cfg = FUSIONS.configured(fusion, KEY)
    layout: FusionLayout = _call(fusion_class, "layout", lambda: fusion_class.layout(cfg, slots))
    if not isinstance(layout, FusionLayout):
        raise UserError(f"{_name(fusion_class)}: layout() returns {layout!r:.60}. Return a FusionLayout.")
    for output, parts in layout.outputs.items():
        if not isinstance(parts, tuple) or output == "text":
            problem = "'text' is the user text in templates" if output == "text" else f"its parts are {parts!r:.60}, not a tuple"
            raise UserError(f"{_name(fusion_class)}: the output '{output}' of layout() is invalid: {problem}.")
    if repeated := sorted({part for part in layout.parts if layout.parts.count(part) > 1}):
        raise UserError(f"{_name(fusion_class)}: layout() has the part '{repeated[0]}' twice. Each part belongs to one output.")
    return layout


def build_fusion(
    fusion: FusionKey, slots: Mapping[str, SlotShape], hidden_size: int, device: torch.device
) -> tuple[nn.Module, FusionLayout]:
    """Build a fusion module, and return it with its layout. On the meta device, also check that both agree.

    Args:
        fusion: the value of ``model.fusion``.
        slots: slot -> shape of its feature vectors.
        hidden_size: hidden size of the language model.
        device: device of the module.

    Raises:
        UserError: If the module cannot be built, or its layout and the module do not agree.
    """
    fusion_class, cfg = FUSIONS.configured(fusion, KEY)
    layout = fusion_layout(fusion, slots)

    def build(target: torch.device) -> nn.Module:
        with target:
            return cast("nn.Module", fusion_class(cfg, slots, hidden_size))

    module = _call(fusion_class, "__init__", lambda: build(device))
    if not isinstance(module, nn.Module):
        raise UserError(f"{_name(fusion_class)}: the class is not a torch.nn.Module. Derive it from torch.nn.Module.")
    if device.type == "meta":
        try:
            require_agreement(module, layout, slots, hidden_size)
        except UserError as error:
            # The module uses an operation that the meta device does not have, such as one that depends on values.
            if "meta" not in str(error.__cause__):
                raise
            require_agreement(build(torch.device("cpu")), layout, slots, hidden_size)
    return module, layout


def require_agreement(module: nn.Module, layout: FusionLayout, slots: Mapping[str, SlotShape], hidden_size: int) -> None:
    """Check that a module returns the feature tokens of its layout, for two samples of zeros and one without any features.

    Raises:
        UserError: If parts, numbers of feature tokens, or their size differ (the message contains both numbers), or if a
            parameter takes no part in the forward pass.
    """
    lengths = [{slot: shape.num_vectors or any_number for slot, shape in slots.items()} for any_number in LENGTHS_OF_ANY_NUMBER]
    # A dataset without features for a slot has no vectors there.
    lengths.append(dict.fromkeys(slots, 0))
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    features = {
        slot: PackedFeatures.pack([torch.zeros(sample[slot], shape.dim, device=device) for sample in lengths])
        for slot, shape in slots.items()
    }
    for packed in features.values():
        packed.values.requires_grad_()
    fusion_class, name = type(module), _name(type(module))
    counts = _call(fusion_class, "layout", lambda: [layout.num_feature_tokens(sample) for sample in lengths])
    tokens: dict[str, Tensor] = _call(fusion_class, "forward", lambda: module(features))
    if not isinstance(tokens, dict) or not all(isinstance(value, Tensor) for value in tokens.values()):
        raise UserError(f"{name}: forward() returns a {type(tokens).__name__}. Return a dict: part -> tensor of feature tokens.")
    if set(tokens) != set(layout.parts):
        raise UserError(
            f"{name}: forward() returns the parts {', '.join(sorted(tokens))}, but layout() has {', '.join(sorted(layout.parts))}"
        )
    for part in layout.parts:
        if lacking := [sample for sample, parts in zip(lengths, counts, strict=True) if part not in parts]:
            raise UserError(
                f"{name}: num_feature_tokens of layout() has no number for the part '{part}' of a sample with {lacking[0]}"
                " feature vectors. Return 0 for no tokens."
            )
        if not all(type(sample[part]) is int for sample in counts):
            raise UserError(
                f"{name}: num_feature_tokens of layout() returns {counts[0][part]!r} for '{part}'. Return whole numbers."
            )
        expected, shape = sum(sample[part] for sample in counts), tuple(tokens[part].shape)
        if shape != (expected, hidden_size):
            vectors = " and ".join(str(sample) for sample in lengths)
            raise UserError(
                f"{name}: for samples with {vectors} feature vectors, layout() says {expected} feature tokens '{part}' of"
                f" size {hidden_size}, but forward() returns {_shape_text(shape)}."
                " Correct num_feature_tokens or the module."
            )
    _require_gradients(module, list(tokens.values()), {slot: packed.values for slot, packed in features.items()})


def _require_gradients(module: nn.Module, tokens: list[Tensor], features: Mapping[str, Tensor]) -> None:
    """Check that every trained parameter and the vectors of every slot take part in the forward pass.

    Data parallelism requires it of parameters. A slot that is not used would be loaded for nothing.
    """
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    inputs = [*trained.values(), *features.values()]
    total = sum((value.sum() for value in tokens), torch.zeros((), device=tokens[0].device if tokens else None))
    if not total.requires_grad:
        raise UserError(f"{_name(type(module))}: forward() returns tensors without a gradient. Do not detach them.")
    fusion_class = type(module)
    gradients = _call(fusion_class, "backward", lambda: torch.autograd.grad(total, inputs, allow_unused=True))
    unused = [name for name, gradient in zip([*trained, *features], gradients, strict=True) if gradient is None]
    if names := [name for name in unused if name in trained]:
        raise UserError(
            f"{_name(fusion_class)}: forward() does not use {listing(names, 'parameter')}. Remove them, or set"
            " requires_grad to False."
        )
    if slots := [name for name in unused if name in features]:
        raise UserError(
            f"{_name(fusion_class)}: forward() does not use the vectors of {listing(slots, 'slot')}. Remove the slots"
            " (model.slots: null for each), or use them."
        )


def _shape_text(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} of size {shape[1]}" if len(shape) == 2 else f"a tensor of shape {shape}"


def _name(fusion_class: type) -> str:
    """Return the key, class and file of a fusion module for messages."""
    return f"{KEY}: {fusion_class.__name__} ({source_file(fusion_class)})"


def _call(fusion_class: type, method: str, function: Callable[[], T]) -> T:
    """Call a method of a fusion module; any error of it becomes a user error that names the file and line."""
    with reported(f"{KEY}: {fusion_class.__name__}.{method}()", fusion_class):
        return function()
