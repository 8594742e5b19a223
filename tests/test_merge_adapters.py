"""model.merge_adapters: the answers of an evaluation stay the same, and training ignores it."""

from __future__ import annotations

import json

import pytest
import torch
from helpers import GOLDEN, golden_tree, loaded

from emollama.errors import UserError
from emollama.paths import sha256


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"load_in_4bit": True}, "merge_adapters cannot add adapters to quantized weights"),
        ({"low_resource": True}, "merge_adapters cannot add adapters to quantized weights"),
        ({"ckpt": ["one.pth", "two.pth"]}, "the members of an ensemble share the weights"),
        ({"train_llm": "none"}, "merge_adapters has no effect, because train_llm is none"),
    ],
)
def test_adapters_that_cannot_be_merged_are_rejected(tmp_path, keys, message):
    tree = golden_tree(tmp_path)
    tree["model"] |= {"merge_adapters": True} | keys
    with pytest.raises(UserError, match=message):
        loaded(tmp_path, tree)


def run(folder, *options, training, merge):
    folder.mkdir(parents=True)
    config = loaded(folder, golden_tree(folder), f"model.merge_adapters={merge}", *options)
    runner = config.runner_class(config, training=training)
    adapters = sum(".lora_A." in name for name, _ in runner.model.named_parameters())
    if training:
        runner.train()
    else:
        runner.evaluate()
    return folder / "out/run", adapters


def predictions(folder):
    lines = [line for file in sorted(folder.rglob("*predictions*.jsonl")) for line in file.read_text().splitlines()]
    return [json.loads(line)["prediction"] for line in lines]


@pytest.mark.slow
def test_an_evaluation_with_merged_adapters_gives_the_same_answers_and_leaves_the_files_as_they_are(tmp_path):
    files = [GOLDEN / "llama/model.safetensors", GOLDEN / "checkpoint_slim.pth"]
    before = [sha256(file) for file in files]
    (plain, adapters), (merged, none) = (run(tmp_path / str(merge), training=False, merge=merge) for merge in (False, True))
    assert adapters > 0 and none == 0
    assert predictions(plain) == predictions(merged) and len(predictions(plain)) > 10
    assert [sha256(file) for file in files] == before


@pytest.mark.slow
def test_training_and_its_validation_keep_the_adapters(tmp_path):
    options = {"run.evaluate": True, "evaluation_datasets.answers.task_pool": "[emotion]"}
    listed = [f"{key}={value}" for key, value in options.items()]
    (plain, adapters), (ignored, same) = (
        run(tmp_path / str(merge), *listed, training=True, merge=merge) for merge in (False, True)
    )
    assert adapters == same > 0
    first, second = (torch.load(folder / "checkpoint_0.pth", weights_only=False)["model"] for folder in (plain, ignored))
    assert first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)
    assert predictions(plain) == predictions(ignored) and len(predictions(plain)) > 5
