"""The embedding table of a language model that runs elsewhere: the only weights of it that are loaded here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from emollama.errors import UserError
from emollama.models import llm_weights
from emollama.models.llm_weights import LLMOptions


def build(options: LLMOptions, config: Any, *, dtype: torch.dtype, device: torch.device) -> Any:
    """Build a language model on the meta device, and load its embedding table.

    Args:
        options: as for :func:`emollama.models.llm_weights.build`; the folder has weights in safetensors.
        config: the configuration of the language model.
        dtype: dtype of the table.
        device: device of the table.

    Raises:
        UserError: If the table cannot be read, or is not a plain table.
    """
    built = llm_weights.build(options, config, dtype=dtype, device=torch.device("meta"))
    llm = built.get_base_model() if hasattr(built, "get_base_model") else built
    if device.type != "meta":
        _load(llm, options.path, dtype, device)
    return built


def _load(llm: Any, folder: str, dtype: torch.dtype, device: torch.device) -> None:
    table = llm.get_input_embeddings()
    key = "model.llama_model"
    if type(table) is not nn.Embedding:
        raise UserError(f"{key}: the embeddings of this language model are not a plain table, so it cannot run in a server.")
    name = next(name for name, parameter in llm.named_parameters() if parameter is table.weight)
    # The files of some models lack the prefix of the decoder in the names of tensors.
    names = (name, name.removeprefix(f"{llm.base_model_prefix}."))
    weight = next((tensor for file in sorted(Path(folder).glob("*.safetensors")) for tensor in _read(file, names)), None)
    if weight is None or weight.shape != table.weight.shape:
        raise UserError(f"{key}: '{folder}' contains no .safetensors file with the embedding table {name}. Download it again.")
    table.weight = nn.Parameter(weight.to(device=device, dtype=dtype), requires_grad=False)


def _read(file: Path, names: tuple[str, ...]) -> list[Tensor]:
    try:
        with safe_open(file, framework="pt") as tensors:
            stored = set(tensors.keys())
            return [tensors.get_tensor(name) for name in names if name in stored]
    except (SafetensorError, OSError) as error:
        raise UserError(f"model.llama_model: cannot read {file}: {error}. Download it again.") from None
