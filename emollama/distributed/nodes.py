"""The nodes of a run: which processes are on which machine, and whether all of them have the same software.

A node is a launcher (torchrun, or that of this package) with its processes. Processes tell each other who they are as JSON in the
store of the launcher, before they form a group, because objects of different versions may not be readable.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import socket
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import emollama
from emollama.distributed.worker_variables import integer
from emollama.errors import UserError
from emollama.listing import abbreviated

JOIN = timedelta(minutes=15)  # time for all processes to connect; they start together, and have only imported libraries by then
PACKAGES = ("torch", "transformers", "peft", "liger_kernel")
SIOCGIFADDR = 0x8915  # ioctl of Linux: the IPv4 address of a network interface


@dataclass(frozen=True)
class Member:
    """A process of a run, as the other processes know it.

    Attributes:
        group: what the processes of a node have in common: the number that the launcher gave it, or the name of its machine.
        host: name of its machine.
        software: name -> version; empty if all processes are on one machine.
    """

    group: str
    host: str
    software: dict[str, str]


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


def this_process() -> Member:
    """Describe this process."""
    host = socket.gethostname()
    several = integer("LOCAL_WORLD_SIZE", 1) < integer("WORLD_SIZE", 1)
    return Member(os.environ.get("GROUP_RANK") or host, host, software() if several else {})


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


def meet(store: Any, rank: int, size: int, wait: timedelta = JOIN) -> list[Member]:
    """Exchange the descriptions of all processes of a run.

    Args:
        store: the store of this attempt, which no other attempt has used.
        rank: rank of this process.
        size: number of processes.
        wait: how long the others may take.

    Returns:
        The processes in the order of ranks.

    Raises:
        UserError: If processes do not connect, or the store contains those of an earlier attempt.
    """
    keys = [f"process {number}" for number in range(size)]
    if store.check([keys[rank]]):
        raise UserError(
            f"process {rank} of an earlier attempt is still in the store of the launcher, because the nodes of the run have"
            " changed. Set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun, or use emollama train --nnodes, which sets it."
        )
    store.set(keys[rank], json.dumps(asdict(this_process())))
    try:
        store.wait(keys, wait)
    except RuntimeError:
        missing = [str(number) for number, key in enumerate(keys) if not store.check([key])]
        raise UserError(
            f"{len(missing)} of {size} processes have not connected within {wait.total_seconds() / 60:g} minutes:"
            f" rank{'s' * (len(missing) > 1)} {abbreviated(missing)}. Look for an error in the output of their nodes, and check"
            " that no firewall separates the nodes."
        ) from None
    return [Member(**json.loads(text)) for text in store.multi_get(keys)]


def software_differences(members: Sequence[Member], nodes: Nodes) -> dict[int, str]:
    """Return node -> how its software differs from that of node 0, for nodes with differences."""
    expected, differing = members[0].software, {}
    for rank in filter(nodes.is_first, range(1, len(members))):
        names = [name for name, theirs in members[rank].software.items() if theirs != expected.get(name)]
        if names:
            texts = (f"{name} ({members[rank].software[name]}, node 0 has {expected.get(name)})" for name in names)
            differing[nodes.of_ranks[rank]] = f"{nodes.place(rank)} differs in {', '.join(texts)}"
    return differing


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
