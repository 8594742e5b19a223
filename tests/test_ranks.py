"""The processes that other tests fork: their environment, exit status and errors."""

from __future__ import annotations

import os
import signal

import pytest
from ranks import Ranks, start


def fails_on(rank):
    assert int(os.environ["RANK"]) != rank, f"rank {rank} fails"


def total(value):
    import torch
    import torch.distributed as dist

    tensor = torch.tensor([value + dist.get_rank()])
    dist.all_reduce(tensor)
    return os.getpid(), tensor.item()


def test_functions_share_one_process_group(ranks):
    first, second = ranks(total, 1), ranks(total, 10)
    assert [value for _, value in first] == [3, 3] and [value for _, value in second] == [21, 21]
    assert [pid for pid, _ in first] == [pid for pid, _ in second] and len({pid for pid, _ in first}) == 2


def test_a_function_runs_with_the_working_folder_and_environment_of_the_test(ranks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOME_VARIABLE", "here")
    assert ranks(os.getcwd) == [str(tmp_path)] * 2
    assert ranks(os.getenv, "SOME_VARIABLE") == ["here"] * 2


@pytest.mark.parametrize("failing", [0, 1])
def test_a_failure_shows_its_traceback_and_the_next_call_works(fork_server, failing):
    both = Ranks()
    try:
        with pytest.raises(AssertionError, match=rf"(?s)^rank {failing}: Traceback.*rank {failing} fails"):
            both(fails_on, failing)
        assert [value for _, value in both(total, 1)] == [3, 3]
    finally:
        both.close()


PROGRAM = """
import os, sys
print("out", os.environ.get("RANK"), os.environ.get("WORLD_SIZE"), os.environ["SOME_VARIABLE"], sys.argv[1:], os.getcwd())
sys.stderr.write("err\\n")
if "b" in sys.argv:
    import beside
"""


def test_launch_runs_a_command_like_a_python_interpreter(launch, tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_VARIABLE", "here")
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "beside.py").write_text("raise SystemExit(7)")
    result = launch("program.py", "a", "b", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (7, "err\n")
    assert result.stdout == f"out None None here ['a', 'b'] {tmp_path}\n"
    result = launch("-m", "program", "a", cwd=tmp_path, processes=2)
    assert (result.returncode, result.stderr) == (0, "err\n" * 2)
    assert sorted(result.stdout.splitlines()) == [f"out {rank} 2 here ['a'] {tmp_path}" for rank in (0, 1)]


def test_an_uncaught_error_has_its_traceback_and_status_1(launch, tmp_path):
    (tmp_path / "program.py").write_text("1 / 0")
    result = launch(str(tmp_path / "program.py"))
    assert result.returncode == 1 and "ZeroDivisionError" in result.stderr


def test_a_failed_process_terminates_the_other_processes(launch, tmp_path):
    (tmp_path / "program.py").write_text("import os, time\nif os.environ['RANK'] == '1': raise SystemExit(3)\ntime.sleep(3600)")
    assert launch("program.py", cwd=tmp_path, processes=2).returncode == 1


def test_a_command_can_be_killed(fork_server, tmp_path):
    (tmp_path / "program.py").write_text("import time\ntime.sleep(3600)")
    started = start("program.py", cwd=tmp_path)
    assert started.poll() is None and started.pids[0] != os.getpid()
    started.kill()
    assert started.wait().returncode == -signal.SIGKILL


def test_libraries_are_loaded_before_a_fork(launch, tmp_path):
    (tmp_path / "program.py").write_text("import sys\nprint('torch' in sys.modules, 'peft' in sys.modules)")
    assert launch("program.py", cwd=tmp_path).stdout == "True True\n"
