"""Commands in several processes: their number, the checks before they start, their errors and signals."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from argparse import ArgumentParser, Namespace
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from running import command, golden_config, start_launcher

from emollama import entry, variables
from emollama.cli import main, parse_run
from emollama.commands import eval_checkpoints, extract, predict, running
from emollama.config import load
from emollama.distributed import launcher, process_group, worker_errors, worker_variables
from emollama.distributed.node_launch import NodeOptions
from emollama.distributed.worker_errors import CRASH, USER, WorkerCrash, first_failure
from emollama.errors import RemoteCrash, RemoteUserError, UserError

# Every process that loads the configuration imports this; it only acts in a worker.
FAULTS = """
import os, signal, time
from pathlib import Path
from emollama.config import loading
from emollama.errors import UserError

folder, rank = Path(__file__).parent, os.environ.get("RANK")
if rank is not None:
    (folder / f"pid_{rank}.tmp").write_text(str(os.getpid()))
    (folder / f"pid_{rank}.tmp").rename(folder / f"pid_{rank}")
if rank == "0":
    signal.pause()  # until the launcher ends it
if rank == "1":
    while not (folder / "pid_0").exists():
        time.sleep(0.01)

    def fault(*_):
        FAULT

    loading.chosen_blocks = fault  # called after the import: errors of the import itself are user errors
