"""Message of ``emollama train`` after Ctrl-C: whether a checkpoint was saved, and the options that resume the run."""

from __future__ import annotations

import os
import re
import shlex
import signal
import threading

import pytest
from running import golden_config

from emollama import variables
from emollama.cli import main
from emollama.commands import running
from emollama.errors import Interrupted
from emollama.runners.preparation import Preparation
from emollama.runners.runner_base import RunnerBase

HOW = "to resume, run the same command with these values added to --options: "
RESUME = f"interrupted; {HOW}"


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    for name in (variables.JOB_ID, variables.STEP, variables.LAUNCHER):
        monkeypatch.delenv(name, raising=False)


def interrupted(capfd, path, *options, command="train", nproc=1):
    """The last line of a command that SIGINT ends."""
    more = ["--options", *options] if options else []
    with pytest.raises(SystemExit) as ended:
        main([command, "--cfg-path", str(path), "--nproc", str(nproc), *more])
    assert ended.value.code == 130
    assert variables.JOB_ID not in os.environ
    return capfd.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("number", "status", "beginning"),
    [
        (signal.SIGINT, 130, RESUME),
        (signal.SIGTERM, 75, f"stopped by SIGTERM after 2 of 3 steps; {HOW}"),
        pytest.param(signal.SIGUSR1, 75, f"stopped by SIGUSR1 after 2 of 3 steps; {HOW}", marks=pytest.mark.slow),
    ],
)
def test_the_printed_options_resume_a_run_whose_name_is_the_time(number, status, beginning, tmp_path, monkeypatch, capfd):
    path = golden_config(tmp_path, run={"job_id": None, "max_epoch": 3, "iters_per_epoch": 1})
    step, stops = RunnerBase._step, [False, True]

    def stopping(self, *arguments):
        if stops and stops.pop(0):
            os.kill(os.getpid(), number)
        return step(self, *arguments)

    monkeypatch.setattr(RunnerBase, "_step", stopping)
    with pytest.raises(SystemExit) as ended:
        main(["train", "--cfg-path", str(path), "--nproc", "1"])
    assert ended.value.code == status
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith(beginning)
    options = shlex.split(line.removeprefix(beginning))
    assert re.fullmatch(r"run.job_id=\d{14}", options[0]) and options[1:] == ["run.resume_ckpt_path=auto"]
    main(["train", "--cfg-path", str(path), "--nproc", "1", "--options", *options])
    (folder,) = (tmp_path / "out").iterdir()
    assert folder.name == options[0].partition("=")[2] and (folder / "checkpoint_2.pth").is_file()


@pytest.mark.parametrize(
    ("options", "saved", "expected"),
    [
        ([], False, "interrupted; this run has not saved a checkpoint yet"),
        (["run.job_id=mine"], True, f"{RESUME}run.resume_ckpt_path=auto"),
        (["run.job_id=mine", "run.resume_ckpt_path=auto"], True, "interrupted; run the same command again to resume"),
        (["run.job_id=null"], True, f"{RESUME}run.job_id=chosen run.resume_ckpt_path=auto"),
    ],
)
@pytest.mark.parametrize("nproc", [1, 2])
def test_the_message_names_only_the_options_that_are_missing(options, saved, expected, nproc, tmp_path, monkeypatch, capfd):
    def stop(*_, **__):
        if saved:
            folder = tmp_path / "out" / os.environ[variables.JOB_ID]
            folder.mkdir(parents=True)
            (folder / "checkpoint_0.pth").touch()
        raise Interrupted("interrupted", signal.SIGINT) if nproc > 1 else KeyboardInterrupt

    monkeypatch.setattr(running, "launch", stop)
    monkeypatch.setattr(RunnerBase, "__init__", stop)
    monkeypatch.setattr(running, "new_run_folder", lambda output_dir: ("chosen", []))
    assert interrupted(capfd, golden_config(tmp_path), *options, nproc=nproc) == expected


def test_only_processes_that_do_the_work_are_watched(tmp_path, monkeypatch):
    watched = []

    def note(*_, **__):
        watched.append("emollama: watchdog" in {thread.name for thread in threading.enumerate()})

    monkeypatch.setattr(running, "launch", note)
    monkeypatch.setattr(running, "_run", note)
    for nproc in ("1", "2"):
        main(["train", "--cfg-path", str(golden_config(tmp_path)), "--nproc", nproc])
    assert watched == [True, False]


def test_an_interrupted_evaluation_has_nothing_to_resume(tmp_path, monkeypatch, capfd):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(RunnerBase, "__init__", stop)
    assert interrupted(capfd, golden_config(tmp_path), command="eval") == "interrupted"


def test_a_worker_uses_the_run_folder_selected_by_its_launcher(tmp_path, monkeypatch):
    folders = []
    monkeypatch.setattr(Preparation, "_check", lambda self, problems: folders.append(self.folder) or 1 / 0)
    monkeypatch.setenv(variables.JOB_ID, "chosen")
    for job_id, name in ((None, "chosen"), ("mine", "mine")):
        with pytest.raises(ZeroDivisionError):
            main(["train", "--cfg-path", str(golden_config(tmp_path, run={"job_id": job_id})), "--nproc", "1"])
        assert folders.pop() == tmp_path / "out" / name
    assert os.environ[variables.JOB_ID] == "chosen"
