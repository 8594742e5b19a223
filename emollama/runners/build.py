"""Datasets and model of a run, checked before anything costs time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from emollama import checkpoint
from emollama.config import RunConfig
from emollama.distributed import World
from emollama.errors import UserError
from emollama.logging import get_logger
from emollama.precision import Precision


def build_datasets(config: RunConfig, *, training: bool, check: bool) -> dict[str, Any]:
    """label -> dataset, of ``datasets`` or ``evaluation_datasets``.

    Args:
        config: the resolved configuration.
        training: which of the two groups.
        check: look at every clip's files; rank 0 does it for all.

    Raises:
        UserError: no block, or anything wrong with the data: all of it in one message.
    """
    group = "datasets" if training else "evaluation_datasets"
    blocks = config.datasets if training else {label: block.dataset for label, block in config.evaluation_datasets.items()}
    if not blocks:
        without = "".join(config.warnings) and " (blocks that name no clips are left out, see the warning)"
        raise UserError(f"'{group}' has no block{without}. Add one: {{feature_face_caption: {{annotation_file: ...}}}}")
    if training and config.evaluation_datasets:
        get_logger().info("evaluation_datasets are not answered in training; eval_emotion_EMER.py does it")
    shapes = config.classes["model"].slot_shapes(config.model)
    datasets = {
        label: config.classes[f"{group}.{label}"](block, slot_shapes=shapes, label=f"{group}.{label}", training=training)
        for label, block in blocks.items()
    }
    problems = [problem.text for dataset in datasets.values() for problem in dataset.problems()] if check else []
    if problems:
        raise UserError("the data cannot be used:\n- " + "\n- ".join(problems))
    for label, dataset in datasets.items():
        get_logger().info("%s: %d clips, tasks %s", label, len(dataset), ", ".join(dataset.pool.tasks))
        for note in dataset.notes:
            get_logger().info("%s", note)
    return datasets


def batch_size(datasets: dict[str, Any]) -> int:
    """The micro-batch size that all datasets of a run share.

    Raises:
        UserError: they differ.
    """
    sizes = {label: dataset.cfg.batch_size for label, dataset in datasets.items()}
    if len(set(sizes.values())) > 1:
        raise UserError(f"datasets mixed in one run need one batch_size; these have {sizes}")
    return int(next(iter(sizes.values())))


def build_model(config: RunConfig, world: World, precision: Precision, resumed: dict[str, Any] | None, *, training: bool) -> Any:
    """The model on this process's device, with its checkpoint's tensors.

    Names and shapes of the checkpoint are compared with a model on the meta device before weights are read.

    Args:
        config: the resolved configuration.
        world: the processes; rank 0 checks first.
        precision: gives the dtype of frozen weights.
        resumed: content of the checkpoint that the run goes on from; None starts from ``model.ckpt``, if there is one.
        training: False for evaluation, which needs a checkpoint.

    Raises:
        UserError: an unusable language model or checkpoint.
    """
    cfg, model_class = config.model, config.classes["model"]
    source = str(config.run.resume_ckpt_path if resumed else cfg.ckpt)
    allowed = [] if resumed else cfg.ckpt_allow_missing

    def checked_tensors() -> dict[str, Tensor] | None:
        shapes = model_class(cfg, device=torch.device("meta"), frozen_dtype=precision.frozen_dtype)
        if not (resumed or cfg.ckpt):
            if not training and not cfg.ckpt_allow_missing:
                raise UserError(
                    "model.ckpt is null: nothing that was trained would answer. Name a checkpoint, or set"
                    " model.ckpt_allow_missing: ['*'] to hear random projections and adapters."
                )
            get_logger().warning("model.ckpt is null: projections and adapters start from random values")
            return None
        content = resumed or checkpoint.read(cfg.ckpt, "model.ckpt")
        tensors: dict[str, Tensor] = content["model"]
        _compare_alpha(content, cfg.lora_alpha, source)
        for note in checkpoint.load_trainable(shapes, tensors, path=source, allow_missing=allowed, dry=True):
            get_logger().info("%s", note)
        return tensors

    tensors = world.main_first(checked_tensors)
    torch.manual_seed(config.run.seed)
    model = model_class(cfg, device=world.device, frozen_dtype=precision.frozen_dtype)
    if tensors is not None:
        checkpoint.load_trainable(model, tensors, path=source, allow_missing=allowed)
    return model


def _compare_alpha(content: dict[str, Any], lora_alpha: int, source: str) -> None:
    """Warn where adapters were trained at another scale: their shapes do not tell."""
    stored = content.get("config")
    block = stored.get("model") if isinstance(stored, dict) else None
    alpha = block.get("lora_alpha", lora_alpha) if isinstance(block, dict) else lora_alpha
    if alpha != lora_alpha:
        get_logger().warning(
            "%s was trained with lora_alpha %s, this run has %s: its adapters are rescaled", source, alpha, lora_alpha
        )
