"""Run the command blocks of the README in forks."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ranks
from running import ROOT


def commands_of_the_readme(mark: str) -> list[str]:
    """The lines of the only block that contains a mark, without comments; lines that end with a backslash are joined."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (block,) = [block for block in blocks if mark in block]
    lines = block.replace("\\\n", " ").splitlines()
    return [line.partition(" #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


def run_in_forks(arguments: list[str], folder: Path, launch: Callable[..., Any], **variables: str) -> Any:
    """Run ``emollama <arguments>`` in forks, one for each process of ``--nproc``, and check that it succeeds.

    Args:
        arguments: arguments after ``emollama``.
        folder: current directory.
        launch: the fixture of this name.
        variables: environment variables to add to those of this process.

    Returns:
        A ``subprocess.CompletedProcess``.
    """
    arguments, processes = list(arguments), 1
    if "--nproc" in arguments:
        index = arguments.index("--nproc")
        processes = int(arguments[index + 1])
        del arguments[index : index + 2]
    completed = launch("-m", "emollama", *arguments, processes=processes, cwd=folder, env=ranks.environment() | variables)
    assert completed.returncode == 0, f"{shlex.join(arguments)}\n{completed.stderr}"
    return completed


def words_of(command: str) -> list[str]:
    """The arguments after ``emollama`` in a command line."""
    program, *arguments = shlex.split(command)
    assert program == "emollama"
    return arguments
