"""What MiniGPT-4 configures outside of a YAML file: the defaults of a ``model_type``, and the datasets that it knows by name.

The YAML files of MiniGPT-4 name a ``model_type``, whose own file contains further keys, and datasets whose paths are in further
files. Here, a ``model_type`` is a layer of keys below the YAML file, and the name of such a dataset selects a ``type``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from emollama.config.layers import Layer, selected
from emollama.errors import UserError
from emollama.suggestions import did_you_mean

ARCHITECTURES = {"mini_gpt4": "minigpt4"}  # earlier name -> current name
# The image encoder is always frozen, so its drop path and gradient checkpointing have no equivalent.
_MINIGPT4 = {
    "image_size": 224,
    "vit_precision": "fp16",
    "max_txt_len": 32,
    "end_sym": "\n",
    "has_qformer": True,
    "num_query_token": 32,
}
_MODEL_TYPES: dict[str, dict[str, dict[str, Any]]] = {
    "minigpt4": {
        "pretrain_vicuna0": _MINIGPT4,
        "pretrain_vicuna": _MINIGPT4,
        "pretrain_llama2": _MINIGPT4 | {"has_qformer": False},
    },
    "minigpt_v2": {"pretrain": {"image_size": 448, "vit_precision": "fp16", "lora_r": 64, "lora_alpha": 16}},
}
# Stage 1 of MiniGPT-4 trains without a prompt: the caption follows the image.
_NO_PROMPT = {"prompt_format": {"type": "minigpt4", "prompts": ["<ImageHere>"]}, "prompt_template": "{}"}

DATASET_TYPES = {"laion": "image_text_tars", "cc_sbu": "image_text_tars", "cc_sbu_align": "flickr30k_caption"}
ALIGN = "cc_sbu_align"
# Files in the folder of cc_sbu_align, by the key that is set instead of its storage.
ALIGN_FILES = {"annotation_file": "filter_cap.json", "image_path": "image"}
_UNREAD = {
    *("multitask_conversation", "unnatural_instruction", "llava_conversation", "llava_detail", "llava_reason"),
    *("refvg", "refcoco", "refcocop", "refcocog", "refcoco+", "invrefcoco", "invrefcocop", "invrefcocog"),
    *("flickr_grounded_caption", "flickr_CaptionToPhrase", "flickr_ObjectToPhrase", "coco_caption", "textcaps_caption"),
    *("grounded_detailed_image_caption", "CaptionToPhrase", "ObjectToPhrase"),
    *("coco_vqa", "ok_vqa", "okvqa", "aok_vqa", "gqa", "ocrvqa", "vizwiz", "iconvqa", "vsr", "hm"),
}
_BATCH_SIZES = {"datasets": "batch_size_train", "evaluation_datasets": "batch_size_eval"}


def implied_layer(layers: list[Layer], path: str, name: str, fields: Collection[str]) -> Layer | None:
    """Return the keys of a block that other keys of MiniGPT-4 imply, as a layer below all others; None without such keys.

    Args:
        layers: layers with translated keys.
        path: dotted path of the block.
        name: registered name of its component.
        fields: keys of the component.

    Raises:
        UserError: If the component has no such ``model_type``.
    """
    if path == "model":
        return _model_type_layer(layers, name, fields)
    batch_size = _BATCH_SIZES.get(path.partition(".")[0])
    value = None if batch_size is None or "batch_size" not in fields else _value(layers, "run", batch_size)
    return None if value is None else Layer(f"run.{batch_size}", {"batch_size": value})


def model_type_effect(layers: list[Layer]) -> str | None:
    """Return the effect of ``model.model_type`` on keys that no layer sets; None if the architecture has no model types."""
    arch = selected(layers, ["model", "arch"], None)
    layer = _model_type_layer(layers, arch or "", ())
    if layer is None:
        return None
    unset = {key: value for key, value in layer.tree.items() if _value(layers, "model", key) is None}
    return (
        f"sets {', '.join(f'{key}: {value!r}' for key, value in unset.items())}"
        if unset
        else "sets no key that the file does not"
    )


def require_known_datasets(name: str, block_paths: Iterable[str]) -> None:
    """Check that blocks are not those of datasets that only MiniGPT-v2 reads.

    Args:
        name: name of the configuration file, for messages.
        block_paths: paths of the blocks whose label selects their dataset, and whose label is not registered.

    Raises:
        UserError: If there are such blocks. The message contains all of them.
    """
    unread = [path for path in block_paths if path.partition(".")[2] in _UNREAD]
    if unread:
        raise UserError(
            f"{name}: {', '.join(unread)}: these are datasets of MiniGPT-v2 (questions, boxes, captions and conversations about"
            " images) that this package cannot read, because it trains on emotions in clips and on captions of images. Remove the"
            " blocks (in --options, BLOCK=null), or register a dataset class for each of these names (docs/extending.md)."
        )


def needs_storage(block_name: str) -> bool:
    """Return whether a block without paths is incomplete; other such blocks are the processors of an evaluation."""
    return DATASET_TYPES.get(block_name) == "image_text_tars" or block_name in _UNREAD


def _model_type_layer(layers: list[Layer], arch: str, fields: Collection[str]) -> Layer | None:
    model_type = selected(layers, ["model", "model_type"], None)
    types = _MODEL_TYPES.get(arch)
    if model_type is None or types is None or "model_type" in fields:
        return None
    if model_type not in types:
        hint = did_you_mean(model_type, types)
        raise UserError(f"model.model_type: arch {arch} has no model_type '{model_type}'.{hint} It has {', '.join(types)}.")
    keys = dict(types[model_type])
    own_prompt = ("prompt_path", "prompt_template", "prompt_format")
    if arch == "minigpt4" and all(_value(layers, "model", key) is None for key in own_prompt):
        keys |= _NO_PROMPT
    return Layer(f"model_type {model_type}", keys)


def _value(layers: list[Layer], block: str, key: str) -> Any:
    """Return the value of a key from the last layer that sets it; None without one."""
    values = [keys[key] for layer in layers if isinstance(keys := layer.tree.get(block), dict) and key in keys]
    return values[-1] if values else None
