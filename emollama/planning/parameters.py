"""The parameters of a model, by groups, and the bytes of its weights."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from emollama.components import Model
from emollama.recomputation import layers_of

VIT, QFORMER = "vit.", "qformer."  # parts of the names of the encoders' parameters
BYTES_OF_4_BITS = 0.5 + 4 / 64  # 64 weights share a float32 scale


def parameter_groups(model: Model, *, only_trained: bool = False) -> dict[str, int]:
    """Return the number of parameters of each group that has any.

    Args:
        model: the model.
        only_trained: count only parameters that require gradients.
    """
    groups = ("image encoder, frozen", "Q-Former, frozen", "language model, frozen", "language model, trained", "LoRA")
    counts = dict.fromkeys((*groups, "projection", "other modules, frozen", "other modules, trained"), 0)
    for name, parameter in model.named_parameters():
        if only_trained and not parameter.requires_grad:
            continue
        if name.startswith("fusion."):
            group = "projection"
        elif QFORMER in name:
            group = "Q-Former, frozen"
        elif VIT in name:
            group = "image encoder, frozen"
        elif "lora_" in name:
            group = "LoRA"
        else:
            module = "language model" if name.startswith("llama_model.") else "other modules"
            group = f"{module}, {'trained' if parameter.requires_grad else 'frozen'}"
        counts[group] += parameter.numel()
    return {name: count for name, count in counts.items() if count}


def group_title(group: str) -> str:
    """Return the name of a parameter group in tables; the keys of the --json output are those of :func:`parameter_groups`."""
    return "fusion module" if group == "projection" else group


def trained_names(model: Model) -> list[str]:
    """Return the names of trained tensors in a checkpoint, with * in place of layer numbers."""
    trained = [model.stored_name(name) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return list(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in trained))


@dataclass(frozen=True)
class WeightBytes:
    """Bytes of the weights of a model on a device.

    Attributes:
        frozen: frozen weights of the language model, and others that are not encoders.
        encoders: frozen image encoders.
        trained: number of trained parameters.
        sharded: bytes of the weights that ``run.parallel: fsdp`` divides among processes.
        gathered: bytes that it gathers at most at a time: two layers, or a layer and the embedding table or output layer.
        gathered_in_evaluation: the same for an evaluation, in which the embedding table and the output layer stay whole.
        shards_trained: whether the trained weights are among those that are divided.
        dequantized: bytes of the largest weight of 4 or 8 bits in the dtype of computations; 0 without any.
    """

    frozen: float
    encoders: float
    trained: int
    sharded: float
    gathered: float
    gathered_in_evaluation: float
    shards_trained: bool
    dequantized: float = 0


def weights_of(model: Model, bits: int | None, compute: torch.dtype) -> WeightBytes:
    """Return the bytes of the weights of a model on the meta device.

    Args:
        model: the model, after :func:`prepare_quantized` if it is quantized.
        bits: bits of its quantized weights; None without quantization.
        compute: the dtype of its computations.
    """
    llm: Any = model.llama_model
    quantized = {id(weight) for weight in quantized_weights(llm)} if bits else set()
    of_weight = {4: BYTES_OF_4_BITS, 8: 1.0, None: 0.0}[bits]

    def size(values: Iterable[Tensor]) -> float:
        tensors = {id(value): value for value in values}.values()
        return sum(value.numel() * (of_weight if id(value) in quantized else value.element_size()) for value in tensors)

    named = list(model.named_parameters())
    encoders = {id(parameter) for name, parameter in named if VIT in name or QFORMER in name}
    trained = [parameter for _, parameter in named if parameter.requires_grad]
    frozen = [parameter for _, parameter in named if not parameter.requires_grad and id(parameter) not in encoders]
    is_full = all(parameter.requires_grad for parameter in llm.parameters())
    tables = [module for module in (llm.get_input_embeddings(), llm.get_output_embeddings()) if module is not None]

    def sharded(module: nn.Module) -> list[Tensor]:
        return [parameter for parameter in module.parameters() if parameter.requires_grad == is_full]

    layers = [size(sharded(layer)) for layer in layers_of(llm)]
    ends = [size(sharded(table)) for table in tables]
    buffers = [buffer for name, buffer in llm.named_buffers() if buffer.numel() > 1]
    divided = trained if is_full else [value for module in [*layers_of(llm), *tables] for value in sharded(module)]
    dequantized = max((weight.numel() for weight in quantized_weights(llm)), default=0) if bits else 0
    return WeightBytes(
        frozen=size(frozen) + size(buffers),
        encoders=size(parameter for _, parameter in named if id(parameter) in encoders),
        trained=sum(parameter.numel() for parameter in trained),
        sharded=size(divided) if layers else 0,
        gathered=max(layers) + max([*layers, *ends]) if layers else 0,
        gathered_in_evaluation=2 * max(layers) + sum(ends) if layers else 0,
        shards_trained=is_full,
        dequantized=dequantized * compute.itemsize,
    )


def quantized_weights(llm: Any) -> list[Tensor]:
    """Return the weights that bitsandbytes quantizes: those of all frozen linear layers but the output layer."""
    head, table = llm.get_output_embeddings(), llm.get_input_embeddings()
    linear = [module for module in llm.modules() if isinstance(module, nn.Linear) and module is not head]
    return [module.weight for module in linear if not module.weight.requires_grad and module.weight is not table.weight]


def prepare_quantized(model: Model) -> None:
    """Give the weights that are not quantized the dtype that they get from peft, float32, which their outputs also have."""
    llm: Any = model.llama_model
    quantized = {id(weight) for weight in quantized_weights(llm)}
    for parameter in llm.parameters():
        if id(parameter) not in quantized:
            parameter.data = parameter.data.float()
