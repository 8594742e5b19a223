"""Several processes: gloo on this machine, through torchrun."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time

import pytest
import torch
from running import GOLDEN, ROOT, command, environment, golden_config, rows, run

# batch size, accumulation, processes: three splits of one global batch of four
SPLITS = {"accumulate": (1, 4, 1), "ranks": (1, 2, 2), "batch": (4, 1, 1)}
AVERAGES = ("sample", "token")
TASKS = {"emotion": 1, "reason": 1, "reason_v2": 1}  # answers of very different length


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    """(split, average) -> folder with gradients_0.pt and the run's output."""
    root = tmp_path_factory.mktemp("splits")
    folders = {}
    for name, (batch, accumulate, processes) in SPLITS.items():
        configs = []
        for average in AVERAGES:
            folder = folders[name, average] = root / f"{name}_{average}"
            settings = {"accum_grad_iters": accumulate, "loss_average": average, "iters_per_epoch": 5, "warmup_steps": 0}
            data = {"batch_size": batch, "task_pool": TASKS, "shuffle": True}
            configs.append(str(golden_config(folder, run=settings, data=data)))
        done = run("tests/workers/splits.py", *configs, processes=processes)
        assert done.returncode == 0, done.stderr
    return folders


def test_processes_that_see_other_data_do_not_train(tmp_path):
    for rank, label in ((0, "happy"), (1, "sad")):
        shutil.copytree(GOLDEN / "data", tmp_path / str(rank))
        path = tmp_path / str(rank) / "MERR_coarse_grained.txt"
        path.write_text(re.sub(r"(sample_00000104 \d+) \w+", rf"\1 {label}", path.read_text()))
    config = golden_config(tmp_path / "run", data={"data_root": f"{tmp_path}/${{oc.env:RANK}}"})
    done = run("train.py", "--cfg-path", str(config), processes=2)
    assert done.returncode != 0 and not (tmp_path / "run/out").exists()
    assert done.stderr.count("error: process 1 does not see what process 0 sees: list and texts of clips.") == 1


def tensors(folder):
    return torch.load(folder / "out" / "run" / "checkpoint_0.pth", weights_only=True)["model"]


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("split", ["ranks", "batch"])
def test_first_gradients_do_not_depend_on_the_split(splits, split, average):
    reference = torch.load(splits["accumulate", average] / "gradients_0.pt", weights_only=True)
    found = torch.load(splits[split, average] / "gradients_0.pt", weights_only=True)
    assert set(found) == set(reference)
    for name, gradient in reference.items():
        assert gradient.norm() > 0
        assert (found[name] - gradient).norm() <= 1e-6 * gradient.norm(), name


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("split", ["ranks", "batch"])
def test_five_steps_end_in_the_same_place_for_every_split(splits, split, average):
    start = torch.load(ROOT / "tests/golden/checkpoint_slim.pth", weights_only=True)["model"]
    reference, found = tensors(splits["accumulate", average]), tensors(splits[split, average])
    largest = max((reference[name] - start[name]).abs().max() for name in reference)
    assert largest > 1e-3
    for name in reference:
        assert (found[name] - reference[name]).abs().max() <= 0.01 * largest, name


def test_both_loss_averages_differ_where_answers_differ_in_length(splits):
    first = {average: rows(splits["batch", average] / "out/run/log.jsonl")[0]["loss"] for average in AVERAGES}
    assert abs(first["sample"] - first["token"]) > 1e-3


def test_ranks_hold_equal_gradients(splits):
    both = [torch.load(splits["ranks", "sample"] / f"gradients_{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert all(torch.equal(both[0][name], both[1][name]) for name in both[0])


def test_two_processes_and_eight_at_once_answer_each_clip_once_and_as_one_alone_does(tmp_path):
    answers, losses, metrics = [], [], []
    for processes, size in ((1, 1), (2, 8)):
        folder = tmp_path / str(processes)
        options = [f"evaluation_datasets.{block}.batch_size={size}" for block in ("train_layout", "upstream")]
        done = run("eval_emotion_EMER.py", "--cfg-path", str(golden_config(folder)), "--options", *options, processes=processes)
        assert done.returncode == 0, done.stderr
        result = folder / "out/run/result"
        found = [row for name in ("train_layout", "upstream") for row in rows(result / f"predictions_{name}.jsonl")]
        assert len(found) == 36
        answers.append([(row["name"], row["task"], row["prediction"]) for row in found])
        losses.append([row["loss"] for row in found[:18]])
        metrics.append(json.loads((result / "metrics_train_layout.json").read_text())["tasks"]["emotion"]["metrics"])
    assert answers[0] == answers[1] and len(set(answers[0][:18])) == 18
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert metrics[0] == pytest.approx(metrics[1], abs=1e-5) and {"loss", "waf"} <= metrics[0].keys()


@pytest.mark.slow
@pytest.mark.parametrize("amp", [False, True])
def test_two_processes_that_evaluate_train_to_the_bit_as_two_that_do_not(tmp_path, amp):
    found = []
    for evaluate in (True, False):
        keys = {"amp": amp, "evaluate": evaluate, "metric": "train_layout.emotion.loss", "max_epoch": 2, "iters_per_epoch": 3}
        path = golden_config(tmp_path / str(evaluate), run=keys, model={"lora_dropout": 0.1})
        done = run("train.py", "--cfg-path", str(path), processes=2)
        assert done.returncode == 0, done.stderr
        log = rows(tmp_path / str(evaluate) / "out/run/log.jsonl")
        found.append([(row["loss"], row["grad_norm"]) for row in log])
    assert found[0] == found[1] and len(found[0]) == 6
    assert len(rows(tmp_path / "True/out/run/eval.jsonl")) == 2


def test_an_error_of_all_ranks_is_told_once(tmp_path):
    path = golden_config(tmp_path, data={"coarse_grained_json_path": "nowhere.json", "task_pool": ["reason"]})
    done = run("train.py", "--cfg-path", str(path), processes=2)
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1
    assert "nowhere.json" in done.stderr
    assert not (tmp_path / "out").exists()


def test_workers_end_when_the_launcher_is_killed(tmp_path):
    path = golden_config(tmp_path, run={"iters_per_epoch": 100_000})
    line = command("train.py", "--cfg-path", str(path), processes=2)
    launcher = subprocess.Popen(line, cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL, start_new_session=True)
    log = tmp_path / "out/run/log.jsonl"
    try:
        wait_until(lambda: len(rows(log)) > 3, 120)
        launcher.send_signal(signal.SIGKILL)
        launcher.wait()
        wait_until(lambda: not members(launcher.pid), 30)
    finally:
        if members(launcher.pid):
            os.killpg(launcher.pid, signal.SIGKILL)


def members(session: int) -> list[int]:
    """Living processes of a session."""
    listed = subprocess.run(["ps", "-o", "pid=,stat=", "-s", str(session)], capture_output=True, text=True, check=False).stdout
    return [int(line.split()[0]) for line in listed.splitlines() if not line.split()[1].startswith("Z")]


def wait_until(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
