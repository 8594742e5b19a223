"""Two runs never write into the same folder, and a run never starts over beside checkpoints that it cannot use."""

from __future__ import annotations

import os
import re
import shutil
import time

import pytest
from ranks import HANG, start
from running import golden_config, read_jsonl

pytestmark = pytest.mark.faults
DETERMINISTIC = ("checkpoint_0.pth", "checkpoint_1.pth")


def wait_until(condition, launched):
    end = time.monotonic() + HANG
    while not condition():
        assert launched.poll() is None, launched.stderr()
        assert time.monotonic() < end
        time.sleep(0.02)


def tensors(path):
    import torch

    content = torch.load(path, weights_only=True)
    state = content["optimizer"]["state"]
    return content["model"] | {(index, name): value for index, moments in state.items() for name, value in moments.items()}


def assert_equal_tensors(path, reference):
    values, expected = tensors(path), tensors(reference)
    assert values.keys() == expected.keys() and all(values[name].equal(expected[name]) for name in expected)


def test_runs_that_start_together_get_folders_of_their_own(tmp_path, fork_server):
    config = golden_config(tmp_path, run={"job_id": None, "iters_per_epoch": 3})
    runs = [start("train.py", "--cfg-path", str(config)) for _ in range(4)]
    ended = [run.wait() for run in runs]
    assert [run.returncode for run in ended] == [0] * 4, ended[0].stderr
    folders = sorted((tmp_path / "out").iterdir())
    assert len(folders) == 4 and all(re.fullmatch(r"\d{14}(_\d)?", folder.name) for folder in folders)
    for folder in folders:
        assert [row["step"] for row in read_jsonl(folder / "log.jsonl")] == [0, 1, 2]
        assert_equal_tensors(folder / "checkpoint_0.pth", folders[0] / "checkpoint_0.pth")


def test_of_runs_that_start_together_in_one_folder_only_one_runs(tmp_path, fork_server):
    config = golden_config(tmp_path, run={"iters_per_epoch": 40})
    runs = [start("train.py", "--cfg-path", str(config)) for _ in range(4)]
    ended = [run.wait() for run in runs]
    assert sorted(run.returncode for run in ended) == [0, 1, 1, 1]
    for run in ended:
        assert run.returncode == 0 or re.search(
            r"^error: run.job_id: '.*/out/run' is in use: process \d+ on \S+ \(since [-\d]+ [:\d]+\) is writing to it"
            r"|^error: .*/out/run contains another run",
            run.stderr,
            re.MULTILINE,
        )
        assert "Traceback" not in run.stderr
    assert [row["step"] for row in read_jsonl(tmp_path / "out/run/log.jsonl")] == list(range(40))


@pytest.fixture(scope="module")
def live(tmp_path_factory, fork_server):
    """A folder in which a run has saved a checkpoint and waits in a later step, the run, and its configuration."""
    folder = tmp_path_factory.mktemp("live")
    config = golden_config(folder, run={"iters_per_epoch": 4, "max_epoch": 2})
    script = os.path.join(os.path.dirname(__file__), "workers/faulty_training.py")
    run = start(script, "hang", "0", "6", "--cfg-path", str(config))
    wait_until(lambda: (folder / "out/run/hanging").is_file(), run)  # the last file that it writes
    yield folder / "out/run", run, str(config)
    run.kill()


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("options", [[], ["run.resume_ckpt_path=auto"]])
def test_a_second_run_beside_a_live_one_is_refused_and_changes_nothing(live, options, launch):
    folder, run, config = live
    before = files_of(folder)
    completed = launch("train.py", "--cfg-path", config, "--options", "run.log_freq=1", *options)
    assert completed.returncode == 1
    assert f"is in use: process {run.pids[0]} on " in completed.stderr and files_of(folder) == before


def test_saved_checkpoints_are_evaluated_and_inspected_beside_a_live_run(live, launch):
    folder, _, config = live
    before = files_of(folder)
    checkpoint = folder / "checkpoint_0.pth"
    options = [
        f"model.ckpt={checkpoint}",
        "evaluation_datasets.upstream=null",
        "evaluation_datasets.train_layout.max_new_tokens=2",
    ]
    completed = launch("eval_emotion_EMER.py", "--cfg-path", config, "--options", *options)
    assert completed.returncode == 0, completed.stderr
    assert launch("-m", "emollama", "checkpoint", "inspect", str(checkpoint)).returncode == 0
    assert files_of(folder) == before


