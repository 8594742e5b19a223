"""Build the models of a run, and check their checkpoints before expensive work starts."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from emollama import checkpoint, checkpoint_average, checkpoint_parts
from emollama.components import Model
from emollama.config import RunConfig
from emollama.distributed import sharding
from emollama.distributed.process_group import World
from emollama.errors import UserError
from emollama.logs.logger import get_logger
from emollama.optim import trainable
from emollama.precision import Precision
from emollama.runners import provenance
from emollama.runners.model_ckpt import checkpoint_paths, is_ensemble, require_checkpoint
from emollama.runners.resume import FEATURE_TOKENS, as_block, reordered_outputs
from emollama.runners.sharding_check import require_model

# Which weights of the language model a process has: all, only the embedding table of a model that runs elsewhere, or what
# run.parallel says.
WeightsToLoad: TypeAlias = Literal["all", "embeddings", "sharded"]
# Keys of a model that a tensor-shape check cannot detect -> the effect of a different value.
NON_SHAPE_KEYS = {
    "lora_alpha": "the output of the adapters is scaled differently",
    "prompt_template": "the prompts differ from those of its training",
    "chat_template": "the prompts differ from those of its training",
    "end_sym": "its answers end with another symbol",
    "prompt_format": "the prompts differ from those of its training",
    "fusion": "the feature tokens differ from those of its training",
}


def build_models(
    config: RunConfig,
    world: World,
    precision: Precision,
    tensors: list[dict[str, Tensor]],
    resumed: dict[str, Any] | None = None,
    *,
    weights: WeightsToLoad = "all",
) -> list[Model]:
    """Build the model on this process's device and load its checkpoint, or build all members of an ensemble.

    The members of an ensemble share their frozen weights.

    Args:
        config: the resolved configuration.
        world: the processes.
        precision: precision of the run, which defines the dtype of frozen weights.
        tensors: the result of :func:`checkpoint_tensors`.
        resumed: content of the checkpoint to resume from; if None, ``model.ckpt`` is loaded.
        weights: which weights of the language model to load. A class of models without this argument loads all of them.

    Raises:
        UserError: If the language model cannot be used.
    """
    cfg, model_class, (sources, allowed) = config.model, config.model_class, _sources(config, resumed)
    mesh = sharding.device_mesh(world, config.run.parallel, config.run.shard_size) if weights == "sharded" else None
    loaded: Any = "embeddings" if weights == "embeddings" else "all"
    # A quantized weight is computed from the whole one.
    if mesh is not None and not getattr(cfg, "load_in_4bit", False):
        loaded = sharding.share_of(mesh)
    options: dict[str, Any] = {"weights": loaded} if "weights" in inspect.signature(model_class).parameters else {}
    if weights == "embeddings" and not options:
        raise UserError(f"model.arch: {config.names['model']} cannot be built without its language model (weights).")
    if world.is_main:
        what = "embedding table" if weights == "embeddings" else "language model"
        get_logger().info("loading the %s from %s", what, cfg.llama_model)
    if world.is_main and not tensors:
        get_logger().warning("model.ckpt is null: projections and adapters start from random values")
    torch.manual_seed(config.run.seed)
    model = model_class(cfg, device=world.device, frozen_dtype=precision.frozen_dtype, **options)
    # Passed as the memo of deepcopy, this makes the copies refer to the frozen tensors instead of copying them.
    frozen = {id(value): value for value in [*model.parameters(), *model.buffers()] if not value.requires_grad}
    members = [model, *(copy.deepcopy(model, dict(frozen)) for _ in tensors[1:])]
    for member, stored in zip(members, tensors, strict=False):
        # checkpoint_tensors has rejected missing tensors where they are not allowed.
        checkpoint.load_trainable(member, stored, path=", ".join(sources), allow_missing=allowed, new_slots=True)
    if mesh is not None:
        sharding.shard(model, mesh, config.run.reduce_dtype)
    if tensors and any(tensor.is_meta for tensor in tensors[0].values()):
        _read_parts(model, sources[0], resumed)
    return members


def _read_parts(model: Model, source: str, resumed: dict[str, Any] | None) -> None:
    """Read the values of a sharded checkpoint into the model; each process reads those that it needs."""
    content = resumed or checkpoint.read(source, "model.ckpt", values=False)
    parts = checkpoint_parts.parts_of(content, source)
    assert parts is not None
    parts.fill(content, {"model": {model.stored_name(name): tensor for name, tensor in trainable(model).items()}})


def model_without_weights(config: RunConfig, precision: Precision) -> Model:
    """Build the model on the meta device: its tensors have names, shapes and dtypes, but no values."""
    return config.model_class(config.model, device=torch.device("meta"), frozen_dtype=precision.frozen_dtype)


def checkpoint_tensors(
    config: RunConfig,
    shapes: Model,
    resumed: dict[str, Any] | None,
    features: Mapping[str, provenance.ProvenanceFields],
    *,
    training: bool,
    check_parts: bool = True,
) -> list[dict[str, Tensor]]:
    """Read the tensors of the checkpoints and compare them with the model.

    No weights of the language model are read.

    Args:
        config: the resolved configuration.
        shapes: the result of :func:`model_without_weights`, with whose names and shapes the tensors are compared.
        resumed: content of the checkpoint to resume from; if None, ``model.ckpt`` is read.
        features: slot -> provenance of the run's features, for slots with a manifest.
        training: False for an evaluation, which needs a checkpoint and can have an ensemble.
        check_parts: compare the files of a sharded checkpoint with their digests.

    Returns:
        stored name -> tensor, for each member of the ensemble; an empty list if the model starts from random values. Tensors of
        a sharded checkpoint are on the meta device.

    Raises:
        UserError: If the language model or a checkpoint cannot be used.
    """
    cfg, ensemble = config.model, not resumed and is_ensemble(config.model)
    if training and ensemble:
        raise UserError(
            "model.ckpt lists several checkpoints, but training starts from one. Specify a single checkpoint, or set"
            " model.ensemble: weights to start from their mean."
        )
    require_model(shapes, config)
    if not training:
        require_checkpoint(cfg)
    sources, allowed = _sources(config, resumed)
    members = []
    for source in sources:
        # The values of a single sharded checkpoint are read when the model has its parameters.
        content = resumed or checkpoint.read(source, "model.ckpt", values=len(sources) > 1)
        if not resumed and len(sources) == 1 and check_parts and (parts := checkpoint_parts.parts_of(content, source)):
            parts.require_intact("model.ckpt")
        _compare_keys(content, config, source)
        mismatches = provenance.checkpoint_mismatches(content.get("features"), features, source)
        provenance.require_no_mismatches(mismatches, config.run.allow_other_features)
        notes = checkpoint.load_trainable(
            shapes,
            content["model"],
            path=source,
            allow_missing=allowed,
            new_slots=training and not resumed,
            dry=True,
        )
        for note in notes:
            get_logger().info("%s", note)
        members.append(content["model"])
    return members if ensemble or len(members) < 2 else [checkpoint_average.mean(members)]


def _sources(config: RunConfig, resumed: dict[str, Any] | None) -> tuple[list[str], list[str]]:
    """Return the checkpoint files of the model, and glob patterns of tensors that may be missing from them."""
    if resumed:
        return [str(resumed["path"])], []
    return checkpoint_paths(config.model.ckpt), config.model.ckpt_allow_missing


def _compare_keys(content: dict[str, Any], config: RunConfig, source: str) -> None:
    """Warn about everything that differs from the checkpoint's training and that a tensor-shape check cannot detect."""
    cfg, fields = config.model, content.get(checkpoint.RESUME_FIELDS_KEY)
    recorded = fields.get(FEATURE_TOKENS) if isinstance(fields, dict) else None
    if differing := reordered_outputs(config.model_class.feature_layout(cfg), recorded):
        text = "%s was trained with the feature tokens of %s in another order. Declare the slots in the order of its training"
        get_logger().warning(text, source, "; ".join(differing))
    stored = content.get("config")
    block = stored.get("model") if isinstance(stored, dict) else None
    for key, effect in NON_SHAPE_KEYS.items():
        value = getattr(cfg, key, None)
        trained_value = block.get(key, value) if isinstance(block, dict) else value
        if as_block(trained_value) != as_block(value):
            text = "%s was trained with %s %r, but this run has %r: %s"
            get_logger().warning(text, source, key, trained_value, value, effect)
