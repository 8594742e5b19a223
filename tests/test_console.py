"""Console output: bars and colours on a terminal, plain lines elsewhere, summaries, hyper-parameters."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import re
import signal
import sys
from functools import cache
from types import SimpleNamespace

import pytest
import yaml
from helpers import golden_tree, loaded
from running import ROOT

from emollama import entry
from emollama.config import load
from emollama.demo.environment import FAST, restart_with_fast_settings
from emollama.distributed import launcher
from emollama.distributed.process_group import World
from emollama.logs import bars, console
from emollama.logs.console import Progress, aligned, is_terminal, track, write
from emollama.logs.logger import get_logger, set_up
from emollama.logs.run_log import RunLog
from emollama.logs.verbosity import SETTINGS
from emollama.runners import summary
from emollama.starter.kinds import KINDS
from emollama.starter.starter import _header

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:[349]|10)\d(?:;\d+)*m")  # of text or background, also bright ones
HIDE = "\x1b[?25l"
STEP = {"epoch": 0, "loss": 1.0, "lr": 0.1, "grad_norm": 1.0, "skipped_steps": 0, "tokens": 5, "tokens_cut": 0}


class Clock:
    """A clock that a test sets."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def level():
    """Set the package's logger to INFO, as a command does, and restore it."""
    logger = get_logger()
    before = logger.level
    logger.setLevel(logging.INFO)
    yield logger
    logger.setLevel(before)


@pytest.fixture
def terminal(level, monkeypatch):
    """Make standard error a terminal of 80 columns; return a function that returns the output so far."""
    from rich.console import Console

    drawn = io.StringIO()
    shown = bars.Display(Console(file=drawn, force_terminal=True, width=80, color_system="standard"))
    monkeypatch.setattr(bars, "display", lambda: shown)
    monkeypatch.setattr(console, "is_terminal", lambda stream: True)
    return drawn.getvalue


def read_now(descriptor):
    """What can be read without waiting, possibly ""."""
    try:
        return os.read(descriptor, 1 << 16).decode()
    except BlockingIOError:
        return ""


def has_colour(text):
    return COLOUR.search(text) is not None


def logged(caplog):
    return list(dict.fromkeys(record.getMessage() for record in caplog.records))


# Tables


def test_a_table_is_aligned_and_neither_wrapped_nor_marked_up():
    rows = [["", "value", "what"], ["a", "[0.1, 0.2]", "x" * 300], ["日本語", "7", "[bold]:smile:"]]
    assert aligned(rows, left=(0, 2)) == [
        "             value  what",
        f"a       [0.1, 0.2]  {'x' * 300}",
        "日本語           7  [bold]:smile:",
    ]
    assert aligned([]) == []


