"""The README's blocks of commands, run in forks."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ranks
from running import ROOT


def commands_of_the_readme(mark: str) -> list[str]:
    """The lines of the one block that holds a mark, without comments; a backslash joins two."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (block,) = [block for block in blocks if mark in block]
    lines = block.replace("\\\n", " ").splitlines()
    return [line.partition(" #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


def run_in_forks(arguments: list[str], folder: Path, launch: Callable[..., Any], **variables: str) -> Any:
    """Run ``emollama <arguments>``, which must succeed, in forks: as many processes as it starts with ``--nproc``.

    Args:
        arguments: words of the command line behind ``emollama``.
        folder: where it runs.
        launch: the fixture.
        variables: of the environment, added to this process's.

    Returns:
        A ``subprocess.CompletedProcess``.
    """
    arguments, processes = list(arguments), 1
    if "--nproc" in arguments:
        place = arguments.index("--nproc")
        processes = int(arguments[place + 1])
        del arguments[place : place + 2]
    done = launch("-m", "emollama", *arguments, processes=processes, cwd=folder, env=ranks.environment() | variables)
    assert done.returncode == 0, f"{shlex.join(arguments)}\n{done.stderr}"
    return done


def words_of(command: str) -> list[str]:
    """The words of a command line behind ``emollama``, with which it begins."""
    program, *words = shlex.split(command)
    assert program == "emollama"
    return words
