"""The plan of a run, without weights or data."""

from __future__ import annotations

import json

import pytest
from running import GOLDEN, ROOT, golden_config, run

from emollama.config import load
from emollama.planning import plan

LLAMA_2_7B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
}


@pytest.fixture
def llama_folder(tmp_path):
    folder = tmp_path / "llama"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA_2_7B))
    return folder


def test_stage_1_at_llama_2_7b_shape_counts_the_published_parameters(llama_folder):
    path = str(ROOT / "train_configs/Emotion-LLaMA_finetune.yaml")
    counts = plan(load(path, [f"model.llama_model={llama_folder}"])).parameters
    assert counts["LoRA"] == 33_554_432
    assert counts["projection"] == 41_439_232
    assert counts["trainable"] == 74_993_664
    assert counts["language model, frozen"] + counts["LoRA"] == 6_771_970_048


def test_the_command_prints_them(llama_folder):
    path = "train_configs/Emotion-LLaMA_finetune.yaml"
    done = run("-m", "emollama", "plan", "--cfg-path", path, "--options", f"model.llama_model={llama_folder}")
    assert done.returncode == 0, done.stderr
    for figure in ("33,554,432", "41,439,232", "74,993,664"):
        assert figure in done.stdout


def test_checkpointing_and_quantization_lower_the_estimate(llama_folder):
    path = str(ROOT / "train_configs/Emotion-LLaMA_finetune.yaml")
    options = [f"model.llama_model={llama_folder}"]
    base = plan(load(path, options)).memory_gib
    without = plan(load(path, [*options, "model.use_grad_checkpoint=False"])).memory_gib
    assert without["activations"] > 3 * base["activations"]
    assert base["frozen weights"] == pytest.approx(6_738_415_616 * 2 / 2**30)


def test_tokens_are_exact_where_a_tokenizer_is_there(tmp_path):
    config = load(str(golden_config(tmp_path, model={"image_size": 112})))
    tokens = plan(config).tokens
    assert tokens["rows: image"] == 16
    expected = json.loads((GOLDEN / "expected.json").read_text())["clips"]["sample_00000104"]["emotion"]["train_path"]
    spoken = "We finally got the keys to the new house"
    assert tokens["prompt text"] == expected["prompt_len"] - 20 - tokens_of(config, spoken)


def tokens_of(config, spoken):
    prompt = config.classes["model"].prompt(config.model)
    text = "</feature> The person in video says: {}.  [emotion] "
    return len(prompt.tokenizer(text.format(spoken)).input_ids) - len(prompt.tokenizer(text.format("")).input_ids)
