"""Merge LoRA adapters into the weights of a language model's folder, file by file.

Shape letters: r = LoRA rank, I and O = input and output features of an adapted linear layer.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from emollama.errors import UserError
from emollama.listing import listing
from emollama.models.adapters import Adapters
from emollama.paths import read_text
from emollama.tensor_files import save_tensors

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MERGEABLE = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
WEIGHTS = {".safetensors", ".bin", ".pth", ".pt", ".gguf", ".h5", ".msgpack"}  # suffixes of files that are not copied


def merge(folder: Path, adapters: Adapters, scale: float, target: Path) -> None:
    """Write a copy of a language model's folder with ``scale * B @ A`` added to each adapted weight.

    Only the tensors of one file are in memory at a time. Sums are computed in float32 and rounded to the weight's dtype. Other
    tensors and files are copied unchanged.

    Args:
        folder: the language model's folder, with weights in safetensors.
        adapters: adapters that passed ``adapters.check_base``.
        scale: alpha / r.
        target: an empty folder.

    Raises:
        UserError: If weights are missing, unreadable or quantized.
    """
    pairs = {f"{layer}.weight": pair for layer, pair in adapters.layers.items()}
    names = {file: _names(folder / file) for file in _weight_files(folder)}
    absent = sorted(set(pairs).difference(*names.values()))
    if absent:
        raise UserError(f"--llama-model: the weights in {folder} lack {listing(absent, 'tensor')}")
    for file in names:
        tensors, metadata = _read(folder / file)
        for name in tensors.keys() & pairs.keys():
            tensors[name] = _merged(name, tensors[name], pairs[name], scale)
        save_tensors(tensors, target / file, metadata or {"format": "pt"})
    for path in folder.iterdir():
        if path.is_file() and path.suffix not in WEIGHTS and (path.name == INDEX or not path.name.endswith(".index.json")):
            shutil.copyfile(path, target / path.name)


def _weight_files(folder: Path) -> list[str]:
    """Return the names of the files that contain the model's weights."""
    if not (folder / INDEX).is_file():
        if (folder / SINGLE).is_file():
            return [SINGLE]
        raise UserError(
            f"--llama-model: {folder} does not contain {SINGLE}. To convert weights in a different format (pytorch_model.bin) to"
            " safetensors, load and save the model with transformers."
        )
    try:
        names = sorted(set(json.loads(read_text(str(folder / INDEX)))["weight_map"].values()))
        outside = [name for name in names if Path(name).name != name or Path(name).suffix != ".safetensors"]
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
        raise UserError(f"--llama-model: {folder / INDEX} is damaged. Download it again.") from None
    if outside:
        raise UserError(
            f"--llama-model: {folder / INDEX} must name only .safetensors files in the same folder,"
            f" got {listing(outside, 'other file')}"
        )
    return names


def _names(path: Path) -> set[str]:
    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys())
    except (SafetensorError, OSError) as error:
        raise UserError(f"--llama-model: cannot read {path}: {error}. Download it again.") from None


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str] | None]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise UserError(f"--llama-model: cannot read {path}: {error}. Download it again.") from None


def _merged(name: str, weight: Tensor, pair: Mapping[str, Tensor], scale: float) -> Tensor:
    """Return weight + scale * B @ A, (O, I), in the weight's dtype."""
    shape = (len(pair["B"]), pair["A"].shape[1])
    if weight.dtype not in MERGEABLE or weight.shape != shape:
        stored = f"{tuple(weight.shape)} {str(weight.dtype).removeprefix('torch.')}"
        raise UserError(
            f"--llama-model: the tensor {name} is {stored}, expected unquantized weights of shape {shape}. Use the folder of"
            " the unquantized model."
        )
    wide = torch.promote_types(weight.dtype, torch.float32)
    return torch.addmm(weight.to(wide), pair["B"].to(wide), pair["A"].to(wide), alpha=scale).to(weight.dtype)
