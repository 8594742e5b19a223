"""Sharded weights on one GPU, in a process group of a single process with nccl, and on two GPUs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from running import golden_config, read_jsonl, run
from workers import sharded_training as worker

from emollama.config import load

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """A group of this process, without which nothing is sharded."""
    store = dist.FileStore(str(tmp_path_factory.mktemp("group") / "store"), 1)
    dist.init_process_group("cpu:gloo,cuda:nccl", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


KEYS = {"device": "cuda", "amp": True, "accum_grad_iters": 2, "evaluate": True}
MODELS: dict[str, dict[str, Any]] = {
    "lora": {"train_llm": "lora", "use_grad_checkpoint": True},
    "full": {"train_llm": "full", "ckpt": None, "use_grad_checkpoint": "auto"},
}
MODES = ("ddp", "fsdp", "hsdp")
SCALE = 128.0


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("trained", MODELS)
def test_the_gradients_of_sharded_weights_on_a_gpu_are_those_of_ddp(tmp_path, group, dtype, trained):
    runs = {mode: KEYS | {"parallel": mode, "amp_dtype": dtype} for mode in MODES}
    paths = {mode: str(golden_config(tmp_path / mode, run=keys, model=MODELS[trained])) for mode, keys in runs.items()}
    # With the usual initial scale, 65536, gradients of float16 overflow.
    worker.first_gradients(list(paths.values()), SCALE if dtype == "fp16" else None)
    expected, *others = (torch.load(tmp_path / mode / "gradients.pt", weights_only=True) for mode in MODES)
    for gradients in others:
        assert gradients.keys() == expected.keys() and all(gradient.isfinite().all() for gradient in expected.values())
        for name, gradient in expected.items():
            # Atomic additions on a GPU give other sums each time.
            assert (gradients[name] - gradient).norm() <= 0.01 * gradient.norm(), name


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("trained", MODELS)
def test_a_run_with_fsdp_on_a_gpu_gives_the_losses_of_ddp(tmp_path, group, dtype, trained):
    losses = {}
    for mode in ("ddp", "fsdp"):
        config = load(
            str(golden_config(tmp_path / mode, run=KEYS | {"parallel": mode, "amp_dtype": dtype}, model=MODELS[trained]))
        )
        runner = config.runner_class(config)
        assert any(hasattr(weight, "to_local") for weight in runner.model.llama_model.parameters()) == (mode == "fsdp")
        runner.train()
        losses[mode] = [row["loss"] for row in read_jsonl(tmp_path / mode / "out/run/log.jsonl")]
    assert losses["fsdp"] == pytest.approx(losses["ddp"], rel=0.02)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
@pytest.mark.parametrize("trained", MODELS)
def test_runs_on_two_gpus_give_the_losses_of_ddp_in_each_mode_and_resume_in_another(tmp_path, trained):
    keys = KEYS | {"amp": False, "max_epoch": 2, "iters_per_epoch": 4, "evaluate": False}
    losses = {}
    for mode, resumed in [*((mode, None) for mode in MODES), ("fsdp", "ddp"), ("ddp", "fsdp")]:
        folder = tmp_path / f"{mode}_{resumed}"
        more = {"resume_ckpt_path": str(tmp_path / f"{resumed}_None/out/run/checkpoint_0.pth")} if resumed else {}
        config = golden_config(folder, run=keys | {"parallel": mode} | more, model=MODELS[trained])
        completed = run("train.py", "--cfg-path", str(config), processes=2)
        assert completed.returncode == 0, completed.stderr
        losses[mode, resumed] = [row["loss"] for row in read_jsonl(folder / "out/run/log.jsonl")]
    expected = losses.pop(("ddp", None))
    for (_, resumed), values in losses.items():
        assert values == pytest.approx(expected[4 if resumed else 0 :], rel=1e-3)
