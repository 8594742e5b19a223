"""Which layers of a language model get LoRA adapters, and the export of adapters of any linear layer."""

from __future__ import annotations

import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from emollama import checkpoint
from emollama.convert import formats
from emollama.convert.weights import read
from emollama.errors import UserError
from emollama.models import checkpoint_names, llm_weights, lora_targets
from emollama.models.configs import MiniGPTv2Config

COMMON = {"vocab_size": 99, "hidden_size": 32, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
GPT = {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 2}
HYBRID = COMMON | LAYERS | {"head_dim": 8, "layer_types": ["linear_attention", "full_attention"]}
HYBRID |= {f"linear_{name}": 2 for name in ("num_key_heads", "num_value_heads")}
CONFIGS = {
    "llama": COMMON | LAYERS,
    "phi3": COMMON | LAYERS,
    "gpt_neox": COMMON | {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48},
    "gpt2": GPT,
    "bart": {"vocab_size": 99, "d_model": 32, "decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 48},
    "mamba": COMMON | {"num_hidden_layers": 2, "state_size": 4},
    "qwen3_5_text": HYBRID,
    "gemma3": {"text_config": COMMON | LAYERS | {"head_dim": 8}},
}


def config_of(family, **keys):
    return AutoConfig.for_model(family, **CONFIGS[family] | keys)


def on_meta(family, **keys):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config_of(family, **keys))


def refusal(call, *args):
    with pytest.raises(UserError) as caught:
        call(*args)
    return str(caught.value)


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llama", ["q_proj", "v_proj"]),
        ("phi3", ["qkv_proj"]),
        ("gpt_neox", ["query_key_value"]),
        ("gpt2", ["c_attn"]),
        ("mamba", ["in_proj"]),
        ("qwen3_5_text", ["in_proj_qkv", "q_proj", "v_proj"]),
    ],
)
def test_the_default_is_the_query_and_value_projections_of_each_layer(family, expected):
    llm = on_meta(family)
    assert lora_targets.resolve(llm, None) == expected
    assert lora_targets.uncovered_layers(llm, expected) == ""


def test_an_image_encoder_gets_no_adapters():
    names = lora_targets.resolve(on_meta("gemma3"), None)
    assert len(names) == 4 and all(name.startswith("model.language_model.layers.") for name in names)


def test_cross_attention_which_a_decoder_alone_does_not_use_gets_no_adapters():
    llm = on_meta("bart")
    assert lora_targets.resolve(llm, None) == [f"model.decoder.layers.0.self_attn.{name}_proj" for name in "qv"]


def test_all_linear_excludes_the_output_layer():
    expected = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert set(lora_targets.resolve(on_meta("llama"), "all-linear")) == expected


def test_targets_that_are_only_in_some_layers_are_reported_with_the_layers_of_the_others():
    notice = lora_targets.uncovered_layers(on_meta("qwen3_5_text"), ["q_proj", "v_proj"])
    assert "1 of 2 decoder layers" in notice and "in_proj_qkv" in notice and "lora_target_modules: null" in notice


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_tied_weights_cannot_be_targets(target):
    message = refusal(lora_targets.resolve, on_meta("llama", tie_word_embeddings=True), ["q_proj", target])
    assert "model.lora_target_modules: " in message and f"'{target}'" in message
    assert "tied" in message or "not a linear layer" in message


def test_an_output_layer_of_its_own_can_be_a_target():
    assert lora_targets.resolve(on_meta("llama", tie_word_embeddings=False), ["lm_head"]) == ["lm_head"]


def test_a_misspelled_target_is_rejected_with_a_suggestion():
    assert "Did you mean 'qkv_proj'?" in refusal(lora_targets.resolve, on_meta("phi3"), ["qkv_projj"])