"""
NOTHING_SAVED = "interrupted; this run has not saved a checkpoint yet"


@pytest.fixture(autouse=True)
def no_gpus(monkeypatch):
    """Hide the GPUs of the machine."""
    monkeypatch.setattr(launcher, "visible_gpus", lambda: 0)


@pytest.fixture
def config(tmp_path):
    return golden_config(tmp_path)


@pytest.fixture
def faulty(tmp_path, monkeypatch, request):
    """``faulty(code)``: a configuration; while it loads, rank 1 runs this code and rank 0 waits.

    torch's rendezvous inspects the stack for its log, which takes a second under pytest.
    """
    from torch.distributed.elastic.rendezvous import dynamic_rendezvous

    monkeypatch.setattr(dynamic_rendezvous, "get_method_name", lambda *_, **__: "")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)

    def make(code):
        name = f"faults_of_{abs(hash(request.node.name))}"
        (tmp_path / f"{name}.py").write_text(FAULTS.replace("FAULT", code))
        path = golden_config(tmp_path)
        path.write_text(json.dumps(json.loads(path.read_text()) | {"imports": [name]}))
        return str(path)

    yield make
    for name in [name for name in sys.modules if name.startswith("faults_of_")]:
        del sys.modules[name]


@pytest.fixture
def no_launch(monkeypatch):
    """The names of commands that would have been launched."""
    launched = []
    monkeypatch.setattr(running, "launch", lambda arguments, processes, **_: launched.append(processes))
    return launched


def status_of(*argv):
    """The exit status of ``emollama <argv>``, run in this process."""
    try:
        main(argv)
    except SystemExit as end:
        return end.code
    return 0


def parsed(*argv):
    parser = ArgumentParser()
    launcher.add_launch_arguments(parser)
    return parser.parse_args(argv)


# How many processes


@pytest.mark.parametrize(
    ("nproc", "gpus", "device", "visible", "count"),
    [
        (None, None, "auto", 0, 1),
        (None, None, "auto", 4, 4),
        (None, None, "cuda", 2, 2),
        (None, None, "cpu", 4, 1),
        (3, None, "auto", 0, 3),
        (3, None, "cpu", 2, 3),
        (1, None, "auto", 4, 1),
        (2, None, "auto", 4, 2),
        (None, 2, "auto", 4, 2),
    ],
)
def test_the_number_of_processes_follows_from_options_and_device(nproc, gpus, device, visible, count):
    assert launcher.process_count(nproc, gpus, device, lambda: visible) == count


@pytest.mark.parametrize(
    ("nproc", "gpus", "device", "visible", "message"),
    [
        (None, 3, "auto", 0, "--gpus 3: PyTorch sees no GPU on this machine. Use --nproc 3 for processes on the CPU."),
        (None, 3, "auto", 2, "--gpus 3: PyTorch sees 2 GPUs on this machine. Lower --gpus."),
        (None, 2, "cpu", 2, "--gpus 2: run.device is cpu. Set run.device=auto, or use --nproc 2 for processes on the CPU."),
        (3, None, "auto", 1, "--nproc 3: PyTorch sees 1 GPU on this machine. Lower --nproc, or set run.device=cpu."),
    ],
)
def test_more_processes_than_gpus_are_refused_with_the_remedy(nproc, gpus, device, visible, message):
    with pytest.raises(UserError) as error:
        launcher.process_count(nproc, gpus, device, lambda: visible)
    assert str(error.value) == message


def test_nproc_and_gpus_are_positive_and_mutually_exclusive(capsys):
    for argv in (["--nproc", "2", "--gpus", "2"], ["--nproc", "0"], ["--gpus", "-1"], ["--nproc", "two"]):
        with pytest.raises(SystemExit) as end:
            parsed(*argv)
        assert end.value.code == 2
    assert "not allowed with argument --nproc" in capsys.readouterr().err


def test_a_worker_never_launches(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert launcher.processes_for(parsed(), "auto") == 1
    assert launcher.processes_for(parsed("--nproc", "1"), "auto") == 1
    monkeypatch.setenv(variables.LAUNCHER, "1")  # whose workers get its command line
    assert launcher.processes_for(parsed("--nproc", "4"), "auto") == 1


@pytest.mark.parametrize("option", ["--nproc", "--gpus"])
def test_nproc_and_gpus_are_refused_in_a_worker_of_another_launcher(option, monkeypatch):
    monkeypatch.delenv(variables.LAUNCHER, raising=False)
    for name, value in {"WORLD_SIZE": "1", "LOCAL_RANK": "0", "RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as error:
        launcher.processes_for(parsed(option, "2"), "auto")
    assert str(error.value) == (
        f"{option} 2 cannot be used in a process that was started by a launcher such as torchrun, as its environment variables"
        f" say (LOCAL_RANK=0, WORLD_SIZE=1). Remove {option}; if no launcher has started this process, remove the variables:"
        " unset LOCAL_RANK RANK WORLD_SIZE MASTER_ADDR MASTER_PORT."
    )


@pytest.mark.parametrize("cores", [1, 16])
def test_more_processes_than_the_cores_allow_are_refused(cores, monkeypatch):
    monkeypatch.setattr(launcher.os, "sched_getaffinity", lambda _: set(range(cores)))
    most = {1: 64, 16: 128}[cores]
    assert launcher.process_count(most, None, "cpu", lambda: 0) == most
    with pytest.raises(UserError) as error:
        launcher.process_count(10**9, None, "auto", lambda: pytest.fail("counted the GPUs"))
    shown = "1 usable core" if cores == 1 else "16 usable cores"
    assert str(error.value) == (
        f"--nproc 1000000000: at most {most} processes can be started on this machine, which has {shown}. Lower --nproc."
    )
    with pytest.raises(UserError, match=f"^--nproc {most + 1}: "):
        launcher.process_count(most + 1, None, "cpu", lambda: 0)


@pytest.mark.parametrize(
    ("launcher_variables", "message"),
    [
        ({"WORLD_SIZE": "abc"}, "the environment variable WORLD_SIZE is 'abc', not a whole number."),
        ({"RANK": "-1"}, "the environment variable RANK is '-1', not a whole number."),
        ({"LOCAL_RANK": "x", "WORLD_SIZE": "1"}, "the environment variable LOCAL_RANK is 'x', not a whole number."),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "but RANK, MASTER_ADDR, MASTER_PORT are not set."),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "a"}, "but MASTER_PORT is not set."),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "b"}, "MASTER_PORT is 'b', not a whole number."),
        (
            {"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"},
            "RANK is 2, but must be below WORLD_SIZE, which is 2.",
        ),
    ],
    ids=lambda value: " ".join(f"{name}={text}" for name, text in value.items()) if isinstance(value, dict) else "",
)
def test_inconsistent_launcher_variables_are_reported_by_name(launcher_variables, message, monkeypatch):
    for name in worker_variables.NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, text in launcher_variables.items():
        monkeypatch.setenv(name, text)
    with pytest.raises(UserError) as error:
        process_group.start("cpu")
    assert message in str(error.value)
    order = [name for name in worker_variables.NAMES if name in launcher_variables]
    assert str(error.value).endswith(f"if no launcher has started this process, remove the variables: unset {' '.join(order)}.")


def test_a_launcher_variable_that_is_not_a_number_is_an_error_in_every_program(monkeypatch, capsys):
    for name, text in {"LOCAL_RANK": "0", "WORLD_SIZE": "1", variables.LAUNCHER: "abc"}.items():
        monkeypatch.setenv(name, text)
    monkeypatch.delenv(worker_errors.ERROR_FILE, raising=False)
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert entry.run(lambda: pytest.fail("started")) == 1
    finally:
        signal.signal(signal.SIGTERM, before)
    message = capsys.readouterr().err
    assert message.startswith("error: the environment variable EMOLLAMA_LAUNCHER is 'abc', not a whole number.")
    assert message.endswith("unset EMOLLAMA_LAUNCHER.\n")


def test_empty_launcher_variables_count_as_unset(monkeypatch):
    for name in worker_variables.NAMES:
        monkeypatch.setenv(name, "")
    assert not worker_variables.is_worker()
    assert (process_group.start("cpu").rank, process_group.start("cpu").size) == (0, 1)


@pytest.mark.parametrize("command", ["train", "eval", "extract", "predict", "eval-checkpoints", "sweep"])
def test_every_command_that_can_use_several_processes_has_the_launch_options(command, capsys):
    assert status_of(command, "--help") == 0
    shown = capsys.readouterr().out
    assert all(option in shown for option in ("--nproc", "--gpus", "--master-port"))


def test_entry_scripts_run_in_one_process(monkeypatch):
    monkeypatch.setattr(launcher, "visible_gpus", lambda: 8)
    assert launcher.processes_for(parse_run("", ["--cfg-path", "x.yaml"]), "cpu") == 1
    monkeypatch.setattr(launcher, "visible_gpus", lambda: pytest.fail("one process needs no count"))
    assert launcher.processes_for(parse_run("", ["--cfg-path", "x.yaml"]), "auto") == 1


# Checks before processes start


@pytest.mark.parametrize("command", ["train", "eval"])
def test_configuration_errors_are_reported_before_the_launch(command, config, no_launch, capfd):
    assert status_of(command, "--nproc", "2", "--cfg-path", str(config), "--options", "run.init_lrr=1") == 1
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) <= 5 and "run.init_lrr" in lines[-1] and lines[-1].startswith("error: ")
    assert no_launch == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["run.parallel=hsdp", "run.shard_size=3"], "run.shard_size is 3, which does not divide the 4 processes"),
        (["run.parallel=fsdp", "model.low_resource=True"], "model.low_resource needs the package bitsandbytes"),
        (["run.parallel=fsdp", "model.frozen_dtype=fp8"], "model.frozen_dtype: fp8 does not work with run.parallel: fsdp"),
    ],
)
def test_keys_that_need_no_weights_are_checked_before_torch_counts_gpus(options, message, config, no_launch, monkeypatch, capfd):
    monkeypatch.setattr(launcher, "visible_gpus", lambda: pytest.fail("it imports torch"))
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert status_of("train", "--nproc", "4", "--cfg-path", str(config), "--options", "run.device=auto", *options) == 1
    assert capfd.readouterr().err.splitlines()[-1].startswith(f"error: {message}")
    assert no_launch == []


def test_a_run_whose_number_of_nodes_can_change_needs_one_that_fits_its_groups(config):
    sizes = golden_config(config.parent, run={"parallel": "hsdp", "shard_size": 6})
    loaded = load(str(sizes))
    running._require_start(loaded, 2, NodeOptions(2, 4), training=True)
    with pytest.raises(UserError, match="run.shard_size is 6, which does not divide the 10 processes"):
        running._require_start(loaded, 2, NodeOptions(4, 5), training=True)


@pytest.mark.parametrize("command", ["train", "eval"])
def test_an_unwritable_output_folder_is_reported_before_the_launch(command, config, no_launch, capfd):
    blocked = config.parent / "file"
    blocked.write_text("")
    argv = (command, "--nproc", "2", "--cfg-path", str(config), "--options")
    assert status_of(*argv, f"run.output_dir={blocked}/runs") == 1
    message = capfd.readouterr().err
    assert message.startswith(f"error: run.output_dir: cannot write under '{blocked}'") and "Specify another folder." in message
    assert no_launch == []
    assert status_of(*argv, f"run.output_dir={config.parent}/runs") == 0
    assert no_launch == [2]


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        (eval_checkpoints, ["--run-folder", "gone"], "--run-folder: no folder 'gone'. Specify the folder of a training run,"),
        (predict, ["--video", "gone.mp4"], "--video: no file 'gone.mp4'"),
        (extract, [], "extraction.videos: no folder 'gone'"),
        (extract, ["--options", "extraction.videos=."], "extraction.output: cannot write under '/dev/null'"),
    ],
    ids=["eval-checkpoints", "predict", "extract from", "extract to"],
)
def test_bad_inputs_and_outputs_are_reported_before_the_launch(command, options, message, config, monkeypatch, capfd):
    monkeypatch.setattr(command, "launch", lambda *_, **__: pytest.fail("launched"))
    extraction = {"videos": "gone", "output": "/dev/null/x", "device": "cpu"}
    config.write_text(json.dumps(json.loads(config.read_text()) | {"extraction": extraction}))
    name = command.__name__.rpartition(".")[2].replace("_", "-")
    assert status_of(name, "--nproc", "2", "--cfg-path", str(config), *options) == 1
    assert capfd.readouterr().err.splitlines()[-1].startswith(f"error: {message}")


def test_gpus_on_a_machine_without_gpus_are_refused(config, no_launch, capfd):
    assert status_of("train", "--gpus", "3", "--cfg-path", str(config)) == 1
    assert "--gpus 3: PyTorch sees no GPU" in capfd.readouterr().err
    assert no_launch == []


def test_a_port_that_is_in_use_or_out_of_range_is_refused():
    with socket.create_server((launcher.HOST, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"^--master-port {port}: the port is in use. Choose another port"):
            launcher.launch(Namespace(argv=["train"], master_port=port), 2)
    with pytest.raises(UserError, match="^--master-port 70000: the largest port number is 65535"):
        launcher.require_free(70000)


@pytest.mark.parametrize(
    ("family", "address"), [(socket.AF_INET, "0.0.0.0"), (socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
)
def test_a_port_in_use_on_any_address_is_refused(family, address):
    try:
        taken = socket.create_server((address, 0), family=family)
    except OSError:
        pytest.skip(f"{address} is no address of this machine")
    with taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"^--master-port {port}: the port is in use"):
            launcher.require_free(port)
    launcher.require_free(port)


def test_a_port_occupied_between_the_check_and_the_launch_is_reported(monkeypatch):
    monkeypatch.setattr(launcher, "require_free", lambda port: None)
    with launcher._listen(0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"^--master-port {port}: the processes cannot use this port.*Remove") as raised:
            launcher.launch(Namespace(argv=["train"], master_port=port), 2)
    assert "\n" not in str(raised.value)
    assert raised.value.__cause__ is not None  # for --debug


def test_processes_that_cannot_connect_are_reported_with_the_host_to_check(monkeypatch):
    from torch.distributed.launcher import api

    def refused(*_):
        raise ConnectionRefusedError("refused")

    monkeypatch.setattr(api, "elastic_launch", lambda *_: refused)
    with pytest.raises(UserError, match=r"cannot connect to each other\. Check that 'localhost' is an address .*\(refused\)$"):
        launcher.launch(Namespace(argv=["train"], master_port=None), 2)


def test_a_missing_temporary_directory_is_reported_with_the_remedy(monkeypatch):
    def refused(**_):
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(launcher.tempfile, "TemporaryDirectory", refused)
    with pytest.raises(UserError, match="Set TMPDIR"):
        launcher.launch(Namespace(argv=["train"], master_port=None), 2)


# Why workers failed


def failure(exitcode, kind=None, text="", time_ns=0, rank=0):
    """The failure of a worker as the launcher gets it; without a kind, the worker recorded no error."""
    extra = {"py_callstack": text, "timestamp": "0", "kind": kind, "time_ns": time_ns, "rank": rank}
    return SimpleNamespace(exitcode=exitcode, error_file_data={"message": {"extraInfo": extra} if kind else "<NONE>"})


TERMINATED = failure(-signal.SIGTERM)


def test_a_user_error_of_any_rank_is_reported_before_lost_connections():
    lost = failure(1, CRASH, "RuntimeError: Connection closed by peer", time_ns=5)
    for rank in (0, 1):
        error = first_failure({rank: failure(1, USER, "clip x is broken", time_ns=9), 1 - rank: lost}, 2)
        assert type(error) is UserError and str(error) == "clip x is broken"


def test_the_earliest_crash_is_reported_with_its_rank_and_its_traceback_last():
    first, later = failure(1, CRASH, "Traceback 1\nKeyError: 'x'\n", 5, rank=1), failure(1, CRASH, "Traceback 0", 9)
    error = first_failure({0: later, 1: first, 2: TERMINATED}, 3)
    assert isinstance(error, WorkerCrash) and error.status == 1
    assert str(error) == "process 1 of 3 failed:\nTraceback 1\nKeyError: 'x'"


@pytest.mark.parametrize(
    ("exitcode", "status", "text"),
    [
        (-signal.SIGSEGV, 139, "was ended by SIGSEGV"),
        (-signal.SIGKILL, 137, "was ended by SIGKILL. The system may have run out of memory"),
        (-63, 191, "was ended by signal 63"),
        (7, 7, "ended with exit status 7 and no message"),
    ],
)
def test_a_process_that_ended_without_a_record_is_reported_before_lost_connections(exitcode, status, text):
    lost = failure(1, CRASH, "RuntimeError: Connection closed by peer")
    error = first_failure({0: lost, 1: failure(exitcode), 2: TERMINATED}, 3)
    assert isinstance(error, WorkerCrash) and error.status == status
    assert str(error) == f"error: process 1 of 3 {text}"


def test_error_files_have_the_format_of_torch_elastic(tmp_path, monkeypatch):
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    monkeypatch.setenv("RANK", "1")
    path = tmp_path / "error.json"
    monkeypatch.setenv(worker_errors.ERROR_FILE, str(path))

    def main():
        raise UserError("clip x is broken")

    with pytest.raises(UserError):
        worker_errors.record_errors(main)()
    child = ProcessFailure(local_rank=1, pid=1, exitcode=1, error_file=str(path))
    assert "traceback : clip x is broken" in ChildFailedError("train", {1: child}).format_msg()
    assert str(first_failure({1: child}, 2)) == "clip x is broken"


def test_an_echoed_crash_is_recorded_with_the_traceback_of_the_rank_that_crashed(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    recorded = worker_errors.error_record(RemoteCrash("KeyError: 'x'", 1, "Traceback of rank 1"))["message"]["extraInfo"]
    assert (recorded["kind"], recorded["rank"], recorded["py_callstack"]) == (CRASH, 1, "Traceback of rank 1")
    assert worker_errors.error_record(RemoteUserError("bad"))["message"]["extraInfo"]["kind"] == USER
    try:
        {}["missing"]
    except KeyError as error:
        extra = worker_errors.error_record(error)["message"]["extraInfo"]
    assert extra["kind"] == CRASH and extra["py_callstack"].endswith("KeyError: 'missing'\n")


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """Make this process look like a worker of torchrun; return its error file."""
    path = tmp_path / "attempt_0" / "1" / "error.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(worker_errors.error_record(UserError("x"))))
    for name, value in {worker_errors.ERROR_FILE: str(path), "LOCAL_RANK": "1", "RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(variables.LAUNCHER, raising=False)
    return path


def test_only_errors_echoed_by_the_first_failing_rank_are_printed_under_torchrun(worker):
    assert [worker_errors.should_print(error) for error in (RemoteUserError("x"), UserError("x"), KeyError("x"))] == [
        True,
        False,
        False,
    ]


def test_under_our_launcher_no_worker_prints(worker, monkeypatch):
    monkeypatch.setenv(variables.LAUNCHER, "1")
    assert not worker_errors.should_print(UserError("x"))


def test_under_our_launcher_a_worker_prints_its_error_if_a_restart_follows(worker, monkeypatch):
    monkeypatch.setenv(variables.LAUNCHER, "1")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    final = UserError("x")
    final.is_final = True
    assert worker_errors.should_print(UserError("x")) and not worker_errors.should_print(final)
    assert worker_errors.ends_restarts(final) and not worker_errors.ends_restarts(UserError("x"))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert not worker_errors.should_print(UserError("x")) and not worker_errors.ends_restarts(final)


def test_a_worker_that_could_not_record_its_error_prints_it(worker):
    worker.unlink()
    assert worker_errors.should_print(UserError("x")) and worker_errors.should_print(KeyError("x"))
    assert not worker_errors.should_print(RemoteUserError("x")) and not worker_errors.should_print(RemoteCrash("x", 0, ""))


# Signals


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_single_process_with_one_line(number, status, capsys):
    before = signal.getsignal(signal.SIGTERM)
    assert entry.run(lambda: os.kill(os.getpid(), number), when_interrupted="stopped here") == status
    assert capsys.readouterr().err == "stopped here\n"
    assert signal.getsignal(signal.SIGTERM) is before


def in_a_thread(function):
    """Call a function in a thread other than the main thread and return its result."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def test_another_thread_can_launch(monkeypatch):
    from torch.distributed.launcher import api

    launched = []
    monkeypatch.setattr(api, "elastic_launch", lambda config, program: lambda *argv: launched.append(argv[-1]))
    in_a_thread(lambda: launcher.launch(Namespace(argv=["train"], master_port=None), 2))
    assert launched == ["train"]


