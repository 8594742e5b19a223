"""Datasets and model of a run, checked before anything costs time."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from emollama import checkpoint
from emollama.checkpoint_files import require_checkpoint_file, require_language_model
from emollama.config import RunConfig
from emollama.distributed.process_group import World
from emollama.errors import UserError
from emollama.listing import LINES, abbreviated
from emollama.logs.logger import get_logger
from emollama.precision import Precision
from emollama.runners import provenance

# Keys of a model that no shape in a checkpoint tells -> what comes of another value.
NON_SHAPE_KEYS = {
    "lora_alpha": "its adapters are rescaled",
    "prompt_template": "it is asked otherwise than it learnt",
    "chat_template": "it is asked otherwise than it learnt",
    "end_sym": "it ends its answers otherwise",
}


def training_blocks(config: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Path of each block under ``datasets`` -> (its class, its Config)."""
    return {f"datasets.{label}": (config.classes[f"datasets.{label}"], cfg) for label, cfg in config.datasets.items()}


def build_datasets(config: RunConfig, blocks: Mapping[str, tuple[Any, Any]], *, training: bool, check: bool) -> dict[str, Any]:
    """Path of each block -> dataset.

    Args:
        config: the resolved configuration.
        blocks: path of each block -> (its class, its Config).
        training: whether the clips are trained on, or answered.
        check: look at every clip's files; rank 0 does it for all.

    Raises:
        UserError: no block, or anything wrong with the data: all of it in one message.
    """
    if not blocks:
        without = "".join(config.warnings) and " (blocks that name no clips are left out, see the warning)"
        group, other = ("datasets", "") if training else ("evaluation_datasets", ", or hold clips out of 'datasets' (held_out)")
        add = f"Add one: {{feature_face_caption: {{annotation_file: ...}}}}{other}"
        raise UserError(f"'{group}' has no block{without}. {add}.{_command_for_other_blocks(config, training)}")
    shapes = config.classes["model"].slot_shapes(config.model)
    datasets = {path: made(cfg, slot_shapes=shapes, label=path, training=training) for path, (made, cfg) in blocks.items()}
    problems = [problem.text for dataset in datasets.values() for problem in dataset.problems()] if check else []
    if problems:
        raise UserError(f"the data cannot be used:{LINES}{abbreviated(problems, LINES)}")
    for dataset in datasets.values():
        for note in dataset.notes:
            get_logger().info("%s", note)
    return datasets


def _command_for_other_blocks(config: RunConfig, training: bool) -> str:
    """A sentence (with a leading space) with the command for the blocks that a configuration does have, or ""."""
    if training and config.evaluation_datasets:
        return " To answer the blocks of 'evaluation_datasets', use emollama eval."
    if not training and config.datasets:
        return " To train on 'datasets' without evaluations, use emollama train with run.evaluate=False."
    return ""


def batch_size(datasets: dict[str, Any]) -> int:
    """The micro-batch size that all datasets of a run share.

    Raises:
        UserError: they differ.
    """
    sizes = {label: dataset.cfg.batch_size for label, dataset in datasets.items()}
    if len(set(sizes.values())) > 1:
        raise UserError(f"datasets mixed in one run need one batch_size; these have {sizes}")
    return int(next(iter(sizes.values())))


def build_models(
    config: RunConfig, world: World, precision: Precision, tensors: list[dict[str, Tensor]], resumed: dict[str, Any] | None = None
) -> list[Any]:
    """The model on this process's device, with its checkpoint's tensors; one for each checkpoint of an ensemble.

    The members of an ensemble share what is frozen.

    Args:
        config: the resolved configuration.
        world: the processes.
        precision: gives the dtype of frozen weights.
        tensors: of :func:`checkpoint_tensors`.
        resumed: content of the checkpoint to resume from; None starts from ``model.ckpt``, if there is one.

    Raises:
        UserError: an unusable language model.
    """
    cfg, model_class, (sources, allowed) = config.model, config.classes["model"], _sources(config, resumed)
    if world.is_main:
        get_logger().info("loading the language model from %s", cfg.llama_model)
    if world.is_main and not tensors:
        get_logger().warning("model.ckpt is null: projections and adapters start from random values")
    torch.manual_seed(config.run.seed)
    model = model_class(cfg, device=world.device, frozen_dtype=precision.frozen_dtype)
    frozen = {id(value): value for value in [*model.parameters(), *model.buffers()] if not value.requires_grad}
    members = [model, *(copy.deepcopy(model, dict(frozen)) for _ in tensors[1:])]
    for member, stored in zip(members, tensors, strict=False):
        checkpoint.load_trainable(member, stored, path=", ".join(sources), allow_missing=allowed)
    return members


