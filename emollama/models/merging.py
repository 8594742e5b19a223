"""Copy a language model's folder with changed weights: with LoRA adapters merged in, or with other values.

Shape letters: r = LoRA rank, I and O = input and output features of an adapted linear layer.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from emollama.errors import UserError
from emollama.json_io import parse_json
from emollama.listing import listing
from emollama.models.adapters import AdaptedLayers, Adapters, build_base
from emollama.paths import read_text
from emollama.tensor_files import save_pretrained, save_tensors

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MERGEABLE = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
WEIGHTS = {".safetensors", ".bin", ".pth", ".pt", ".gguf", ".h5", ".msgpack"}  # suffixes of files that are not copied


class Change(Protocol):
    """What becomes of a weight."""

    def applied_to(self, name: str, weight: Tensor, /) -> Tensor:
        """Return the new values of the weight with this name, in its dtype.

        Raises:
            UserError: If the weight is quantized or has a different shape.
        """
        ...


def copy_changed(folder: Path, changes: Mapping[str, Change], target: Path, aliases: Mapping[str, str] | None = None) -> None:
    """Write a copy of a language model's folder with changed weights.

    Only the tensors of one file are in memory at a time, unless the names in the files are not those of the model's layers, as in
    GPT-2: then transformers loads and saves the model. Other tensors and files are copied unchanged.

    Args:
        folder: the language model's folder, with weights in safetensors.
        changes: name of a weight in the model -> its change.
        target: an empty folder.
        aliases: name that a changed weight can also have in the files -> its name in ``changes``.

    Raises:
        UserError: If weights are missing, unreadable or quantized.
    """
    aliases = aliases or {}
    names = {file: _names(folder / file) for file in _weight_files(folder)}
    in_memory = bool(set(changes).difference(*names.values()))
    if in_memory:
        _change_loaded(folder, changes, target)
    else:
        for file in names:
            tensors, metadata = _read(folder / file)
            for name in tensors:
                if change := changes.get(aliases.get(name, name)):
                    tensors[name] = change.applied_to(name, tensors[name])
            save_tensors(tensors, target / file, metadata or {"format": "pt"})
    for path in folder.iterdir():
        is_old_index = path.name.endswith(".index.json") and (in_memory or path.name != INDEX)
        if path.is_file() and path.suffix not in WEIGHTS and not is_old_index:
            shutil.copyfile(path, target / path.name)


def write_index(folder: Path) -> None:
    """Write an index of the tensors if they are in a single file, whose folder usually has none.

    Programs such as vLLM read all .safetensors files of a folder without an index, also those of other modules.
    """
    if (folder / INDEX).is_file():
        return
    tensors, _ = _read(folder / SINGLE)
    size = sum(tensor.nbytes for tensor in tensors.values())
    content = {"metadata": {"total_size": size}, "weight_map": dict.fromkeys(sorted(tensors), SINGLE)}
    (folder / INDEX).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


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
        names = sorted(set(parse_json(read_text(str(folder / INDEX)))["weight_map"].values()))
        outside = [name for name in names if Path(name).name != name or Path(name).suffix != ".safetensors"]
    except (ValueError, KeyError, TypeError, AttributeError):
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


def _change_loaded(folder: Path, changes: Mapping[str, Change], target: Path) -> None:
    """Change weights in memory, with the names of transformers, which translates them to those of the files."""
    with safe_open(folder / _weight_files(folder)[0], framework="pt") as file:
        dtype = file.get_tensor(next(iter(file.keys()))).dtype
    model = build_base(str(folder), dtype=dtype, device=torch.device("cpu"))
    parameters = dict(model.named_parameters())
    for name, change in changes.items():
        parameters[name].data = change.applied_to(name, parameters[name].data)
    save_pretrained(model, target)


def merged(adapters: Adapters, layers: AdaptedLayers, scale: float) -> dict[str, Change]:
    """Return the changes that add ``scale * B @ A`` to each adapted weight, in float32, rounded to the weight's dtype.

    Args:
        adapters: the adapters to merge.
        layers: the result of ``adapters.check_base``.
        scale: alpha / r.
    """
    return {f"{layer}.weight": _Delta(pair, scale, layer in layers.transposed) for layer, pair in adapters.layers.items()}


def require_changeable(name: str, weight: Tensor, shape: tuple[int, ...]) -> None:
    """Check that a stored weight is not quantized and has this shape.

    Raises:
        UserError: If it does not.
    """
    if weight.dtype not in MERGEABLE or weight.shape != shape:
        stored = f"{tuple(weight.shape)} {str(weight.dtype).removeprefix('torch.')}"
        raise UserError(
            f"--llama-model: the tensor {name} is {stored}, expected unquantized weights of shape {shape}. Use the folder of"
            " the unquantized model."
        )


@dataclass(frozen=True)
class _Delta:
    """What adapters add to a weight: ``scale * B @ A``, transposed for weights that are stored as (I, O)."""

    pair: Mapping[str, Tensor]
    scale: float
    transposed: bool

    def applied_to(self, name: str, weight: Tensor) -> Tensor:
        """Return the sum in the weight's dtype."""
        shape = (len(self.pair["B"]), self.pair["A"].shape[1])
        require_changeable(name, weight, shape[::-1] if self.transposed else shape)
        wide = torch.promote_types(weight.dtype, torch.float32)
        product = (self.pair["B"].to(wide), self.pair["A"].to(wide))
        left, right = (product[1].T, product[0].T) if self.transposed else product
        return torch.addmm(weight.to(wide), left, right, alpha=self.scale).to(weight.dtype)
