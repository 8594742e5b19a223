"""The process group: torchrun's environment, and communication between ranks.

Tensors on GPUs are communicated by nccl, tensors on the CPU and Python objects by gloo, so that ranks can agree on a number
without waiting for their GPUs. Without torchrun there is a single process and no group.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeAlias, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore

from emollama.distributed.nodes import ONE_NODE, Member, Nodes, disagreement, meet, meet_again, open_store
from emollama.distributed.worker_variables import attempt, integer, require_group, require_nodes
from emollama.errors import RemoteCrash, RemoteUserError, Stopped, UserError, final_errors
from emollama.heartbeat import beat, note_all_joined
from emollama.listing import counted

T = TypeVar("T")
Failure: TypeAlias = Exception | Stopped
RemoteError: TypeAlias = RemoteUserError | RemoteCrash | Stopped  # what other ranks raise
# Processes may wait for days for rank 0, which checks data or waits for a judge. The watchdog ends a run that hangs.
WAIT = timedelta(days=30)
LOGGER = logging.getLogger("emollama")


@dataclass(frozen=True)
class World:
    """This process and its communication with the others.

    Attributes:
        rank: rank of this process.
        size: number of processes.
        device: device of this process.
        nodes: the machines on which the processes are.
    """

    rank: int
    size: int
    device: torch.device
    nodes: Nodes = ONE_NODE
    _counters: dict[str, int] = field(default_factory=dict, repr=False, compare=False)

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes files and log lines."""
        return self.rank == 0

    @property
    def is_first(self) -> bool:
        """Whether this is the first process of its node, which checks the node's files, and prints what concerns all of them."""
        return self.is_main or (self.several_nodes and self.nodes.is_first(self.rank))

    @property
    def several_nodes(self) -> bool:
        """Whether the processes are on several nodes, whose disks and software can differ."""
        return len(self.nodes.hosts) > 1

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all ranks, in place. A tensor on the CPU does not wait for work on a GPU."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def totals(self, *values: float) -> list[float]:
        """Return the sum of each number over all ranks, without waiting for work on a GPU."""
        return list(values) if self.size == 1 else self.sum(torch.tensor(values, dtype=torch.float64)).tolist()

    def max(self, *values: int) -> list[int]:
        """Return the maximum of each integer over all ranks, without waiting for work on a GPU."""
        if self.size == 1:
            return list(values)
        maxima = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(maxima, dist.ReduceOp.MAX)
        return maxima.tolist()

    def gather(self, value: T) -> list[T]:
        """Return every rank's value, in the order of ranks, on every rank. The value must be picklable."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def count(self, counter: str, more: int = 1) -> int:
        """Add to a counter that all ranks share and that starts at 0, without waiting for other ranks.

        Returns:
            The counter's value before the addition.
        """
        if self.size > 1:
            return int(dist.distributed_c10d._get_default_store().add(counter, more)) - more
        before = self._counters.get(counter, 0)
        self._counters[counter] = before + more
        return before

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """Copy a tensor on the CPU from one rank to all others, in place."""
        if self.size > 1:
            dist.broadcast(tensor, source)

    def on_rank_zero(self, function: Callable[[], T]) -> T:
        """Call a function on rank 0 only (:meth:`on_rank`)."""
        return self.on_rank(0, function)

    def on_rank(self, rank: int, function: Callable[[], T]) -> T:
        """Call a function on one rank only. Every rank gets its result, or an exception if it failed.

        Raises:
            Exception: The exception of the function; on other ranks an :class:`RemoteUserError` or :class:`RemoteCrash`.
        """
        outcome: list[Any] = [None, None]
        failure: Failure | None = None
        if self.rank == rank:
            outcome[0], failure = _attempt(function)
            outcome[1] = self._remote_error(failure)
        if self.size > 1:
            dist.broadcast_object_list(outcome, rank)
        if failure is not None:
            raise failure
        if outcome[1] is not None:
            raise outcome[1]
        return cast("T", outcome[0])

    def on_all_ranks(self, function: Callable[[], T]) -> list[T]:
        """Call a function on every rank and wait for all of them.

        Returns:
            All results in the order of ranks.

        Raises:
            UserError: If the function raised it on this rank; on rank 0, also if another rank raised it. The other ranks raise
                :class:`RemoteUserError`.
            RemoteCrash: If another rank raised another exception.
            Exception: Any other exception of the function on this rank.
        """
        result, failure = _attempt(function)
        outcomes: list[tuple[Any, RemoteError | None]] = self.gather((result, self._remote_error(failure)))
        remote_errors = [error for _, error in outcomes if error is not None]
        if failure is not None and (self.is_main or not isinstance(failure, UserError)):
            raise failure
        for error in remote_errors:
            raise UserError(*error.args) if self.is_main and isinstance(error, RemoteUserError) else error
        return [result for result, _ in outcomes]

    def any(self, condition: bool) -> bool:
        """Return whether a condition is true on any rank."""
        return bool(self.max(condition)[0])

    def user_error(self, message: str) -> UserError:
        """Return the error to raise if all ranks detect the same problem; only the first process of each node prints it."""
        return UserError(message) if self.is_first else RemoteUserError(message)

    def rank_zero_first(self, function: Callable[[], T]) -> T:
        """Call a function on rank 0, then on the others, so that an error or warning on all ranks is reported only once.

        With several nodes, the first process of each node is next, because it may read other files. Its error names the node.
        """
        results: list[T] = []
        self.on_rank_zero(lambda: results.append(function()))
        # Rank 0 has already logged the warnings.
        if self.several_nodes:
            self._on_first_of_other_nodes(lambda: results.append(_without_warnings(function)))
        return results[0] if results else _without_warnings(function)

    def _on_first_of_other_nodes(self, function: Callable[[], None]) -> None:
        """Call a function on the first process of each node but the first one. Every rank raises the exception of one of them."""
        failure: Failure | None = None
        if self.is_first and not self.is_main:
            _, failure = _attempt(function)
        if isinstance(failure, UserError):
            failure = UserError(f"{self.nodes.place(self.rank)}: {failure}")
        errors = self.gather(self._remote_error(failure))
        if failure is not None:
            raise failure
        for error in filter(None, errors):
            raise UserError(*error.args) if self.is_main and isinstance(error, RemoteUserError) else error

    def _remote_error(self, failure: Failure | None) -> RemoteError | None:
        """Return the exception that other ranks raise if this rank fails."""
        if failure is None or isinstance(failure, RemoteError):
            return failure
        if isinstance(failure, UserError):
            return RemoteUserError(str(failure))
        trace = "".join(traceback.format_exception(failure))
        return RemoteCrash(f"{type(failure).__name__}: {failure}", self.rank, trace)


def _attempt(function: Callable[[], T]) -> tuple[T | None, Failure | None]:
    """Return the function's result and None, or None and the exception that it raised."""
    try:
        result = function()
        beat()
        return result, None
    except (Exception, Stopped) as error:  # the caller raises it again after informing the other ranks
        return None, error


