"""The layers of Llama and of models like it, for packed samples in training, with few operations and little memory.

There is no list of model families: a layer is computed here if it has the parts of one of Llama, and if a small random copy of
the model then gives the losses and gradients of transformers (:func:`difference`).

Shape letters: T = tokens of a packed micro-batch, C = channels, H = query heads, K = key/value heads, E = width of a head,
L = tokens whose outputs are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from emollama.models import attention, dropout, fused_ops
from emollama.models.fused_ops import PLAIN, FusedOps
from emollama.models.packing_comparisons import packed_logits
from emollama.models.random_copy import RandomCopy

TOLERANCE = 1e-4  # relative (L2) difference of logits and of gradients
LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
MLP = {"gate_proj", "up_proj", "down_proj"}
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
HEAD_NORMS = {"q_norm", "k_norm"}  # of each head, as in Qwen3


def use_fused_layers(llm: nn.Module, ops: FusedOps, *, compiled: bool = False) -> str:
    """Compute the layers of a language model with the functions of this module, except in calls with a key-value cache.

    The last layer then computes only what the tokens of ``output_rows`` need.

    Args:
        llm: the model, without the wrapper of peft.
        ops: norm, position embedding and activation.
        compiled: compile the layers for training, without these operations.

    Returns:
        Why the layers cannot be computed here, and nothing was changed; "" if they are.
    """
    layers: Sequence[Any] = getattr(getattr(llm, "model", None), "layers", None) or ()
    if not layers or not all(map(_is_like_llama, layers)):
        return "its layers do not have the parts of a layer of Llama"
    for layer in layers:
        # A subclass, not another attribute "forward": transformers recomputes activations of the method of the class.
        original: Any = type(layer)
        layer.__class__ = _fused(original)
        layer.fused_ops, layer.is_last, layer.is_compiled = ops, layer is layers[-1], compiled
    return ""


def difference(copy: RandomCopy) -> str:
    """Compare logits and gradients of two packed samples with those of the layers of transformers; "" if they are equal."""
    outputs = []
    for fused in (False, True):
        llm = copy.build(attention.NAME)
        if fused and (problem := use_fused_layers(llm, PLAIN)):
            return problem
        table = llm.get_input_embeddings().weight.requires_grad_()
        with torch.enable_grad():
            # Every second token, to cover the selection in the last layer.
            rows = torch.arange(1, sum(map(len, copy.samples)), 2)
            options = {"output_rows": rows, "logits_to_keep": 0} if fused else {"logits_to_keep": rows}
            logits = packed_logits(llm, copy.samples, **options)
            (gradient,) = torch.autograd.grad(logits.log_softmax(-1)[:, ::3].square().mean(), table)
        table.requires_grad_(False)
        outputs.append((logits.detach(), gradient))
    for name, plain, own in zip(("logits", "gradients"), *outputs, strict=True):
        if not (own - plain).norm() <= TOLERANCE * plain.norm():
            return f"its {name} would change by {(own - plain).norm() / plain.norm():.2g}"
    return ""


@cache
def _fused(layer_class: Any) -> type:
    """Return a subclass of a class of layers that computes with the functions of this module where there is no cache."""

    def forward(self: Any, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        rows = kwargs.pop("output_rows", None)
        if kwargs["past_key_values"] is not None:
            # In generation, the layer of transformers also stores keys and values.
            output: Tensor = layer_class.forward(self, hidden_states, **kwargs)
            return output
        return _layer(self, hidden_states, rows, kwargs)

    # The name remains, because transformers knows some classes by name.
    return type(layer_class.__name__, (layer_class,), {"forward": forward, "__module__": layer_class.__module__})


def _is_like_llama(layer: nn.Module) -> bool:
    parts = dict(layer.named_children())
    if set(parts) != LAYER:
        return False
    own = {name for name, _ in parts["self_attn"].named_children()}
    norms = [
        parts["input_layernorm"],
        parts["post_attention_layernorm"],
        *(getattr(parts["self_attn"], n) for n in own & HEAD_NORMS),
    ]
    return (
        own in (ATTENTION, ATTENTION | HEAD_NORMS)
        and {name for name, _ in parts["mlp"].named_children()} - {"act_fn"} == MLP
        and all(hasattr(norm, "variance_epsilon") for norm in norms)
    )


@dataclass(frozen=True)
class _Parts:
    """The parts of a layer before and after attention, and their operations."""

    ops: FusedOps
    before: Callable[..., tuple[Tensor, Tensor, Tensor]]
    after: Callable[..., Tensor]
    after_in_rows: Callable[..., Tensor]


@cache
def _compiled_parts() -> _Parts:
    """Return the parts as functions that torch.compile compiles when they are called first, for any number of tokens.

    All layers share the compiled code. Attention is not compiled, because the boundaries of the samples change in each step.
    """
    functions = (_before_attention, _after_attention, _after_attention_in_rows)
    parts: list[Any] = [torch.compile(function, fullgraph=True, dynamic=True) for function in functions]
    return _Parts(fused_ops.compiled_ops(), *parts)


def _layer(layer: Any, hidden: Tensor, rows: Tensor | None, kwargs: dict[str, Any]) -> Tensor:
    """Return the output of a layer, (1, T, C), or (1, L, C) for the last one with ``rows`` (L,)."""
    parts = _Parts(layer.fused_ops, _before_attention, _after_attention, _after_attention_in_rows)
    if layer.is_compiled and layer.training:
        parts = _compiled_parts()
        # The embeddings are a view, for which there would be other code than for the outputs of layers. A layer that recomputes
        # its activations could then run the one in the forward pass and the other in the backward pass.
        hidden = hidden if hidden._base is None else hidden.clone()
    attended = _attention(layer.self_attn, parts.before(layer, parts.ops, hidden, *kwargs["position_embeddings"]), kwargs)
    if not layer.is_last or rows is None:
        return parts.after(layer, parts.ops, hidden, attended)
    with dropout.use_keys(dropout.keys_at(rows)):
        return parts.after_in_rows(layer, parts.ops, hidden, attended, rows)


def _before_attention(layer: Any, ops: FusedOps, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return query (1, H, T, E), key and value (1, K, T, E)."""
    module, inputs = layer.self_attn, _norm(layer.input_layernorm, ops, hidden)
    query, key, value = (
        projection(inputs).unflatten(-1, (-1, module.head_dim)) for projection in (module.q_proj, module.k_proj, module.v_proj)
    )
    if hasattr(module, "q_norm"):
        query, key = _norm(module.q_norm, ops, query), _norm(module.k_norm, ops, key)
    query, key = ops.rope(query.transpose(1, 2), key.transpose(1, 2), cos, sin)
    return query, key, value.transpose(1, 2)


