"""Data workers: the shared memory that they need, and messages about workers that are killed or deliver nothing.

A worker passes each tensor to its process in a file in /dev/shm, which Docker limits to 64 MiB.
"""

from __future__ import annotations

import faulthandler
import math
import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import torch

from emollama.data.batch import Batch
from emollama.distributed.stop_requests import STOP_REQUESTS
from emollama.errors import UserError
from emollama.listing import counted
from emollama.memory import first_line, is_out_of_memory

PREFETCH = 2  # batches that each worker loads in advance
SHARED = Path("/dev/shm")
ENLARGE = "or enlarge /dev/shm: docker run --shm-size={gib}g, or --ipc=host for that of the machine."
FRAMES = 3  # innermost lines of a worker's stack that are shown
TRACE_SECONDS = 1.0  # time in which workers write their stacks
SEMAPHORES = 8  # for each worker
_PAGE = 4096  # bytes; each tensor occupies whole pages


def check_shared_memory(
    loaded: Sequence[Batch], *, num_workers: int, processes: int, loads_per_step: int, folder: Path = SHARED
) -> None:
    """Check that /dev/shm has space for the batches that data workers load in advance.

    Args:
        loaded: the micro-batches that a worker loads together.
        num_workers: data workers of each process.
        processes: number of processes on this machine.
        loads_per_step: how many of them a step has, which a process holds at the same time.
        folder: the folder for shared memory. Systems without it are not checked.

    Raises:
        UserError: If there is too little space.
    """
    if not num_workers or not folder.is_dir():
        return
    batch_bytes = sum(_shared_bytes(batch) for batch in loaded)
    needed = processes * (num_workers * PREFETCH + loads_per_step) * batch_bytes
    free = shutil.disk_usage(folder).free
    if needed > free:
        gib = math.ceil(2 * needed / 2**30)
        raise UserError(
            f"{folder} has {_mib(free)} of free shared memory, but data workers need about {_mib(needed)}:"
            f" {counted(processes, 'process', 'processes')} x ({counted(num_workers, 'worker')} x {PREFETCH} batches +"
            f" {loads_per_step}) x {_mib(batch_bytes)}. Lower run.num_workers (0 needs no shared memory),"
            f" {ENLARGE.format(gib=gib)}"
        )


