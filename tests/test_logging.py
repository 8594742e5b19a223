"""Logging of steps: lines on the console, log.jsonl, Weights & Biases and TensorBoard."""

from __future__ import annotations

import json
import logging
import re
import struct
import sys

import pytest
from helpers import golden_tree, loaded, write
from ranks import environment
from running import golden_config, read_jsonl

from emollama.config import load
from emollama.errors import UserError
from emollama.logs.run_log import RunLog
from emollama.run_folder import PredictionRecord

LINE = re.compile(
    r"Train: data epoch: \[(\d+)\]  \[ *(\d+)/12\]  eta: \d:\d\d:\d\d  lr: 0\.\d{6}  loss: (\d+\.\d{4})  time: (\d+\.\d{4})"
    r"  data: (\d+\.\d{4})  max mem: (\d+)$"
)
TRACKED = {"max_epoch": 2, "iters_per_epoch": 2, "wandb_log": True, "wandb_project": "golden"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, launch):
    """The standard error of a run of two epochs of 12 steps, and its folder."""
    folder = tmp_path_factory.mktemp("trained")
    path = golden_config(folder, run={"max_epoch": 2, "iters_per_epoch": 12, "log_freq": 5})
    completed = launch("train.py", "--cfg-path", str(path))
    assert completed.returncode == 0, completed.stderr
    return completed.stderr, folder / "out/run"


def test_a_log_line_contains_the_epoch_its_step_and_the_metrics(trained):
    output, folder = trained
    lines = [match.groups() for line in output.splitlines() if (match := LINE.search(line))]
    logged = read_jsonl(folder / "log.jsonl")
    assert [(int(epoch), int(step)) for epoch, step, *_ in lines] == [(0, 0), (0, 5), (0, 10), (1, 3), (1, 8), (1, 11)]
    assert [loss for _, _, loss, *_ in lines] == [f"{row['loss']:.4f}" for row in logged]
    assert [int(memory) for *_, memory in lines] == [round(row["peak_memory_gib"] * 1024) for row in logged]
    assert " [ 5/12]" in output


def test_the_duration_of_a_step_and_its_wait_for_data_are_logged(trained):
    logged = read_jsonl(trained[1] / "log.jsonl")
    assert all(0 <= row["data_time"] <= row["step_time"] < 60 for row in logged)
    assert all(row["data_wait"] == pytest.approx(row["data_time"] / row["step_time"]) for row in logged)
    assert {"samples_per_s", "tokens_per_s", "peak_memory_gib", "grad_norm", "tokens"} <= logged[0].keys()


@pytest.fixture
def log(tmp_path):
    with RunLog(tmp_path, first_step=0, total_steps=8, epoch_steps=8, log_freq=4, enabled=True) as run_log:
        yield run_log


STEP = {"epoch": 0, "loss": 1.0, "lr": 0.1, "grad_norm": 1.0, "skipped_steps": 0, "tokens": 5}


def test_cut_texts_are_reported_once_also_between_logged_steps(log, caplog):
    with caplog.at_level(logging.WARNING, "emollama"):
        for step, cut in enumerate([0, 0, 3, 9, 2]):
            log.step(step, {**STEP, "tokens_cut": cut}, samples=1)
    assert [record.getMessage() for record in caplog.records] == [
        "3 tokens of answers or prompts did not fit (model.max_txt_len, max_context_len) in step 2. log.jsonl counts them as"
        " tokens_cut; emollama check-data lists the samples."
    ]


