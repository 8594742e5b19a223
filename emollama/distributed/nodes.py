"""The nodes of a run: which processes are on which machine, and whether all of them have the same software.

A node is a launcher (torchrun, or that of this package) with its processes. Processes tell each other who they are as JSON in the
store of the launcher, before they form a group, because objects of different versions may not be readable.
"""

from __future__ import annotations

import fcntl
import hashlib
import ipaddress
import json
import os
import platform
import socket
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import emollama
from emollama.distributed.worker_variables import integer, keeps_store
from emollama.errors import Unreachable, UserError
from emollama.listing import abbreviated
from emollama.logs import console

REPORT_SECONDS = 60  # after which a node says for which processes it waits
JOIN = timedelta(minutes=15)  # time for all processes to connect; they start together, and have only imported libraries by then
RESOLVE_SECONDS = 60  # how long the name of a host may be unknown
PACKAGES = ("torch", "transformers", "peft", "liger_kernel")
SIOCGIFADDR = 0x8915  # ioctl of Linux: the IPv4 address of a network interface


@dataclass(frozen=True)
class Member:
    """A process of a run, as the other processes know it.

    Attributes:
        group: what the processes of a node have in common: the number that the launcher gave it, or the name of its machine.
        host: name of its machine.
        software: name -> version; empty if all processes are on one machine.
        device: type of its device.
        problem: why it cannot use the device of the configuration; "" if it can.
    """

    group: str
    host: str
    software: dict[str, str]
    device: str = "cpu"
    problem: str = ""

    @classmethod
    def of_this_process(cls, device: str = "cpu", problem: str = "") -> Member:
        """Describe this process."""
        host = socket.gethostname()
        several = integer("LOCAL_WORLD_SIZE", 1) < integer("WORLD_SIZE", 1)
        return cls(os.environ.get("GROUP_RANK") or host, host, software() if several else {}, device, problem)


@dataclass(frozen=True)
class Nodes:
    """The nodes of a run, numbered in the order of their ranks.

    Attributes:
        of_ranks: rank -> number of its node.
        hosts: names of the machines.
    """

    of_ranks: tuple[int, ...] = (0,)
    hosts: tuple[str, ...] = ("",)

    @classmethod
    def of(cls, members: Sequence[Member]) -> Nodes:
        """Number the nodes of these processes, which are in the order of ranks."""
        hosts = {member.group: member.host for member in members}
        numbers = {group: number for number, group in enumerate(hosts)}
        return cls(tuple(numbers[member.group] for member in members), tuple(hosts.values()))

    def is_first(self, rank: int) -> bool:
        """Return whether a process is the first one of its node."""
        return self.of_ranks.index(self.of_ranks[rank]) == rank

    def place(self, rank: int) -> str:
        """Return the name of a process in messages: that of its node if there are several."""
        node = self.of_ranks[rank]
        return f"node {node} ({self.hosts[node]})" if len(self.hosts) > 1 else f"process {rank}"


ONE_NODE = Nodes()


def software() -> dict[str, str]:
    """Return name -> version of what must be the same on all nodes. The source code counts, because clones can be modified."""
    versions = {"Python": ".".join(platform.python_version_tuple()[:2]), "emollama": emollama.__version__}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "missing"
    digest = hashlib.sha256()
    folder = Path(emollama.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)} ".encode() + path.read_bytes())
    return versions | {"the source code of emollama": digest.hexdigest()[:12]}


def meet(store: Any, rank: int, size: int, member: Member, wait: timedelta = JOIN) -> list[Member]:
    """Exchange the descriptions of all processes of a run.

    Args:
        store: the store of this attempt, which no other attempt has used.
        rank: rank of this process.
        size: number of processes.
        member: the description of this process.
        wait: how long the others may take.

    Returns:
        The processes in the order of ranks.

    Raises:
        Unreachable: If processes do not connect.
        UserError: If the store contains those of an earlier attempt.
    """
    keys = [f"process {number}" for number in range(size)]
    if store.check([keys[rank]]):
        raise UserError(
            f"process {rank} of an earlier attempt is still in the store of the launcher, because the nodes of the run have"
            " changed. Set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun, or use emollama train --nnodes, which sets it."
        )
    store.set(keys[rank], json.dumps(asdict(member)))
    start, is_reported = time.monotonic(), False
    # A process that waits inside the store would not react to signals.
    while not store.check(keys):
        seconds = time.monotonic() - start
        if seconds > wait.total_seconds():
            missing = _missing(store, keys)
            raise Unreachable(
                f"{len(missing)} of {size} processes have not connected within {wait.total_seconds() / 60:g} minutes:"
                f" {_ranks(missing)}. Look for an error in the output of their nodes, check that no firewall separates the nodes,"
                " and synchronize their clocks."
            )
        if seconds > REPORT_SECONDS and not is_reported and integer("LOCAL_RANK", 0) == 0:
            is_reported = True
            console.write(f"still waiting for {_ranks(_missing(store, keys))}: look for an error in the output of their nodes\n")
        time.sleep(0.1)
    return [Member(**json.loads(text)) for text in store.multi_get(keys)]


