"""Checks of keys and language models that cannot be combined with sharded or quantized weights.

A launcher makes the checks of keys before it starts processes, so this module does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from emollama.checkpoint_files import require_mappable
from emollama.component_configs import quantized_bits, require_quantizer
from emollama.config import RunConfig
from emollama.distributed.groups import group_size
from emollama.distributed.nodes import ONE_NODE, Nodes
from emollama.errors import UserError
from emollama.runners.model_ckpt import is_ensemble

if TYPE_CHECKING:
    from emollama.components import Model


def require_start(config: RunConfig, processes: int, nodes: Nodes = ONE_NODE, *, training: bool) -> None:
    """Check what :func:`require_keys` does, and that the package for quantized weights is installed.

    Raises:
        UserError: If a check fails.
    """
    require_quantizer(quantized_bits(config.model))
    require_keys(config, processes, nodes, training=training)


def require_keys(config: RunConfig, processes: int, nodes: Nodes = ONE_NODE, *, training: bool) -> None:
    """Check that the keys of a run, and the files of its language model, allow to shard the weights.

    Args:
        config: the resolved configuration.
        processes: number of processes of the run.
        nodes: where they are.
        training: True to train, False to only evaluate.

    Raises:
        UserError: If they do not.
    """
    run, model = config.run, config.model
    group_size(run.parallel, run.shard_size, processes, nodes)
    if run.parallel == "ddp":
        return
    require_mappable(model.llama_model)
    unsupported = []
    if getattr(model, "low_resource", False):
        text = "weights that bitsandbytes quantizes to 8 bits cannot be sharded. Set model.low_resource: False"
        unsupported.append(("model.low_resource", text))
    if getattr(model, "frozen_dtype", None) == "fp8":
        unsupported.append(("model.frozen_dtype: fp8", "weights of 8 bits cannot be sharded. Set model.frozen_dtype: auto"))
    if is_ensemble(model):
        text = "the members of an ensemble share their frozen weights, which cannot be sharded then. Set model.ensemble: weights"
        unsupported.append(("model.ckpt", text))
    if model.merge_adapters and not training:
        text = "adapters cannot be merged into weights of which each process has a part. Set model.merge_adapters: False"
        unsupported.append(("model.merge_adapters", text))
    if unsupported:
        key, text = unsupported[0]
        raise UserError(f"{key} does not work with run.parallel: {run.parallel}, because {text}, or run.parallel: ddp.")


def require_model(model: Model, config: RunConfig) -> None:
    """Check that the weights of the language model can be divided, and that all processes can run it together.

    Args:
        model: the model, on the meta device.
        config: the resolved configuration.

    Raises:
        UserError: If it cannot.
    """
    from emollama.distributed import sharding

    run = config.run
    if run.parallel == "ddp":
        return
    family = model.llm_config.model_type
    llm: Any = model.llama_model  # a Protocol cannot require a base class
    if problem := sharding.unsupported(llm):
        raise UserError(
            f"run.parallel: {run.parallel} does not work with models of the type '{family}', because {problem}. Set run.parallel:"
            " ddp."
        )
    packing: Any = getattr(model, "packing", None)
    if run.max_tokens is not None and packing is not None and not packing.is_packed and not packing.batched:
        raise UserError(
            f"run.max_tokens does not work with run.parallel: {run.parallel} and models of the type '{family}', which run one"
            " sample at a time: the processes would run different numbers of forward passes. Set run.max_tokens: null."
        )