def _shared_bytes(batch: Batch) -> int:
    """Return the size of a batch's tensors in whole pages."""
    return sum(-(-tensor.nbytes // _PAGE) * _PAGE for tensor in batch.tensors)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


class WorkerReports:
    """What the data workers of a process are doing, in files of a temporary folder: pid, sample, stack and last error."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self._sample: Any = None

    def open(self) -> None:
        """Create the folder, in the process that starts the workers."""
        self.folder = tempfile.mkdtemp(prefix="emollama_workers_")

    def close(self) -> None:
        """Remove the folder."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder = None

    def start(self, worker: int) -> None:
        """Prepare a data worker; ``worker_init_fn`` of the data loader."""
        torch.set_num_threads(1)
        # torch has replaced the handlers that this process had after the fork.
        STOP_REQUESTS.leave_to_parent()
        if self.folder is None:
            return
        with suppress(OSError):  # without these files, messages contain less
            self._sample = open(Path(self.folder, f"{worker}.sample"), "wb", buffering=0)  # noqa: SIM115
            stack = open(Path(self.folder, f"{worker}.stack"), "w", encoding="utf-8")  # noqa: SIM115
            faulthandler.register(signal.SIGUSR2, file=stack, all_threads=False)
            # Last: without a handler, SIGUSR2 would end the worker.
            Path(self.folder, f"{worker}.pid").write_text(str(os.getpid()), encoding="utf-8")

        def end(error: Exception, batch: object) -> None:
            # Python would only print the error, and the process would wait for this batch forever.
            with suppress(OSError):
                Path(str(self.folder), f"{worker}.error").write_text(str(error), encoding="utf-8")
            os._exit(1)

        # Sends the batches in a thread, where an error of shared memory is raised.
        Queue._on_queue_feeder_error = staticmethod(end)  # type: ignore[attr-defined]

    @contextmanager
    def reading(self, index: int) -> Iterator[None]:
        """Record the global index of the sample that a worker reads in this block."""
        self._record(index)
        yield
        self._record(-1)

    def _record(self, index: int) -> None:
        if self._sample is not None:
            with suppress(OSError):
                os.pwrite(self._sample.fileno(), f"{index:<20}".encode(), 0)

    def workers(self) -> dict[int, int]:
        """Return worker -> pid."""
        pids = {int(path.stem): _read(path) for path in sorted(Path(str(self.folder)).glob("*.pid"))}
        return {worker: int(pid) for worker, pid in pids.items() if pid}

    def sample(self, worker: int) -> int:
        """Return the global index of the sample that a worker reads or was reading when it ended; -1 if there is none."""
        return int(_read(Path(str(self.folder), f"{worker}.sample")) or -1)

    def stack(self, worker: int) -> list[str]:
        """Return the innermost lines of the stack that a worker wrote after SIGUSR2."""
        lines = re.findall(r'File "(.*)", line (\d+) in (.*)', _read(Path(str(self.folder), f"{worker}.stack")))
        return [f"{file}, line {line}, in {function}" for file, line, function in lines[:FRAMES]]

    def errors(self) -> str:
        """Return the errors with which workers ended."""
        return " ".join(map(_read, sorted(Path(str(self.folder)).glob("*.error"))))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


@contextmanager
def worker_errors(reports: WorkerReports, name_of: Callable[[int], str], hang_seconds: float) -> Iterator[None]:
    """Turn errors of data workers in this block into user errors.

    torch raises an error as soon as a worker ends, wherever the process is at that moment.

    Args:
        reports: what the workers are doing.
        name_of: returns the description of a sample, given its global index.
        hang_seconds: time after which the data loader stops waiting for a batch.

    Raises:
        UserError: If a worker was killed, crashed, had too little memory, or delivered nothing.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # torch sometimes replaces its error that names the signal.
        text = f"{error} {error.__cause__ or ''}".strip()
        # An exception of the dataset, whose message contains the worker's traceback.
        if match := re.search(r"in DataLoader worker process (\d+)", text):
            if "unable to allocate shared memory" in text:
                who = f"data worker {match[1]} (process {reports.workers().get(int(match[1]))})"
                raise UserError(f"{who} ran out of shared memory. {_shared_memory_remedy()}") from error
            if not is_out_of_memory(error) and "MemoryError in DataLoader" not in text:
                raise
            line = first_line(RuntimeError(text.strip().rpartition("\n")[2]))
            raise UserError(
                f"a data worker ran out of memory: {line}. Lower run.num_workers or the batch_size of the datasets."
            ) from error
        if "DataLoader timed out" in text:
            raise UserError(_hang(reports, name_of, hang_seconds)) from error
        if "Too many open files" in text or "ancdata" in text:
            limit = "Raise the limit of open files (ulimit -n), or lower run.num_workers."
            raise UserError(f"data workers have too many open files. {limit}") from error
        if "DataLoader worker" not in text:
            raise
        raise UserError(_ended(text, reports, name_of)) from error
    finally:
        reports.close()


def _ended(text: str, reports: WorkerReports, name_of: Callable[[int], str]) -> str:
    """Return the message about a worker that ended, given that of torch."""
    pid = re.search(r"\(pid(?:\(s\))? (\d+)", text)
    worker = next((worker for worker, number in reports.workers().items() if pid and number == int(pid[1])), None)
    who = f"data worker {worker} (process {pid[1]})" if pid and worker is not None else "a data worker"
    index = reports.sample(worker) if worker is not None else -1
    while_reading = f" while it read {name_of(index)}" if index >= 0 else ""
    errors = reports.errors()
    if "Bus error" in text or "shared memory" in errors or "No space left" in errors:
        return f"{who} ran out of shared memory. {_shared_memory_remedy()}"
    if "Killed" in text:
        return (
            f"{who} was killed by SIGKILL{while_reading}, probably because the machine or the container ran out of memory. Lower"
            " run.num_workers or the batch_size of the datasets, or raise the memory limit."
        )
    signal_name = re.search(r"killed by signal: ([^.]+)", text)
    how = f"was ended by a signal ({signal_name[1].strip()})" if signal_name else "ended unexpectedly"
    return f"{who} {how}{while_reading}. {errors or 'run.num_workers: 0 shows the error in the main process.'}".strip()


def _shared_memory_remedy() -> str:
    free = f"{SHARED} has {_mib(shutil.disk_usage(SHARED).free)} free. " if SHARED.is_dir() else ""
    return f"{free}Lower run.num_workers (0 needs no shared memory), {ENLARGE.format(gib=8)}"


def require_space_for_workers(num_workers: int) -> None:
    """Check that /dev/shm has space for the semaphores of data workers, which start now.

    Raises:
        UserError: If another program has filled it.
    """
    if num_workers and SHARED.is_dir() and shutil.disk_usage(SHARED).free < SEMAPHORES * _PAGE * (num_workers + 1):
        raise UserError(f"there is no shared memory for data workers. {_shared_memory_remedy()}")


def _hang(reports: WorkerReports, name_of: Callable[[int], str], seconds: float) -> str:
    """Return the message about workers that delivered nothing. Ends the workers, which may never end by themselves."""
    workers = reports.workers()
    for pid in workers.values():
        with suppress(OSError):
            os.kill(pid, signal.SIGUSR2)
    time.sleep(TRACE_SECONDS)
    busy = []
    for worker, pid in workers.items():
        if (index := reports.sample(worker)) >= 0:
            stack = "".join(f"\n    {line}" for line in reports.stack(worker))
            busy.append(f"\n  worker {worker} (process {pid}) reads {name_of(index)}{':' if stack else ''}{stack}")
    # In the handler of this signal, torch raises another error when it sees that the first of them ended.
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for pid in workers.values():
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    time.sleep(TRACE_SECONDS)
    signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)
    with suppress(RuntimeError):
        signal.raise_signal(signal.SIGCHLD)
    doing = "".join(busy) or "\n  no worker reads a sample"
    return (
        f"the data workers delivered no batch for {seconds / 60:,.1f} minutes (run.hang_minutes). Check the disk or the network,"
        f" and the files of these samples:{doing}"
    )
