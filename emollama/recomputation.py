"""Which layers of a language model recompute their activations in the backward pass (activation checkpointing).

How many of them do so is decided together with the tokens of a micro-batch, because both need the same memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

CHOICES = (0, 4, 3, 2, 1)  # every how many layers one is recomputed, from the fastest to the one with the least memory
# Tokens of a micro-batch that keep a GPU busy: larger ones are not worth the time of recomputing layers.
BUSY_TOKENS = 2048
# Larger micro-batches are not used by run.max_tokens: auto. With 8,192 tokens, the products of a layer take far longer than it
# takes to start its kernels and to read its weights.
MOST_TOKENS = 8192
USABLE = 0.9  # share of the memory beside the weights; the rest is for unused blocks of the allocator


def recomputed_every(key: bool | int | str) -> int:
    """Return n if every n-th layer is recomputed, and 0 if none is, for a value of ``model.use_grad_checkpoint``.

    ``auto`` starts with the least memory, so that it can be measured how much more is needed.
    """
    return 1 if key == "auto" else int(key)


def recomputed_layers(layers: int, every: int) -> int:
    """Return the number of layers that are recomputed if every ``every``-th one is; 0 recomputes none."""
    return -(-layers // every) if every else 0


def choices_for(layers: int) -> tuple[int, ...]:
    """Return the CHOICES without those that recompute the same layers as a smaller one.

    Args:
        layers: number of layers that can recompute their activations one by one; 0 if there is one switch for all of them.
    """
    return 0, *{tuple(range(0, layers, every)): every for every in CHOICES if every}.values()


def fewest_recomputed(choices: Sequence[int], enough: int, largest: Callable[[int], int | None]) -> tuple[int, int | None]:
    """Return every how many layers one is recomputed, and the tokens of the largest micro-batch that then fits (None: none does).

    As few layers are recomputed as allow micro-batches of enough tokens. If no choice allows them, it is the last one.

    Args:
        choices: every how many layers one may be recomputed, from the fastest to the one with the least memory.
        enough: number of tokens beyond which larger micro-batches are not worth the time of recomputing more layers.
        largest: function from such a choice to the tokens of the largest micro-batch that fits.
    """
    for every in choices:
        tokens = largest(every)
        if tokens is not None and tokens >= enough:
            break
    return every, tokens


def layers_of(llm: nn.Module) -> list[nn.Module]:
    """Return the layers of a transformers model that can recompute their activations one by one; [] without any."""
    return [module for module in llm.modules() if _has_switch(module) and not hasattr(module, "supports_gradient_checkpointing")]


def set_recomputation(llm: nn.Module, every: int) -> None:
    """Let every n-th layer recompute its activations, beginning with the first one.

    Args:
        llm: a language model whose activation checkpointing was enabled.
        every: n; 0 lets none recompute. Models without a switch for each layer recompute all layers or none.
    """
    for module in filter(_has_switch, llm.modules()):
        switch(module, every > 0)
    for index, layer in enumerate(layers_of(llm)):
        switch(layer, every > 0 and index % every == 0)


def recomputation_of(llm: nn.Module) -> str:
    """Return which layers recompute their activations, such as ``1 of 2 layers``; "" if none does."""
    switches = [module.gradient_checkpointing for module in layers_of(llm) or filter(_has_switch, llm.modules())]
    if not any(switches):
        return ""
    return f"{sum(map(bool, switches))} of {len(switches)} layers" if layers_of(llm) else "all layers"


def switch(module: nn.Module, on: bool) -> None:
    """Let a layer recompute its activations or not."""
    module.__dict__["gradient_checkpointing"] = on


def can_choose_layers(llm: nn.Module) -> bool:
    """Return whether each layer of a transformers model can be set to recompute its activations or not."""
    return bool(llm.supports_gradient_checkpointing and layers_of(llm))


def _has_switch(module: nn.Module) -> bool:
    # hasattr would also find the attributes of the model inside the wrapper of peft.
    return "gradient_checkpointing" in vars(module) or hasattr(type(module), "gradient_checkpointing")