def _attention(module: Any, heads: tuple[Tensor, Tensor, Tensor], kwargs: dict[str, Any]) -> Tensor:
    """Return what the output projection of an attention layer gets, (1, T, H * E), from query, key and value."""
    function = ALL_ATTENTION_FUNCTIONS[module.config._attn_implementation]
    # Mistral has its window in the configuration only.
    window = module.sliding_window if hasattr(module, "sliding_window") else getattr(module.config, "sliding_window", None)
    attended, _ = function(
        module,
        *heads,
        kwargs["attention_mask"],
        dropout=module.attention_dropout if module.training else 0.0,
        scaling=module.scaling,
        sliding_window=window,
        **{name: kwargs[name] for name in kwargs.keys() - {"attention_mask", "position_embeddings", "past_key_values"}},
    )
    output: Tensor = attended.flatten(2)
    return output


def _after_attention(layer: Any, ops: FusedOps, hidden: Tensor, attended: Tensor) -> Tensor:
    hidden = hidden + layer.self_attn.o_proj(attended)
    inputs, mlp = _norm(layer.post_attention_layernorm, ops, hidden), layer.mlp
    output: Tensor = hidden + mlp.down_proj(ops.silu_mul(mlp.gate_proj(inputs), mlp.up_proj(inputs)))
    return output


def _after_attention_in_rows(layer: Any, ops: FusedOps, hidden: Tensor, attended: Tensor, rows: Tensor) -> Tensor:
    return _after_attention(layer, ops, hidden[:, rows], attended[:, rows])


def _norm(module: Any, ops: FusedOps, x: Tensor) -> Tensor:
    return ops.rms_norm(x, module.weight, module.variance_epsilon)
