"""Trained tensors as they are exchanged: read from a checkpoint, from a PEFT folder, or from a safetensors file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from emollama import checkpoint
from emollama.errors import UserError
from emollama.listing import listing
from emollama.models import adapters, checkpoint_names
from emollama.paths import not_a_file

ADAPTERS, ADAPTERS_CONFIG, PROJECTORS = "adapter_model.safetensors", "adapter_config.json", "projectors.safetensors"


@dataclass(frozen=True)
class Weights:
    """The tensors of a checkpoint, and what is known about them.

    Attributes:
        source: the file or folder.
        kind: "checkpoint", "PEFT folder" or "safetensors file".
        files: those that were read.
        tensors: name in a checkpoint -> tensor, on the CPU.
        facts: the other entries of a checkpoint (config, step, epoch, ...), without the optimizer's and the scaler's state.
    """

    source: str
    kind: str
    files: list[Path]
    tensors: dict[str, Tensor]
    facts: dict[str, Any]

    def setting(self, key: str) -> float | None:
        """A number of the stored configuration's ``model`` block; None where there is none (``${...}`` is no number)."""
        block = self.facts.get("config")
        for name in ("model", key):
            block = block[name] if isinstance(block, dict) and name in block else None
        return block if isinstance(block, int | float) and not isinstance(block, bool) else None

    @property
    def lora_alpha(self) -> float | None:
        """The stored alpha: the adapters' output is multiplied by alpha / rank."""
        return self.setting("lora_alpha")


def read(path: str, key: str) -> Weights:
    """Read a checkpoint file, a PEFT folder with its projectors, or a single safetensors file.

    Args:
        path: the file or folder. Where a digest lies beside a file, it is compared.
        key: the argument that named it, for messages.

    Raises:
        UserError: missing, truncated, changed since it was written, able to run code, or of another kind.
    """
    if Path(path).is_dir():
        return _read_peft(Path(path), key)
    if path.endswith(".safetensors"):
        return Weights(path, "safetensors file", [Path(path)], _read_safetensors(Path(path), key), {})
    content = checkpoint.read(path, key)
    tensors = checkpoint.by_stored_name(content["model"], checkpoint_names.stored_name, path)
    facts = {name: value for name, value in content.items() if name not in ("model", "optimizer", "scaler")}
    return Weights(path, "checkpoint", [Path(path)], tensors, facts)


def _read_safetensors(path: Path, key: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise not_a_file(key, path)
    if checkpoint.is_intact(path) is False:
        raise UserError(f"{key}: {path} is not what was written: its SHA-256 differs from {path}.sha256. Use another copy.")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{key}: {path} is truncated, or no safetensors file: {error}. Copy it again.") from None


def _read_peft(folder: Path, key: str) -> Weights:
    if not (folder / ADAPTERS_CONFIG).is_file():
        raise UserError(f"{key}: the folder {folder} has no {ADAPTERS_CONFIG}. Name a checkpoint file or a PEFT folder.")
    stored = adapters.read_peft_config(str(folder / ADAPTERS_CONFIG))
    if not (folder / ADAPTERS).is_file() and (folder / "adapter_model.bin").is_file():
        raise UserError(f"{key}: {folder} holds adapter_model.bin, which is not read. Let peft load it and save it anew.")
    tensors = {f"{adapters.OWNER}{name}": tensor for name, tensor in _read_safetensors(folder / ADAPTERS, key).items()}
    strange = sorted(name for name in tensors if not adapters.LORA.fullmatch(name))
    if strange:
        raise UserError(f"{key}: {folder / ADAPTERS} holds more than plain LoRA, which is not supported, {listing(strange)}")
    rank = adapters.split_adapters(tensors, str(folder / ADAPTERS)).rank
    if rank != stored["r"]:
        raise UserError(f"{key}: r is {stored['r']} in {folder / ADAPTERS_CONFIG}, but {rank} in {ADAPTERS}")
    files = [folder / name for name in (ADAPTERS, PROJECTORS) if (folder / name).is_file()]
    if folder / PROJECTORS in files:
        rest = _read_safetensors(folder / PROJECTORS, key)
        twice = sorted(set(tensors) & set(rest))
        if twice:
            raise UserError(f"{key}: tensors in both files of {folder}, {listing(twice)}; it is not clear which are meant")
        tensors |= rest
    names = {"lora_r": "r", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout", "lora_target_modules": "target_modules"}
    settings = {ours: stored[theirs] for ours, theirs in names.items() if theirs in stored}
    return Weights(str(folder), "PEFT folder", files, tensors, {"config": {"model": settings}})
