"""Checks of the language model's folder and of the checkpoint that a configuration names, with explanations."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from emollama.errors import UserError
from emollama.paths import PATHS, looked_up, not_a_file, require_folder
from emollama.registry import MODELS

if TYPE_CHECKING:
    from torch import Tensor

_STAGES = {  # the stage in a checkpoint's path -> the configuration that trains it
    "1": "train_configs/Emotion-LLaMA_finetune.yaml",
    "2": "train_configs/minigptv2_tuning_stage_2.yaml",
}


def require_language_model(path: str) -> str:
    """The path, if it is a folder.

    Raises:
        UserError: it is not; the message says what the folder of ``model.llama_model`` holds.
    """
    text = "Download a Hugging Face causal language model (config.json, weights, tokenizer) and name its folder."
    return require_folder(path, "model.llama_model", text)


def require_checkpoint_file(path: str, key: str) -> str:
    """The path, if it is a file.

    Args:
        path: of a checkpoint.
        key: the configuration key that named it, for messages.

    Raises:
        UserError: there is none, and which stage of training produces it; or it is a folder, and which kind of folder.
    """
    if looked_up(PATHS.isdir, path, key):
        raise UserError(f"{key}: '{path}' is a folder, and a checkpoint is a file. {_kind_of_folder(Path(path))}")
    if not PATHS.isfile(path):
        stages = re.findall(r"stage[_-]?([12])(?![0-9])", path, re.IGNORECASE)
        raise not_a_file(key, path, f"{_produced_by(stages[-1])} Or correct the path." if stages else "Correct the path.")
    return path


def _produced_by(stage: str) -> str:
    """A sentence about where the checkpoint of a stage comes from."""
    return (
        f"Stage {stage} of training produces this checkpoint ({_STAGES[stage]}): train it first, and copy the best checkpoint"
        " of its run folder there, or name that checkpoint in model.ckpt."
    )


def _kind_of_folder(folder: Path) -> str:
    """Sentences about what a folder is that was named in place of a checkpoint."""
    if (folder / "adapter_config.json").is_file():
        text = f"It holds PEFT adapters: 'emollama checkpoint convert {folder} --to pth --output FILE.pth' makes a checkpoint."
        return f"{text} Name that file."
    if (folder / "config.json").is_file():
        return "It holds a language model of Hugging Face, which model.llama_model names."
    if names := sorted(path.name for path in folder.glob("checkpoint*.pth")):
        best = next((name for name in ("checkpoint_best.pth", "checkpoint_last.pth") if name in names), names[-1])
        return f"It is the folder of a run: name one of its checkpoints, such as '{folder / best}'."
    return "Name the file."


def other_architecture(wanted: Mapping[str, Tensor], stored: Mapping[str, Tensor], architecture: str) -> str:
    """What a checkpoint is that does not fit the model: a text to put before the details; "" if its names do not tell.

    The Configs of the models tell by ``recognizes`` and ``contents``; see
    :class:`~emollama.models.configs.LLMConfig`.

    Args:
        wanted: name in the file -> tensor of the model.
        stored: name in the file -> tensor of the checkpoint.
        architecture: the ``model.arch``.
    """
    for other in MODELS.in_order():
        config = MODELS.config(other)
        recognizes = getattr(config, "recognizes", None)
        if recognizes is None or not recognizes(stored.keys(), wanted.keys()):
            continue
        if other == architecture:
            return ""
        return (
            f"this is a checkpoint of {config.contents or other}, for model.arch: {other}, but model.arch is {architecture}."
            " Name another one; "
        )
    return ""
