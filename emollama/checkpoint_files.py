"""Check that a configuration's language model and checkpoint exist and are of the expected kind; read files of checkpoints."""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from emollama.component_configs import RecognizesCheckpoints
from emollama.disk import require_readable, unreadable
from emollama.errors import UserError
from emollama.listing import listing
from emollama.paths import PATHS, not_a_file, path_exists, require_folder
from emollama.registry import MODELS

if TYPE_CHECKING:
    from torch import Tensor

MAPPED = 4 << 30  # bytes of a checkpoint from which its tensors are not copied into memory
_STAGES = {  # stage of training in a checkpoint's path -> its configuration
    "1": "train_configs/Emotion-LLaMA_finetune.yaml",
    "2": "train_configs/minigptv2_tuning_stage_2.yaml",
}


def require_language_model(path: str) -> str:
    """Check that the folder of ``model.llama_model`` exists and that its files can be read, and return its path.

    Raises:
        UserError: If it is not a folder, or a file cannot be read.
    """
    text = (
        "Download a Hugging Face causal language model (config.json, weights, tokenizer) and set the path of its folder."
        " 'emollama plan' needs only the config.json in it."
    )
    key = "model.llama_model"
    for file in sorted(Path(require_folder(path, key, text)).iterdir()):
        require_readable(str(file), key)
    return path


def require_weights(folder: str) -> None:
    """Check that the folder of a language model, if it exists, has weights, and all files that their index lists.

    Raises:
        UserError: If it does not.
    """
    if not os.path.isdir(folder):
        return  # require_language_model reports it
    try:
        present = set(os.listdir(folder))
    except OSError as error:
        raise unreadable(folder, "model.llama_model", error) from None
    if {"model.safetensors", "pytorch_model.bin"} & present:
        return
    indexes = sorted(name for name in present if name.endswith((".safetensors.index.json", ".bin.index.json")))
    if not indexes and not any(name.endswith((".safetensors", ".bin")) for name in present):
        raise UserError(f"model.llama_model: '{folder}' has no weights (*.safetensors or *.bin). Download them.")
    problems = []
    for name in indexes:
        try:
            files = set(json.loads(Path(folder, name).read_bytes())["weight_map"].values())
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"model.llama_model: '{Path(folder, name)}' is damaged: {error}. Download it again.") from error
        if not files - present:
            return
        problems.append(listing(sorted(files - present), "file"))
    if problems:
        raise UserError(f"model.llama_model: '{folder}' lacks {problems[-1]} with weights. Download them.")


def require_mappable(folder: str) -> None:
    """Check that a part of a language model's weights can be read without the rest.

    Raises:
        UserError: If they are in files that torch.load can only read as a whole.
    """
    if any(Path(folder).glob("*.safetensors")):
        return
    if whole := [file for file in sorted(Path(folder).glob("*.bin")) if not zipfile.is_zipfile(file)]:
        raise UserError(
            f"model.llama_model: '{whole[0]}' is in a format of which each process would have to read all weights. Convert the"
            " weights to safetensors: load the model with from_pretrained and store it with save_pretrained. Or set"
            " run.parallel: ddp."
        )


def require_checkpoint_file(path: str, key: str) -> str:
    """Check that a checkpoint is a file, and return its path.

    Args:
        path: path of the checkpoint.
        key: the configuration key or option with the path, for messages.

    Raises:
        UserError: If the file does not exist or is a folder. The message names the stage of training that produces the file,
            or the kind of folder.
    """
    if path_exists(PATHS.isdir, path, key):
        raise UserError(f"{key}: '{path}' is a folder, but a checkpoint is a file. {_kind_of_folder(Path(path))}")
    if not PATHS.isfile(path):
        stages = re.findall(r"stage[_-]?([12])(?![0-9])", path, re.IGNORECASE)
        raise not_a_file(key, path, f"{_produced_by(stages[-1])} Or correct the path." if stages else "Correct the path.")
    return path


def _produced_by(stage: str) -> str:
    """Return a sentence about how to get the checkpoint of a stage."""
    return (
        f"Stage {stage} of training produces this checkpoint ({_STAGES[stage]}): train it first, and copy the best checkpoint"
        " of its run folder there, or name that checkpoint in model.ckpt."
    )


def _kind_of_folder(folder: Path) -> str:
    """Return sentences about the kind of a folder that was set in place of a checkpoint, and the remedy."""
    if (folder / "adapter_config.json").is_file():
        command = f"emollama checkpoint convert {folder} --to pth --output FILE.pth"
        return f"It contains PEFT adapters. Convert them with '{command}', and set the path of that file."
    if (folder / "config.json").is_file():
        return "It contains a Hugging Face language model, which belongs in model.llama_model."
    if any(folder.glob("shard-*.safetensors")):
        where = folder.parent.parent
        return f"It contains the parts of a sharded checkpoint. Set the checkpoint itself, a .pth file in '{where}'."
    if names := sorted(path.name for path in folder.glob("checkpoint*.pth")):
        best = next((name for name in ("checkpoint_best.pth", "checkpoint_last.pth") if name in names), names[-1])
        return f"It is the folder of a run. Set one of its checkpoints, such as '{folder / best}'."
    return "Set the path of a file."


def other_architecture(expected: Mapping[str, Tensor], stored: Mapping[str, Tensor], architecture: str) -> str:
    """Return a text about the architecture of a checkpoint that does not fit the model; "" if it is not recognized.

    Only models whose Config implements :class:`~emollama.component_configs.RecognizesCheckpoints` are considered.

    Args:
        expected: name in the file -> tensor of the model.
        stored: name in the file -> tensor of the checkpoint.
        architecture: the value of ``model.arch``.
    """
    for other in MODELS.in_order():
        config = MODELS.config(other)
        if not isinstance(config, RecognizesCheckpoints) or not config.recognizes(stored.keys(), expected.keys()):
            continue
        if other == architecture:
            return ""
        description = config.checkpoint_description or other
        return (
            f"this is a checkpoint of {description}, for model.arch: {other}, but model.arch is {architecture}."
            " Use another checkpoint. Details: "
        )
    return ""


def load(file: IO[bytes]) -> Any:
    """Read an open checkpoint onto the CPU.

    The file of a fully trained model has three times the size of its weights. All processes of a machine read it, so the tensors
    of large files are mapped: their pages are in memory once, and only as long as it suffices.
    """
    import torch

    if os.fstat(file.fileno()).st_size < MAPPED or not zipfile.is_zipfile(file):
        file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True)
    # The name of the open file, which another process may replace at any moment.
    return torch.load(f"/dev/fd/{file.fileno()}", map_location="cpu", weights_only=True, mmap=True)