def test_only_the_first_two_captions_of_an_image_are_shown_and_the_others_counted(log, caplog, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    truths = {"five": ["a dog", "a cat", "x", "y", "z"], "two": ["a dog", "a cat"], "text": "happy", "none": None}
    rows = [PredictionRecord(name, "caption", "", "dogs", None, truth, None) for name, truth in truths.items()]
    with caplog.at_level(logging.INFO, "emollama"):
        log.evaluation(0, 0, {}, {"block": rows})
    shown = {"five": "a dog / a cat (+3)", "two": "a dog / a cat", "text": "happy", "none": "None"}
    expected = [f"{name} (caption): dogs  | reference: {text}" for name, text in shown.items()]
    assert [record.getMessage() for record in caplog.records] == expected
    board = EventAccumulator(str(tmp_path)).Reload()
    for name, text in shown.items():
        (event,) = board.Tensors(f"eval/block/caption/{name}/text_summary")
        assert event.tensor_proto.string_val[0].decode() == f"dogs\n\n*reference:* {text}"


def records(path):
    """The records of a .wandb file: blocks of 32 KiB with chunks, each after its CRC, length and kind."""
    from wandb.proto.wandb_internal_pb2 import Record

    raw, at, whole = path.read_bytes(), 7, b""
    assert raw[:4] == b":W&B"
    while at + 7 <= len(raw):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack("<HB", raw[at + 4 : at + 7])
        whole += raw[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a complete record, or its last chunk
            yield Record.FromString(whole)
            whole = b""


def history(folder):
    """The logged rows of all processes of a run, and the ids of the runs."""
    history_rows, ids = [], set()
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for record in records(path):
            if record.WhichOneof("record_type") == "run":
                ids.add(record.run.run_id)
            if record.WhichOneof("record_type") == "history":
                items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
                history_rows.append(items)
    return history_rows, ids


@pytest.fixture(scope="module")
def offline(launch):
    """Train from a file with offline tracking."""

    def trained(path, *options, processes=1):
        variables = environment() | {"WANDB_MODE": "offline", "GOLDEN_SECRET": "sesame-42"}
        more = ["--options", *options] if options else []
        return launch("train.py", "--cfg-path", str(path), *more, processes=processes, env=variables)

    return trained


@pytest.fixture
def tampered(launch, tmp_path):
    """Train in one process with offline tracking; ``after(runner, steps)`` of the code is called after each step."""
    frame = (
        "import os, sys\nfrom emollama.cli import entry_point\nfrom emollama.config import load\n"
        "config = load(sys.argv[1])\nrunner = config.runner_class(config)\nsave = runner.checkpoints.maybe_save\n"
        "runner.checkpoints.maybe_save = lambda step: (save(step), after(runner, step))\nentry_point(runner.train)\n"
    )

    def trained(path, code):
        (tmp_path / "tampered.py").write_text(f"{code}\n{frame}")
        return launch(str(tmp_path / "tampered.py"), str(path), env=environment() | {"WANDB_MODE": "offline"})

    return trained


def tracked_tree(folder):
    tree = golden_tree(folder)
    tree["run"] |= TRACKED | {"log_freq": 1, "evaluate": True, "metric": "answers.emotion.loss"}
    tree["paths"] = {"secret": "${oc.env:GOLDEN_SECRET}"}
    return write(folder, tree)


@pytest.fixture(scope="module")
def tracked(tmp_path_factory, offline):
    """A run of two epochs in two processes with offline tracking, then resumed in one process for another epoch."""
    folder = tmp_path_factory.mktemp("tracked")
    path = tracked_tree(folder)
    for processes, more in ((2, []), (1, ["run.max_epoch=3", "run.resume_ckpt_path=auto", "run.accum_grad_iters=2"])):
        completed = offline(path, *more, processes=processes)
        assert completed.returncode == 0, completed.stderr
    return folder / "out/run"


@pytest.mark.slow
def test_an_offline_run_contains_the_logged_scalars_under_their_tensorboard_names(tracked):
    logged, past = read_jsonl(tracked / "log.jsonl"), read_jsonl(tracked / "eval.jsonl")
    history_rows, ids = history(tracked)
    losses = [(row["step"], row["train/loss"]) for row in history_rows if "train/loss" in row]
    assert losses == [(row["step"], row["loss"]) for row in logged] and len(losses) == 6
    assert {f"train/{key}" for key in logged[0].keys() - {"step", "epoch"}} <= next(
        row for row in history_rows if "train/lr" in row
    ).keys()
    measured = [(row["step"], row["eval/answers/emotion/loss"]) for row in history_rows if "eval/answers/emotion/loss" in row]
    assert measured == [(row["step"], row["metrics"]["answers/emotion/loss"]) for row in past] and len(measured) == 3
    assert ids == {(tracked / "wandb_id.txt").read_text().strip()}


@pytest.mark.slow
def test_a_tracked_run_has_the_name_of_its_folder_and_a_configuration_without_secrets(tracked):
    files = sorted(tracked.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2  # one process each time, of the same run
    begun = next(record.run for record in records(files[0]) if record.WhichOneof("record_type") == "run")
    config = {item.key: json.loads(item.value_json) for item in begun.config.update}
    assert (begun.display_name, begun.project) == ("run", "golden")
    assert config["run"]["iters_per_epoch"] == 2 and config["paths"]["secret"] == "${oc.env:GOLDEN_SECRET}"
    assert all(b"sesame-42" not in path.read_bytes() for path in tracked.rglob("*") if path.is_file())


SPOIL = """
import torch
def after(runner, done):
    with torch.no_grad():
        runner.model.fusion.llama_proj.bias[0] = float("nan")
"""
KILL = """
import os, signal, subprocess
def after(runner, done):
    if done == 3:
        line = ["ps", "-o", "pid=,comm=", "--ppid", str(os.getpid())]
        children = subprocess.run(line, capture_output=True, text=True, check=True).stdout.splitlines()
        (core,) = [int(child.split()[0]) for child in children if "wandb" in child]
        os.kill(core, signal.SIGKILL)
"""


def test_a_failed_run_preserves_its_logged_values(tmp_path, tampered):
    path = golden_config(tmp_path, run={**TRACKED, "max_skipped_steps": 1, "log_freq": 1})
    completed = tampered(path, SPOIL)
    assert completed.returncode == 1 and "consecutive steps" in completed.stderr
    history_rows, _ = history(tmp_path / "out/run")
    assert [row["step"] for row in history_rows if "train/loss" in row] == [0]


@pytest.mark.slow
def test_a_run_continues_training_after_its_tracking_process_dies(tmp_path, tampered):
    completed = tampered(golden_config(tmp_path, run={**TRACKED, "iters_per_epoch": 6, "log_freq": 1}), KILL)
    assert completed.returncode == 0, completed.stderr
    assert len(read_jsonl(tmp_path / "out/run/log.jsonl")) == 12 and (tmp_path / "out/run/checkpoint_1.pth").exists()
    assert completed.stderr.count("logging to Weights & Biases has stopped") == 1


def test_a_missing_wandb_package_is_reported_before_the_run_starts(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = load(str(golden_config(tmp_path, run=TRACKED)))
    with pytest.raises(UserError, match="run.wandb_log needs the package wandb. Install it"):
        config.runner_class(config)
    assert not (tmp_path / "out").exists()


def test_a_missing_login_is_reported_once_with_the_remedy_before_anything_is_read(tmp_path, launch):
    path = golden_config(tmp_path, run=TRACKED)
    bare = {key: value for key, value in environment().items() if not key.startswith("WANDB_")} | {"HOME": str(tmp_path)}
    completed = launch("train.py", "--cfg-path", str(path), processes=2, env=bare)
    assert completed.returncode == 1 and completed.stderr.count("error: run.wandb_log") == 1
    assert (
        "you are not logged in" in completed.stderr
        and "WANDB_MODE=offline" in completed.stderr
        and "tracking.py" not in completed.stderr
    )
    assert not (tmp_path / "out").exists()


def test_an_unknown_wandb_mode_is_a_user_error(tmp_path, launch):
    (tmp_path / "program.py").write_text("from emollama.logs.tracking import require; require()")
    completed = launch(str(tmp_path / "program.py"), env=environment() | {"WANDB_MODE": "ofline"})
    assert "UserError: run.wandb_log: Weights & Biases did not start: " in completed.stderr


@pytest.mark.slow
def test_tracking_can_be_enabled_when_a_run_is_resumed(tmp_path, offline):
    tree = golden_tree(tmp_path)
    first = loaded(tmp_path, tree)
    first.runner_class(first).train()
    completed = offline(tmp_path / "config.yaml", "run.max_epoch=2", "run.resume_ckpt_path=auto", "run.wandb_log=true")
    assert completed.returncode == 0, completed.stderr
    assert history(tmp_path / "out/run")[0]