def test_results_are_plain_in_a_pipe_and_coloured_on_a_terminal(capsys, monkeypatch):
    text = f"accuracy 0.5 of 'x' \udc80 \x1b[2J {'y' * 200} [red]\n"
    plain = text.replace("\udc80", "\\udc80").replace("\x1b", "\\x1b")
    write(text)
    assert capsys.readouterr().out == plain
    monkeypatch.setattr(console, "is_terminal", lambda stream: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    write(text)
    coloured = capsys.readouterr().out
    assert has_colour(coloured) and ESCAPES.sub("", coloured) == plain
    monkeypatch.setenv("NO_COLOR", "1")
    write("accuracy 0.5\n")
    assert not has_colour(capsys.readouterr().out)


@pytest.mark.parametrize("print_result", [write, console.write_plain])
def test_characters_that_the_output_encoding_lacks_are_escaped(monkeypatch, print_result):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    print_result("naïve 東 \udc80\n")
    stream.flush()
    assert stream.buffer.getvalue() == b"na\\xefve \\u6771 \\udc80\n"


# Progress without a terminal


def test_without_a_terminal_progress_is_logged_about_every_ten_seconds(level, caplog, capsys):
    clock = Clock()
    with caplog.at_level(logging.INFO, "emollama"), Progress(200, "answering test", unit="clips", clock=clock) as bar:
        for clock.now in range(1, 41):
            bar.update(5)
    assert logged(caplog) == [
        "answering test: 50 of 200 clips (25%), 5.0 clips/s, eta 0:00:30",
        "answering test: 100 of 200 clips (50%), 5.0 clips/s, eta 0:00:20",
        "answering test: 150 of 200 clips (75%), 5.0 clips/s, eta 0:00:10",
        "answering test: 200 of 200 clips (100%) in 0:00:40",
    ]
    assert "\x1b" not in "".join(capsys.readouterr())


def test_a_tracked_loop_yields_its_items_and_logs_their_count(level, caplog, monkeypatch):
    monkeypatch.setattr(console, "LINE_SECONDS", 0.0)
    with caplog.at_level(logging.INFO, "emollama"):
        assert list(track("abc", 3, "x", unit="letters")) == ["a", "b", "c"]
    lines = [line.partition(" letters")[0] for line in logged(caplog)]
    assert lines == ["x: 1 of 3", "x: 2 of 3", "x: 3 of 3"]


@pytest.mark.parametrize(
    ("total", "seconds", "enabled", "verbosity"),
    [(3, 3, True, 0), (30, 30, False, 0), (30, 30, True, -1)],
    ids=["short", "another rank", "quiet"],
)
def test_short_disabled_or_quiet_progress_writes_no_line(level, caplog, capsys, monkeypatch, total, seconds, enabled, verbosity):
    clock = Clock()
    monkeypatch.setattr(SETTINGS, "level", verbosity)
    with caplog.at_level(logging.INFO, "emollama"), Progress(total, "x", enabled=enabled, clock=clock) as bar:
        for clock.now in range(seconds):
            bar.update()
    assert logged(caplog) == [] and "".join(capsys.readouterr()) == ""


def test_progress_lines_go_to_standard_error_when_the_logger_is_above_info(level, capsys, monkeypatch):
    monkeypatch.setattr(console, "LINE_SECONDS", 0.0)
    level.setLevel(logging.WARNING)
    assert list(track("ab", 2, "check \x1b")) == ["a", "b"]
    out, err = capsys.readouterr()
    lines = [line.partition("%)")[0] for line in err.splitlines()]
    assert out == "" and lines == ["check \\x1b: 1 of 2 (50", "check \\x1b: 2 of 2 (100"]


@pytest.mark.parametrize("logs", [logging.INFO, logging.WARNING])
def test_other_ranks_show_no_progress_at_any_log_level(level, caplog, capsys, monkeypatch, logs):
    monkeypatch.setattr(console, "LINE_SECONDS", 0.0)
    monkeypatch.setenv("RANK", "1")
    level.setLevel(logs)
    assert list(track("ab", 2, "check")) == ["a", "b"]
    assert logged(caplog) == [] and "".join(capsys.readouterr()) == ""


def test_a_failed_phase_is_not_logged_as_complete(level, caplog):
    clock = Clock()
    with caplog.at_level(logging.INFO, "emollama"), pytest.raises(KeyError), Progress(9, "x", clock=clock) as bar:
        bar.update(3)
        clock.now = 60.0
        raise KeyError
    assert logged(caplog) == []


# Bars


def test_a_progress_bar_fits_80_columns_and_is_erased_at_the_end(terminal):
    clock = Clock()
    label = "checking datasets.feature_face_caption.features.face"
    with Progress(28618, label, unit="clips", clock=clock) as bar:
        clock.now = 3600.0
        bar.update(12861)
        lines = ESCAPES.sub("", terminal()).replace("\r", "\n").split("\n")
        assert max(map(len, lines)) <= 80
        assert "12861/28618  45% 3.6 clips/s, eta 1:13:30" in lines[-1]
    assert terminal().endswith("\r\x1b[2K\x1b[?25h\r")  # the line of the bar is erased and the cursor visible again


def test_a_log_line_is_written_above_the_bar(terminal):
    clock = Clock()
    handler = console.ConsoleHandler()
    with Progress(4, "bar", clock=clock) as bar:
        handler.emit(logging.LogRecord("emollama", logging.WARNING, "", 0, "careful [x] %s", ("y" * 100,), None))
        clock.now = 1.0
        bar.update(2)
        drawn = terminal()
    line = f"careful [x] {'y' * 100}"
    assert line in ESCAPES.sub("", drawn) and "\x1b[33m" in drawn  # without a break, in yellow
    assert ESCAPES.sub("", drawn).rindex("2/4") > ESCAPES.sub("", drawn).index(line)


@pytest.mark.parametrize("no_colour", [False, True])
def test_progress_bars_and_warnings_respect_no_color(level, capsys, monkeypatch, no_colour):
    monkeypatch.setattr(console, "is_terminal", lambda stream: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_colour:
        monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(bars, "display", cache(bars.Display))
    clock = Clock()
    with Progress(4, "bar", clock=clock) as bar:
        clock.now = 1.0
        bar.update(2)
        drawn = capsys.readouterr().err
        console.ConsoleHandler().emit(logging.LogRecord("emollama", logging.WARNING, "", 0, "careful", (), None))
        warned = capsys.readouterr().err
    assert "2/4" in ESCAPES.sub("", drawn) and "careful" in warned
    assert (has_colour(drawn), has_colour(warned)) == (not no_colour, not no_colour)


def test_a_nested_progress_bar_disappears_before_the_outer_one(terminal):
    clock = Clock()
    with Progress(4, "outer", clock=clock) as outer:
        with Progress(2, "inner", clock=clock) as inner:
            clock.now = 1.0
            inner.update()
        before = len(terminal())
        bars.display().log("a line", logging.INFO)
        last = ESCAPES.sub("", terminal()[before:])
        clock.now = 2.0
        outer.update()
    assert "inner" in terminal() and "a line" in last and "outer" in last and "inner" not in last


def test_training_on_a_terminal_prints_the_step_lines_above_the_progress_bar(terminal, level, tmp_path, monkeypatch):
    monkeypatch.setattr(level, "handlers", [console.ConsoleHandler()])
    monkeypatch.setattr(console, "REFRESH_SECONDS", 0.0)
    with RunLog(tmp_path, first_step=0, total_steps=4, epoch_steps=2, log_freq=1, enabled=True) as log:
        for step in range(4):
            log.step(step, {**STEP, "epoch": step // 2}, samples=1)
    drawn = re.split(r"[\r\n]+", ESCAPES.sub("", terminal()))
    places = [(epoch, step) for epoch in range(2) for step in range(2)]
    figures = r"eta: \d+:\d\d:\d\d  lr: 0\.1\d+  loss: 1\.0000  time: \S+  data: \S+  max mem: \d+"
    lines = [line for line in drawn if line.startswith("Train:")]
    for line, (epoch, step) in zip(lines, places, strict=True):
        assert re.fullmatch(rf"Train: data epoch: \[{epoch}\]  \[{step}/2\]  {figures}", line)
    assert drawn.index(lines[-1]) < max(index for index, line in enumerate(drawn) if line.startswith("epoch 1 [0/2]"))
    assert max(len(line) for line in drawn if line not in lines) <= 80


class Stopped(KeyboardInterrupt):
    """Ctrl-C."""


def test_an_interrupt_at_the_start_of_training_does_not_leave_the_cursor_hidden(terminal, tmp_path, monkeypatch):
    from torch.utils import tensorboard

    def interrupted(*_, **__):
        raise Stopped

    monkeypatch.setattr(tensorboard, "SummaryWriter", interrupted)
    with pytest.raises(Stopped), RunLog(tmp_path, first_step=0, total_steps=4, epoch_steps=2, log_freq=1, enabled=True):
        pass
    assert terminal() == ""


def test_the_cursor_hidden_by_a_progress_bar_is_shown_when_the_program_ends(terminal, capsys):
    def program():
        bar = Progress(4, "never closed")
        assert bar.has_bar and terminal().count(HIDE) > terminal().count(console.SHOW_CURSOR)
        raise Stopped

    assert entry.run(program) == 128 + signal.SIGINT
    assert terminal().count(HIDE) == terminal().count(console.SHOW_CURSOR) > 0
    assert capsys.readouterr().err == "interrupted\n"


def test_the_launcher_shows_the_cursor_again_after_an_interrupt(capsys, monkeypatch):
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.launcher import api

    def interrupted(*_):
        raise SignalException("stop", signal.SIGINT)

    monkeypatch.setattr(api, "elastic_launch", lambda *_: interrupted)
    for on_terminal, shown in ((False, ""), (True, console.SHOW_CURSOR)):
        monkeypatch.setattr(console, "is_terminal", lambda stream, on_terminal=on_terminal: on_terminal)
        with pytest.raises(KeyboardInterrupt):
            launcher.launch(SimpleNamespace(argv=["train"], master_port=None), 2)
        assert capsys.readouterr().err == shown


def test_a_pty_counts_as_a_terminal_unless_term_is_dumb_or_unknown(monkeypatch, level):
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as stream:
        for name in ("dumb", "unknown"):
            monkeypatch.setenv("TERM", name)
            assert not is_terminal(stream)
        monkeypatch.setenv("TERM", "xterm")
        assert is_terminal(stream)
        monkeypatch.setattr(bars, "display", bars.display.__wrapped__)
        monkeypatch.setattr(sys, "stderr", stream)
        with Progress(10, "on a pty"):
            pass
        stream.flush()
        os.set_blocking(master, False)
        drawn = "".join(iter(lambda: read_now(master), ""))
    os.close(master)
    assert "on a pty" in drawn and drawn.startswith("\x1b[?25l") and "\x1b[?25h" in drawn  # the cursor is hidden, then shown


def test_a_forked_process_does_not_use_the_progress_display_of_its_parent(monkeypatch):
    from rich.console import Console
    from rich.file_proxy import FileProxy

    stream = io.StringIO()
    before = bars.display()
    monkeypatch.setattr(sys, "stderr", FileProxy(Console(file=stream), stream))
    bars._leave_display_to_parent()
    assert sys.stderr is stream and bars.display() is not before


def test_log_lines_go_to_the_current_standard_error_with_control_characters_escaped(capsys):
    logger = get_logger()
    before, level, logger.handlers = logger.handlers, logger.level, []
    try:
        set_up(is_main=True)
        logger.info("an answer \x1b[31m with a colour\n  and a second line")
    finally:
        logger.handlers = before
        logger.setLevel(level)
    out, err = capsys.readouterr()
    assert out == "" and re.fullmatch(r"\d\d:\d\d:\d\d an answer \\x1b\[31m with a colour\n  and a second line\n", err)


# Summaries


TRAINING = {"max_epoch": 2, "iters_per_epoch": 2, "log_freq": 1, "evaluate": True, "metric": "answers.emotion.loss"}


def tree(folder):
    content = golden_tree(folder)
    content["run"] |= TRAINING | {"save_best": True}
    content["evaluation_datasets"]["answers"] |= {"max_new_tokens": 1, "batch_size": 18}
    return content


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two epochs: its folder and its messages; then the messages after resuming it for another epoch."""
    folder = tmp_path_factory.mktemp("console")
    messages = []

    class Collector(logging.Handler):
        def emit(self, record):
            messages.append(record.getMessage())

    collector, logger = Collector(), get_logger()
    logger.addHandler(collector)
    try:
        parts = []
        for options in ([], ["run.max_epoch=3", "run.resume_ckpt_path=auto"]):
            config = loaded(folder, tree(folder), *options)
            config.runner_class(config).train(lambda folder: folder / "result/report.html")
            parts.append(list(messages))
            messages.clear()
    finally:
        logger.removeHandler(collector)
    return folder / "out/run", *parts


def value_of(messages, name):
    (value,) = {line.removeprefix(name).strip() for line in messages if re.match(rf"{re.escape(name)}  +", line)}
    return value


def test_a_run_logs_its_folder_devices_parameters_data_and_steps_at_the_start(trained):
    folder, messages, _ = trained
    assert value_of(messages, "run folder") == str(folder)
    assert value_of(messages, "devices") == "1 process on cpu" and value_of(messages, "precision") == "float32"
    assert value_of(messages, "checkpoint").endswith("checkpoint_slim.pth")
    share = r"[\d,]+ \(\d+\.\d\d%\)"
    assert re.fullmatch(r"([\d,]+) of ([\d,]+) \(\d+\.\d\d%\)", value_of(messages, "trainable parameters"))
    groups = [value_of(messages, f"  {name}") for name in ("fusion module", "LoRA")]
    assert all(re.fullmatch(share, group) for group in groups)
    numbers = [int(text.split()[0].replace(",", "")) for text in (value_of(messages, "trainable parameters"), *groups)]
    assert numbers[0] == sum(numbers[1:]) > 0
    assert value_of(messages, "training set golden") == "6 samples, tasks emotion"
    assert value_of(messages, "evaluation set answers").startswith("6 samples")
    assert value_of(messages, "steps") == "4 (2 epochs x 2 iterations)"
    assert re.fullmatch(r"\d+ \(1 process x \d+ accumulated x micro-batch of \d+\)", value_of(messages, "samples per step"))


def test_each_epoch_logs_its_average_loss_duration_and_checkpoint(trained):
    folder, messages, _ = trained
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    for epoch in range(2):
        losses = [row["loss"] for row in rows if row["epoch"] == epoch]
        (line,) = (line for line in messages if line.startswith(f"epoch {epoch}: "))
        path = folder / f"checkpoint_{epoch}.pth"
        assert re.fullmatch(rf"epoch {epoch}: average loss {sum(losses) / 2:.4f}, duration 0:\d\d:\d\d, checkpoint {path}", line)


def test_a_run_logs_its_best_checkpoint_report_and_next_command_at_the_end(trained):
    folder, messages, _ = trained
    past = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
    best = min(past[:2], key=lambda entry: entry["metrics"]["answers/emotion/loss"])
    metric = f"answers/emotion/loss {best['metrics']['answers/emotion/loss']:.4f} after epoch {best['epoch']}"
    assert value_of(messages, "best metric") == metric
    assert value_of(messages, "best checkpoint") == str(folder / "checkpoint_best.pth")
    assert value_of(messages, "report") == str(folder / "result/report.html")
    command = f"emollama eval --cfg-path {folder}/config.yaml --options model.ckpt={folder}/checkpoint_best.pth"
    assert value_of(messages, "next command") == command
    assert value_of(messages, "TensorBoard") == f"tensorboard --logdir {folder}"
    assert re.fullmatch(r"\d+:\d\d:\d\d", value_of(messages, "training time"))


def test_the_next_command_after_a_shipped_configuration_uses_the_next_one_and_its_paths(monkeypatch, tmp_path):
    name = str(ROOT / "train_configs/demo_stage_1.yaml")
    monkeypatch.setenv("EMOLLAMA_DEMO", "/somewhere/a demo")
    config = load(name, ["run.job_id=stage_1"])
    command = summary._next_command(tmp_path, config, tmp_path / "checkpoint_3.pth")
    options = f"model.ckpt={tmp_path}/checkpoint_3.pth 'paths.root=/somewhere/a demo'"
    assert command == f"emollama train --cfg-path train_configs/demo_stage_2.yaml --options {options}"
    monkeypatch.delenv("EMOLLAMA_DEMO")
    assert "paths" not in summary._next_command(tmp_path, load(name), tmp_path / "checkpoint_3.pth")
    assert [path for _, path in summary.NEXT.values() if not (ROOT / path).is_file()] == []
    assert [each for each in summary.NEXT if not (ROOT / "train_configs" / each).is_file()] == []


def test_a_user_file_named_like_a_shipped_configuration_has_a_general_next_command(tmp_path, monkeypatch):
    content = golden_tree(tmp_path)
    evaluated, stored = content.pop("evaluation_datasets"), tmp_path / "checkpoint_3.pth"
    path = tmp_path / "train_configs/custom.yaml"
    path.parent.mkdir()
    path.write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    for name in (str(path), "train_configs/custom.yaml"):
        assert summary._next_command(tmp_path, load(name), stored) == f"emollama checkpoint inspect {stored}"
    path.write_text(json.dumps(content | {"evaluation_datasets": evaluated}))
    command = f"emollama eval --cfg-path {tmp_path}/config.yaml --options model.ckpt={stored}"
    assert summary._next_command(tmp_path, load(str(path)), stored) == command
    path.unlink()
    command = summary._next_command(tmp_path, load("train_configs/custom.yaml"), stored)  # the packaged copy
    assert command.startswith("emollama eval --cfg-path eval_configs/eval_emotion.yaml --options")


def test_the_path_options_of_the_next_command_are_valid_options(tmp_path):
    options = ["paths.a=''", "paths.b=null", "paths.c=/data"]
    shown = summary._path_options(loaded(tmp_path, golden_tree(tmp_path), *options))
    assert shown == options
    assert loaded(tmp_path, golden_tree(tmp_path), *shown).unresolved()["paths"] == {"a": "", "b": None, "c": "/data"}


@pytest.mark.parametrize(("kind", "line"), [(kind, " ".join(line)) for kind, line in summary.NEXT_KIND.items()])
def test_the_next_command_after_an_init_configuration_writes_and_runs_the_next_kind(kind, line, tmp_path):
    command, following = line.split()
    header = f"# Anything.\n# Written by `emollama init {kind}` from X, for Y.\npaths: {{root: {tmp_path}/a folder}}\n"
    content = golden_tree(tmp_path)
    content["evaluation_datasets"] = {}
    path, stored = tmp_path / f"{kind}.yaml", tmp_path / "checkpoint_3.pth"
    path.write_text(header + yaml.safe_dump(content))
    init = f"emollama init {following} --data '{tmp_path}/a folder'"
    expected = f"{init} && emollama {command} --cfg-path {following}.yaml --options model.ckpt={stored}"
    assert summary._next_command(tmp_path, load(str(path)), stored) == expected
    assert (KINDS[following].command, kind in KINDS) == (command, True)
    beside = tmp_path / f"{following}.yaml"
    beside.write_text(f"# Written by `emollama init {following}` from X, for Y.\n")
    expected = f"emollama {command} --cfg-path {beside} --nproc 2 --options model.ckpt={stored}"
    assert summary._next_command(tmp_path, load(str(path)), stored, 2) == expected
    beside.write_text("# Not of init.\n")
    expected = f"{init} && emollama {command} --cfg-path {following}.yaml --nproc 2 --options model.ckpt={stored}"
    assert summary._next_command(tmp_path, load(str(path)), stored, 2) == expected


@pytest.mark.parametrize(("local", "number"), [(None, 2), ("2", 2), ("1", 1)], ids=["default", "one machine", "two machines"])
def test_the_next_command_uses_the_number_of_processes_on_this_machine(local, number, monkeypatch, tmp_path):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if local:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    assert summary._processes_here(World(rank=0, size=2, device=None)) == number
    command = summary._next_command(tmp_path, load(str(ROOT / "train_configs/demo_stage_1.yaml")), tmp_path / "a.pth", number)
    assert ("--cfg-path train_configs/demo_stage_2.yaml --nproc 2 --options" in command) == (number == 2)
    own = summary._next_command(tmp_path, loaded(tmp_path, tree(tmp_path)), tmp_path / "a.pth", number)
    assert own.startswith(f"emollama eval --cfg-path {tmp_path}/config.yaml" + " --nproc 2" * (number == 2) + " --options")


def test_the_kind_is_recognized_from_the_header_written_by_init(tmp_path):
    text = SimpleNamespace(header=lambda: ["Something."])
    draft = SimpleNamespace(text=text, survey=SimpleNamespace(root="data"), missing_items=[])
    (tmp_path / "x.yaml").write_text("".join(f"# {line}\n" for line in _header("stage1", "train_configs/x.yaml", draft, [])))
    assert summary._init_kind(str(tmp_path / "x.yaml")) == "stage1"


def test_a_resumed_run_logs_its_first_step_and_checkpoint(trained):
    folder, _, messages = trained
    assert value_of(messages, "resuming") == "at step 4 of 6"
    assert value_of(messages, "checkpoint") == str(folder / "checkpoint_1.pth")


def test_tensorboard_contains_hyper_parameters_and_metrics_in_a_single_run(trained):
    folder, *_ = trained
    assert not [path for path in folder.rglob("events.out.*") if path.parent != folder]  # no run folder inside the run folder
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    board = EventAccumulator(str(folder)).Reload()
    content = board.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    start = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert start["run.init_lr"].number_value == pytest.approx(1e-5) and start["run.max_epoch"].number_value == 2
    assert start["model.arch"].string_value == "minigpt_v2" and start["run.evaluate"].number_value == 1
    content = board.summary_metadata["_hparams_/experiment"].plugin_data.content
    experiment = plugin_data_pb2.HParamsPluginData.FromString(content).experiment
    tags = {info.name.tag for info in experiment.metric_infos}
    assert {"train/loss", "eval/answers/emotion/loss"} <= tags
    assert tags & {*board.Tags()["scalars"]} >= {"train/loss", "eval/answers/emotion/loss"}
    assert "_hparams_/session_end_info" in board.summary_metadata  # the session has succeeded


def test_a_failed_run_has_no_end_of_session_in_tensorboard(tmp_path):
    with pytest.raises(KeyError), RunLog(tmp_path, first_step=0, total_steps=2, epoch_steps=2, log_freq=1, enabled=True) as log:
        log.hyper_parameters({"a": 1}, ["train/loss"])
        raise KeyError
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    metadata = EventAccumulator(str(tmp_path)).Reload().summary_metadata
    assert "_hparams_/session_start_info" in metadata and "_hparams_/session_end_info" not in metadata


def test_other_ranks_do_not_repeat_the_warnings_of_rank_0(monkeypatch, caplog):
    world = World(rank=1, size=2, device=None)
    monkeypatch.setattr(World, "on_rank_zero", lambda self, function: None)
    with caplog.at_level(logging.WARNING, "emollama"):
        assert world.rank_zero_first(lambda: get_logger().warning("a key has no effect") or 7) == 7
        assert get_logger().level == logging.WARNING
    assert logged(caplog) == []


# Environment of the demo


def test_the_demo_restarts_itself_once_with_the_environment_variables_of_make_demo(monkeypatch):
    started = []
    monkeypatch.setattr(os, "execve", lambda *arguments: started.append(arguments))
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "emollama", "demo", "--seed", "7"])
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    for name in ("MALLOC_MMAP_MAX_", "TOKENIZERS_PARALLELISM"):
        monkeypatch.delenv(name, raising=False)
    restart_with_fast_settings()
    assert started == []  # in a test, the program has another name
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=SimpleNamespace(name="emollama.__main__")))
    restart_with_fast_settings()
    ((program, line, environment),) = started
    assert program == line[0] == sys.executable and line[1:] == ["-m", "emollama", "demo", "--seed", "7"]
    assert {name: environment[name] for name in FAST} == FAST | {"OMP_NUM_THREADS": "3"}
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__file__="/somewhere/bin/emollama"))
    restart_with_fast_settings()
    assert len(started) == 1


def test_the_environment_variables_of_the_demo_are_those_of_the_makefile():
    (line,) = (line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("FAST = "))
    assert dict(pair.split("=") for pair in line.removeprefix("FAST = ").split()) == FAST
