"""Compatibility with the YAML files of Emotion-LLaMA and MiniGPT-4: renamed keys, and keys that have no effect here.

:func:`translated` renames the keys of a layer before anything is checked. Keys in :data:`WITHOUT_EFFECT` that the block's
component does not have are listed in one warning (:func:`warning`). All other unknown keys are errors. A user's component may
define a key with such a name, which then works like any other key.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from emollama.config import minigpt
from emollama.config.layers import Layer, leaves, selected
from emollama.errors import UserError

DATASETS = ("datasets", "evaluation_datasets")

# Old key -> current key, by kind of block. The keys in a dataset's build_info become keys of its block. A layer that contains
# both an old key and its current name is rejected.
RENAMED = {
    "model": {"use_grad_checkpoint_llm": "use_grad_checkpoint"},
    "datasets": {"ann_path": "annotation_file"},
    "evaluation_datasets": {"ann_path": "annotation_file", "eval_file_path": "annotation_file", "img_path": "image_path"},
    "encoders": {},
    "extraction": {},
    "run": {"save_path": "output_dir"},
}
TEXT_PROCESSOR = {"name": "text_processor", "max_words": "max_words"}

_FEATURES = "model.image_size sets the size of frames in pixels; pre-extracted features (image_feature_path) need no processor"
_ENCODER = "the image encoder is always a frozen EVA-CLIP ViT-g/14 (model.vit_weights), or features are pre-extracted"
_PROCESSES = "the launcher (emollama train, torchrun) sets the number of processes"
_VALIDATION = "all blocks under evaluation_datasets are evaluated: during training with run.evaluate, otherwise by emollama eval"
_BEST = "run.save_best saves the best checkpoint by run.metric; each metric defines which direction is better"
_PATIENCE = "run.early_stop_patience sets early stopping"
_NAME = "run.job_id sets the name of the run folder"
# The text processor of cc_sbu_align; this cannot be the name of a key.
_ALIGN_PROCESSOR = "cc_sbu_align.text_processor"
_DATASET_KEYS = {
    "vis_processor": _FEATURES,
    "data_type": _FEATURES,
    "evaluation_task": _VALIDATION,
    _ALIGN_PROCESSOR: "MiniGPT-4 trains on these captions unchanged; to process them, set text_processor: blip_caption",
}
WITHOUT_EFFECT: dict[str, dict[str, str]] = {
    "model": {
        "model_type": "model.preset selects a preset",
        **dict.fromkeys(("vit_model", "freeze_vit", "drop_path_rate"), _ENCODER),
        **dict.fromkeys(("q_former_model", "num_query_token", "has_qformer"), "this model has no Q-Former"),
        "freeze_qformer": "a Q-Former is always frozen",
        **dict.fromkeys(("prompt", "prompt_path"), "prompts come from the instructions of the dataset"),
        "device_8bit": "each process uses its own device",
    },
    "datasets": _DATASET_KEYS,
    "evaluation_datasets": _DATASET_KEYS,
    "encoders": {},
    "extraction": {},
    "run": {
        **dict.fromkeys(("dist_url", "dist_backend", "world_size", "rank", "gpu", "distributed"), _PROCESSES),
        "use_dist_eval_sampler": "evaluation always distributes the samples over the processes and answers each sample once",
        **dict.fromkeys(("job_name", "name"), _NAME),
        "train_splits": "training uses all blocks under datasets",
        **dict.fromkeys(("batch_size_train", "batch_size_eval"), "the batch_size of dataset blocks that do not set it"),
        **dict.fromkeys(("valid_splits", "test_splits", "evaluation"), _VALIDATION),
        **dict.fromkeys(("metric_for_best_model", "best_model_split", "greater_is_better"), _BEST),
        **dict.fromkeys(("early_stopping_patience", "early_stopping_min_delta"), _PATIENCE),
    },
}
# An evaluation file of Emotion-LLaMA has a block under datasets that only configures its processors. Such a block has at most
# these keys, and no annotation file.
PROCESSOR_KEYS = {
    *("vis_processor", "text_processor", "max_words", "batch_size", "sample_ratio", "data_type", "task_pool", "evaluation_task"),
    _ALIGN_PROCESSOR,
}
PREPROCESS = "the dataset blocks contain the processors"


def translated(layer: Layer) -> Layer:
    """Return the layer with current key names; values that should be mappings and are not are left for later checks.

    Raises:
        UserError: If a key occurs under its old and its current name, or ``build_info`` is not a mapping.
    """
    tree: dict[str, Any] = {}
    old_keys: dict[str, str] = {}
    for group, block in layer.tree.items():
        if group in DATASETS and isinstance(block, dict):
            tree[group] = {
                block_name: _block(layer.name, f"{group}.{block_name}", keys, old_keys) for block_name, keys in block.items()
            }
        elif group in ("model", "run"):
            tree[group] = _block(layer.name, group, block, old_keys)
        elif group == "preprocess":
            # The block has no current equivalent. This entry makes the warning mention it.
            old_keys[group] = group
        else:
            tree[group] = block
    return Layer(layer.name, tree, old_keys, layer.texts)


def old_names(kind: str) -> list[str]:
    """Return the old keys of a kind of block, as candidates for the suggestion after a misspelled key."""
    return [*RENAMED[kind], *(["build_info"] if kind in DATASETS else []), *WITHOUT_EFFECT[kind]]


def processor_blocks(layers: list[Layer]) -> list[str]:
    """Return the labels under ``datasets`` whose blocks only configure the processors of an evaluation."""
    blocks: dict[str, set[str]] = {}
    for layer in layers:
        for block_name, keys in layer.tree.get("datasets", {}).items():
            blocks.setdefault(block_name, set()).update(keys)
    return [
        block_name
        for block_name, keys in blocks.items()
        if "vis_processor" in keys and keys <= PROCESSOR_KEYS and not minigpt.needs_storage(block_name)
    ]


def warning(layers: list[Layer], without_effect: dict[str, str], blocks: dict[str, dict[str, Any]]) -> list[str]:
    """Return a list with one warning about keys that have no effect or another meaning here; it is empty without such keys.

    Args:
        layers: layers with translated keys.
        without_effect: dotted key as written in the file -> why it has no effect.
        blocks: "model", "datasets.<block_name>", ..., "run" -> the block's values, resolved.
    """
    reasons = dict(without_effect)
    if any("preprocess" in layer.old_keys for layer in layers):
        reasons["preprocess"] = PREPROCESS
    for block_name in processor_blocks(layers):
        key = "build_info.storage" if block_name == minigpt.ALIGN else "annotation_file"
        remedy = f"To train on it, set datasets.{block_name}.{key}; to evaluate it, evaluation_datasets.{block_name}.{key}"
        reasons[f"datasets.{block_name}"] = f"the block has no annotation file and is ignored. {remedy}"
    if "model.model_type" in reasons and (effect := minigpt.model_type_effect(layers)):
        reasons["model.model_type"] = effect
    if reasons or any(layer.old_keys for layer in layers):
        reasons |= dict(_other_meanings(layers, blocks))
    if not reasons:
        return []
    keys_by_reason: dict[str, list[str]] = {}
    for key, reason in reasons.items():
        keys_by_reason.setdefault(reason, []).append(key)
    lines = [f"- {', '.join(keys)}: {reason}" for reason, keys in keys_by_reason.items()]
    headline = "keys of Emotion-LLaMA or MiniGPT-4 that have no effect or another meaning here:"
    return ["\n".join([f"{layers[0].name}: {headline}", *lines])]


def _block(layer: str, path: str, keys: Any, old_keys: dict[str, str]) -> Any:
    """Return one block with current key names; add the renamed keys to ``old_keys``."""
    if not isinstance(keys, dict):
        return keys
    block: dict[str, Any] = {}
    names: dict[str, str] = {}
    for name, value, old_name in _pairs(f"{layer}: '{path}", path, keys):
        if name in block and name != _ALIGN_PROCESSOR:
            raise UserError(f"{layer}: '{path}.{names[name]}' and '{path}.{old_name}' both set '{name}'. Keep one of them.")
        block[name], names[name] = value, old_name
    old_keys |= {f"{path}.{name}": old_name for name, old_name in names.items() if name != old_name}
    return block


def _pairs(where: str, path: str, keys: dict[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """Yield (current key, value, key as written in the file) for each key of a block."""
    kind, _, block_name = path.partition(".")
    is_align = kind in DATASETS and block_name == minigpt.ALIGN and "type" not in keys
    for key, value in keys.items():
        if kind in DATASETS and key == "build_info":
            if not isinstance(value, dict):
                raise UserError(f"{where}.build_info' must be a block of keys, not {value!r}")
            for inner, inner_value in value.items():
                yield from _current_pairs(kind, (str(inner), inner_value, f"build_info.{inner}"), is_align)
        elif kind in DATASETS and key == "text_processor" and isinstance(value, dict):
            for name, inner_value, old_key in _processor(value, "eval" if kind == "evaluation_datasets" else "train"):
                yield (_ALIGN_PROCESSOR if is_align and name in TEXT_PROCESSOR.values() else name), inner_value, old_key
        else:
            yield from _current_pairs(kind, (key, value, key), is_align)


def _current_pairs(kind: str, pair: tuple[str, Any, str], is_align: bool) -> Iterator[tuple[str, Any, str]]:
    """Yield (key, value, key as written in the file) with the current key; the storage of cc_sbu_align stands for two keys."""
    key, value, old_key = pair
    if is_align and key == "storage" and isinstance(value, str):
        for name, file in minigpt.ALIGN_FILES.items():
            yield name, f"{value.rstrip('/')}/{file}", old_key
    elif kind == "model" and key == "arch" and isinstance(value, str):
        yield key, minigpt.ARCHITECTURES.get(value, value), old_key
    else:
        yield RENAMED[kind].get(key, key), value, old_key


def _processor(splits: dict[str, Any], preferred: str) -> Iterator[tuple[str, Any, str]]:
    """Yield the keys of one split of ``{train: {name, max_words}, eval: ...}``: the preferred split, or else the first."""
    used = preferred if preferred in splits else next(iter(splits), preferred)
    for split, keys in splits.items():
        if split not in ("train", "eval") or not isinstance(keys, dict):
            # This key does not exist, so that later checks report it with the name that the file uses.
            yield f"text_processor.{split}", keys, f"text_processor.{split}"
            continue
        for key, value in keys.items():
            old_key = f"text_processor.{split}.{key}"
            if split == used or key not in TEXT_PROCESSOR:
                yield TEXT_PROCESSOR.get(key, old_key), value, old_key


def _other_meanings(layers: list[Layer], blocks: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield (key, its meaning here) for the keys to which Emotion-LLaMA and MiniGPT-4 give another meaning."""
    model, run = blocks.get("model", {}), blocks["run"]
    if selected(layers, ["model", "use_grad_checkpoint"], None) == "True" and not _renamed(layers, "model.use_grad_checkpoint"):
        yield "model.use_grad_checkpoint", "applies to the language model here, not to the image encoder"
    if run.get("evaluate") is True:
        yield "run.evaluate", "evaluates evaluation_datasets during training; run.evaluate_only evaluates without training"
    for key, size in dict(_frame_sizes(layers)).items():
        if size != model.get("image_size", size):
            yield key, f"is {size}, but images and frames of EVA features have the size model.image_size {model['image_size']}"
    if run.get("accum_grad_iters", 1) > 1:
        meaning = "count optimizer steps here, not micro-batches; for the old meaning, divide them by accum_grad_iters"
        yield "run.iters_per_epoch, run.warmup_steps", meaning
    for path, block in blocks.items():
        if path.startswith(DATASETS) and _renamed(layers, f"{path}."):
            yield from _different_defaults(layers, path, block)


def _different_defaults(layers: list[Layer], path: str, block: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (key, its value) for the keys that a dataset block of an old file does not set and whose default differs."""
    unset = [key for key in ("task_pool", "prompt_layout") if selected(layers, [*path.split("."), key], None) is None]
    if "task_pool" in unset and block["type"] == "feature_face_caption" and block["preset"] is None:
        yield f"{path}.task_pool", f"is not set and has the default {block['task_pool']}; Emotion-LLaMA sets it in Python code"
    if "prompt_layout" in unset and block.get("prompt_layout") == "train":
        yield f"{path}.prompt_layout", "is train; the released checkpoints were evaluated with upstream_eval"


def _frame_sizes(layers: list[Layer]) -> Iterator[tuple[str, int]]:
    """Yield (key, pixels) for the image_size of every vis_processor."""
    for layer in layers:
        for key, value in leaves(layer.tree):
            if ".vis_processor." in key and key.endswith(".image_size") and isinstance(value, int):
                yield key, value


def _renamed(layers: list[Layer], start: str) -> bool:
    """Return whether a layer uses the old name of a key whose current name starts with ``start``."""
    return any(key.startswith(start) for layer in layers for key in layer.old_keys)
