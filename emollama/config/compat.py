"""YAML of the predecessors (Emotion-LLaMA, MiniGPT-4): their names for our keys, and keys of theirs that do nothing here.

A layer's plain tree is put into our names before anything is checked (:func:`translated`). What is then no key of its block
is looked up in :data:`WITHOUT_EFFECT`; it goes into the one warning of the run (:func:`warning`), and anything else that is
unknown is an error. A component of somebody's own may well have such a key: then it is simply that component's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from emollama.config.layers import Layer, leaves, selected
from emollama.errors import UserError

DATASETS = ("datasets", "evaluation_datasets")

# Their name -> ours, by kind of block; a dataset's build_info belongs to its block. Giving both in one layer is an error.
RENAMED = {
    "model": {"use_grad_checkpoint_llm": "use_grad_checkpoint"},
    "datasets": {"ann_path": "annotation_file"},
    "evaluation_datasets": {"ann_path": "annotation_file", "eval_file_path": "annotation_file", "img_path": "image_path"},
    "encoders": {},
    "extraction": {},
    "run": {"save_path": "output_dir"},
}
TEXT_PROCESSOR = {"name": "text_processor", "max_words": "max_words"}

_FEATURES = "frames become model.image_size pixels wide and high; or image features are pre-extracted (image_feature_path)"
_ENCODER = "the image encoder is EVA-CLIP ViT-g/14, frozen: model.vit_weights, or pre-extracted features"
_PROCESSES = "torchrun says how many processes there are"
_VALIDATION = "every block under evaluation_datasets is answered: while training with run.evaluate, alone by eval_emotion_EMER.py"
_BEST = "the best checkpoint is kept by run.save_best and run.metric, whose direction is known"
_PATIENCE = "training ends early by run.early_stop_patience"
_NAME = "a run's folder is named by run.job_id"
_DATASET_KEYS = {
    "vis_processor": _FEATURES,
    "data_type": _FEATURES,
    "evaluation_task": _VALIDATION,
}
WITHOUT_EFFECT: dict[str, dict[str, str]] = {
    "model": {
        "model_type": "presets are chosen by model.preset",
        **dict.fromkeys(("vit_model", "freeze_vit", "drop_path_rate"), _ENCODER),
        **dict.fromkeys(("q_former_model", "num_query_token", "has_qformer"), "this model has no Q-Former"),
        "freeze_qformer": "where there is a Q-Former, it is frozen",
        **dict.fromkeys(("prompt", "prompt_path"), "questions come from a dataset's instructions"),
        "device_8bit": "every process has its own device",
    },
    "datasets": _DATASET_KEYS,
    "evaluation_datasets": _DATASET_KEYS,
    "encoders": {},
    "extraction": {},
    "run": {
        **dict.fromkeys(("dist_url", "dist_backend", "world_size", "rank", "gpu", "distributed"), _PROCESSES),
        "use_dist_eval_sampler": "clips are always shared out among the processes, each answered once",
        **dict.fromkeys(("job_name", "name"), _NAME),
        "train_splits": "every block under datasets is trained on",
        **dict.fromkeys(("batch_size_train", "batch_size_eval"), "each dataset's block has its batch_size"),
        **dict.fromkeys(("valid_splits", "test_splits", "evaluation"), _VALIDATION),
        **dict.fromkeys(("metric_for_best_model", "best_model_split", "greater_is_better"), _BEST),
        **dict.fromkeys(("early_stopping_patience", "early_stopping_min_delta"), _PATIENCE),
    },
}
# Keys of a block that names no clips and only lends processors to an evaluation.
LENT = {"vis_processor", "text_processor", "max_words", "batch_size", "sample_ratio", "data_type", "task_pool", "evaluation_task"}
PREPROCESS = "processors stand in the datasets' blocks"


def translated(layer: Layer) -> Layer:
    """The layer in our names; what is no mapping is left for the checks to find.

    Raises:
        UserError: two names for one thing, or a ``build_info`` that is no mapping.
    """
    tree: dict[str, Any] = {}
    written: dict[str, str] = {}
    for group, block in layer.tree.items():
        if group in DATASETS and isinstance(block, dict):
            tree[group] = {label: _block(layer.name, f"{group}.{label}", keys, written) for label, keys in block.items()}
        elif group in ("model", "run"):
            tree[group] = _block(layer.name, group, block, written)
        elif group == "preprocess":
            written[group] = group  # for the warning; it has no place in the tree
        else:
            tree[group] = block
    return Layer(layer.name, tree, written)


def old_names(kind: str) -> list[str]:
    """The predecessors' keys of a kind of block: the nearest one to a misspelt key may be among them."""
    return [*RENAMED[kind], *(["build_info"] if kind in DATASETS else []), *WITHOUT_EFFECT[kind]]


def left_out(layers: list[Layer]) -> list[str]:
    """Labels under ``datasets`` that only lend processors to an evaluation: no layer names clips to train on."""
    blocks: dict[str, set[str]] = {}
    for layer in layers:
        for label, keys in layer.tree.get("datasets", {}).items():
            blocks.setdefault(label, set()).update(keys)
    return [label for label, keys in blocks.items() if "vis_processor" in keys and keys <= LENT]


