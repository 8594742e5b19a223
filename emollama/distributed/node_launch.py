"""The options of commands that run on several nodes, and how their launchers find each other.

``emollama train --nnodes`` is started on each node, like torchrun, and uses the same rendezvous (c10d).
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

from emollama.distributed.nodes import interface_address, is_this_node
from emollama.distributed.torchrun_options import IS_HOST, add_other_options, rendezvous_settings
from emollama.distributed.worker_variables import is_worker, require_no_other_launcher
from emollama.errors import Interrupted, Unreachable, UserError
from emollama.logs import console
from emollama.variables import LEAST_NODES

CONNECT_SECONDS = 600  # how long a launcher waits for the store of the first node, as torchrun does for its nodes
MAX_PORT = 65535
# The signals after which a run saves and stops. With several nodes, the launcher passes them on and keeps running: torch elastic
# would end it, and the launchers of the other nodes would wait for it for five minutes.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


@dataclass(frozen=True)
class NodeOptions:
    """The options of a launcher about the other nodes.

    Attributes:
        least, most: how many nodes there must be, and can be.
        endpoint: address and port at which the launchers meet.
        run_id: name of the run, for launchers that meet at the same endpoint.
        max_restarts: how often the processes are started again after a failure.
        interface: the network interface for the communication of the nodes; None is that of the host name.
        settings: settings of torch's rendezvous, as ``--rdzv-conf`` of torchrun.
    """

    least: int = 1
    most: int = 1
    endpoint: tuple[str, int] | None = None
    run_id: str = "emollama"
    max_restarts: int = 0
    interface: str | None = None
    settings: dict[str, str] | None = None

    @property
    def several(self) -> bool:
        """Whether there can be several nodes."""
        return self.endpoint is not None

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> NodeOptions:
        """Return the options of a parsed command line; in a worker, and for commands without these options, the defaults.

        Raises:
            UserError: If options are missing or contradict each other, or another launcher has started this process.
        """
        nnodes, endpoint = getattr(arguments, "nnodes", None), getattr(arguments, "rdzv", None)
        if is_worker():
            if nnodes is not None:
                require_no_other_launcher(f"--nnodes {nnodes[0]}")
            return cls()
        if (nnodes is None) != (endpoint is None):
            present, absent = ("--nnodes", "--rdzv") if endpoint is None else ("--rdzv", "--nnodes")
            raise UserError(f"{present} needs {absent}: nodes meet at --rdzv HOST:PORT, and --nnodes is their number.")
        restarts = getattr(arguments, "max_restarts", None) or 0
        names = [name for name in ("interface", "rdzv_id", "rdzv_conf") if getattr(arguments, name, None) is not None]
        if nnodes is None and names:
            raise UserError(f"--{names[0].replace('_', '-')} is about several nodes. Add --nnodes and --rdzv, or remove it.")
        if nnodes is None:
            return cls(max_restarts=restarts)
        if arguments.master_port is not None:
            raise UserError("--master-port cannot be used with --nnodes. The port is that of --rdzv HOST:PORT.")
        interface = arguments.interface
        if interface is not None:
            interface_address(interface)
            if IS_HOST in (arguments.rdzv_conf or {}):
                raise UserError(
                    "--rdzv-conf is_host cannot be used with --interface, which finds the host of --rdzv. Remove is_host."
                )
        least, most = nnodes
        return cls(least, most, endpoint, arguments.rdzv_id or cls.run_id, restarts, interface, arguments.rdzv_conf)


def add_node_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of commands that run on several nodes."""
    add = parser.add_argument
    text = (
        "number of nodes, or MIN:MAX for a run that continues with fewer; start the command on each of them. Nodes number"
        " themselves, so there is no --node-rank"
    )
    add("--nnodes", type=_number_of_nodes, metavar="N", help=text)
    add("--rdzv", type=_endpoint, metavar="HOST:PORT", help="where the nodes meet: one of them, and a free port there")
    text = "name of the run, if several runs meet at the same HOST:PORT (default: emollama)"
    add("--rdzv-id", metavar="NAME", help=text)
    text = "settings of the rendezvous as for torchrun, such as join_timeout=1200,last_call_timeout=10"
    add("--rdzv-conf", type=rendezvous_settings, metavar="KEY=VALUE,...", help=text)
    text = "network interface for the communication of the nodes, such as eth1 (default: that of the host name)"
    add("--interface", metavar="NAME", help=text)
    text = "how often the processes are started again after a failure (default: 0)"
    add("--max-restarts", type=_restarts, metavar="N", help=text)
    add_other_options(parser)


def _number_of_nodes(text: str) -> tuple[int, int]:
    least, _, most = text.partition(":")
    numbers = [int(number) if number.isdecimal() else 0 for number in (least, most or least)]
    if not 1 <= numbers[0] <= numbers[1]:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of nodes, such as 2, or a range, such as 2:4")
    return numbers[0], numbers[1]


def _endpoint(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) <= MAX_PORT:
        raise argparse.ArgumentTypeError(f"'{text}' is not an address and a port, such as node1:29500")
    return host.strip("[]"), int(port)


