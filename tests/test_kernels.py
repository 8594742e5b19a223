"""Layers and adapters with few operations: equal losses and gradients, counted operations and bytes, the key model.kernels."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from functools import partial
from types import ModuleType

import pytest
import torch
from peft import LoraConfig, get_peft_model
from ranks import ROOT, environment
from transformers import GemmaConfig, LlamaConfig, LlamaForCausalLM, Qwen3Config
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from emollama import models
from emollama.errors import UserError
from emollama.models import attention, dropout, fused_layer, fused_ops, kernels, packing_check
from emollama.models.configs import LLMConfig
from emollama.models.lora_linear import LoRALinear, use_lora_linear
from emollama.models.random_copy import isolated, runnable_copy

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}
LENGTHS = (9, 4, 7)
KEYS = torch.arange(sum(LENGTHS), dtype=torch.int32) * 40503
CPU = torch.device("cpu")


def language_model(*, fused, recomputed=False, p=0.05, dtype=torch.float32):
    """A random Llama with adapters on half of its layers' projections, which are not zero."""
    torch.manual_seed(0)
    llm = LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2, attn_implementation=attention.NAME, initializer_range=0.2))
    targets = ["q_proj", "v_proj", "o_proj", "down_proj"]
    llm = get_peft_model(llm.to(dtype), LoraConfig(r=4, lora_alpha=8, lora_dropout=p, target_modules=targets))
    for name, weight in llm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    dropout.replace_dropout(llm)
    if fused:
        use_lora_linear(llm)
        assert not fused_layer.use_fused_layers(llm.get_base_model(), fused_ops.PLAIN)
    if recomputed:
        llm.get_base_model().gradient_checkpointing_enable({"use_reentrant": False, "context_fn": dropout.checkpoint_contexts})
    return llm.train()


def step(llm, *, in_layer, amp=False):
    """The loss and all gradients of three packed samples, with outputs at a few positions."""
    ids = torch.arange(sum(LENGTHS)) * 7 % 50
    rows = torch.tensor([3, 5, 8, 8, 11, 17, 19])
    embeddings = llm.get_input_embeddings()(ids)[None].detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=amp), dropout.use_keys(KEYS):
        logits = llm.get_base_model()(
            inputs_embeds=embeddings,
            attention_mask=attention.unused_mask(embeddings),
            position_ids=torch.cat([torch.arange(length) for length in LENGTHS])[None],
            cu_seqlens=torch.tensor([0, *LENGTHS]).cumsum(0).int(),
            max_length=max(LENGTHS),
            lengths=LENGTHS,
            use_cache=False,
            **({"output_rows": rows, "logits_to_keep": 0} if in_layer else {"logits_to_keep": rows}),
        ).logits[0]
        loss = torch.nn.functional.cross_entropy(logits.float(), (ids[rows] + 1) % 50)
    loss.backward()
    trained = [weight.grad for weight in llm.parameters() if weight.requires_grad]
    return loss.item(), torch.cat([gradient.flatten().float() for gradient in [embeddings.grad, *trained]])


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_loss_and_gradients_are_those_of_transformers_and_peft_in_float32(p, recomputed):
    loss, gradient = step(language_model(fused=True, p=p, recomputed=recomputed), in_layer=True)
    plain_loss, plain_gradient = step(language_model(fused=False, p=p), in_layer=False)
    assert loss == pytest.approx(plain_loss, rel=1e-6)
    assert (gradient - plain_gradient).norm() <= 1e-6 * plain_gradient.norm()


@pytest.mark.parametrize("fused", [False, True])
def test_recomputed_layers_save_little(fused):
    def saved_numbers(*, recomputed):
        saved = []

        def pack(tensor):
            saved.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            step(language_model(fused=fused, recomputed=recomputed), in_layer=fused)
        return sum(saved)

    assert saved_numbers(recomputed=True) < saved_numbers(recomputed=False) / 4


def test_loss_and_gradients_are_close_to_those_of_transformers_and_peft_in_bfloat16():
    build = partial(language_model, dtype=torch.bfloat16)
    loss, gradient = step(build(fused=True), in_layer=True, amp=True)
    plain_loss, plain_gradient = step(build(fused=False), in_layer=False, amp=True)
    assert loss == pytest.approx(plain_loss, rel=3e-2)
    assert torch.cosine_similarity(gradient, plain_gradient, dim=0) > 0.999


