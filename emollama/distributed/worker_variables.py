"""Environment variables that a launcher (torchrun, or that of this package) sets for its worker processes."""

from __future__ import annotations

import os

from emollama.errors import UserError
from emollama.variables import LAUNCHER, LEAST_NODES

GROUP = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # a process needs all of them to join a process group
NAMES = ("LOCAL_RANK", "LOCAL_WORLD_SIZE", *GROUP)


def is_worker() -> bool:
    """Return whether a launcher (torchrun, or that of this package) has started this process."""
    return bool(os.environ.get("LOCAL_RANK") and os.environ.get("WORLD_SIZE"))


def integer(name: str, default: int) -> int:
    """Return the value of a launcher's variable, or the default if it is unset or empty.

    Raises:
        UserError: If the value is not a whole number.
    """
    text = os.environ.get(name) or str(default)
    if not text.isdecimal():
        raise UserError(
            f"the environment variable {name} is '{text}', not a whole number. Launchers such as torchrun set it; {_remedy(name)}"
        )
    return int(text)


def keeps_store() -> bool:
    """Return whether the launcher keeps the store of the processes when it restarts them; otherwise, rank 0 opens a new one."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def attempt() -> str:
    """Return the prefix of this attempt's keys in the store of the processes.

    A new store needs none. The number of restarts would be wrong for it, because each node counts its own.
    """
    return f"attempt_{integer('TORCHELASTIC_RESTART_COUNT', 0) if keeps_store() else 0}"


def require_group() -> None:
    """Check that the variables for joining a process group are complete.

    Raises:
        UserError: If variables are missing, the rank is too large, or a store that is kept cannot be used.
    """
    if missing := [name for name in GROUP if not os.environ.get(name)]:
        raise UserError(
            f"the environment variable WORLD_SIZE is {os.environ.get('WORLD_SIZE')}, so this process is one of several, but"
            f" {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set. Launchers such as torchrun set all of"
            f" {', '.join(GROUP)}; {_remedy()}"
        )
    rank, size = integer("RANK", 0), integer("WORLD_SIZE", 1)
    integer("MASTER_PORT", 0)
    if rank >= size:
        raise UserError(
            f"the environment variable RANK is {rank}, but must be below WORLD_SIZE, which is {size}. Launchers such as"
            f" torchrun set both; {_remedy()}"
        )
    if keeps_store() and integer("GROUP_WORLD_SIZE", 1) > 1 and integer("TORCHELASTIC_MAX_RESTARTS", 0):
        raise UserError(
            "torchrun with several nodes and --max-restarts keeps a store in which restarted processes would not find each other."
            " Set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun, or use emollama train --nnodes, which sets it."
        )


def require_nodes() -> None:
    """Check that the launchers have started the processes of as many nodes as ``--nnodes`` requires.

    torch removes a node whose messages appear to be old, even if too few are left.

    Raises:
        UserError: If they have not.
    """
    least, nodes = integer(LEAST_NODES, 1), integer("GROUP_WORLD_SIZE", 1)
    if nodes < least:
        raise UserError(
            f"--nnodes requires {least} nodes, but only {nodes} {'takes' if nodes == 1 else 'take'} part, because the rendezvous"
            " of torch considers the others dead. Their clocks are probably behind by more than 15 seconds: synchronize the"
            " clocks of all nodes (NTP), and start the command again on all of them."
        )


def require_no_other_launcher(option: str) -> None:
    """Check that this process is not a worker of another launcher.

    Workers of this package's launcher pass, because they have the same command line as the launcher.

    Args:
        option: the option that sets the number of processes, with its value.

    Raises:
        UserError: If this process is a worker of another launcher, or variables of one are still set.
    """
    if is_worker() and LAUNCHER not in os.environ:
        variables = ", ".join(f"{name}={os.environ[name]}" for name in ("LOCAL_RANK", "WORLD_SIZE"))
        raise UserError(
            f"{option} cannot be used in a process that was started by a launcher such as torchrun, as its environment variables"
            f" say ({variables}). Remove {option.split()[0]}; {_remedy()}"
        )


def _remedy(*names: str) -> str:
    """Return the remedy for variables that an earlier session left."""
    variables = [name for name in NAMES if name in os.environ] if not names or names[0] in NAMES else names
    return f"if no launcher has started this process, remove the variables: unset {' '.join(variables)}."