def _without_warnings(function: Callable[[], T]) -> T:
    level = LOGGER.level
    LOGGER.setLevel(logging.ERROR)
    try:
        return function()
    finally:
        LOGGER.setLevel(level)


def start(device: str = "auto", key: str = "run.device") -> World:
    """Join the process group that torchrun's environment variables describe, if there is one.

    Args:
        device: auto (CUDA if available), cuda, or cpu.
        key: the configuration key of the device, for messages.

    Raises:
        UserError: If ``device`` is cuda but no GPU is available, if there are fewer GPUs than processes, if the environment
            variables of the launcher are incomplete, if processes do not connect, if nodes have different devices or software, or
            if there are fewer of them than ``--nnodes`` requires.
    """
    size, rank, local_rank = integer("WORLD_SIZE", 1), integer("RANK", 0), integer("LOCAL_RANK", 0)
    if not dist.is_initialized():
        with final_errors():
            require_nodes()
        if size > 1:
            require_group()
    problem = _device_problem(device, key)
    if problem and (integer("LOCAL_WORLD_SIZE", 1) == size or dist.is_initialized()):
        raise UserError(problem)
    use_cuda = device != "cpu" and torch.cuda.is_available() and not problem
    where = torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.cuda.set_device(where)
    if size == 1:
        return World(rank, size, where)
    if not dist.is_initialized():
        store = PrefixStore(attempt(), open_store(rank, WAIT))
        members = meet(store, rank, size, Member.of_this_process(where.type, problem))
        note_all_joined()
        nodes = Nodes.of(members)
        if text := disagreement(members, nodes):
            meet_again(store, rank, size)
            with final_errors():
                raise World(rank, size, where, nodes).user_error(text)
        backend = "cpu:gloo,cuda:nccl" if use_cuda else "gloo"
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=size, timeout=WAIT, device_id=where if use_cuda else None
        )
        _JOINED.append(nodes)
    return World(rank, size, where, _JOINED[-1] if _JOINED else ONE_NODE)


def _device_problem(device: str, key: str) -> str:
    """Return why this process cannot use the device of the configuration; "" if it can."""
    if device == "cuda" and not torch.cuda.is_available():
        return f"{key} is cuda, but PyTorch finds no GPU on this machine. Set {key}: cpu or auto."
    here = integer("LOCAL_WORLD_SIZE", 1)
    if device != "cpu" and torch.cuda.is_available() and here > (gpus := torch.cuda.device_count()):
        return (
            f"there are {here} processes on this machine, but only {counted(gpus, 'GPU')}. Lower the number of processes"
            " (torchrun's --nproc-per-node)."
        )
    return ""


_JOINED: list[Nodes] = []  # of the process groups that this process has joined


def stop() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def joined() -> bool:
    """Return whether this process has joined a process group."""
    return bool(dist.is_initialized())