def checkpoint_tensors(
    config: RunConfig,
    precision: Precision,
    resumed: dict[str, Any] | None,
    features: Mapping[str, provenance.ProvenanceFields],
    *,
    training: bool,
) -> list[dict[str, Tensor]]:
    """Stored name -> tensor, for each member of the ensemble; empty if the model starts from random values.

    Names and shapes are compared with a model on the meta device; no weights of the language model are read.

    Args:
        config: the resolved configuration.
        precision: gives the dtype of frozen weights.
        resumed: content of the checkpoint to resume from; None starts from ``model.ckpt``, if there is one.
        features: slot -> how the run's features were made, where that is known.
        training: False for evaluation, which needs a checkpoint, and may have several.

    Raises:
        UserError: an unusable language model or checkpoint.
    """
    cfg, voting = config.model, not resumed and is_ensemble(config.model)
    if training and voting:
        raise UserError(
            "model.ckpt lists several checkpoints, but training starts from one. Name one, or set model.ensemble: weights to"
            " start from their mean."
        )
    shapes = config.classes["model"](cfg, device=torch.device("meta"), frozen_dtype=precision.frozen_dtype)
    if not training:
        require_checkpoint(cfg)
    sources, allowed = _sources(config, resumed)
    found = []
    for source in sources:
        content = resumed or checkpoint.read(source, "model.ckpt")
        _compare_keys(content, cfg, source)
        unlike = provenance.checkpoint_mismatches(content.get("features"), features, source)
        provenance.require_no_mismatches(unlike, config.run.allow_other_features)
        for note in checkpoint.load_trainable(shapes, content["model"], path=source, allow_missing=allowed, dry=True):
            get_logger().info("%s", note)
        found.append(content["model"])
    return found if voting or len(found) < 2 else [checkpoint.mean(found)]


def _sources(config: RunConfig, resumed: dict[str, Any] | None) -> tuple[list[str], list[str]]:
    """The files that the model's tensors come from, and globs of names that may be absent in them."""
    if resumed:
        return [str(resumed["path"])], []
    return checkpoint_paths(config.model.ckpt), config.model.ckpt_allow_missing


def require_checkpoint(cfg: Any) -> None:
    """Refuse a model's block whose checkpoint is not there, before anything costs time.

    Raises:
        UserError: it names none, or no file.
    """
    if not cfg.ckpt and not cfg.ckpt_allow_missing:
        raise UserError(
            "model.ckpt is null: nothing that was trained would answer. Name a checkpoint, or set"
            " model.ckpt_allow_missing: ['*'] to hear random projections and adapters."
        )
    for path in checkpoint_paths(cfg.ckpt):
        require_checkpoint_file(path, "model.ckpt")


def missing_files(cfg: Any) -> list[str]:
    """What a model's block names and does not exist: messages about ``model.llama_model`` and ``model.ckpt``."""
    checks = [partial(require_language_model, cfg.llama_model)]
    checks += [partial(require_checkpoint_file, path, "model.ckpt") for path in checkpoint_paths(cfg.ckpt)]
    problems = []
    for check in checks:
        try:
            check()
        except UserError as error:
            problems.append(str(error))
    return problems


def checkpoint_paths(ckpt: str | list[str] | None) -> list[str]:
    """The files that ``model.ckpt`` names."""
    return [ckpt] if isinstance(ckpt, str) else list(ckpt or [])


def is_ensemble(cfg: Any) -> bool:
    """Whether a model's block asks for several models that vote."""
    return len(checkpoint_paths(cfg.ckpt)) > 1 and cfg.ensemble == "predictions"


def _compare_keys(content: dict[str, Any], cfg: Any, source: str) -> None:
    """Warn where a checkpoint was trained with another value of what its shapes do not tell."""
    stored = content.get("config")
    block = stored.get("model") if isinstance(stored, dict) else None
    for key, outcome in NON_SHAPE_KEYS.items():
        own = getattr(cfg, key, None)
        then = block.get(key, own) if isinstance(block, dict) else own
        if then != own:
            get_logger().warning("%s was trained with %s %r, this run has %r: %s", source, key, then, own, outcome)