@pytest.fixture
def trained(tmp_path):
    """``trained(family, targets)``: the folder of a language model, a checkpoint of random adapters, and the logits with them."""

    def adapted(family, targets, **keys):
        torch.manual_seed(0)
        llm = AutoModelForCausalLM.from_config(config_of(family, **keys)).eval()
        llm.save_pretrained(tmp_path / "llm")
        model = get_peft_model(llm, LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM"))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
        tensors = {
            f"llama_model.{checkpoint_names.stored_name(name)}": parameter.detach()
            for name, parameter in model.named_parameters()
            if "lora" in name
        }
        checkpoint.save(tmp_path / "x.pth", {"model": tensors, "config": {"model": {"lora_r": 4, "lora_alpha": 8}}})
        ids = torch.arange(3, 20)[None]
        return tmp_path / "llm", read(str(tmp_path / "x.pth"), "x"), model(ids).logits.detach(), ids

    return adapted


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_merged_and_exported_adapters_of_the_default_targets_give_the_same_logits(family, trained, tmp_path):
    llm, weights, expected, ids = trained(family, lora_targets.resolve(on_meta(family), None))
    formats.to_merged(weights, str(tmp_path / "merged"), None, str(llm))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(merged(ids).logits, expected, atol=1e-4, rtol=0)
    formats.to_peft(weights, str(tmp_path / "peft"), None, str(llm))
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llm), tmp_path / "peft").eval()
    torch.testing.assert_close(adapted(ids).logits, expected, atol=1e-4, rtol=0)
    assert len(read(str(tmp_path / "peft"), "x").tensors) == len(weights.tensors)


def test_weights_whose_names_in_the_file_differ_from_those_of_the_layers_are_merged(trained, tmp_path):
    # The published files of GPT-2 have names without the prefix "transformer.".
    from safetensors.torch import load_file, save_file

    llm, weights, expected, ids = trained("gpt2", ["c_attn"])
    tensors = load_file(llm / "model.safetensors")
    save_file({name.removeprefix("transformer."): t for name, t in tensors.items()}, llm / "model.safetensors", {"format": "pt"})
    formats.to_merged(weights, str(tmp_path / "merged"), None, str(llm))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(merged(ids).logits, expected, atol=1e-4, rtol=0)


def test_merging_adapters_on_tied_weights_is_refused_without_blaming_the_language_model(trained, tmp_path):
    llm, weights, _, _ = trained("llama", ["q_proj", "lm_head"], tie_word_embeddings=True)
    message = refusal(formats.to_merged, weights, str(tmp_path / "merged"), None, str(llm))
    assert "the weights of lm_head are tied to those of model.embed_tokens" in message
    assert "--to peft" in message and "does not fit" not in message and not (tmp_path / "merged").exists()


def test_a_model_that_is_merged_in_memory_keeps_its_dtype_and_its_other_files(trained, tmp_path):
    from safetensors.torch import load_file, save_file

    llm, weights, _, _ = trained("gpt2", ["c_attn"])
    tensors = load_file(llm / "model.safetensors")
    short = {name.removeprefix("transformer."): tensor.bfloat16() for name, tensor in tensors.items()}
    save_file(short, llm / "model.safetensors", {"format": "pt"})
    before = (llm / "config.json").read_text()
    formats.to_merged(weights, str(tmp_path / "merged"), None, str(llm))
    assert {tensor.dtype for tensor in load_file(tmp_path / "merged/model.safetensors").values()} == {torch.bfloat16}
    assert (tmp_path / "merged/config.json").read_text() == before


EXPERTS = COMMON | LAYERS | {"moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1}
EXPERTS |= {"topk_group": 1, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}


def test_adapters_of_experts_with_joint_weights_are_rejected_before_weights_are_loaded(monkeypatch):
    monkeypatch.setitem(CONFIGS, "deepseek_v2", EXPERTS)
    cfg = MiniGPTv2Config(llama_model="x", lora_target_modules=["gate_proj", "up_proj"])
    message = refusal(llm_weights.check_options, cfg, config_of("deepseek_v2"))
    assert "adapters of experts are not supported" in message and "or null, instead of gate_proj, up_proj" in message


def test_deprecated_names_that_peft_uses_cause_no_warning_before_the_model_is_loaded():
    cfg = MiniGPTv2Config(llama_model="another")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        llm_weights.check_options(cfg, config_of("llama"))
    assert [str(warning.message) for warning in caught if "gradient_checkpointing" in str(warning.message)] == []


@pytest.mark.parametrize("family", ["deepseek_v2", "mamba"])
def test_all_linear_leaves_out_layers_that_peft_cannot_adapt(monkeypatch, family):
    monkeypatch.setitem(CONFIGS, "deepseek_v2", EXPERTS)
    cfg = MiniGPTv2Config(llama_model="x", lora_target_modules="all-linear")
    assert llm_weights.check_options(cfg, config_of(family)) == []
