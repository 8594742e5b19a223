"""Build the datasets and models of a run, and check them before expensive work starts."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from emollama import checkpoint
from emollama.checkpoint_files import require_checkpoint_file, require_language_model
from emollama.components import Model
from emollama.config import RunConfig
from emollama.data.dataset import ClipDataset, ClipsToPredict, DatasetConfig, SampleDataset
from emollama.data.slots import SlotShape, unfilled_slots
from emollama.distributed.process_group import World
from emollama.errors import UserError
from emollama.listing import LINES, abbreviated
from emollama.logs.logger import get_logger
from emollama.precision import Precision
from emollama.runners import provenance

DatasetBlock = tuple[type[SampleDataset], DatasetConfig]  # the dataset class of a block, and its Config

# Keys of a model that a tensor-shape check cannot detect -> the effect of a different value.
NON_SHAPE_KEYS = {
    "lora_alpha": "the output of the adapters is scaled differently",
    "prompt_template": "the prompts differ from those of its training",
    "chat_template": "the prompts differ from those of its training",
    "end_sym": "its answers end with another symbol",
}


def training_blocks(config: RunConfig) -> dict[str, DatasetBlock]:
    """Return path -> (class, Config) for each block under ``datasets``."""
    return {
        f"datasets.{block_name}": (config.dataset_class(f"datasets.{block_name}"), cfg)
        for block_name, cfg in config.datasets.items()
    }


def build_datasets(
    config: RunConfig,
    blocks: Mapping[str, DatasetBlock],
    *,
    training: bool,
    check: bool,
    clips: ClipsToPredict | None = None,
) -> dict[str, SampleDataset]:
    """Build the dataset of each block.

    Args:
        config: the resolved configuration.
        blocks: path of each block -> (class, Config).
        training: True for datasets to train on, False for datasets to evaluate.
        check: check the files of all samples, which only rank 0 does.
        clips: new clips that replace the samples of datasets to evaluate.

    Returns:
        path of each block -> dataset.

    Raises:
        UserError: If there is no block, or the data has problems; the message lists all of them.
    """
    if not blocks:
        group = "datasets" if training else "evaluation_datasets"
        reason = " (blocks without samples are ignored, see the warning)" if config.warnings else ""
        remedy = "Add one, such as {feature_face_caption: {annotation_file: ...}}"
        if not training:
            remedy += ", or set held_out in a block of 'datasets'"
        raise UserError(f"'{group}' has no block{reason}. {remedy}.{_command_for_other_blocks(config, training)}")
    shapes = config.model_class.slot_shapes(config.model)
    datasets: dict[str, SampleDataset] = {}
    errors = []
    for path, (cls, cfg) in blocks.items():
        try:
            if clips is None:
                datasets[path] = cls(cfg, slot_shapes=shapes, block_path=path, training=training)
            else:
                assert issubclass(cls, ClipDataset)
                datasets[path] = cls.for_clips(cfg, clips, slot_shapes=shapes, block_path=path)
        except UserError as error:
            errors.append(str(error))  # the other blocks are checked as well, so that one message lists all errors
    if not errors:
        errors += unfilled_slot_problems(shapes, datasets, "datasets" if training else "evaluation_datasets")
    problems = [problem.text for dataset in datasets.values() for problem in dataset.problems()] if check else []
    if problems:
        errors.append(f"the data cannot be used:{LINES}{abbreviated(problems, LINES)}")
    if errors:
        raise UserError(errors[0] if len(errors) == 1 else f"{len(errors)} problems:{LINES}{LINES.join(errors)}")
    for dataset in datasets.values():
        for note in dataset.notes:
            get_logger().info("%s", note)
    return datasets


def unfilled_slot_problems(shapes: Mapping[str, SlotShape], datasets: Mapping[str, SampleDataset], group: str) -> list[str]:
    """Return a message for each declared slot that no dataset mentions, because the model would never get features there.

    Args:
        shapes: the slots of the model.
        datasets: path of each block -> dataset, all of one group.
        group: "datasets" or "evaluation_datasets", for messages.
    """
    return [
        f"model.slots declares '{slot}', but no block under '{group}' has features for it. Set features.{slot} in a block to"
        f" their path, or to null for no such features, or remove the slot (model.slots.{slot}: null)."
        for slot in unfilled_slots(shapes, [dataset.slot_sources for dataset in datasets.values()])
    ]


def _command_for_other_blocks(config: RunConfig, training: bool) -> str:
    """Return a sentence that names the command for the existing blocks of the other group, or ""."""
    if training and config.evaluation_datasets:
        return " To evaluate the blocks of 'evaluation_datasets', use emollama eval."
    if not training and config.datasets:
        return " To train on 'datasets' without evaluations, use emollama train with run.evaluate=False."
    return ""


def batch_size(datasets: dict[str, SampleDataset]) -> int:
    """Return the micro-batch size, which must be the same for all datasets of a run.

    Raises:
        UserError: If the sizes differ.
    """
    sizes = {block_name: dataset.cfg.batch_size for block_name, dataset in datasets.items()}
    if len(set(sizes.values())) > 1:
        raise UserError(f"all blocks under 'datasets' must have the same batch_size, but it is {sizes}. Set it to one value.")
    return int(next(iter(sizes.values())))


def build_models(
    config: RunConfig, world: World, precision: Precision, tensors: list[dict[str, Tensor]], resumed: dict[str, Any] | None = None
) -> list[Model]:
    """Build the model on this process's device and load its checkpoint, or build all members of an ensemble.

    The members of an ensemble share their frozen weights.

    Args:
        config: the resolved configuration.
        world: the processes.
        precision: precision of the run, which defines the dtype of frozen weights.
        tensors: the result of :func:`checkpoint_tensors`.
        resumed: content of the checkpoint to resume from; if None, ``model.ckpt`` is loaded.

    Raises:
        UserError: If the language model cannot be used.
    """
    cfg, model_class, (sources, allowed) = config.model, config.model_class, _sources(config, resumed)
    if world.is_main:
        get_logger().info("loading the language model from %s", cfg.llama_model)
    if world.is_main and not tensors:
        get_logger().warning("model.ckpt is null: projections and adapters start from random values")
    torch.manual_seed(config.run.seed)
    model = model_class(cfg, device=world.device, frozen_dtype=precision.frozen_dtype)
    # Passed as the memo of deepcopy, this makes the copies refer to the frozen tensors instead of copying them.
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
    """Read the tensors of the checkpoints and compare them with the model.

    Names and shapes are compared with a model on the meta device; no weights of the language model are read.

    Args:
        config: the resolved configuration.
        precision: precision of the run, which defines the dtype of frozen weights.
        resumed: content of the checkpoint to resume from; if None, ``model.ckpt`` is read.
        features: slot -> provenance of the run's features, for slots with a manifest.
        training: False for an evaluation, which needs a checkpoint and can have an ensemble.

    Returns:
        stored name -> tensor, for each member of the ensemble; an empty list if the model starts from random values.

    Raises:
        UserError: If the language model or a checkpoint cannot be used.
    """
    cfg, ensemble = config.model, not resumed and is_ensemble(config.model)
    if training and ensemble:
        raise UserError(
            "model.ckpt lists several checkpoints, but training starts from one. Specify a single checkpoint, or set"
            " model.ensemble: weights to start from their mean."
        )
    shapes = config.model_class(cfg, device=torch.device("meta"), frozen_dtype=precision.frozen_dtype)
    if not training:
        require_checkpoint(cfg)
    sources, allowed = _sources(config, resumed)
    members = []
    for source in sources:
        content = resumed or checkpoint.read(source, "model.ckpt")
        _compare_keys(content, cfg, source)
        mismatches = provenance.checkpoint_mismatches(content.get("features"), features, source)
        provenance.require_no_mismatches(mismatches, config.run.allow_other_features)
        for note in checkpoint.load_trainable(shapes, content["model"], path=source, allow_missing=allowed, dry=True):
            get_logger().info("%s", note)
        members.append(content["model"])
    return members if ensemble or len(members) < 2 else [checkpoint.mean(members)]


def _sources(config: RunConfig, resumed: dict[str, Any] | None) -> tuple[list[str], list[str]]:
    """Return the checkpoint files of the model, and glob patterns of tensors that may be missing from them."""
    if resumed:
        return [str(resumed["path"])], []
    return checkpoint_paths(config.model.ckpt), config.model.ckpt_allow_missing


def require_checkpoint(cfg: Any) -> None:
    """Check that the checkpoint of a ``model`` block exists, before expensive work starts.

    Raises:
        UserError: If ``ckpt`` is null or not a file.
    """
    if not cfg.ckpt and not cfg.ckpt_allow_missing:
        raise UserError(
            "model.ckpt is null, so no trained weights are loaded. Specify a checkpoint, or set model.ckpt_allow_missing: ['*']"
            " to evaluate random projections and adapters."
        )
    for path in checkpoint_paths(cfg.ckpt):
        require_checkpoint_file(path, "model.ckpt")


def missing_files(cfg: Any) -> list[str]:
    """Return error messages for the paths ``model.llama_model`` and ``model.ckpt`` that do not exist."""
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
    """Return the value of ``model.ckpt`` as a list of files."""
    return [ckpt] if isinstance(ckpt, str) else list(ckpt or [])


def is_ensemble(cfg: Any) -> bool:
    """Return whether a ``model`` block configures an ensemble that averages predictions."""
    return len(checkpoint_paths(cfg.ckpt)) > 1 and cfg.ensemble == "predictions"


def _compare_keys(content: dict[str, Any], cfg: Any, source: str) -> None:
    """Warn about keys that differ from the checkpoint's training and that a tensor-shape check cannot detect."""
    stored = content.get("config")
    block = stored.get("model") if isinstance(stored, dict) else None
    for key, effect in NON_SHAPE_KEYS.items():
        value = getattr(cfg, key, None)
        trained_value = block.get(key, value) if isinstance(block, dict) else value
        if trained_value != value:
            text = "%s was trained with %s %r, but this run has %r: %s"
            get_logger().warning(text, source, key, trained_value, value, effect)
