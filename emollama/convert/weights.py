"""Reading of trained tensors from a checkpoint, a PEFT folder or a safetensors file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from emollama import checkpoint, file_digests
from emollama.checkpoint_parts import ENTRY, Parts, parts_of
from emollama.errors import UserError
from emollama.listing import listing
from emollama.models import adapters, checkpoint_names
from emollama.paths import not_a_file

ADAPTERS, ADAPTERS_CONFIG, PROJECTORS = "adapter_model.safetensors", "adapter_config.json", "projectors.safetensors"


@dataclass(frozen=True)
class Weights:
    """Tensors and other entries of a checkpoint.

    Attributes:
        source: the file or folder.
        kind: "checkpoint", "PEFT folder" or "safetensors file".
        files: the files that were read.
        tensors: name in a checkpoint -> tensor on the CPU, or on the meta device if it has not been read.
        entries: the other entries of a checkpoint (config, step, epoch, ...), without the state of optimizer and scaler.
        parts: the files of a sharded checkpoint.
    """

    source: str
    kind: str
    files: list[Path]
    tensors: dict[str, Tensor]
    entries: dict[str, Any]
    parts: Parts | None = None

    def require_intact(self, key: str) -> None:
        """Check the files of a sharded checkpoint; all others were checked when they were read.

        Raises:
            DamagedError: If one is missing or damaged. The message names it.
        """
        if self.parts is not None:
            self.parts.require_intact(key)

    def values(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return tensors with their values, which are read now if they have not been read."""
        chosen = {name: self.tensors[name] for name in names}
        return chosen if self.parts is None else self.parts.read(chosen, "model")

    def whole(self) -> Weights:
        """Return the same weights with the values of all tensors."""
        return replace(self, tensors=self.values(self.tensors))

    def setting(self, key: str) -> float | None:
        """Return a number in the ``model`` block of the stored configuration; None if it is missing or an interpolation."""
        block = self.entries.get("config")
        for name in ("model", key):
            block = block[name] if isinstance(block, dict) and name in block else None
        return block if isinstance(block, int | float) and not isinstance(block, bool) else None

    @property
    def lora_alpha(self) -> float | None:
        """The stored alpha of the adapters, whose output is multiplied by alpha / rank; None if it is not stored."""
        return self.setting("lora_alpha")


def read(path: str, key: str, *, values: bool = True) -> Weights:
    """Read a checkpoint file, a PEFT folder with its projectors, or a single safetensors file.

    Args:
        path: the file or folder. Files are compared with their .sha256 files, if these exist.
        key: the argument that contains the path, for messages.
        values: check and read the files of a sharded checkpoint. If False, :meth:`Weights.require_intact` checks them, and
            :meth:`Weights.values` reads tensors.

    Raises:
        UserError: If the path does not exist, is damaged, is another kind of file, or contains code.
    """
    if Path(path).is_dir():
        return _read_peft(Path(path), key)
    if path.endswith(".safetensors"):
        return Weights(path, "safetensors file", [Path(path)], _read_safetensors(Path(path), key), {})
    content = checkpoint.read(path, key, values=False)
    # All other names stay as they are: a model may define its own with stored_name.
    tensors = checkpoint.by_stored_name(content["model"], checkpoint_names.without_adapter_name, path)
    entries = {name: value for name, value in content.items() if name not in ("model", "optimizer", "scaler", ENTRY)}
    weights = Weights(path, "checkpoint", [Path(path)], tensors, entries, parts_of(content, path))
    if values:
        weights.require_intact(key)
    return weights.whole() if values else weights


def _read_safetensors(path: Path, key: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise not_a_file(key, path)
    file_digests.require_intact(path, key)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{key}: {path} is truncated or not a safetensors file: {error}. Copy the file again.") from None


def _read_peft(folder: Path, key: str) -> Weights:
    if not (folder / ADAPTERS_CONFIG).is_file():
        raise UserError(f"{key}: the folder {folder} has no {ADAPTERS_CONFIG}. Specify a checkpoint file or a PEFT folder.")
    peft_config = adapters.read_peft_config(str(folder / ADAPTERS_CONFIG))
    if not (folder / ADAPTERS).is_file() and (folder / "adapter_model.bin").is_file():
        raise UserError(
            f"{key}: {folder} contains adapter_model.bin, which is a pickle and is not read. Load it with peft and save it again"
            " as safetensors."
        )
    tensors = {f"{adapters.LLM_PREFIX}{name}": tensor for name, tensor in _read_safetensors(folder / ADAPTERS, key).items()}
    unsupported = sorted(name for name in tensors if not adapters.LORA_TENSOR_NAME.fullmatch(name))
    if unsupported:
        raise UserError(
            f"{key}: {folder / ADAPTERS} contains {listing(unsupported, 'tensor')}. Only LoRA adapters are supported."
        )
    rank = adapters.split_adapters(tensors, str(folder / ADAPTERS)).rank
    if rank != peft_config["r"]:
        raise UserError(f"{key}: r is {peft_config['r']} in {folder / ADAPTERS_CONFIG}, but {rank} in {ADAPTERS}. Correct r.")
    files = [folder / name for name in (ADAPTERS, PROJECTORS) if (folder / name).is_file()]
    if folder / PROJECTORS in files:
        rest = _read_safetensors(folder / PROJECTORS, key)
        twice = sorted(set(tensors) & set(rest))
        if twice:
            raise UserError(f"{key}: both files of {folder} contain {listing(twice, 'tensor')}. Remove them from one file.")
        tensors |= rest
    # Key of the model block -> key in adapter_config.json.
    names = {"lora_r": "r", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout", "lora_target_modules": "target_modules"}
    settings = {model_key: peft_config[peft_key] for model_key, peft_key in names.items() if peft_key in peft_config}
    return Weights(str(folder), "PEFT folder", files, tensors, {"config": {"model": settings}})
