"""The commands that a demo runs, from any current directory, and those that it prints."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from running import ROOT

from emollama import cli, entry, variables
from emollama.commands.parser import NAMES
from emollama.config import load
from emollama.demo import steps
from emollama.demo.steps import DemoFolder, next_steps, run_step
from emollama.errors import UserError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current directory without variables of demos."""
    monkeypatch.chdir(tmp_path)
    for name in ("EMOLLAMA_DEMO", "EMOLLAMA_DEMO_VIDEOS", "EMOLLAMA_DEMO_FLICKR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def calls(monkeypatch):
    """The started processes. Each returns the status that the test sets."""
    recorded = SimpleNamespace(started=[], status=0)

    def start(command, **settings):
        recorded.started.append((command, settings))
        return subprocess.CompletedProcess(command, recorded.status)

    monkeypatch.setattr(steps.subprocess, "run", start)
    return recorded


def test_a_step_runs_this_package_in_the_working_folder(folder, calls):
    demo_folder = DemoFolder(folder / "elsewhere", "EMOLLAMA_DEMO", "demo_run")
    run_step(demo_folder, ["train", "--cfg-path", "train_configs/demo_stage_1.yaml", "--nproc", "2"])
    ((command, settings),) = calls.started
    assert command[:3] == [sys.executable, "-m", "emollama"]
    assert command[3:] == ["train", "--cfg-path", "train_configs/demo_stage_1.yaml", "--nproc", "2"]
    assert "cwd" not in settings
    assert settings["env"]["EMOLLAMA_DEMO"] == str(folder / "elsewhere")


def test_a_step_that_fails_stops_the_demo_with_its_command_line(folder, calls):
    calls.status = 3
    with pytest.raises(UserError, match=r"'EMOLLAMA_DEMO=\S+/other emollama eval x' exited with 3"):
        run_step(DemoFolder(folder / "other", "EMOLLAMA_DEMO", "demo_run"), ["eval", "x"])


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_step_ends_the_demo_with_one_line(number, status, folder, calls, capsys):
    calls.status = 128 + number
    demo_folder = DemoFolder(folder / "other", "EMOLLAMA_DEMO", "demo_run")
    assert entry.run(lambda: run_step(demo_folder, ["eval", "x"])) == status
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted"
    ((_, settings),) = calls.started
    assert settings["env"][variables.STEP]


def test_a_step_leaves_the_message_after_an_interrupt_to_the_demo(monkeypatch, capsys):
    monkeypatch.setenv(variables.STEP, "1")
    assert entry.run(lambda: os.kill(os.getpid(), signal.SIGINT)) == 130
    assert capsys.readouterr().err == ""


def test_the_corpus_alone_ends_with_its_places_and_the_next_commands(folder, monkeypatch, capsys):
    from emollama.demo import run as demo

    monkeypatch.setattr(demo, "make_corpus", lambda *_, **__: SimpleNamespace(texts=[]))
    monkeypatch.setattr(demo, "make_tiny_llama", lambda *_, **__: None)
    demo.run_demo("demo_run", seed=1, processes=2, corpus_only=True)
    lines = capsys.readouterr().out.splitlines()
    for name, subfolder in (("corpus (synthetic)", "corpus"), ("tiny Llama", "llm")):
        assert any(re.fullmatch(rf"{re.escape(name)} +{folder}/demo_run/{subfolder}", line) for line in lines)
    first, second = (line.strip() for line in lines[lines.index("Next:") + 1 :])
    assert first == "emollama train --cfg-path train_configs/demo_stage_1.yaml --nproc 2 --options run.job_id=stage_1"
    assert second == "emollama train --cfg-path train_configs/demo_stage_2.yaml --nproc 2 --options run.job_id=stage_2"
    config = load("train_configs/demo_stage_2.yaml")
    assert config.model.ckpt == "demo_run/stage_1/checkpoint_3.pth"
    assert load("train_configs/demo_stage_1.yaml", ["run.job_id=stage_1"]).run.output_dir == "demo_run"


def test_the_variable_is_shown_only_where_it_is_needed(folder, monkeypatch):
    demo_folder = DemoFolder((folder / "demo_run").resolve(), "EMOLLAMA_DEMO", "demo_run")
    assert demo_folder.command_line(["train"]) == "emollama train"
    other = DemoFolder(folder / "a b", "EMOLLAMA_DEMO", "demo_run")
    assert other.command_line(["train"]) == f"EMOLLAMA_DEMO='{folder}/a b' emollama train"
    monkeypatch.setenv("EMOLLAMA_DEMO", "/elsewhere")
    assert demo_folder.command_line(["train"]) == f"EMOLLAMA_DEMO={folder}/demo_run emollama train"


@pytest.mark.parametrize(
    ("config", "variable", "default", "commands"),
    [
        ("demo_videos", "EMOLLAMA_DEMO_VIDEOS", "demo_videos", ["import", "extract", "train", "predict"]),
        ("demo_flickr", "EMOLLAMA_DEMO_FLICKR", "demo_flickr", ["prepare", "train", "eval-checkpoints"]),
    ],
)
def test_the_next_steps_are_those_of_the_shipped_header_for_the_demos_folder(folder, config, variable, default, commands):
    path = f"train_configs/{config}.yaml"
    lines = next_steps(path, DemoFolder((folder / default).resolve(), variable, default))
    assert [shlex.split(line)[1] for line in lines] == commands
    header = (ROOT / path).read_text().replace("\\\n#   ", "")
    assert lines == [line for line in re.findall(r"^# (emollama .*)$", header, re.MULTILINE) if " demo " not in line]
    moved = next_steps(path, DemoFolder(folder / "other", variable, default))
    for line in moved:
        arguments = [word for word in shlex.split(line) if not word.startswith(f"{variable}=")]
        assert arguments[:1] == ["emollama"]
        assert arguments[1] in NAMES
        assert not re.search(rf"(^|[ =]){default}/", line)
        assert line.startswith(f"{variable}={folder}/other ") == ("--cfg-path" in arguments)
    assert any(f"{folder}/other/" in line for line in moved)


def test_a_demo_in_a_place_that_cannot_be_written_is_refused_before_it_starts(folder):
    from emollama.demo.folder import prepare_demo_folder

    (folder / "file").touch()
    with pytest.raises(UserError, match="--folder: cannot write under"):
        prepare_demo_folder(str(folder / "file" / "demo"), "corpus")


@pytest.mark.parametrize("number", ["0", "-1", "two"])
def test_a_demo_without_processes_is_refused(number, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["demo", f"--nproc={number}"])
    assert ended.value.code == 2
    assert f"'{number}' is not a whole number above 0" in capsys.readouterr().err