def _restarts(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number")
    return int(text)


@contextmanager
def rendezvous(options: NodeOptions, silence: float | None) -> Iterator[dict[str, Any]]:
    """Open the store at which the nodes meet, if it is on this node and an interface is chosen, and close it at the end.

    Args:
        options: the options of this launcher.
        silence: seconds after which a connection to another node is closed on which nothing arrives; None keeps it open.

    Yields:
        The arguments of torch's LaunchConfig.

    Raises:
        UserError: If the port cannot be used, or the host is unknown or an address of this node on another network.
    """
    assert options.endpoint is not None
    (host, port), configs = options.endpoint, dict(options.settings or {})
    local = interface_address(options.interface) if options.interface else None
    with ExitStack() as stack:
        stack.enter_context(_signals_passed_on())
        stack.enter_context(_connections_closed_after(silence))
        if options.interface and local:
            # torch would listen on every interface, and recognizes this node by its host name only.
            configs[IS_HOST] = "false"
            if is_this_node(host, options.interface):
                host, store = local, _listening_store(local, port)
                stack.callback(lambda: store)  # alive until then
        console.write(f"waiting for the launchers of {nodes_of(options)} at {host}:{port}\n")
        yield {
            "min_nodes": options.least,
            "max_nodes": options.most,
            "run_id": options.run_id,
            "rdzv_endpoint": f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
            "rdzv_configs": configs,
            "local_addr": local,
            "signals_to_handle": "SIGINT,SIGHUP,SIGQUIT",
        }


def nodes_of(options: NodeOptions) -> str:
    """Return the number of nodes in words."""
    return f"{options.least} nodes" if options.least == options.most else f"{options.least} to {options.most} nodes"


def no_rendezvous(options: NodeOptions, error: Exception) -> Unreachable:
    """Return the error for launchers that do not find each other, or lose each other."""
    assert options.endpoint is not None
    host, port = options.endpoint
    cause = str(error.__cause__ or error).strip().partition("\n")[0]
    text = f"the launchers of {nodes_of(options)} cannot meet at {host}:{port}. Start the same command on all nodes, check that"
    if type(error).__name__ == "RendezvousClosedError":
        return Unreachable(f"the run at {host}:{port} has ended, because the launcher of another node has failed or was stopped.")
    return Unreachable(
        f"{text} they can reach this address, choose their network with --interface, and synchronize their clocks (NTP). To wait"
        f" longer, add --rdzv-conf join_timeout=SECONDS. ({type(error).__name__}: {cause})"
    )


def hide_warnings_of_torch() -> None:
    """Hide the warnings of torch's C++ code in this process, unless it has imported torch, and in its workers.

    Hosts without a name cause one in each process, and the end of another launcher causes several, with C++ stack traces.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def node_variables(options: NodeOptions) -> dict[str, str]:
    """Return environment variables for the workers."""
    # Otherwise torch keeps one store for all attempts, whose nodes can differ.
    variables = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", LEAST_NODES: str(options.least)}
    if options.interface is not None:
        # For nccl, eth1 would also be eth10.
        variables |= {"GLOO_SOCKET_IFNAME": options.interface, "NCCL_SOCKET_IFNAME": f"={options.interface}"}
    return variables if options.several else {}


def _listening_store(address: str, port: int) -> Any:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    try:
        listener = socket.create_server((address, port))
    except OSError as error:
        raise UserError(
            f"--rdzv {address}:{port}: {os.strerror(error.errno or 0)}. Start one launcher per machine with --interface, or"
            " choose another port on all nodes."
        ) from None
    timeout = timedelta(seconds=CONNECT_SECONDS)
    options: dict[str, Any] = {"is_master": True, "wait_for_workers": False, "multi_tenant": True, "timeout": timeout}
    return TCPStore(address, port, master_listen_fd=listener.detach(), **options)


@contextmanager
def _connections_closed_after(silence: float | None) -> Iterator[None]:
    """Let the system close connections of this process on which the other side is silent: torch would wait forever."""
    if silence is None:
        yield
        return
    end = threading.Event()

    def watch() -> None:
        while not end.wait(min(5.0, silence / 3)):
            for path in Path("/proc/self/fd").iterdir():
                with suppress(OSError):  # it has been closed since, or is not a connection
                    if os.readlink(path).startswith("socket:"):
                        with socket.socket(fileno=os.dup(int(path.name))) as connection:
                            _close_after(silence, connection)

    threading.Thread(target=watch, name="emollama: connections", daemon=True).start()
    try:
        yield
    finally:
        end.set()


def _close_after(silence: float, connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * silence))
    for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL):
        connection.setsockopt(socket.IPPROTO_TCP, option, max(1, int(silence / 3)))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


@contextmanager
def _signals_passed_on() -> Iterator[None]:
    """Pass the signals that stop a run on to the workers. Before there are workers, they interrupt this process."""

    def pass_on(number: int, _: FrameType | None) -> None:
        workers = _children()
        if not workers:
            raise Interrupted("interrupted", number)
        for worker in workers:
            with suppress(ProcessLookupError):
                os.kill(worker, number)

    before = {number: signal.signal(number, pass_on) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _children() -> list[int]:
    """Return the process ids of the workers, which are the children of this process with the variable LOCAL_RANK."""
    workers = []
    for path in Path("/proc/self/task").glob("*/children"):
        for child in path.read_text().split():
            with suppress(OSError):
                if b"\0LOCAL_RANK=" in b"\0" + Path(f"/proc/{child}/environ").read_bytes():
                    workers.append(int(child))
    return workers
