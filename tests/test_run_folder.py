"""What is written into a run's folder is read back: writers and readers agree on names, fields and types."""

from __future__ import annotations

import json
from dataclasses import asdict, fields

import pytest

from emollama.evaluation.input_files import read_predictions
from emollama.evaluation.prediction_files import write_predictions
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
    assert (answer.name, answer.task, answer.text, answer.reference, answer.loss) == (
        "a",
        "reason",
        "Calm…",
        ["calm", "quiet"],
        0.5,
    )


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