def test_a_worker_can_run_several_programs_in_any_thread(worker, monkeypatch, capsys):
    def fails():
        raise UserError("x")

    monkeypatch.delenv(worker_errors.ERROR_FILE)
    names, before = [], signal.getsignal(signal.SIGTERM)
    try:
        for call in (in_a_thread, in_a_thread, lambda function: function()):
            assert call(lambda: entry.run(fails)) == 1
            names.append([thread.name for thread in threading.enumerate() if "watch process" in thread.name])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(names[0]) == 1
    assert names == names[:1] * 3
    assert capsys.readouterr().err == "error: x\n" * 3


# Real launches


def living(folder):
    """Names of the workers that are still running."""
    names = []
    for path in folder.glob("pid_?"):
        try:
            os.kill(int(path.read_text()), 0)
        except ProcessLookupError:
            continue
        names.append(path.name)
    return names


def test_an_error_of_one_rank_is_the_only_output(faulty, tmp_path, capfd):
    path = faulty('raise UserError("only rank 1 has this problem")')
    handlers = [signal.getsignal(number) for number in launcher.SIGNALS]
    assert status_of("train", "--nproc", "2", "--cfg-path", path) == 1
    out, err = capfd.readouterr()
    assert (out, err) == ("", "error: only rank 1 has this problem\n")
    assert {path.name for path in tmp_path.glob("pid_?")} == {"pid_0", "pid_1"} and living(tmp_path) == []
    assert [signal.getsignal(number) for number in launcher.SIGNALS] == handlers
    assert variables.LAUNCHER not in os.environ


