"""Start a command in several processes on this machine, through torchrun's Python API."""

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
from contextlib import contextmanager
from pathlib import Path

from emollama.distributed.worker_errors import first_failure
from emollama.distributed.worker_variables import is_worker, require_no_other_launcher
from emollama.errors import Interrupted, UserError
from emollama.logs.console import show_cursor
from emollama.variables import LAUNCHER

HOST = "localhost"
# A process needs some hundred MiB before it loads a model: a mistyped --nproc would take all memory of the machine.
PER_CORE, LEAST_LIMIT = 8, 64
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)  # that torch elastic handles


def add_launch_arguments(parser: argparse.ArgumentParser) -> None:
    """``--nproc``, ``--gpus``, ``--master-port``."""
    number = parser.add_mutually_exclusive_group()
    number.add_argument(
        "--nproc", type=positive, metavar="N", help="number of processes (default: one per visible GPU; without GPUs one)"
    )
    number.add_argument("--gpus", type=positive, metavar="N", help="number of processes, each on a GPU of its own")
    port = "port on which the processes find each other (default: a free one)"
    parser.add_argument("--master-port", type=positive, metavar="PORT", help=port)
    parser.set_defaults(argv=None)


def processes_for(arguments: argparse.Namespace, device: str, key: str = "run.device") -> int:
    """How many processes a command runs in: as many as were asked for, else one per visible GPU; 1 in a worker.

    Args:
        arguments: of the command, with those of :func:`add_launch_arguments`.
        device: auto, cuda or cpu: where the command computes.
        key: the configuration key of the device, for messages.

    Raises:
        UserError: there are fewer GPUs than processes that need one, too many processes, or another launcher started this one.
    """
    if not is_worker():
        return process_count(arguments.nproc, arguments.gpus, device, visible_gpus, key)
    if arguments.gpus is not None or (arguments.nproc or 1) > 1:
        require_no_other_launcher(f"--gpus {arguments.gpus}" if arguments.nproc is None else f"--nproc {arguments.nproc}")
    return 1


def visible_gpus() -> int:
    """The number of GPUs that PyTorch sees."""
    import torch

    return int(torch.cuda.device_count())


def process_count(nproc: int | None, gpus: int | None, device: str, visible: Callable[[], int], key: str = "run.device") -> int:
    """How many processes a command runs in.

    Args:
        nproc: ``--nproc``, if given.
        gpus: ``--gpus``, if given.
        device: auto, cuda or cpu.
        visible: counts the GPUs; it is called only if their number matters.
        key: the configuration key of the device, for messages.

    Raises:
        UserError: there are fewer GPUs than processes that need one, or too many processes.
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
    """Check that this machine can run so many processes.

    Raises:
        UserError: it has far fewer cores.
    """
    cores = len(os.sched_getaffinity(0))
    most = max(LEAST_LIMIT, PER_CORE * cores)
    if nproc > most:
        raise UserError(
            f"--nproc {nproc}: this machine has {cores} usable core{'s' * (cores != 1)}, on which at most {most} processes are"
            " started. Lower --nproc."
        )


def launch(arguments: argparse.Namespace, processes: int, *, when_interrupted: str = "interrupted") -> None:
    """Run a command in several processes, and wait for all of them.

    Args:
        arguments: of the command, with those of :func:`add_launch_arguments`; the workers get ``argv``, or this process's
            command line if that is None, and ignore the launcher's options in it.
        processes: 2 or more.
        when_interrupted: the text of :class:`Interrupted`.

    Raises:
        UserError: the port is in use, the processes cannot find each other, there is no place for temporary files, or a worker
            raised one.
        WorkerCrash: a worker ended otherwise.
        Interrupted: a signal ended this process; the workers have ended.
    """
    argv = sys.argv[1:] if arguments.argv is None else arguments.argv
    port = arguments.master_port
    if port is not None:
        require_free(port)
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with _temporary_folder() as logs, _worker_environment(), _signals_restored(), _silent_logging():
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=str(uuid.uuid4()),
            rdzv_backend="c10d",
            rdzv_endpoint=f"{HOST}:{port or 0}",
            rdzv_configs={"is_host": True},  # if the port is taken, fail at once; do not connect to whatever has it
            max_restarts=0,
            local_addr=HOST,
            logs_specs=DefaultLogsSpecs(log_dir=str(logs)),
        )
        try:
            elastic_launch(config, sys.executable)("-u", *_program(), *argv)
        except ChildFailedError as error:
            raise first_failure(error.failures, processes) from None
        except (RendezvousError, DistError, ConnectionError) as error:
            raise _no_connection(port, error) from error
        except SignalException as stopped:
            raise Interrupted(when_interrupted, stopped.sigval) from None
        except KeyboardInterrupt:  # before torch elastic handles signals
            raise KeyboardInterrupt(when_interrupted) from None
        finally:
            show_cursor()  # a worker that was ended could not


def require_free(port: int) -> None:
    """Check that a port can be used.

    Raises:
        UserError: it is in use, or not a port.
    """
    remedy = "Choose another one, or leave --master-port out: a free port is chosen then."
    if port > 65535:
        raise UserError(f"--master-port {port}: ports end at 65535. {remedy}")
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
    """The error of processes that cannot find each other."""
    cause = str(error.__cause__ or error).strip().partition("\n")[0]
    if port is not None:
        return UserError(f"--master-port {port}: the processes cannot use this port. Leave --master-port out. ({cause})")
    return UserError(f"the processes cannot find each other. Check that '{HOST}' is an address of this machine. ({cause})")


def positive(text: str) -> int:
    """The type of options that are counts."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


def _gpus(count: int) -> str:
    return {0: "no GPU", 1: "1 GPU"}.get(count, f"{count} GPUs")


def _program() -> list[str]:
    """How Python starts this program: by its console script if it was started so, else as a module."""
    script = Path(sys.argv[0])
    return [str(script)] if script.name == "emollama" and script.is_file() else ["-m", "emollama"]


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """A folder for the workers' error files."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="emollama-", ignore_cleanup_errors=True)
    except OSError as error:
        raise UserError(f"no folder for temporary files: {error}. Set TMPDIR to a folder that can be written to.") from None
    with folder as name:
        yield Path(name)


@contextmanager
def _worker_environment() -> Iterator[None]:
    """Environment variables that the workers inherit; torchrun, too, gives each of several processes one thread."""
    settings = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), LAUNCHER: str(os.getpid())}
    before = {name: os.environ.get(name) for name in settings}
    os.environ |= settings
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextmanager
def _signals_restored() -> Iterator[None]:
    """Restore the signal handlers afterwards: torch elastic installs its own, in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # not one of Python's
                signal.signal(number, handler)


@contextmanager
def _silent_logging() -> Iterator[None]:
    """Hide what torch elastic logs in this process; the reason of a failure is printed by the command."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
