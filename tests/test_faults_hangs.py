"""Processes that hang, fail or are killed, in real processes."""

from __future__ import annotations

import os
import signal
import time

import pytest
from running import ROOT, command, golden_config, read_jsonl, start_launcher
from torch.utils.data import DataLoader

from emollama.data.workers import WorkerReports, worker_errors
from emollama.errors import UserError

pytestmark = pytest.mark.faults
SCRIPT = str(ROOT / "tests/workers/faulty_training.py")
NEEDS_TWO_GPUS = pytest.mark.skipif("__import__('torch').cuda.device_count() < 2", reason="fewer than two CUDA devices")
SHORT = 0.1  # minutes without progress after which these runs end


def train(launch, folder, fault, rank=1, step=3, processes=2, minutes=SHORT, **run):
    config = golden_config(folder, run={"hang_minutes": minutes, "iters_per_epoch": 6, **run})
    return launch(SCRIPT, fault, str(rank), str(step), "--cfg-path", str(config), processes=processes)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_without_progress_prints_all_stacks_and_ends(processes, tmp_path, launch):
    completed = train(launch, tmp_path, "hang", rank=processes - 1, processes=processes)
    assert completed.returncode == 1
    assert "in fault" in completed.stderr
    assert completed.stderr.count("error: no process of this run made progress for 0.1 minutes (run.hang_minutes)") == 1
    for rank in range(processes) if processes > 1 else ():
        assert f"process {rank} of {processes}: no progress for 0.1 minutes; the stacks of all threads:" in completed.stderr


def test_a_library_that_blocks_all_threads_is_ended_with_its_stack(tmp_path, launch):
    completed = train(launch, tmp_path, "hang in a library", rank=0, processes=1)
    assert completed.returncode == 1 and "in fault" in completed.stderr and "Timeout" in completed.stderr


def test_processes_wait_for_the_slow_work_of_one_that_reports_progress(tmp_path, launch):
    completed = train(launch, tmp_path, "slow", rank=0)
    assert completed.returncode == 0, completed.stderr
    assert len(read_jsonl(tmp_path / "out/run/log.jsonl")) == 6


def test_hang_minutes_null_disables_the_watchdog(tmp_path, launch):
    completed = train(launch, tmp_path, "none", processes=1, minutes=None)
    assert completed.returncode == 0 and (tmp_path / "out/run/checkpoint_0.pth").is_file()


def test_only_the_error_of_the_failing_process_is_shown(tmp_path, launch):
    completed = train(launch, tmp_path, "error")
    assert completed.returncode == 1 and completed.stderr.count("Traceback") == 1
    assert completed.stderr.rstrip().endswith("ValueError: the fault of the test")


def test_a_killed_process_is_reported_without_a_traceback_of_the_network(tmp_path, launch):
    completed = train(launch, tmp_path, "kill")
    assert completed.returncode == 1 and "Traceback" not in completed.stderr
    assert completed.stderr.count("error: process 0 of 2 lost its connection to another process, which was probably killed") == 1


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NEEDS_TWO_GPUS])])
def test_torchrun_restarts_a_killed_process_and_the_run_resumes(device, tmp_path, fork_server):
    settings = {"iters_per_epoch": 4, "save_every_iters": 1, "resume_ckpt_path": "auto", "device": device}
    config = golden_config(tmp_path, run=settings)
    line = command(SCRIPT, "kill@0", "1", "2", "--cfg-path", str(config), processes=2)
    completed = start_launcher(*line[1:3], "--max-restarts=1", *line[3:]).wait()
    assert completed.returncode == 0, completed.stderr
    assert f"resuming from {tmp_path / 'out/run/checkpoint_last.pth'}" in completed.stderr
    assert [row["step"] for row in read_jsonl(tmp_path / "out/run/log.jsonl")] == [0, 1, 2, 3]


class Hangs(list):
    def __getitem__(self, index):
        time.sleep(600)


def test_all_data_workers_that_deliver_nothing_are_ended(monkeypatch):
    """Torch sees the end of the first one before the second one is ended."""
    reports, kill = WorkerReports(), os.kill

    def kill_and_wait(pid, number):
        kill(pid, number)
        time.sleep(0.3 if number == signal.SIGKILL else 0)

    reports.open()
    batches = iter(DataLoader(Hangs(range(8)), num_workers=2, timeout=1, worker_init_fn=reports.start))
    while len(reports.workers()) < 2:
        time.sleep(0.05)
    with monkeypatch.context() as patch:
        patch.setattr(os, "kill", kill_and_wait)
        with pytest.raises(UserError, match="the data workers delivered no batch"), worker_errors(reports, str, 60):
            next(batches)
    try:
        assert [process.join(30) or process.exitcode for process in batches._workers] == [-signal.SIGKILL] * 2
    finally:
        for process in batches._workers:
            process.kill()