def warning(layers: list[Layer], without_effect: dict[str, str], blocks: dict[str, dict[str, Any]]) -> list[str]:
    """One text that names every key of theirs that has no effect here or another one; no text where there is none.

    Args:
        layers: in our names.
        without_effect: dotted key as written -> why, of the keys that no component has.
        blocks: "model", "datasets.<label>", ..., "run" -> the block's values, resolved.
    """
    found = dict(without_effect)
    if any("preprocess" in layer.written for layer in layers):
        found["preprocess"] = PREPROCESS
    for label in left_out(layers):
        words = f"lends processors and names no clips: left out. To train on it, set datasets.{label}.annotation_file"
        found[f"datasets.{label}"] = words
    if found or any(layer.written for layer in layers):
        found |= dict(_other_meanings(layers, blocks))
    if not found:
        return []
    keys_of: dict[str, list[str]] = {}
    for key, words in found.items():
        keys_of.setdefault(words, []).append(key)
    lines = [f"- {', '.join(keys)}: {words}" for words, keys in keys_of.items()]
    return ["\n".join([f"{layers[0].name}: keys of the predecessors that do nothing here, or something else:", *lines])]


def _block(layer: str, path: str, keys: Any, written: dict[str, str]) -> Any:
    """One block in our names; enters what was called otherwise into ``written``."""
    if not isinstance(keys, dict):
        return keys
    block: dict[str, Any] = {}
    names: dict[str, str] = {}
    for name, value, given in _pairs(f"{layer}: '{path}", path.partition(".")[0], keys):
        if name in block:
            raise UserError(f"{layer}: '{path}.{names[name]}' and '{path}.{given}' are both given for '{name}'. Keep one.")
        block[name], names[name] = value, given
    written |= {f"{path}.{name}": given for name, given in names.items() if name != given}
    return block


def _pairs(where: str, kind: str, keys: dict[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """(our key, value, key as written within the block) of a block's keys."""
    for key, value in keys.items():
        if kind in DATASETS and key == "build_info":
            if not isinstance(value, dict):
                raise UserError(f"{where}.build_info' is a block of keys, not {value!r}")
            for inner, given in value.items():
                yield RENAMED[kind].get(inner, str(inner)), given, f"build_info.{inner}"
        elif kind in DATASETS and key == "text_processor" and isinstance(value, dict):
            yield from _processor(value, "eval" if kind == "evaluation_datasets" else "train")
        else:
            yield RENAMED[kind].get(key, key), value, key


def _processor(splits: dict[str, Any], wanted: str) -> Iterator[tuple[str, Any, str]]:
    """The keys of ``{train: {name, max_words}, eval: ...}``: of the wanted split, or of the other where that is absent."""
    used = wanted if wanted in splits else next(iter(splits), wanted)
    for split, keys in splits.items():
        if split not in ("train", "eval") or not isinstance(keys, dict):
            yield f"text_processor.{split}", keys, f"text_processor.{split}"  # no key of anything: the checks will say so
            continue
        for key, value in keys.items():
            given = f"text_processor.{split}.{key}"
            if split == used or key not in TEXT_PROCESSOR:
                yield TEXT_PROCESSOR.get(key, given), value, given


def _other_meanings(layers: list[Layer], blocks: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """(key, what it means here) where a file of theirs would mean something else."""
    model, run = blocks.get("model", {}), blocks["run"]
    if selected(layers, ["model", "use_grad_checkpoint"], None) == "True" and not _renamed(layers, "model.use_grad_checkpoint"):
        yield "model.use_grad_checkpoint", "is the language model's here, and was the image encoder's"
    if run.get("evaluate") is True:
        yield "run.evaluate", "answers evaluation_datasets while training; run.evaluate_only answers without training"
    for key, size in dict(_frame_sizes(layers)).items():
        if size != model.get("image_size", size):
            yield key, f"is {size}, but images, and frames of EVA caches, have the size of model.image_size {model['image_size']}"
    if run.get("accum_grad_iters", 1) > 1:
        words = "count optimizer steps here, and counted micro-batches: divided by accum_grad_iters they are what they were"
        yield "run.iters_per_epoch, run.warmup_steps", words
    for path, block in blocks.items():
        if path.startswith(DATASETS) and _renamed(layers, f"{path}."):
            yield from _silent_changes(layers, path, block)


def _silent_changes(layers: list[Layer], path: str, block: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What a dataset's block of theirs leaves to a default that differs."""
    silent = [key for key in ("task_pool", "prompt_layout") if selected(layers, [*path.split("."), key], None) is None]
    if "task_pool" in silent and block["type"] == "feature_face_caption" and block["preset"] is None:
        yield f"{path}.task_pool", f"is not given, so it is {block['task_pool']}; older files left it to Python code"
    if "prompt_layout" in silent and block.get("prompt_layout") == "train":
        yield f"{path}.prompt_layout", "is train; released checkpoints were evaluated with upstream_eval"


def _frame_sizes(layers: list[Layer]) -> Iterator[tuple[str, int]]:
    """(key, pixels) of every vis_processor's image_size."""
    for layer in layers:
        for key, value in leaves(layer.tree):
            if ".vis_processor." in key and key.endswith(".image_size") and isinstance(value, int):
                yield key, value


def _renamed(layers: list[Layer], start: str) -> bool:
    """Whether a key of ours that starts so was given by another name."""
    return any(key.startswith(start) for layer in layers for key in layer.written)
