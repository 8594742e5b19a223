"""What run.parallel: fsdp and hsdp demand of a configuration, without weights. Training is in test_sharding.py."""

from __future__ import annotations

import types

import pytest
from helpers import GOLDEN, golden_tree, loaded

from emollama.distributed import sharding
from emollama.distributed.nodes import Nodes
from emollama.errors import UserError
from emollama.runners import sharding_check


def configuration(folder, run, **model):
    tree = golden_tree(folder)
    tree["run"] |= run
    tree["model"] |= model
    return loaded(folder, tree)


@pytest.fixture
def llm():
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(GOLDEN / "llama"))


@pytest.mark.parametrize(("mode", "shard_size", "size"), [("ddp", None, 1), ("fsdp", None, 6), ("hsdp", 3, 3), ("hsdp", None, 2)])
def test_the_weights_are_divided_among_all_processes_or_those_of_a_machine(monkeypatch, mode, shard_size, size):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert sharding.group_size(mode, shard_size, 6) == size


@pytest.mark.parametrize(("shard_size", "source"), [(4, ""), (None, " (the processes of this machine)")])
def test_a_group_size_that_does_not_divide_the_processes_is_rejected(monkeypatch, shard_size, source):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(UserError) as caught:
        sharding.group_size("hsdp", shard_size, 6)
    assert str(caught.value) == (
        f"run.shard_size is 4{source}, which does not divide the 6 processes of this run into equal groups. Set it to one of"
        " 1, 2, 3, 6, or start another number of processes."
    )


def test_nodes_with_different_numbers_of_processes_need_a_group_size():
    nodes = Nodes((0, 0, 1, 1, 1, 1, 2, 2), ("a", "b", "c"))
    with pytest.raises(UserError, match=r"the nodes have 2, 4, 2 processes\. Start the same number on each node, or"):
        sharding.group_size("hsdp", None, 8, nodes)
    assert sharding.group_size("hsdp", 2, 8, nodes) == 2


def test_a_group_size_without_hsdp_is_rejected(tmp_path):
    with pytest.raises(UserError, match="shard_size is 2, but parallel is fsdp, for which it has no meaning. Set parallel: hsdp"):
        configuration(tmp_path, {"parallel": "fsdp", "shard_size": 2})


def test_weights_of_8_bits_cannot_be_sharded_but_those_of_4_bits_can(tmp_path):
    sharding_check.require_keys(configuration(tmp_path, {"parallel": "fsdp"}, load_in_4bit=True), 2, training=True)
    config = configuration(tmp_path, {"parallel": "fsdp"}, low_resource=True)
    with pytest.raises(UserError, match="model.low_resource does not work with .* Set model.low_resource: False, or run"):
        sharding_check.require_keys(config, 2, training=True)


def test_fp8_weights_cannot_be_sharded(tmp_path):
    config = configuration(tmp_path, {"parallel": "hsdp"}, frozen_dtype="fp8")
    with pytest.raises(UserError, match="model.frozen_dtype: fp8 does not work with run.parallel: hsdp"):
        sharding_check.require_keys(config, 2, training=True)


def test_the_members_of_an_ensemble_cannot_be_sharded(tmp_path):
    config = configuration(tmp_path, {"parallel": "fsdp"}, ckpt=["a.pth", "b.pth"], ensemble="predictions")
    with pytest.raises(UserError, match="model.ckpt does not work with run.parallel: fsdp, .* Set model.ensemble: weights"):
        sharding_check.require_keys(config, 2, training=False)


def test_adapters_cannot_be_merged_into_sharded_weights(tmp_path):
    config = configuration(tmp_path, {"parallel": "fsdp"}, merge_adapters=True)
    sharding_check.require_keys(config, 2, training=True)
    with pytest.raises(UserError, match="model.merge_adapters does not work with run.parallel: fsdp"):
        sharding_check.require_keys(config, 2, training=False)


def test_a_language_model_with_layers_and_tables_can_be_sharded(llm):
    assert sharding.unsupported(llm) == "" and len(sharding.layers_to_gather(llm)) == llm.config.num_hidden_layers


def test_layers_that_share_weights_cannot_be_sharded(llm):
    first, second = llm.model.layers[:2]
    second.mlp.up_proj.weight = first.mlp.up_proj.weight
    assert sharding.unsupported(llm) == "its decoder layers share weights"


def test_a_layer_that_is_used_twice_cannot_be_sharded(llm):
    llm.model.layers.append(llm.model.layers[0])
    assert sharding.unsupported(llm) == "a decoder layer is used more than once"


def test_a_language_model_without_separate_layers_is_rejected_by_its_type(tmp_path, llm):
    model = types.SimpleNamespace(llama_model=llm.model.layers[0].mlp, llm_config=llm.config)
    config = configuration(tmp_path, {"parallel": "fsdp"})
    with pytest.raises(UserError, match="run.parallel: fsdp does not work with models of the type 'llama', because it has no"):
        sharding_check.require_model(model, config)


def test_samples_that_run_one_at_a_time_do_not_go_with_a_number_of_tokens(tmp_path, llm):
    packing = types.SimpleNamespace(is_packed=False, batched=False)
    model = types.SimpleNamespace(llama_model=llm, llm_config=llm.config, packing=packing)
    sharding_check.require_model(model, configuration(tmp_path, {"parallel": "fsdp"}))
    config = configuration(tmp_path, {"parallel": "fsdp", "max_tokens": 4096})
    with pytest.raises(UserError, match="run.max_tokens does not work with run.parallel: fsdp and models of the type 'llama'"):
        sharding_check.require_model(model, config)


def test_the_memory_of_gathered_weights_is_that_of_two_layers_and_the_tables(monkeypatch, llm):
    monkeypatch.setattr(sharding, "is_sharded", lambda weight: True)
    layers = sorted(sum(weight.nbytes for weight in layer.parameters()) for layer in llm.model.layers)
    tables = llm.model.embed_tokens.weight.nbytes + llm.lm_head.weight.nbytes
    assert sharding.gathered_bytes(llm) == sum(layers[-2:]) + tables


def test_whole_weights_need_no_memory_to_be_gathered(llm):
    assert sharding.gathered_bytes(llm) == 0
