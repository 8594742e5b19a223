"""The results equal those of the published training code, with this package's keys and the entry scripts' code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from helpers import FOLDERS
from running import GOLDEN, golden_config, read_jsonl

from emollama.config import load
from emollama.models.llm import load_tokenizer

MARGIN_THAT_DECIDES = 1e-3  # with a smaller margin, two builds of PyTorch may select different tokens


def with_declared_keys(path):
    """Replace the usual short keys of a configuration by declarations of the same slots, features, fusion and prompt format."""
    tree = yaml.safe_load(path.read_text())
    del tree["model"]["slot_dims"]
    tree["model"]["slots"] = {"image": {"dim": 176, "length": 64, "class_token": "cls"}, "face": {"dim": 1024, "length": 1}}
    tree["model"]["fusion"] = {"type": "linear"}
    tree["model"]["prompt_format"] = {
        "type": "template",
        "template": "<video>{video}</video> <feature>{feature}</feature> {text}",
        "layouts": {
            "upstream_eval": {
                "template": "<video>{video}{feature}</video> <feature><FeatureHere></feature> {text}",
                "second_bos": True,
            }
        },
    }
    for block in (*tree["datasets"].values(), *tree["evaluation_datasets"].values()):
        block["features"] = dict(FOLDERS)
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture(scope="module", params=["short keys", "declared keys"])
def written(request):
    """A function that writes the configuration of the reference into a folder, with either set of keys."""
    return golden_config if request.param == "short keys" else lambda folder: with_declared_keys(golden_config(folder))


@pytest.fixture(scope="module")
def trained(written, tmp_path_factory):
    config = load(str(written(tmp_path_factory.mktemp("parity"))))
    return config.runner_class(config).train()


@pytest.fixture(scope="module")
def predicted(written, tmp_path_factory):
    folder = tmp_path_factory.mktemp("answers")
    config = load(str(written(folder)))
    config.runner_class(config, training=False).evaluate()
    return folder / "out" / "run" / "result"


@pytest.fixture(scope="module")
def expected():
    return json.loads((GOLDEN / "expected.json").read_text())["clips"]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(str(GOLDEN / "llama"))


@pytest.fixture(scope="module")
def trajectory():
    return json.loads((GOLDEN / "trajectory.json").read_text())


def test_every_loss_equals_the_reference(predicted, expected):
    predictions = read_jsonl(predicted / "predictions_train_layout.jsonl")
    assert len(predictions) == 18
    for row in predictions:
        assert row["loss"] == pytest.approx(expected[row["name"]][row["task"]]["train_path"]["loss"], rel=1e-5)


@pytest.mark.parametrize(("block", "key"), [("train_layout", "train_prompt_generation"), ("upstream", "eval_generation")])
def test_greedy_answers_equal_the_reference_up_to_the_first_near_tie(predicted, expected, tokenizer, block, key):
    predictions = read_jsonl(predicted / f"predictions_{block}.jsonl")
    assert len(predictions) == 18
    for row in predictions:
        reference = expected[row["name"]][row["task"]]
        assert row["instruction"] == reference["instruction"]
        assert row["target"] == reference["answer"]
        close = (step for step, margin in enumerate(reference[key]["margins"]) if margin < MARGIN_THAT_DECIDES)
        decided = next(close, None)
        if decided is None:
            assert row["prediction"] == reference[key]["text"]
        else:
            assert row["prediction"].startswith(tokenizer.decode(reference[key]["ids"][:decided]).strip())


def test_the_upstream_prompt_layout_gives_no_loss(predicted):
    assert all(row["loss"] is None for row in read_jsonl(predicted / "predictions_upstream.jsonl"))


def test_the_csv_contains_one_answer_per_clip_and_the_header_of_the_scorer(predicted):
    lines = (predicted / "predictions_train_layout_reason_v2.csv").read_text().splitlines()
    assert lines[0] == "names,chi_reasons"
    assert len(lines) == 7


def test_the_losses_and_learning_rates_of_eight_steps_equal_the_reference(trained, trajectory):
    logged = read_jsonl(trained / "log.jsonl")
    assert [row["step"] for row in logged] == list(range(8))
    for row, step in zip(logged, trajectory["steps"], strict=True):
        assert row["loss"] == pytest.approx(step["loss"], rel=1e-4)
        assert row["lr"] == pytest.approx(step["lr"], rel=1e-12)


def test_trained_tensors_have_the_norms_and_updates_of_the_reference(trained, trajectory):
    after = torch.load(trained / "checkpoint_0.pth", weights_only=True)["model"]
    before = torch.load(GOLDEN / "checkpoint_slim.pth", weights_only=True)["model"]
    assert set(after) == set(before)
    for name, norm in trajectory["final_norm"].items():
        assert after[name].norm().item() == pytest.approx(norm, rel=1e-5)
        assert (after[name] - before[name]).norm().item() == pytest.approx(trajectory["update_norm"][name], rel=1e-4)


def test_a_run_writes_its_configuration_log_events_and_digest(trained: Path):
    names = {path.name for path in trained.iterdir()}
    assert {"config.yaml", "log.jsonl", "checkpoint_0.pth", "checkpoint_0.pth.sha256"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    again = load(str(trained / "config.yaml"))
    assert again.run.init_lr == 1e-3
