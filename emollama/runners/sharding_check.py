"""Checks of the keys that ``run.parallel: fsdp`` and ``hsdp`` restrict."""

from __future__ import annotations

from emollama.checkpoint_files import require_mappable
from emollama.config import RunConfig
from emollama.distributed import sharding
from emollama.distributed.nodes import ONE_NODE, Nodes
from emollama.errors import UserError
from emollama.runners.build import is_ensemble


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
    sharding.group_size(run.parallel, run.shard_size, processes, nodes)
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
