"""Commands of the demos: those that a demo runs, and those that it prints for the user to run next."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from emollama.errors import Interrupted, Stopped, UserError
from emollama.logs.logger import get_logger
from emollama.paths import packaged_copy, read_text
from emollama.variables import STEP


@dataclass(frozen=True)
class DemoFolder:
    """The folder of a demo, and how the shipped configurations find it.

    Attributes:
        root: absolute path of the folder.
        variable: the environment variable that contains the folder in the configurations.
        default: the folder that the configurations use if the variable is not set, relative to the current directory.
    """

    root: Path
    variable: str
    default: str

    def command_line(self, arguments: Sequence[str]) -> str:
        """Return the command line for a user, which sets the variable if the folder is not the default one."""
        prefix = "" if self.is_default else f"{self.variable}={shlex.quote(str(self.root))} "
        return prefix + shlex.join(["emollama", *arguments])

    @property
    def is_default(self) -> bool:
        """Whether the configurations find the folder if the variable is not set."""
        return self.root == Path(self.default).resolve() and self.variable not in os.environ


def run_step(demo_folder: DemoFolder, arguments: Sequence[str]) -> None:
    """Run ``emollama <arguments>`` with this Python in the current directory, and wait until it ends.

    Raises:
        Interrupted: If a signal stopped the command.
        Stopped: If the command was asked to stop, and saved its work.
        UserError: If the command failed.
    """
    line = demo_folder.command_line(arguments)
    get_logger().info("running: %s", line)
    settings = {demo_folder.variable: str(demo_folder.root), STEP: "1", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    done = subprocess.run([sys.executable, "-m", "emollama", *arguments], env=os.environ | settings, check=False)
    if done.returncode == Stopped.STATUS:
        raise Stopped("stopped")
    if done.returncode in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        raise Interrupted("interrupted", done.returncode - 128)
    if done.returncode:
        raise UserError(f"the demo stopped because '{line}' exited with {done.returncode}. The reason is in its output above.")


def next_steps(config: str, demo_folder: DemoFolder) -> list[str]:
    """Return the commands in the header of a shipped configuration, adapted to a folder and without ``emollama demo``."""
    copy = packaged_copy(config)
    assert copy is not None
    header = re.match(r"(?:#.*\n)*", read_text(str(copy)))
    assert header is not None
    lines = re.sub(r"\\\n#", "", header[0]).splitlines()
    commands = [shlex.split(line.removeprefix("# ")) for line in lines if line.startswith("# emollama ")]
    return [_adapt(demo_folder, command[1:]) for command in commands if command[1] != "demo"]


def _adapt(demo_folder: DemoFolder, arguments: list[str]) -> str:
    if demo_folder.is_default:
        return shlex.join(["emollama", *arguments])
    pattern = rf"^((?:[\w.]+=)?){re.escape(demo_folder.default)}(?=/)"
    adapted = [re.sub(pattern, rf"\g<1>{demo_folder.root}", argument) for argument in arguments]
    return demo_folder.command_line(adapted) if "--cfg-path" in adapted else shlex.join(["emollama", *adapted])
