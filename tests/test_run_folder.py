"""What is written into a run's folder is read back: writers and readers agree on names, fields and types."""

from __future__ import annotations

import json
from dataclasses import asdict, fields

import pytest

from emollama.evaluation.input_files import read_predictions
from emollama.evaluation.prediction_files import write_metrics, write_predictions
from emollama.evaluation.predictions import Prediction
from emollama.evaluation.scoring import Scoring
from emollama.logs.run_log import RunLog
from emollama.reporting.checkpoint_table import CheckpointRow
from emollama.reporting.run_files import read_run
from emollama.run_folder import PredictionRecord, StepRecord, ValidationRecord, json_line, parse, parse_all

STEP = {"epoch": 0, "loss": float("nan"), "lr": 0.5, "grad_norm": 2.0, "skipped_steps": 1, "tokens": 5, "tokens_cut": 0}
PREDICTION = PredictionRecord("a", "reason", "How?", "Calm…", "calm", ["calm", "quiet"], 0.5, {"calm": 0.9})


def test_each_value_of_a_logged_step_is_read_back_and_a_loss_that_is_not_finite_is_none(tmp_path):
    with RunLog(tmp_path, first_step=0, total_steps=1, epoch_steps=1, log_freq=1, enabled=True) as log:
        log.step(0, STEP, samples=1)
    (record,) = read_run(tmp_path).steps
    assert {name: value for name, value in asdict(record).items() if name in STEP} == STEP | {"loss": None}
    assert [name for name, value in asdict(record).items() if value is None] == ["loss"]
    assert list(json.loads((tmp_path / "log.jsonl").read_text())) == [field.name for field in fields(StepRecord)]


def test_a_step_without_one_of_its_values_is_not_logged(tmp_path):
    values = {name: value for name, value in STEP.items() if name != "grad_norm"}
    log = RunLog(tmp_path, first_step=0, total_steps=1, epoch_steps=1, log_freq=1, enabled=True)
    with pytest.raises(AssertionError), log:
        log.step(0, values, samples=1)


def test_predictions_are_read_back_by_the_report_and_by_scoring(tmp_path):
    (path, _) = write_predictions(tmp_path / "result", "dev", [PREDICTION])
    (result,) = read_run(tmp_path).results
    assert (result.block, result.task, result.file, result.predictions) == ("dev", "reason", path, [PREDICTION])
    (answer,) = read_predictions(str(path)).predictions
    assert answer == Prediction("a", "reason", "Calm…", ["calm", "quiet"], 0.5)


def scores(*answers, **keys):
    """The scores of answers to one task."""
    (task,) = {answer.task for answer in answers}
    tasks = {task: ("reference",)}
    return Scoring(Scoring.Config(**keys), labels=["calm", "sad"], aliases={}, tasks=tasks, key="k").score(answers)


def test_scores_are_read_back_with_their_details(tmp_path):
    by_block = {
        "labels": scores(Prediction("a", "emotion", "calm", "calm"), Prediction("b", "emotion", "?", "sad")),
        "texts": scores(Prediction("a", "reason", "She smiles, happy.", "A smile: she is happy."), judge={"type": "lexical"}),
    }
    for block, by_task in by_block.items():
        write_metrics(tmp_path / "result", block, by_task, "a.pth")
    results = {result.block: result for result in read_run(tmp_path).results}
    for block, result in results.items():
        written = by_block[block][result.task]
        assert (result.metrics, result.num_samples, result.checkpoint) == (written.metrics, written.num_samples, "a.pth")
    labels, texts = (results[block] for block in by_block)
    assert labels.recognition.labels == ["calm", "sad"] and labels.recognition.confusion == [[1, 0, 0], [0, 0, 1]]
    assert labels.recognition.per_class[0]["label"] == "calm" and labels.recognition.invalid[0]["name"] == "b"
    assert texts.judge["name"] == "lexical" and texts.judge["failures"] == []
    assert texts.clip_scores["a"]["clue_overlap"] == texts.metrics["clue_overlap"] and texts.clip_scores["a"]["true_words"]


@pytest.mark.parametrize(
    "record",
    [
        ValidationRecord(9, 1, {"dev/emotion/waf": 0.5, "dev/emotion/loss": None}, best=True),
        StepRecord(3, epoch=0, loss=1.5, tokens=7),
        PREDICTION,
        CheckpointRow("epoch_0", 0, ("a.pth", "b.pth"), ("1f", "2e"), {"": {"code": "0a"}, "dev": {"data": "0b"}}, "run"),
    ],
    ids=lambda record: type(record).__name__,
)
def test_a_record_is_read_back_unchanged(record):
    assert parse(type(record), json.loads(json_line(record))) == record


@pytest.mark.parametrize("value", [None, True, 1e300, "text", [1, None], {"a": {"b": None}}], ids=repr)
@pytest.mark.parametrize("kind", [StepRecord, ValidationRecord, PredictionRecord, CheckpointRow])
def test_values_of_other_types_are_read_and_written_again_as_values_of_the_right_type(kind, value):
    content = dict.fromkeys((field.name for field in fields(kind)), value) | {"step": 1, "epoch": 2, "other": value}
    record = parse(kind, content)
    assert parse(kind, json.loads(json_line(record))) == record


def test_lines_without_a_required_number_are_left_out():
    lines = [{"step": 1}, {"loss": 2.0}, {"step": "3"}, {"step": 4.0}]
    assert [record.step for record in parse_all(StepRecord, lines)] == [1, 4]