def _missing(store: Any, keys: Sequence[str]) -> list[str]:
    """Return the ranks whose keys are not in the store."""
    return [str(number) for number, key in enumerate(keys) if not store.check([key])]


def _ranks(ranks: Sequence[str]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {abbreviated(ranks)}"


def meet_again(store: Any, rank: int, size: int) -> None:
    """Wait until all processes know each other, before an error ends that with the store."""
    store.set(f"process {rank} knows all", "")
    with suppress(RuntimeError):  # the store has gone
        store.wait([f"process {number} knows all" for number in range(size)], timedelta(minutes=1))


def disagreement(members: Sequence[Member], nodes: Nodes) -> str:
    """Return why these processes cannot form a group: devices or software that differ between nodes; "" if they can."""
    firsts = [rank for rank in range(len(members)) if nodes.is_first(rank)]
    for rank in firsts:
        if members[rank].problem:
            return f"{nodes.place(rank)}: {members[rank].problem}"
    if len({members[rank].device for rank in firsts}) > 1:
        devices = ", ".join(f"{members[rank].device} on {nodes.place(rank)}" for rank in firsts)
        return (
            f"the nodes have different devices: {devices}. Where it is cpu, PyTorch finds no GPU (emollama env). Repair the"
            " driver there, or use the CPU on all nodes (run.device: cpu)."
        )
    expected, differing = members[0].software, []
    for rank in firsts[1:]:
        theirs = members[rank].software
        names = [name for name in {**expected, **theirs} if theirs.get(name) != expected.get(name)]
        texts = (f"{name} ({theirs.get(name)}, node 0 has {expected.get(name)})" for name in names)
        if names:
            differing.append(f"{nodes.place(rank)} differs in {', '.join(texts)}")
    text = f"the nodes have different software: {'; '.join(differing)}. Install the same versions on all nodes."
    return text if differing else ""


def open_store(rank: int, wait: timedelta) -> Any:
    """Connect to the store of the processes. On rank 0, open it, unless the launcher did so.

    With GLOO_SOCKET_IFNAME, the store listens on the address of this network interface only.

    Args:
        rank: rank of this process.
        wait: how long a process waits for a key.

    Raises:
        UserError: If there is no connection.
    """
    import torch.distributed as dist

    address, port = os.environ["MASTER_ADDR"], integer("MASTER_PORT", 0)
    interface = os.environ.get("GLOO_SOCKET_IFNAME")
    options: dict[str, Any] = {}
    if rank == 0 and not keeps_store():
        options = {"is_master": True, "multi_tenant": True}
        if interface and interface_address(interface) == address:
            options["master_listen_fd"] = socket.create_server((address, port)).detach()
    try:
        store = dist.TCPStore(  # type: ignore[attr-defined]
            address, port, timeout=JOIN, wait_for_workers=False, **options
        )
    except (dist.DistError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise Unreachable(
            f"process {rank} cannot connect to the first process of the run at {address}:{port}. Check that no firewall separates"
            f" the nodes, and that they use the same network (--interface). ({reason})"
        ) from None
    store.set_timeout(wait)
    return store


def interface_address(name: str) -> str:
    """Return the IPv4 address of a network interface.

    Raises:
        UserError: If there is no such interface, or it has no address.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            reply = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
        except OSError:
            names = ", ".join(sorted(other for _, other in socket.if_nameindex()))
            raise UserError(
                f"--interface {name}: this machine has no network interface of this name with an IPv4 address. Its interfaces are"
                f" {names}."
            ) from None
    return socket.inet_ntoa(reply[20:24])


def is_this_node(host: str, interface: str) -> bool:
    """Return whether the host of ``--rdzv`` is this machine, which communicates over a network interface.

    Raises:
        UserError: If the host is unknown, or is this machine with the address of another interface, where nobody would listen.
    """
    address, own = _address(host), interface_address(interface)
    # Debian gives the name of a machine a loopback address in its /etc/hosts.
    named = ipaddress.ip_address(address).is_loopback and not host.startswith(("localhost", address))
    if named or address == own:
        return True
    addresses = set()
    for _, name in socket.if_nameindex():
        with suppress(UserError):  # it has no address
            addresses.add(interface_address(name))
    if address not in addresses:
        return False
    raise UserError(
        f"--rdzv: {host} is this machine, but with the address {address}, and the address of --interface {interface} is {own}."
        f" Use --rdzv {own}:PORT on all nodes, or the interface with the address {address}."
    )


def _address(host: str) -> str:
    """Return the address of a host. The names of pods of Kubernetes are known only some seconds after the start of a pod."""
    end = time.monotonic() + RESOLVE_SECONDS
    while True:
        try:
            return socket.gethostbyname(host)
        except OSError as error:
            if time.monotonic() > end:
                text = f"--rdzv: the host '{host}' is unknown: {error.strerror}. Specify a name or address of a node."
                raise Unreachable(text) from None
            time.sleep(1.0)
