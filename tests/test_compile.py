"""Compiled layers (model.compile): equal losses without recompilation, and errors at the start."""

from __future__ import annotations

import sysconfig
from functools import partial

import pytest
import torch
from running import golden_config, read_jsonl
from torch._dynamo.utils import counters

from emollama.config import load
from emollama.errors import UserError
from emollama.models import fused_layer, kernels, packing_check
from emollama.models.configs import LLMConfig

CPU = torch.device("cpu")
GPU = torch.device("cuda")
GRAPHS = 3  # before and after attention, and after it at the positions of the answers


def losses(folder, **model):
    config = load(str(golden_config(folder, model={"lora_dropout": 0.1} | model)))
    return [row["loss"] for row in read_jsonl(config.runner_class(config).train() / "log.jsonl")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "recomputed"), [("aot_eager", False), ("aot_eager", True), ("aot_eager", "auto"), ("inductor", False)]
)
def test_losses_of_compiled_layers_are_equal_and_all_steps_share_their_code(tmp_path, monkeypatch, backend, recomputed):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch.compiler.reset()
    fused_layer._compiled_parts.cache_clear()
    counters.clear()
    compiled = losses(tmp_path / "compiled", compile=True, use_grad_checkpoint=recomputed)
    # The memory is measured with one label, padded to four rows. The tiny model has as many heads, so that torch.compile first
    # creates code for equal numbers of both.
    assert counters["stats"]["unique_graphs"] == GRAPHS + (recomputed == "auto")
    fused_layer._compiled_parts.cache_clear()
    assert compiled == pytest.approx(losses(tmp_path / "plain"), rel=1e-5)


def require(device, problem=""):
    packing = packing_check.Packing("packed", fused_problem=problem)
    cfg = LLMConfig(llama_model="llm", compile=True)
    kernels.check_kernels(cfg, packing, "gemma", device, torch.bfloat16, compiled=True)


def test_a_family_with_other_layers_is_refused():
    with pytest.raises(UserError, match="True does not work with models of the type 'gemma', because its layers differ. Set"):
        require(CPU, "its layers differ")


def test_a_cpu_without_a_compiler_is_refused(monkeypatch):
    monkeypatch.setenv("CXX", "/absent/compiler")
    with pytest.raises(UserError, match="model.compile: True needs a compiler .* in the variable CXX.*Set model.compile: False"):
        require(CPU)


def test_python_without_header_files_is_refused(monkeypatch):
    monkeypatch.setenv("CXX", "sh")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: "/absent")
    with pytest.raises(UserError, match="model.compile: True needs the header files of Python"):
        require(CPU)


def test_a_gpu_that_is_too_old_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "P40")
    with pytest.raises(UserError, match="needs a GPU with compute capability 7.0 or higher, but P40 has 6.1. Set model.compile"):
        require(GPU)


def test_a_gpu_without_triton_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package triton"):
        require(GPU)


@pytest.mark.parametrize("other", [{"kernels": "liger"}, {"frozen_dtype": "fp8"}, {"low_resource": True}])
def test_keys_that_exclude_compiled_layers_are_named(other):
    with pytest.raises(ValueError, match=r"compile: True.* cannot be combined"):
        LLMConfig(llama_model="llm", compile=True, **other)