def test_the_lock_of_a_killed_run_is_taken_over_and_its_files_are_intact(live, tmp_path, launch):
    folder, run, config = live
    run.kill()
    assert (folder / ".lock").is_file()
    completed = launch("train.py", "--cfg-path", config, "--options", "run.resume_ckpt_path=auto")
    assert completed.returncode == 0, completed.stderr
    assert f"was locked by process {run.pids[0]} on " in completed.stderr and not (folder / ".lock").exists()
    reference = golden_config(tmp_path, run={"iters_per_epoch": 4, "max_epoch": 2})
    assert launch("train.py", "--cfg-path", str(reference)).returncode == 0
    for name in DETERMINISTIC:
        assert_equal_tensors(folder / name, tmp_path / "out/run" / name)
    assert [row["loss"] for row in read_jsonl(folder / "log.jsonl")] == [
        row["loss"] for row in read_jsonl(tmp_path / "out/run/log.jsonl")
    ]


def test_a_failed_start_leaves_no_folder_and_no_lock(tmp_path, launch):
    config = golden_config(tmp_path, run={"job_id": None}, model={"ckpt": str(tmp_path / "none.pth")})
    completed = launch("train.py", "--cfg-path", str(config))
    assert completed.returncode == 1 and not (tmp_path / "out").exists()


# Resuming automatically


@pytest.fixture(scope="module")
def finished(tmp_path_factory, launch):
    """The folder of a configuration whose run is complete."""
    folder = tmp_path_factory.mktemp("finished")
    assert (
        launch("train.py", "--cfg-path", str(golden_config(folder, run={"iters_per_epoch": 2, "max_epoch": 2}))).returncode == 0
    )
    return folder


def damage(path, kind):
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-1000])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "flipped":
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw)
    elif kind == "weights only":
        import torch

        torch.save({"model": {}}, path)
    elif kind == "a folder":
        path.unlink()
        path.mkdir()


def resumed(finished, folder, change, launch):
    shutil.copytree(finished / "out", folder / "out")
    change(folder / "out/run")
    config = golden_config(folder, run={"iters_per_epoch": 2, "max_epoch": 3, "resume_ckpt_path": "auto"})
    return launch("train.py", "--cfg-path", str(config))


@pytest.mark.parametrize("kind", ["truncated", "empty", "flipped", "weights only"])
def test_a_run_never_starts_over_beside_checkpoints_that_it_cannot_use(kind, finished, tmp_path, launch):
    completed = resumed(finished, tmp_path, lambda run: [damage(run / name, kind) for name in DETERMINISTIC], launch)
    assert completed.returncode == 1 and "Traceback" not in completed.stderr
    assert re.search(
        r"error: run.resume_ckpt_path: auto: no checkpoint in .*/out/run can be used \(checkpoint_", completed.stderr
    )
    assert len(read_jsonl(tmp_path / "out/run/log.jsonl")) == 4


@pytest.mark.parametrize("kind", ["truncated", "empty", "flipped"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(kind, finished, tmp_path, launch):
    completed = resumed(finished, tmp_path, lambda run: damage(run / "checkpoint_1.pth", kind), launch)
    assert completed.returncode == 0, completed.stderr
    assert f"{tmp_path}/out/run/checkpoint_1.pth is skipped: " in completed.stderr
    assert f"resuming from {tmp_path}/out/run/checkpoint_0.pth" in completed.stderr


def test_a_folder_in_place_of_a_checkpoint_is_reported_before_training(finished, tmp_path, launch):
    completed = resumed(finished, tmp_path, lambda run: damage(run / "checkpoint_1.pth", "a folder"), launch)
    assert completed.returncode == 1 and "Traceback" not in completed.stderr
    assert f"error: {tmp_path}/out/run/checkpoint_1.pth: this folder has the name of a file" in completed.stderr


def test_a_checkpoint_without_its_digest_is_used_with_a_warning(finished, tmp_path, launch):
    completed = resumed(finished, tmp_path, lambda run: (run / "checkpoint_1.pth.sha256").unlink(), launch)
    assert completed.returncode == 0, completed.stderr
    assert "checkpoint_1.pth has no digest (checkpoint_1.pth.sha256)" in completed.stderr
    assert f"resuming from {tmp_path}/out/run/checkpoint_1.pth" in completed.stderr


def test_a_run_never_continues_the_log_of_another_one(finished, tmp_path, launch):
    shutil.copytree(finished / "out", tmp_path / "out")
    for path in (tmp_path / "out/run").glob("checkpoint_*"):
        path.unlink()
    completed = launch("train.py", "--cfg-path", str(golden_config(tmp_path)))
    assert completed.returncode == 1 and f"error: {tmp_path}/out/run contains another run" in completed.stderr
