"""Commands whose output is closed before they start or end, as in `emollama ... | head`, or cannot be written."""

from __future__ import annotations

import contextlib
import os
import signal
import sys

import pytest
from running import ROOT

from emollama import cli, entry
from emollama.errors import UserError

STATUS = 128 + signal.SIGPIPE


@pytest.fixture(params=[-1, 1], ids=["buffered", "line by line"])
def close_stdout(request, capfd, monkeypatch):
    """A function that makes standard output a pipe without a reader; pytest restores its own when a test begins."""
    reader, writer = os.pipe()
    os.close(reader)
    stream = open(writer, "w", buffering=request.param)  # noqa: SIM115
    yield lambda: monkeypatch.setattr(sys, "stdout", stream)
    with contextlib.suppress(BrokenPipeError):
        stream.close()


@pytest.mark.parametrize(
    "line",
    [
        ["--help"],
        [],
        ["train", "--help"],
        ["reference"],
        ["config", "show", "--cfg-path", str(ROOT / "train_configs/custom.yaml")],
        ["init"],
        ["completion", "bash"],
    ],
    ids=" ".join,
)
def test_a_command_whose_output_is_closed_ends_without_a_message(close_stdout, line, capfd):
    close_stdout()
    with pytest.raises(SystemExit) as ended:
        cli.main(line)
    assert ended.value.code == STATUS
    assert capfd.readouterr().err == ""


@pytest.fixture
def full_stdout(capfd, monkeypatch):
    """Like :func:`close_stdout`, but standard output is a file on a full disk; the argument is the buffering."""
    streams = []

    def fill(buffering):
        streams.append(open("/dev/full", "w", buffering=buffering))  # noqa: SIM115
        monkeypatch.setattr(sys, "stdout", streams[-1])

    yield fill
    for stream in streams:
        with contextlib.suppress(OSError):
            stream.close()


FULL = (
    "error: cannot write to standard output: No space left on device. Free disk space, or redirect the output to another disk.\n"
)


@pytest.mark.parametrize(
    "line",
    [
        ["--help"],
        ["--version"],
        ["train", "--help"],
        ["reference"],
        ["env"],
        ["config", "show", "--cfg-path", str(ROOT / "train_configs/custom.yaml")],
        ["init"],
        ["completion", "bash"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("buffering", [-1, 1], ids=["buffered", "line by line"])
def test_output_that_cannot_be_written_is_an_error_of_one_line(full_stdout, line, buffering, capfd):
    full_stdout(buffering)
    with pytest.raises(SystemExit) as ended:
        cli.main(line)
    assert ended.value.code == 1
    assert capfd.readouterr().err == FULL


def test_a_user_error_takes_precedence_over_the_error_of_a_full_output(full_stdout, capfd):
    full_stdout(-1)

    def fail():
        print("x")
        raise UserError("wrong")

    assert entry.run(fail) == 1
    assert capfd.readouterr().err == "error: wrong\n"


def test_an_error_that_cannot_be_printed_has_the_same_exit_status(monkeypatch):
    stream = open("/dev/full", "w", buffering=1)  # noqa: SIM115
    monkeypatch.setattr(sys, "stderr", stream)
    with pytest.raises(SystemExit) as ended:
        cli.main(["reference", "nothing"])
    assert ended.value.code == 1
    with contextlib.suppress(OSError):
        stream.close()


@pytest.mark.parametrize("closed", [("stdout",), ("stderr",), ("stdin", "stdout", "stderr")], ids=" ".join)
def test_a_stream_that_was_closed_before_the_start_is_the_null_device(closed, monkeypatch):
    for name in closed:
        monkeypatch.setattr(sys, name, None)
    cli.main(["env"])
    with pytest.raises(SystemExit) as ended:
        cli.main(["reference", "nothing"])
    assert ended.value.code == 1
    for name in closed:
        assert getattr(sys, name).name == os.devnull
        getattr(sys, name).close()


def test_a_user_error_is_printed_although_the_output_is_closed(close_stdout, capfd):
    close_stdout()

    def fail():
        raise UserError("wrong")

    assert entry.run(fail) == 1
    assert capfd.readouterr().err == "error: wrong\n"


def test_a_worker_reports_that_its_output_was_closed(close_stdout, capfd, monkeypatch):
    close_stdout()
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(entry, "_end_with_parent", lambda: None)
    monkeypatch.setattr(entry.signal, "signal", lambda *_: None)
    assert entry.run(lambda: print("x")) == 1
    assert capfd.readouterr().err == "error: the program that reads the output has ended\n"


def test_a_broken_pipe_other_than_the_output_is_raised():
    def fail():
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        entry.run(fail)


def test_the_exit_status_of_a_program_is_returned(capsys):
    assert entry.run(lambda: sys.exit(3)) == 3
    assert entry.run(sys.exit) == 0
    assert entry.run(lambda: sys.exit("text")) == 1
    assert capsys.readouterr().err == "text\n"