def test_an_interrupt_ends_all_workers_with_one_line(faulty, tmp_path, capfd):
    path = faulty("os.kill(os.getppid(), signal.SIGINT); signal.pause()")
    assert status_of("train", "--nproc", "2", "--cfg-path", path) == 130
    assert capfd.readouterr().err == f"{NOTHING_SAVED}\n"
    assert {path.name for path in tmp_path.glob("pid_?")} == {"pid_0", "pid_1"} and living(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "status", "last"),
    [
        ('{}["missing"]', 1, "KeyError: 'missing'"),
        ("os._exit(7)", 7, "error: process 1 of 2 ended with exit status 7 and no message"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", 139, "error: process 1 of 2 was ended by SIGSEGV"),
        ("os.kill(os.getppid(), signal.SIGTERM); signal.pause()", 75, NOTHING_SAVED.replace("interrupted", "stopped by SIGTERM")),
    ],
    ids=["crash", "exit", "signal", "terminated"],
)
def test_the_command_exits_with_the_status_of_the_failed_worker(faulty, tmp_path, capfd, fault, status, last):
    assert status_of("train", "--nproc", "2", "--cfg-path", faulty(fault)) == status
    assert capfd.readouterr().err.splitlines()[-1] == last
    assert living(tmp_path) == []


@pytest.mark.slow
def test_the_summary_of_torchrun_contains_the_message(faulty, fork_server):
    path = faulty('raise UserError("only rank 1 has this problem")')
    line = command("-m", "emollama", "eval", "--cfg-path", path, processes=2)
    completed = start_launcher(*line[1:]).wait()
    assert completed.returncode == 1
    lines = completed.stderr.splitlines()
    assert [text for text in lines if text.startswith("error: ")] == ["error: only rank 1 has this problem"]
    assert "traceback : only rank 1 has this problem" in completed.stderr.partition("FAILED")[2]
