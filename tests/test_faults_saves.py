"""Processes that are killed while a checkpoint is written, and at other moments of a run with several processes."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from functools import cache

import pytest
import torch
from ranks import HANG, start
from running import ROOT, environment, family_of, golden_config, read_jsonl, start_launcher
from test_distributed import FORKING_LAUNCHER, in_session
from test_faults_folders import assert_equal_tensors

from emollama import file_digests
from emollama.runners.checkpoints import newest

pytestmark = pytest.mark.faults
STEPS, EPOCHS = 5, 2
SETTINGS = {"iters_per_epoch": STEPS, "max_epoch": EPOCHS, "save_every_iters": 2, "resume_ckpt_path": "auto"}
DATA = {"task_pool": {"emotion": 0.5, "reason": 0.5}, "shuffle": True, "batch_size": 2, "instructions": {}}
MODEL = {"lora_dropout": 0.1, "dropout": 0.1}


def configured(folder, **run):
    """Write a configuration that evaluates with short answers."""
    path = golden_config(folder, run=SETTINGS | run, data=DATA, model=MODEL)
    tree = json.loads(path.read_text())
    for block in tree["evaluation_datasets"].values():
        block |= {"batch_size": 2, "max_new_tokens": 3}
    path.write_text(json.dumps(tree))
    return path


def assert_same_run(run, reference):
    for path in reference.glob("checkpoint_?.pth"):
        assert_equal_tensors(run / path.name, path)
    for name, keys in (("log.jsonl", ("step", "loss", "grad_norm")), ("eval.jsonl", ("step", "metrics", "best"))):
        rows, expected = read_jsonl(run / name), read_jsonl(reference / name)
        assert [[row[key] for key in keys] for row in rows] == [[row[key] for key in keys] for row in expected]


def assert_usable(run, step):
    """Check that all checkpoints of a run are intact, and that it can continue from this step or a later one."""
    assert all(file_digests.is_intact(path) for path in run.glob("checkpoint_*.pth"))
    content = newest(run, problems := {})
    assert content["step"] >= step and not problems


# A single process, killed while it writes


@pytest.fixture(scope="module")
def trained(tmp_path_factory, launch):
    """A run that nobody killed."""
    folder = tmp_path_factory.mktemp("trained")
    completed = launch("train.py", "--cfg-path", str(configured(folder)))
    assert completed.returncode == 0, completed.stderr
    return folder / "out/run"


# The second save replaces checkpoint_last.pth, with three renames: its digest, the file, its digest.
@pytest.mark.parametrize(
    ("function", "number"), [("write", 1), ("write", 40), ("fsync", 1), ("replace", 1), ("replace", 2), ("replace", 3)]
)
def test_a_run_that_is_killed_while_it_writes_continues_bit_identically(function, number, trained, tmp_path, fork_server):
    config = configured(tmp_path)
    killed = start(str(ROOT / "tests/workers/killed_save.py"), "2", function, str(number), "--cfg-path", str(config)).wait()
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert_usable(tmp_path / "out/run", step=4 if (function, number) == ("replace", 3) else 2)
    completed = start("train.py", "--cfg-path", str(config)).wait()
    assert completed.returncode == 0, completed.stderr
    assert_same_run(tmp_path / "out/run", trained)


# Two processes and their launcher


@pytest.fixture(scope="module")
def references(tmp_path_factory, launch):
    """A function that returns the folder of a run with two processes that nobody killed, for a value of run.parallel."""

    @cache
    def run_of(parallel):
        folder = tmp_path_factory.mktemp(parallel)
        completed = launch("train.py", "--cfg-path", str(configured(folder, **PARALLEL[parallel], **EVALUATED)), processes=2)
        assert completed.returncode == 0, completed.stderr
        return folder / "out/run"

    return run_of


# With hsdp, each of the two processes is a group of its own that has all weights; gradients are averaged between the groups.
PARALLEL = {"ddp": {"parallel": "ddp"}, "fsdp": {"parallel": "fsdp"}, "hsdp": {"parallel": "hsdp", "shard_size": 1}}
EVALUATED = {"evaluate": True, "save_best": "train_layout.emotion.loss"}
KILLER = "imports=[tests.workers.killed_run]"
# The last step that was certainly saved. After the end of another rank, rank 0 completes the file that it writes.
SAVED = {
    ("rank", "step"): 4,
    ("rank", "save"): 2,
    ("rank", "evaluation"): 5,
    ("launcher", "step"): 2,
    ("launcher", "save"): 2,
    ("launcher", "evaluation"): 4,
}


@pytest.mark.parametrize("parallel", PARALLEL)
@pytest.mark.parametrize(("victim", "moment"), SAVED)
def test_a_run_whose_rank_or_launcher_is_killed_loses_nothing_saved_and_leaves_no_process(
    victim, moment, parallel, references, tmp_path, fork_server
):
    config = configured(tmp_path, **PARALLEL[parallel], **EVALUATED)
    variables = environment() | {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
        "EMOLLAMA_TEST_KILL": f"{victim} {moment}",
    }
    line = ["train.py", "--cfg-path", str(config), "--options", KILLER]
    launcher = start(FORKING_LAUNCHER, str(tmp_path), *line, env=variables)
    status = launcher.wait().returncode
    assert status == (1 if victim == "rank" else -signal.SIGKILL), (tmp_path / "stderr").read_text()
    assert_ended(lambda: in_session(launcher.pids[0]))
    assert_usable(tmp_path / "out/run", SAVED[victim, moment])
    completed = start("train.py", "--cfg-path", str(config), processes=2).wait()
    assert completed.returncode == 0, completed.stderr
    assert_same_run(tmp_path / "out/run", references(parallel))


@pytest.fixture(scope="module")
def sharded_reference(tmp_path_factory, launch):
    """The folder of a run with two processes and sharded checkpoints that nobody killed."""
    folder = tmp_path_factory.mktemp("sharded")
    completed = launch("train.py", "--cfg-path", str(sharded(folder)), processes=2)
    assert completed.returncode == 0, completed.stderr
    return folder / "out/run"


def sharded(folder):
    run = SETTINGS | {"parallel": "fsdp", "save_every_iters": 2}
    return golden_config(folder, run=run, data=DATA, model=MODEL | {"ckpt": None, "train_llm": "full", "lora_dropout": 0.0})


@pytest.mark.parametrize("moment", ["part", "parts complete"])
@pytest.mark.parametrize("victim", ["rank", "launcher"])
def test_a_run_that_is_killed_while_it_saves_a_sharded_checkpoint_continues_from_the_one_before(
    victim, moment, sharded_reference, tmp_path, fork_server
):
    config = sharded(tmp_path)
    variables = environment() | {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
        "EMOLLAMA_TEST_KILL": f"{victim} {moment}",
    }
    line = ["train.py", "--cfg-path", str(config), "--options", KILLER]
    launcher = start(FORKING_LAUNCHER, str(tmp_path), *line, env=variables)
    launcher.wait()
    assert_ended(lambda: in_session(launcher.pids[0]))
    run = tmp_path / "out/run"
    assert_usable(run, 2)
    completed = start("train.py", "--cfg-path", str(config), processes=2).wait()
    assert completed.returncode == 0, completed.stderr
    rows, expected = read_jsonl(run / "log.jsonl"), read_jsonl(sharded_reference / "log.jsonl")
    assert [(row["step"], row["loss"]) for row in rows] == [(row["step"], row["loss"]) for row in expected]
    used = {content["parts"]["folder"] for content in (torch.load(path) for path in run.glob("checkpoint_*.pth"))}
    assert used == {folder.name for folder in (run / "checkpoint_parts").iterdir()}


def test_emollama_train_reports_a_rank_that_is_killed_while_it_writes_and_leaves_no_process(tmp_path, fork_server):
    config = configured(tmp_path)
    line = ["-m", "emollama", "train", "--cfg-path", str(config), "--nproc", "2", "--options", KILLER]
    launcher = start_launcher(*line, env=environment() | {"EMOLLAMA_TEST_KILL": "rank save"})
    living = family_of(launcher.pids[0])
    while launcher.poll() is None:
        living()
        time.sleep(0.1)
    completed = launcher.wait()
    assert completed.returncode == 128 + signal.SIGKILL, completed.stderr
    assert "error: process 0 of 2 was ended by SIGKILL" in completed.stderr
    assert_ended(living)
    assert_usable(tmp_path / "out/run", 2)


def assert_ended(living: Callable[[], list[int]]) -> None:
    """Wait until no process of a run lives; kill those that stay."""
    end = time.monotonic() + HANG
    try:
        while living():
            assert time.monotonic() < end, living()
            time.sleep(0.1)
    finally:
        for process in living():
            os.kill(process, signal.SIGKILL)
