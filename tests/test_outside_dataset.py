"""A dataset class that inherits from no class of the package works with check-data, predict, --dry-run, plan and the tables."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from helpers import golden_tree, loaded
from media_files import write_video

from emollama.checks.check_data import check
from emollama.checks.dry_run import dry_run
from emollama.checks.report import text_of
from emollama.demo.tiny_encoders import make_tiny_encoders
from emollama.errors import UserError
from emollama.inference.predict import predict
from emollama.inference.prediction_block import find_prediction_block
from emollama.inference.requests import Modality
from emollama.planning.estimate import plan
from emollama.registry import DATASETS
from emollama.runners import summary

INTERVIEWS = {
    "first": {"said": "I sleep well.", "mood": "calm"},
    "second": {"said": "Quickly!", "mood": "tense"},
    "third": {"said": "Do not touch that."},
}
BLOCK = "datasets.talks"


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A configuration with a training block and an evaluation block of interviews."""
    monkeypatch.setattr(DATASETS, "_entries", {name: DATASETS.get(name) for name in DATASETS.names()})
    monkeypatch.delitem(sys.modules, "outside_dataset", raising=False)
    (tmp_path / "interviews.json").write_text(json.dumps(INTERVIEWS))
    (tmp_path / "faces").mkdir()
    for number, name in enumerate(["first", "second", "unlisted"]):
        np.save(tmp_path / f"faces/{name}.npy", np.linspace(number, 1, 64, dtype=np.float32))
    content = golden_tree(tmp_path) | {"imports": ["outside_dataset"]}
    content["model"] |= {"slot_dims": {"image": 176, "face": 64}, "ckpt": None, "ckpt_allow_missing": ["*"]}
    block = {"type": "interviews", "file": str(tmp_path / "interviews.json"), "faces": str(tmp_path / "faces")}
    content["datasets"], content["evaluation_datasets"] = {"talks": block}, {"answers": block | {"max_new_tokens": 2}}
    return content


def test_check_data_lists_texts_labels_lengths_and_arrays(tmp_path, tree):
    del tree["evaluation_datasets"]
    np.save(tmp_path / "faces/second.npy", np.full(64, np.nan, np.float32))
    report = check(loaded(tmp_path, tree))
    (block,) = report.blocks
    assert (block.type, block.list_file, block.clips, block.listed) == ("interviews", str(tmp_path / "interviews.json"), 3, 3)
    assert block.labels == {"calm": 1, "tense": 1} and block.answers == {"mood": 2}
    assert block.sentences == {"clips": 3, "empty": 0, "different": 3, "of clips not listed": 0}
    assert [(row.what, row.texts) for row in block.lengths] == [("answers of mood", 2), ("prompts", 3)]
    assert [(row.slots, row.present, row.missing, row.unusable) for row in block.arrays] == [(("face",), 2, 1, 1)]
    assert {finding.kind: finding.clips for finding in report.findings} == {
        "short": ("second",),
        "unusable features": ("second",),
    }
    assert report.unlisted_arrays == {str(tmp_path / "faces"): ["unlisted"]}
    assert report.training.passes[BLOCK] > 0 and "answers of mood" in text_of(report)


def test_predict_answers_with_the_prompts_and_features_of_the_class(tmp_path, tree):
    make_tiny_encoders(tmp_path / "encoders", seed=1)
    tree["encoders"] = {"mae": {"weights": str(tmp_path / "encoders/mae"), "face": "centre"}}
    video = write_video(tmp_path / "new.mp4", sound=())
    (answer,) = predict(loaded(tmp_path, tree), [str(video)], text="Who knows.")
    assert answer.task == "mood" and answer.prompt.endswith('"Who knows." What is the mood of calm, tense?')
    assert answer.modalities["face"] == Modality("real", "encoders.mae")
    assert answer.modalities["audio"] == Modality("missing", "evaluation_datasets.answers has no audio features")


def test_predict_skips_blocks_whose_class_has_no_method_for_new_clips(tmp_path, tree):
    golden = golden_tree(tmp_path)["datasets"]["golden"]
    only_talks, both = loaded(tmp_path, tree), loaded(tmp_path, tree | {"datasets": tree["datasets"] | {"golden": golden}})
    del sys.modules["outside_dataset"].Interviews.for_clips
    assert find_prediction_block(both, None).key == "datasets.golden"
    with pytest.raises(UserError, match="no block under evaluation_datasets or datasets has video clips or images"):
        find_prediction_block(only_talks, None)


def test_a_dry_run_and_the_plan_count_its_samples_and_prompts(tmp_path, tree):
    config = loaded(tmp_path, tree, "run.evaluate=True")
    text = dry_run(config, training=True)
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert f"{BLOCK} 3 samples; tasks: mood" in rows and "evaluation: answers 3 samples; tasks: mood" in rows
    config.datasets["talks"].labels.append("a mood with a longer name than the others")
    longer = plan(config).tokens["prompt text"]
    config.datasets["talks"].labels.pop()
    assert 0 < plan(config).tokens["prompt text"] < longer


def test_the_tables_of_a_run_show_its_blocks(tmp_path, tree, caplog):
    config = loaded(tmp_path, tree, "run.evaluate=True")
    runner = config.runner_class(config, training=True)
    caplog.clear()
    summary.show_start(runner)
    rows = [" ".join(line.getMessage().split()) for line in caplog.records]
    assert "training set talks 3 samples, tasks mood" in rows and "evaluation set answers 3 samples, tasks mood" in rows


def test_an_evaluation_writes_its_answers_and_references(tmp_path, tree):
    config = loaded(tmp_path, tree)
    files = config.runner_class(config, training=False).evaluate()
    (path,) = (file for file in files if file.name == "predictions_answers.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["name"], row["reference"]) for row in rows] == [("first", "calm"), ("second", "tense"), ("third", None)]
    assert rows[0]["instruction"].endswith('"I sleep well." What is the mood of calm, tense?') and rows[0]["loss"] > 0
