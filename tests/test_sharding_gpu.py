"""Sharded weights on one GPU: a process group of a single process with nccl."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from running import golden_config, read_jsonl

from emollama.config import load

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """A group of this process, without which nothing is sharded."""
    store = dist.FileStore(str(tmp_path_factory.mktemp("group") / "store"), 1)
    dist.init_process_group("cpu:gloo,cuda:nccl", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("model", [{"train_llm": "lora"}, {"train_llm": "full", "ckpt": None}], ids=["lora", "full"])
def test_a_run_with_fsdp_on_a_gpu_gives_the_losses_of_ddp(tmp_path, group, dtype, model):
    losses = {}
    for mode in ("ddp", "fsdp"):
        keys = {"parallel": mode, "device": "cuda", "amp": True, "amp_dtype": dtype, "accum_grad_iters": 2, "evaluate": True}
        config = load(str(golden_config(tmp_path / mode, run=keys, model=model)))
        runner = config.runner_class(config)
        assert any(hasattr(weight, "to_local") for weight in runner.model.llama_model.parameters()) == (mode == "fsdp")
        runner.train()
        losses[mode] = [row["loss"] for row in read_jsonl(tmp_path / mode / "out/run/log.jsonl")]
    # Atomic additions on a GPU give other sums each time.
    assert losses["fsdp"] == pytest.approx(losses["ddp"], rel=0.02)
