"""The environment variables by which a launcher (torchrun, or this package's) tells a process which of several it is."""

from __future__ import annotations

import os

from emollama.errors import UserError
from emollama.variables import LAUNCHER

GROUP = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # without all of them no process group can be joined
NAMES = ("LOCAL_RANK", "LOCAL_WORLD_SIZE", *GROUP)


def is_worker() -> bool:
    """Whether a launcher (torchrun, or this package's) started this process."""
    return bool(os.environ.get("LOCAL_RANK") and os.environ.get("WORLD_SIZE"))


def integer(name: str, default: int) -> int:
    """The number that a variable of a launcher holds; the default where it is unset or empty.

    Raises:
        UserError: it holds something else.
    """
    text = os.environ.get(name) or str(default)
    if not text.isdecimal():
        raise UserError(
            f"the environment variable {name} is '{text}', not a whole number. Launchers such as torchrun set it; {_remedy(name)}"
        )
    return int(text)


def require_group() -> None:
    """Check that the variables describe a place in a process group.

    Raises:
        UserError: some are missing, or the rank is not below the size.
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
            f"the environment variable RANK is {rank}, but WORLD_SIZE is {size}, and ranks are below it. Launchers such as"
            f" torchrun set both; {_remedy()}"
        )


def require_no_other_launcher(option: str) -> None:
    """Check that this process, if it is a worker, was started by this package's launcher, whose workers get its options too.

    Args:
        option: asks for several processes; with its value.

    Raises:
        UserError: it is a worker of another launcher, or variables of one are left over.
    """
    if is_worker() and LAUNCHER not in os.environ:
        given = ", ".join(f"{name}={os.environ[name]}" for name in ("LOCAL_RANK", "WORLD_SIZE"))
        raise UserError(
            f"{option}: by its environment variables ({given}) this process is already one that a launcher such as torchrun has"
            f" started. Under a launcher, leave {option.split()[0]} out; {_remedy()}"
        )


def _remedy(*names: str) -> str:
    """How to get rid of variables that an earlier session left."""
    left = [name for name in NAMES if name in os.environ] if not names or names[0] in NAMES else names
    return f"if none has started this process, remove the variables: unset {' '.join(left)}."
