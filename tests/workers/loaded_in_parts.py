"""Run in each of two processes: load a language model in parts, shard it, and compute with it."""

from __future__ import annotations

import torch
import torch.distributed as dist

from emollama.weight_parts import WeightShare, filled_in


def logits(folder, options, ids):
    """The logits of a model that was loaded whole, those of a sharded one, and which of its parameters are sharded."""
    # Imported here because the tests import this file when they are collected.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    from emollama.models import llm, llm_weights

    config, cpu, mesh = llm.read_config(folder), torch.device("cpu"), init_device_mesh("cpu", (dist.get_world_size(),))
    outputs = []
    for share in (None, WeightShare(dist.get_rank(), dist.get_world_size())):
        torch.manual_seed(0)
        model = llm_weights.build(
            llm_weights.LLMOptions(**options, share=share), config, dtype=torch.bfloat16, device=cpu
        ).get_base_model()
        if share is not None:
            with filled_in(model, mesh):
                kept = {one for one in model.parameters() if one.requires_grad}
                for layer in model.model.layers:
                    fully_shard(layer, mesh=mesh, ignored_params=kept)
                fully_shard([model.model.embed_tokens, model.lm_head], mesh=mesh)
                fully_shard(model, mesh=mesh, ignored_params=kept | {model.model.norm.weight})
        with torch.no_grad():
            outputs.append(model(input_ids=ids).logits)
    return outputs, {name: isinstance(one, DTensor) for name, one in model.named_parameters()}
