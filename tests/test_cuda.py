"""Paths that need a GPU; they skip themselves elsewhere."""

from __future__ import annotations

import pytest
import torch
from running import golden_config, rows

from emollama.config import load
from emollama.models.attention import packed_attention

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("key_heads", [4, 2])
def test_the_variable_length_kernel_equals_the_loop(key_heads):
    torch.manual_seed(0)
    query = torch.randn(1, 4, 300, 64, device="cuda", dtype=torch.bfloat16)
    key, value = (torch.randn(1, key_heads, 300, 64, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    seams = torch.tensor([0, 17, 130, 300], dtype=torch.int32, device="cuda")
    module = torch.nn.Module()
    kernel, _ = packed_attention(module, query, key, value, None, cu_seqlens=seams, max_length=170)
    loop, _ = packed_attention(module, query.float(), key.float(), value.float(), None, cu_seqlens=seams, max_length=170)
    assert (kernel.float() - loop).abs().max() < 0.03


@pytest.mark.parametrize(("amp", "dtype"), [(True, "bf16"), (True, "fp16"), (False, "auto")])
def test_training_on_the_gpu_follows_the_cpu(tmp_path, amp, dtype):
    losses = {}
    for device in ("cpu", "cuda"):
        settings = {"device": device, "amp": amp and device == "cuda", "amp_dtype": dtype}
        config = load(str(golden_config(tmp_path / device, run=settings)))
        losses[device] = [row["loss"] for row in rows(config.classes["run"](config).train() / "log.jsonl")]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=0.05 if amp else 1e-3)
