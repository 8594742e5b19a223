"""A language model's folder with LoRA adapters added into its weights, file by file.

Letters: r the rank, I and O the widths of an adapted linear layer.
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
WEIGHTS = {".safetensors", ".bin", ".pth", ".pt", ".gguf", ".h5", ".msgpack"}  # endings of files that are not copied


def merge(folder: Path, adapters: Adapters, scale: float, place: Path) -> None:
    """Write a language model's folder again, with B A x scale added to each adapted weight.

    One file's tensors are in memory at a time. Sums are made in float32 and rounded to the weight's dtype; every other tensor
    and file stays as it is.

    Args:
        folder: the language model's, with weights in safetensors.
        adapters: as ``adapters.check_base`` accepted them.
        scale: alpha / r.
        place: an empty folder.

    Raises:
        UserError: weights that are missing, unreadable or quantized.
    """
    pairs = {f"{layer}.weight": pair for layer, pair in adapters.layers.items()}
    names = {file: _names(folder / file) for file in _weight_files(folder)}
    absent = sorted(set(pairs).difference(*names.values()))
    if absent:
        raise UserError(f"--llama-model: the weights in {folder} lack tensors, {listing(absent)}")
    for file in names:
        tensors, metadata = _read(folder / file)
        for name in tensors.keys() & pairs.keys():
            tensors[name] = _merged(name, tensors[name], pairs[name], scale)
        save_tensors(tensors, place / file, metadata or {"format": "pt"})
    for path in folder.iterdir():
        if path.is_file() and path.suffix not in WEIGHTS and (path.name == INDEX or not path.name.endswith(".index.json")):
            shutil.copyfile(path, place / path.name)


def _weight_files(folder: Path) -> list[str]:
    """Names of the files that hold the model's weights."""
    if not (folder / INDEX).is_file():
        if (folder / SINGLE).is_file():
            return [SINGLE]
        raise UserError(
            f"--llama-model: no {SINGLE} in {folder}. Weights in another format (pytorch_model.bin) become safetensors when"
            " transformers loads and saves them."
        )
    try:
        names = sorted(set(json.loads(read_text(str(folder / INDEX)))["weight_map"].values()))
        outside = [name for name in names if Path(name).name != name or Path(name).suffix != ".safetensors"]
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
        raise UserError(f"--llama-model: {folder / INDEX} is damaged. Download it again.") from None
    if outside:
        raise UserError(f"--llama-model: {folder / INDEX} names other things than files of weights: {listing(outside)}")
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
    """(O, I) weight + B A x scale, in the weight's dtype."""
    shape = (len(pair["B"]), pair["A"].shape[1])
    if weight.dtype not in MERGEABLE or weight.shape != shape:
        found = f"{tuple(weight.shape)} {str(weight.dtype).removeprefix('torch.')}"
        raise UserError(f"--llama-model: {name} is {found}; adapters are merged into unquantized weights, here {shape}")
    wide = torch.promote_types(weight.dtype, torch.float32)
    return torch.addmm(weight.to(wide), pair["B"].to(wide), pair["A"].to(wide), alpha=scale).to(weight.dtype)
