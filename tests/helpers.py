"""Helpers shared by several test files: the golden corpus, its configurations, and ways to damage both."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from emollama import config
from emollama.config import RunConfig

GOLDEN = Path(__file__).parent / "golden"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))["clips"]
TRAJECTORY = json.loads((GOLDEN / "trajectory.json").read_text(encoding="utf-8"))
NAMES = sorted(EXPECTED)
TASKS = ("emotion", "reason", "reason_v2")
FOLDERS = {"image": "eva", "face": "mae_340_UTT", "video": "maeV_399_UTT", "audio": "HL-UTT"}

LLAMA_2_7B = {  # config.json of a model of these shapes
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
}

NINE = ["happy", "sad", "neutral", "angry", "worried", "surprise", "fear", "contempt", "doubt"]
_CLUES = ["Tell which emotion the person shows and name the clues in the face, the voice and the words that speak for it."]
INSTRUCTIONS = {
    "emotion": ["Which one of these emotions does the clip show: {labels}?"],
    "reason": _CLUES,
    "reason_v2": _CLUES,
}


def golden_block(data: Path | None = None) -> dict[str, Any]:
    """A dataset block for the golden corpus or a copy of it."""
    return {
        "type": "feature_face_caption",
        "data_root": str(data or GOLDEN / "data"),
        "annotation_file": "MERR_coarse_grained.txt",
        "instructions": INSTRUCTIONS,
    }


def golden_tree(folder: Path, data: Path | None = None) -> dict[str, Any]:
    """A configuration of the golden corpus as plain dicts, which a test can change and write.

    Args:
        folder: parent of the output folder ``out``.
        data: a copy of the corpus, in place of the original.
    """
    block = golden_block(data)
    six = ["happy", "sad", "neutral", "angry", "worried", "surprise"]
    return {
        "model": {
            "arch": "minigpt_v2",
            "llama_model": str(GOLDEN / "llama"),
            "ckpt": str(GOLDEN / "checkpoint_slim.pth"),
            "lora_r": 4,
            "lora_dropout": 0.0,
            "slot_dims": {"image": 176},
            "image_size": 112,
            "use_grad_checkpoint": False,
        },
        "datasets": {"golden": {**block, "task_pool": ["emotion"], "shuffle": False, "labels": six, "prompt_labels": NINE}},
        "evaluation_datasets": {"answers": {**block, "task_pool": list(TASKS), "max_new_tokens": 8, "batch_size": 3}},
        "run": {
            "max_epoch": 1,
            "iters_per_epoch": 2,
            "num_workers": 0,
            "amp": False,
            "device": "cpu",
            "output_dir": str(folder / "out"),
            "job_id": "run",
        },
    }


def training_tree(folder: Path, data: Path, task_pool: Sequence[str] = ("emotion",)) -> dict[str, Any]:
    """The configuration of :func:`golden_tree` without evaluation blocks, with these tasks."""
    tree = golden_tree(folder, data)
    del tree["evaluation_datasets"]
    tree["datasets"]["golden"]["task_pool"] = list(task_pool)
    return tree


def write(folder: Path, tree: Any) -> str:
    """Write a tree as YAML (JSON is YAML whose strings are quoted); returns the file's path."""
    path = folder / "config.yaml"
    path.write_text(tree if isinstance(tree, str) else json.dumps(tree, indent=1), encoding="utf-8")
    return str(path)


def loaded(folder: Path, tree: Any, *options: str) -> RunConfig:
    """Load the configuration that results from a tree and options."""
    return config.load(write(folder, tree), list(options))


def loaded_shipped_configs() -> dict[str, RunConfig]:
    """Path below the repository's root -> each shipped configuration, loaded without environment variables."""
    root = Path(__file__).parent.parent
    paths = sorted(path for folder in ("train_configs", "eval_configs") for path in (root / folder).glob("**/*.yaml"))
    texts = {str(path.relative_to(root)): path.read_text(encoding="utf-8") for path in paths}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for variable in {name for text in texts.values() for name in re.findall(r"\$\{oc\.env:(\w+)", text)}:
            patch.delenv(variable, raising=False)
        return {path: config.load(path) for path in texts}


def joined_parts(models: Sequence[Any]) -> dict[str, Any]:
    """Name -> the tensor that the parts in all processes make up, for each parameter that was loaded in parts."""
    import torch

    from emollama.weight_parts import part_of

    named = [dict(model.named_parameters(remove_duplicate=False)) for model in models]
    return {
        name: torch.cat([part_of(one[name]).values for one in named])
        for name, parameter in named[0].items()
        if part_of(parameter) is not None
    }
