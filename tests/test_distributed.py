"""Several processes with gloo on this machine. Most of them are forks (tests/ranks.py)."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time

import pytest
from ranks import HANG, start
from running import GOLDEN, ROOT, command, environment, family_of, golden_config, read_jsonl, start_launcher
from workers import splits as worker

FORKING_LAUNCHER = str(ROOT / "tests/workers/forking_launcher.py")
# batch size, accumulation, processes: three layouts of one global batch of four
SPLITS = {"accumulate": (1, 4, 1), "ranks": (1, 2, 2), "batch": (4, 1, 1)}
AVERAGES = ("sample", "token")
TASKS = {"emotion": 1, "reason": 1, "reason_v2": 1}  # answers of very different lengths


@pytest.fixture(scope="module")
def splits(tmp_path_factory, ranks):
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
        _ = ranks(worker.train, configs) if processes > 1 else worker.train(configs)
    return folders


def test_training_is_refused_if_processes_read_different_data(tmp_path, launch):
    for rank, label in ((0, "happy"), (1, "sad")):
        shutil.copytree(GOLDEN / "data", tmp_path / str(rank))
        path = tmp_path / str(rank) / "MERR_coarse_grained.txt"
        path.write_text(re.sub(r"(sample_00000104 \d+) \w+", rf"\1 {label}", path.read_text()))
    config = golden_config(tmp_path / "run", data={"data_root": f"{tmp_path}/${{oc.env:RANK}}"})
    completed = launch("train.py", "--cfg-path", str(config), processes=2)
    assert completed.returncode != 0 and not (tmp_path / "run/out").exists()
    what = "annotation file and texts of clips (the first one is sample_00000104)."
    assert completed.stderr.count(f"error: the data of process 1 differ from those of process 0: {what}") == 1


def tensors(folder):
    import torch

    return torch.load(folder / "out" / "run" / "checkpoint_0.pth", weights_only=True)["model"]


def first_gradients(folder, rank=0):
    import torch

    return torch.load(folder / f"gradients_{rank}.pt", weights_only=True)


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("split", ["ranks", "batch"])
def test_the_first_gradients_do_not_depend_on_the_batch_layout(splits, split, average):
    reference, gradients = (first_gradients(splits[name, average]) for name in ("accumulate", split))
    assert set(gradients) == set(reference)
    for name, gradient in reference.items():
        assert gradient.norm() > 0
        assert (gradients[name] - gradient).norm() <= 1e-6 * gradient.norm(), name


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("split", ["ranks", "batch"])
def test_the_weights_after_five_steps_do_not_depend_on_the_batch_layout(splits, split, average):
    import torch

    start = torch.load(GOLDEN / "checkpoint_slim.pth", weights_only=True)["model"]
    reference, weights = tensors(splits["accumulate", average]), tensors(splits[split, average])
    for name, weight in reference.items():
        # Adam's first steps are as large for an element whose gradient is nearly 0, so single elements can differ more.
        change = (weight - start[name]).norm()
        assert change > 0 and (weights[name] - weight).norm() <= 0.01 * change, name


def test_the_two_loss_averages_differ_if_answers_differ_in_length(splits):
    first = {average: read_jsonl(splits["batch", average] / "out/run/log.jsonl")[0]["loss"] for average in AVERAGES}
    assert abs(first["sample"] - first["token"]) > 1e-3


def test_all_ranks_have_equal_gradients(splits):
    one, other = (first_gradients(splits["ranks", "sample"], rank) for rank in (0, 1))
    assert one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def test_two_processes_with_batches_answer_each_sample_once_like_a_single_process(tmp_path, launch):
    answers, losses, metrics = [], [], []
    for processes, size in ((1, 1), (2, 8)):
        folder = tmp_path / str(processes)
        sizes = {"batch_size": size, "max_new_tokens": 6}
        blocks = ("train_layout", "upstream")
        options = [f"evaluation_datasets.{block}.{key}={value}" for block in blocks for key, value in sizes.items()]
        arguments = ["--cfg-path", str(golden_config(folder)), "--options", *options]
        completed = launch("eval_emotion_EMER.py", *arguments, processes=processes)
        assert completed.returncode == 0, completed.stderr
        result = folder / "out/run/result"
        predictions = [row for name in ("train_layout", "upstream") for row in read_jsonl(result / f"predictions_{name}.jsonl")]
        assert len(predictions) == 36
        answers.append([(row["name"], row["task"], row["prediction"]) for row in predictions])
        losses.append([row["loss"] for row in predictions[:18]])
        metrics.append(json.loads((result / "metrics_train_layout.json").read_text())["tasks"]["emotion"]["metrics"])
    assert answers[0] == answers[1] and len(set(answers[0][:18])) == 18
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert metrics[0] == pytest.approx(metrics[1], abs=1e-5) and {"loss", "waf"} <= metrics[0].keys()


@pytest.mark.slow
@pytest.mark.parametrize("amp", [False, True])
def test_evaluation_during_training_does_not_change_the_training_of_two_processes(tmp_path, launch, amp):
    logged = []
    for evaluate in (True, False):
        keys = {"amp": amp, "evaluate": evaluate, "metric": "train_layout.emotion.loss", "max_epoch": 2, "iters_per_epoch": 3}
        path = golden_config(tmp_path / str(evaluate), run=keys, model={"lora_dropout": 0.1})
        completed = launch("train.py", "--cfg-path", str(path), processes=2)
        assert completed.returncode == 0, completed.stderr
        log = read_jsonl(tmp_path / str(evaluate) / "out/run/log.jsonl")
        logged.append([(row["loss"], row["grad_norm"]) for row in log])
    assert logged[0] == logged[1] and len(logged[0]) == 6
    assert len(read_jsonl(tmp_path / "True/out/run/eval.jsonl")) == 2


def test_an_error_of_all_ranks_is_printed_once(tmp_path, launch):
    path = golden_config(tmp_path, data={"coarse_grained_json_path": "nowhere.json", "task_pool": ["reason"]})
    completed = launch("train.py", "--cfg-path", str(path), processes=2)
    assert completed.returncode != 0
    assert completed.stderr.count("error: ") == 1
    assert "nowhere.json" in completed.stderr
    assert not (tmp_path / "out").exists()


def test_workers_end_when_the_launcher_is_killed(tmp_path, fork_server):
    path = golden_config(tmp_path, run={"iters_per_epoch": 100_000})
    variables = environment() | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    launcher = start(FORKING_LAUNCHER, str(tmp_path), "train.py", "--cfg-path", str(path), env=variables)
    ended_with_its_launcher(lambda: in_session(launcher.pids[0]), tmp_path / "out/run/log.jsonl", launcher.kill_alone)


@pytest.mark.slow
def test_workers_end_when_torchrun_is_killed(tmp_path, fork_server):
    path = golden_config(tmp_path, run={"iters_per_epoch": 100_000})
    line = command("train.py", "--cfg-path", str(path), processes=2)
    launcher = start_launcher(*line[1:])
    # torchrun starts each process in its own session.
    ended_with_its_launcher(family_of(launcher.pids[0]), tmp_path / "out/run/log.jsonl", launcher.kill_alone)


def ended_with_its_launcher(living, log, kill):
    """Kill a launcher once its processes train and check that they end. ``living`` lists the launcher and its processes."""
    try:
        wait_until(lambda: len(read_jsonl(log)) > 3)
        assert len(living()) > 2
        kill()
        wait_until(lambda: not living())
    finally:
        for process in living():
            os.kill(process, signal.SIGKILL)


def in_session(session: int) -> list[int]:
    """Running processes of a session."""
    return [int(pid) for pid, state, own, _ in processes() if own == str(session) and not state.startswith("Z")]


def processes() -> list[list[str]]:
    """Process id, state, session and command line of every process."""
    listed = subprocess.run(["ps", "-ww", "-eo", "pid=,stat=,sess=,args="], capture_output=True, text=True, check=True).stdout
    return [line.split(None, 3) for line in listed.splitlines() if len(line.split(None, 3)) == 4]


def wait_until(condition) -> None:
    end = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
