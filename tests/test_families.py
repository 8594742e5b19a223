"""Other language model families, other precisions, other generation options."""

from __future__ import annotations

import math
import shutil

import pytest
import torch
from running import GOLDEN, golden_config, read_jsonl
from transformers import AutoConfig, AutoModelForCausalLM

from emollama.config import load

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 832,  # larger than the tokenizer's vocabulary
    "max_position_embeddings": 2048,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES = {
    "llama": {"rope_theta": 500000.0},
    "mistral": {"sliding_window": 16},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 16},
}


# make test-models trains every language model.
@pytest.fixture(params=["mistral", "qwen3", *(pytest.param(name, marks=pytest.mark.slow) for name in ("llama", "qwen2"))])
def folder(request, tmp_path):
    """A random model of another family, with the golden tokenizer."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(request.param, **SMALL, **FAMILIES[request.param])
    path = tmp_path / request.param
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(GOLDEN / "llama" / name, path)
    return path


ONE_BLOCK = "evaluation_datasets.upstream=null"


def block(**options):
    """Options of the only evaluation block."""
    return [ONE_BLOCK, *(f"evaluation_datasets.train_layout.{key}={value}" for key, value in options.items())]


def run_of(path, *options, training=True):
    config = load(str(path), list(options))
    return config.runner_class(config, training=training)


def test_a_model_of_another_family_trains_and_answers(folder, tmp_path):
    path = golden_config(tmp_path, model={"llama_model": str(folder), "ckpt": None}, data={"batch_size": 3})
    run = run_of(path, "run.iters_per_epoch=12", "run.init_lr=5e-3").train()
    losses = [row["loss"] for row in read_jsonl(run / "log.jsonl")]
    assert all(map(math.isfinite, losses)) and losses[-1] < losses[0] - 0.1
    short = block(task_pool="[emotion,reason]", max_new_tokens=4, batch_size=12)
    run_of(path, f"model.ckpt={run}/checkpoint_0.pth", *short, training=False).evaluate()
    assert len(read_jsonl(run / "result/predictions_train_layout.jsonl")) == 12


@pytest.fixture(scope="module")
def first_loss(tmp_path_factory):
    """The loss of the first step in float32."""
    path = golden_config(tmp_path_factory.mktemp("full"), run={"iters_per_epoch": 1})
    return read_jsonl(run_of(path).train() / "log.jsonl")[0]["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_mixed_precision_training_starts_with_the_float32_loss(tmp_path, first_loss, dtype):
    steps = 10
    mixed = run_of(golden_config(tmp_path, run={"amp": True, "amp_dtype": dtype, "iters_per_epoch": steps})).train()
    content = torch.load(mixed / "checkpoint_0.pth", weights_only=True)
    assert all(tensor.dtype == torch.float32 for tensor in content["model"].values())
    assert read_jsonl(mixed / "log.jsonl")[0]["loss"] == pytest.approx(first_loss, rel=0.02)
    if dtype == "fp16":
        skipped = content["skipped"][0]
        assert 0 < skipped < steps and content["scaler"]["scale"] == 2.0 ** (16 - skipped)
        assert all(state["step"] == steps - skipped for state in content["optimizer"]["state"].values())


def test_answers_do_not_depend_on_the_batch_size(tmp_path):
    answers = []
    for size in (1, 6):
        path = golden_config(tmp_path / str(size))
        run_of(path, *block(batch_size=size, task_pool="[emotion,reason]", max_new_tokens=8), training=False).evaluate()
        answers.append(read_jsonl(tmp_path / str(size) / "out/run/result/predictions_train_layout.jsonl"))
    assert [row["prediction"] for row in answers[0]] == [row["prediction"] for row in answers[1]]
    assert [row["loss"] for row in answers[0]] == pytest.approx([row["loss"] for row in answers[1]], rel=1e-6)


def answers_of(folder, **options):
    """Answers of the golden model to two tasks; the options belong to the block."""
    path = golden_config(folder)
    keys = {"task_pool": "[emotion,reason]", "max_new_tokens": 8, "batch_size": 12} | options
    run_of(path, *block(**keys), training=False).evaluate()
    return [row["prediction"] for row in read_jsonl(folder / "out/run/result/predictions_train_layout.jsonl")]


@pytest.fixture(scope="module")
def greedy(tmp_path_factory):
    """The answers without options."""
    return answers_of(tmp_path_factory.mktemp("greedy"))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"num_beams": 3}, {"temperature": 0.8, "top_p": 0.9}, {"repetition_penalty": 1.5}])
def test_generation_options_change_the_answers_reproducibly(tmp_path, greedy, options):
    first, again = (answers_of(tmp_path / name, **options) for name in ("first", "again"))
    assert len(first) == len(greedy) == 12
    assert greedy != first == again


def test_labels_are_filled_into_an_instruction_of_the_evaluation_block(tmp_path):
    path = golden_config(tmp_path)
    instruction = "Pick one of {labels} {or none}."
    run_of(path, *block(instruction=f"'{instruction}'", max_new_tokens=1, batch_size=18), training=False).evaluate()
    texts = {row["instruction"] for row in read_jsonl(tmp_path / "out/run/result/predictions_train_layout.jsonl")}
    assert all("Pick one of happy, sad, neutral, " in text and "doubt {or none}. " in text for text in texts)
