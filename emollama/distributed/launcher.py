"""Start a command in several processes on this machine with torchrun's Python API."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from emollama.distributed.node_launch import NodeOptions, no_rendezvous, node_variables, rendezvous
from emollama.distributed.worker_errors import first_failure, read_stop, read_user_error
from emollama.distributed.worker_variables import is_worker, require_no_other_launcher
from emollama.errors import Interrupted, UserError
from emollama.logs.console import show_cursor
from emollama.variables import LAUNCHER

HOST = "localhost"
# Each process needs hundreds of MiB before it loads a model, so a mistyped --nproc would use up the memory of the machine.
PER_CORE, LEAST_LIMIT = 8, 64
# Signals that torch elastic passes on to the workers. Without SIGUSR1, that signal would kill the launcher.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)
SHUTDOWN_SECONDS = 300  # time for the workers to finish a step and to save a checkpoint after a signal


def add_launch_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options ``--nproc``, ``--gpus`` and ``--master-port``."""
    number = parser.add_mutually_exclusive_group()
    number.add_argument(
        "--nproc", type=positive, metavar="N", help="number of processes (default: one per visible GPU; without GPUs one)"
    )
    number.add_argument("--gpus", type=positive, metavar="N", help="number of processes, each on its own GPU")
    port = "port for the communication of the processes (default: a free port)"
    parser.add_argument("--master-port", type=positive, metavar="PORT", help=port)
    parser.set_defaults(argv=None)


def processes_for(arguments: argparse.Namespace, device: str, key: str = "run.device") -> int:
    """Return the number of processes of a command: the value of its options, or one per visible GPU; 1 in a worker.

    Args:
        arguments: the parsed command line, including the options of :func:`add_launch_arguments`.
        device: auto, cuda or cpu.
        key: the configuration key of the device, for messages.

    Raises:
        UserError: If there are too many processes, fewer GPUs than processes that need one, or another launcher has started
            this process.
    """
    if not is_worker():
        return process_count(arguments.nproc, arguments.gpus, device, visible_gpus, key)
    if arguments.gpus is not None or (arguments.nproc or 1) > 1:
        require_no_other_launcher(f"--gpus {arguments.gpus}" if arguments.nproc is None else f"--nproc {arguments.nproc}")
    return 1


def visible_gpus() -> int:
    """Return the number of GPUs that PyTorch can use."""
    import torch

    return int(torch.cuda.device_count())


def process_count(nproc: int | None, gpus: int | None, device: str, visible: Callable[[], int], key: str = "run.device") -> int:
    """Return the number of processes of a command.

    Args:
        nproc: value of ``--nproc``, or None.
        gpus: value of ``--gpus``, or None.
        device: auto, cuda or cpu.
        visible: returns the number of GPUs; it is called only if that matters, because it imports torch.
        key: the configuration key of the device, for messages.

    Raises:
        UserError: If there are too many processes, or fewer GPUs than processes that need one.
    """
    if gpus is not None:
        if device == "cpu":
            raise UserError(f"--gpus {gpus}: {key} is cpu. Set {key}=auto, or use --nproc {gpus} for processes on the CPU.")
        if gpus > visible():
            remedy = f"Use --nproc {gpus} for processes on the CPU." if visible() == 0 else "Lower --gpus."
            raise UserError(f"--gpus {gpus}: PyTorch sees {_gpus(visible())} on this machine. {remedy}")
        return gpus
    if nproc is None:
        return 1 if device == "cpu" else max(1, visible())
    require_sensible(nproc)
    if nproc > 1 and device != "cpu" and 0 < visible() < nproc:
        raise UserError(f"--nproc {nproc}: PyTorch sees {_gpus(visible())} on this machine. Lower --nproc, or set {key}=cpu.")
    return nproc


def require_sensible(nproc: int) -> None:
    """Check that a number of processes is reasonable for this machine.

    Raises:
        UserError: If the machine has far fewer cores.
    """
    cores = len(os.sched_getaffinity(0))
    most = max(LEAST_LIMIT, PER_CORE * cores)
    if nproc > most:
        raise UserError(
            f"--nproc {nproc}: at most {most} processes can be started on this machine, which has {cores} usable"
            f" core{'s' * (cores != 1)}. Lower --nproc."
        )