def test_trained_norms_get_the_gradients_of_the_norm_of_transformers():
    torch.manual_seed(0)
    norm = language_model(fused=False).get_base_model().model.norm.requires_grad_()
    x, direction = torch.randn(5, 64, requires_grad=True), torch.randn(5, 64)
    gradients = []
    for output in (norm(x), fused_ops.PLAIN.rms_norm(x, norm.weight, norm.variance_epsilon)):
        gradients.append(torch.autograd.grad((output * direction).sum(), [x, norm.weight]))
    for plain, own in zip(*gradients, strict=True):
        torch.testing.assert_close(own, plain, rtol=1e-5, atol=1e-6)


def test_generation_with_a_cache_uses_the_layers_of_transformers(monkeypatch):
    llm = language_model(fused=True).eval().get_base_model()
    monkeypatch.setattr(fused_layer, "_attention", None)
    ids = torch.arange(6)[None]
    assert llm.generate(ids, attention_mask=ids.ne(-1), max_new_tokens=3, pad_token_id=0, use_cache=True).shape[1] > 6


def test_merged_adapters_give_the_logits_of_the_adapters():
    ids = torch.arange(sum(LENGTHS))[None]
    llm = language_model(fused=True).eval()
    assert any(isinstance(module, LoRALinear) for module in llm.modules())
    expected = llm(ids).logits
    merged = llm.merge_and_unload()
    assert not any("lora" in name for name, _ in merged.named_modules())
    torch.testing.assert_close(merged(ids).logits, expected, rtol=1e-4, atol=1e-4)


def test_adapters_without_one_row_for_each_token_are_left_to_peft():
    llm = language_model(fused=True)
    layer = llm.get_base_model().model.layers[0].self_attn.q_proj
    with dropout.use_keys(KEYS), pytest.warns(UserWarning, match="depends on how the global batch is split"):
        layer(torch.randn(3, 64))


@pytest.mark.parametrize(
    ("config", "problem"), [(Qwen3Config(), ""), (GemmaConfig(), "do not have the parts of a layer of Llama")]
)
def test_layers_are_used_for_families_whose_losses_they_give(config, problem):
    with isolated():
        found = fused_layer.difference(runnable_copy(config))
    assert (problem in found) if problem else not found


def test_a_layer_with_another_formula_is_detected():
    with isolated():
        found = fused_layer.difference(runnable_copy(LlamaConfig(hidden_act="gelu")))
    assert "its logits would change by" in found


def packing(problem=""):
    return packing_check.Packing("packed", fused_problem=problem)


def checked(key="liger", *, device="cuda", problem="", family="llama"):
    cfg = LLMConfig(llama_model="llm", kernels=key)
    return kernels.check_kernels(cfg, packing(problem), family, torch.device(device), torch.bfloat16, compiled=False)


def test_liger_without_a_gpu_is_refused():
    with pytest.raises(
        UserError,
        match="liger needs a GPU, but the device is cpu. Set run.device: auto on a machine with a GPU, or model.kernels: auto",
    ):
        checked(device="cpu")


def test_liger_for_layers_unlike_those_of_llama_is_refused():
    with pytest.raises(UserError, match="does not work with models of the type 'gemma', because its layers"):
        checked(problem="its layers differ", family="gemma")


KERNEL = "emollama.models.dropout_kernel"
BROKEN = [
    (None, r"the package liger-kernel \(pip install 'emollama\[fast\]'\)"),
    (ImportError("no 'libdevice' in triton"), "import raises ImportError: no 'libdevice' in triton"),
    (AttributeError("no attribute 'jit'"), "import raises AttributeError: no attribute 'jit'"),
]


