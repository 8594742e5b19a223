"""The README's blocks of commands, run in an empty folder as with an installed package, or in forks."""

from __future__ import annotations

import os
import re
import shlex
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ranks
from running import ROOT, environment

SHIMS = {"emollama": "-m emollama"}


def commands_of_the_readme(mark: str) -> list[str]:
    """The lines of the one block that holds a mark, without comments; a backslash joins two."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (block,) = [block for block in blocks if mark in block]
    lines = block.replace("\\\n", " ").splitlines()
    return [line.partition(" #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


def workplace(folder: Path) -> dict[str, str]:
    """An environment for an empty folder in which ``emollama`` is this Python's: shipped configurations come from the package."""
    (folder / "bin").mkdir()
    for name, arguments in SHIMS.items():
        shim = folder / "bin" / name
        shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
        shim.chmod(shim.stat().st_mode | stat.S_IXUSR)
    return environment() | {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}


def shell(command: str, folder: Path, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command, which must succeed."""
    done = subprocess.run(
        command, shell=True, cwd=folder, env=variables, capture_output=True, text=True, timeout=1800, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    return done


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