def launch(
    arguments: argparse.Namespace, processes: int, *, when_interrupted: str = "interrupted", silence: float | None = None
) -> None:
    """Run a command in several processes and wait for all of them.

    Args:
        arguments: the parsed command line, including the options of :func:`add_launch_arguments`. The workers get ``argv``, or
            the command line of this process if that is None, and ignore the launcher's options in it.
        processes: number of processes, at least 2.
        when_interrupted: message of :class:`Interrupted`.
        silence: seconds without a sign of life after which another node is lost; None waits forever.

    Raises:
        UserError: If the port is in use, the processes cannot connect to each other, no temporary folder can be created, or a
            worker raised a UserError.
        WorkerCrash: If a worker failed in another way.
        Interrupted: If this process received a signal; the workers have ended.
        Stopped: If the run stopped after a signal or a time limit, and was saved, or if restarts made no progress.
    """
    argv = sys.argv[1:] if arguments.argv is None else arguments.argv
    port = arguments.master_port
    if port is not None:
        require_free(port)
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import elastic_launch

    nodes = NodeOptions.of(arguments)
    with ExitStack() as stack:
        logs = stack.enter_context(_temporary_folder())
        for context in (_worker_environment(node_variables(nodes)), _signals_restored(), _silent_logging()):
            stack.enter_context(context)
        meeting = stack.enter_context(rendezvous(nodes, silence)) if nodes.several else _meeting_on_this_machine(port)
        config = _launch_config(processes, nodes.max_restarts, logs, meeting)
        try:
            elastic_launch(config, sys.executable)("-u", *_program(), *argv)
        except ChildFailedError as error:
            raise first_failure(error.failures, processes * nodes.most) from None
        except (RendezvousError, DistError, ConnectionError) as error:
            missed = no_rendezvous(nodes, error) if nodes.several else _no_connection(port, error)
            raise read_user_error(logs) or missed from error
        except SignalException as stopped:
            if read_stop(logs) is None:
                raise Interrupted(when_interrupted, stopped.sigval) from None
        except Interrupted:
            raise
        except KeyboardInterrupt:  # raised before torch elastic has installed its signal handlers
            raise KeyboardInterrupt(when_interrupted) from None
        finally:
            # A worker that was killed could not show the cursor again.
            show_cursor()
        if end := read_stop(logs) or read_user_error(logs):  # errors of processes that were not to be restarted
            raise end


def _meeting_on_this_machine(port: int | None) -> dict[str, Any]:
    """Return the arguments of torch's LaunchConfig for processes on this machine."""
    return {
        "min_nodes": 1,
        "max_nodes": 1,
        "run_id": str(uuid.uuid4()),
        "rdzv_endpoint": f"{HOST}:{port or 0}",
        # Fail at once if the port is in use, instead of connecting to the program that uses it.
        "rdzv_configs": {"is_host": True},
        "local_addr": HOST,
        "signals_to_handle": ",".join(number.name for number in SIGNALS),
    }


def _launch_config(processes: int, max_restarts: int, logs: Path, meeting: dict[str, Any]) -> Any:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig

    logs_specs = DefaultLogsSpecs(log_dir=str(logs))
    config = LaunchConfig(
        nproc_per_node=processes, rdzv_backend="c10d", max_restarts=max_restarts, logs_specs=logs_specs, **meeting
    )
    # PyTorch 2.11 has no such attribute: it kills the workers 30 seconds after a signal.
    config.shutdown_timeout = SHUTDOWN_SECONDS
    return config


def require_free(port: int) -> None:
    """Check that a port can be used.

    Raises:
        UserError: If the port is in use or not a valid number.
    """
    remedy = "Choose another port, or remove --master-port to use a free port."
    if port > 65535:
        raise UserError(f"--master-port {port}: the largest port number is 65535. {remedy}")
    try:
        _listen(port).close()
    except OSError as error:
        cause = "the port is in use" if error.errno == errno.EADDRINUSE else os.strerror(error.errno or 0).lower()
        raise UserError(f"--master-port {port}: {cause}. {remedy}") from None


def _listen(port: int) -> socket.socket:
    """Listen on every address of this machine, IPv6 and IPv4, as torch's store does."""
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise
    return socket.create_server(("", port))


def _no_connection(port: int | None, error: Exception) -> UserError:
    """Return the error for processes that cannot connect to each other."""
    cause = str(error.__cause__ or error).strip().partition("\n")[0]
    if port is not None:
        return UserError(f"--master-port {port}: the processes cannot use this port. Remove --master-port. ({cause})")
    return UserError(f"the processes cannot connect to each other. Check that '{HOST}' is an address of this machine. ({cause})")


def positive(text: str) -> int:
    """Parse a command-line option that is a positive integer."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


def _gpus(count: int) -> str:
    return {0: "no GPU", 1: "1 GPU"}.get(count, f"{count} GPUs")


def _program() -> list[str]:
    """Return Python's arguments that start this program: its console script if that started this process, else ``-m``."""
    script = Path(sys.argv[0])
    return [str(script)] if script.name == "emollama" and script.is_file() else ["-m", "emollama"]


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """Create a temporary folder for the workers' error files."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="emollama-", ignore_cleanup_errors=True)
    except OSError as error:
        raise UserError(f"cannot create a temporary folder: {error}. Set TMPDIR to a writable folder.") from None
    with folder as name:
        yield Path(name)


@contextmanager
def _worker_environment(more: dict[str, str]) -> Iterator[None]:
    """Set environment variables that the workers inherit; like torchrun, give each process one thread by default."""
    settings = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), LAUNCHER: str(os.getpid())} | more
    before = {name: os.environ.get(name) for name in settings}
    os.environ |= settings
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextmanager
def _signals_restored() -> Iterator[None]:
    """Restore the signal handlers afterwards, because torch elastic installs its own in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None is a handler that was not installed from Python and cannot be restored
                signal.signal(number, handler)


@contextmanager
def _silent_logging() -> Iterator[None]:
    """Disable logging by torch elastic in this process, because the command prints the reason of a failure itself."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
