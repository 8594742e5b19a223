"""The README's blocks of commands, run literally in an empty folder, as with an installed package."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

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