def break_import(monkeypatch, package, error):
    """Let imports of a package and of its modules raise an exception."""

    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name.startswith(package):
                raise error

    for name in [name for name in sys.modules if name.startswith(package)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """All that kernels of Triton need."""
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setenv("CC", "sh")
    monkeypatch.setattr(kernels.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, KERNEL, ModuleType(KERNEL))
    monkeypatch.delattr(models, "dropout_kernel", raising=False)


@pytest.fixture(params=BROKEN, ids=["missing", "another version", "any exception"])
def problem_of_liger(request, monkeypatch, gpu):
    """The problem of an installation of Liger that is missing or cannot be imported."""
    error, problem = request.param
    break_import(monkeypatch, "liger_kernel", error or ModuleNotFoundError("No module named 'liger_kernel'", name="liger_kernel"))
    return problem


WITHOUT = {
    "a compiler": (lambda patch: patch.setenv("CC", "/absent/compiler"), r"a compiler \(.* or .* in the variable CC\)"),
    "headers": (lambda patch: patch.setattr(kernels.sysconfig, "get_path", lambda name: "/absent"), "the header files of Python"),
    "triton": (lambda patch: patch.setattr(kernels.importlib.util, "find_spec", lambda name: None), "the package triton"),
    "a fitting version": (
        lambda patch: break_import(patch, KERNEL, ImportError("no 'jit'")),
        "another version of triton; its import raises ImportError: no 'jit'",
    ),
}


@pytest.mark.parametrize("missing", WITHOUT)
def test_kernels_that_cannot_be_compiled_are_left_out_with_one_line_or_refused(missing, monkeypatch, gpu):
    hide, problem = WITHOUT[missing]
    hide(monkeypatch)
    # Layers of transformers have dropout, too.
    for key, fused_problem in (("auto", ""), ("plain", ""), ("auto", "its layers differ")):
        (line,) = checked(key, problem=fused_problem)
        assert re.fullmatch(f"This run computes dropout and layers without kernels of Triton, because it needs {problem}.*", line)
    with pytest.raises(UserError, match=f"model.kernels: liger needs {problem}.*Set model.kernels: auto"):
        checked()
    monkeypatch.setattr(fused_ops, "liger_ops", None)
    llm = language_model(fused=False).get_base_model()
    assert kernels.use_kernels(LLMConfig(llama_model="llm"), packing(), llm, torch.device("cuda"))
    assert llm.model.layers[0].fused_ops is fused_ops.PLAIN


def test_liger_that_cannot_be_imported_is_refused_with_the_reason(problem_of_liger):
    with pytest.raises(UserError, match=f"model.kernels: liger needs .*{problem_of_liger}.*Set model.kernels: auto"):
        checked()


def test_without_liger_the_layers_are_computed_by_pytorch_and_a_line_says_so(problem_of_liger):
    (line,) = checked("auto")
    assert re.search(f"auto runs without the kernels of Liger, because it needs .*{problem_of_liger}", line)
    llm = language_model(fused=False).get_base_model()
    assert kernels.use_kernels(LLMConfig(llama_model="llm"), packing(), llm, torch.device("cuda"))
    assert llm.model.layers[0].fused_ops is fused_ops.PLAIN


@pytest.mark.parametrize(
    ("key", "problem", "used"), [("auto", "", True), ("plain", "", False), ("auto", "its layers differ", False)]
)
def test_the_layers_are_used_if_the_key_and_the_check_allow_them(key, problem, used):
    llm = language_model(fused=False).get_base_model()
    assert kernels.use_kernels(LLMConfig(llama_model="llm", kernels=key), packing(problem), llm, CPU) is used
    assert (type(llm.model.layers[0]) is not LlamaDecoderLayer) is used


def test_compiled_layers_on_a_cpu_are_no_reason_to_warn_of_a_missing_gpu(caplog):
    llm = language_model(fused=False).get_base_model()
    kernels.use_kernels(LLMConfig(llama_model="llm", compile=True), packing(), llm, CPU)
    logger = logging.getLogger("torch.utils.cpp_extension")
    logger.addHandler(caplog.handler)
    logger.warning("No CUDA runtime is found, using CUDA_HOME='%s'", "/usr/local")
    logger.warning("another warning")
    logger.removeHandler(caplog.handler)
    assert {record.getMessage() for record in caplog.records} == {"another warning"}


@pytest.fixture(scope="module")
def operations():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import operations

    sys.path.remove(str(ROOT / "benchmarks"))
    return operations


def test_a_layer_and_step_has_at_most_90_operations(operations):
    assert operations.calls_per_layer(128, 4, "fused").total() <= 90


def test_a_token_of_llama_2_7b_saves_at_most_3_6_megabytes(operations):
    assert operations.saved_bytes_per_token(128, 4, "fused") <= 3.6e6


SCRIPT = """
import torch
from emollama.models import dropout, dropout_kernel
keys = torch.randint(-(2**31), 2**31, (3,), generator=torch.Generator().manual_seed(0)).int()
for channels in (7, 1500):
    values = torch.arange(3.0 * channels).view(3, channels) + 1
    expected = dropout._dropout(values, keys, -12345, 20000)
    assert dropout_kernel.dropout(values, keys, -12345, 20000).equal(expected)
    total, added = values.clone(), 2 * values
    assert dropout_kernel.dropout_and_add_(values, total, added, keys, -12345, 20000).equal(expected)
    assert total.equal(values + 2 * expected)
"""


@pytest.mark.slow
def test_the_triton_kernel_of_dropout_has_the_masks_of_the_other_devices():
    pytest.importorskip("triton")
    # The interpreter of Triton runs kernels on the CPU; the variable must be set before the import.
    variables = environment() | {"TRITON_INTERPRET": "1"}
    completed = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=variables, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert completed.returncode == 0, completed.stderr
