"""Commands of the demo: those that it runs, and those that it prints for the user to run next."""

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

from emollama.errors import Interrupted, UserError
from emollama.logs.logger import get_logger
from emollama.paths import packaged_copy, read_text
from emollama.variables import STEP


@dataclass(frozen=True)
class DemoFolder:
    """The folder of a demo, and how its configurations find it.

    Attributes:
        root: the folder.
        variable: the environment variable that the configurations read.
        default: the folder that they use without it, in the working folder.
    """

    root: Path
    variable: str
    default: str

    def shown(self, arguments: Sequence[str]) -> str:
        """The command line as a user types it: with the variable, if the folder is not the default one."""
        prefix = "" if self.is_default else f"{self.variable}={shlex.quote(str(self.root))} "
        return prefix + shlex.join(["emollama", *arguments])

    @property
    def is_default(self) -> bool:
        """Whether the configurations find the folder without the variable."""
        return self.root == Path(self.default).resolve() and self.variable not in os.environ


def run_step(place: DemoFolder, arguments: Sequence[str]) -> None:
    """Run ``emollama <arguments>`` with this Python in the working folder, and wait for it.

    Raises:
        Interrupted: a signal asked it to stop.
        UserError: it failed.
    """
    line = place.shown(arguments)
    get_logger().info("running: %s", line)
    settings = {place.variable: str(place.root), STEP: "1", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    done = subprocess.run([sys.executable, "-m", "emollama", *arguments], env=os.environ | settings, check=False)
    if done.returncode in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        raise Interrupted("interrupted", done.returncode - 128)
    if done.returncode:
        raise UserError(f"the demo stopped: '{line}' exited with {done.returncode}; its output above says why")


def next_steps(config: str, place: DemoFolder) -> list[str]:
    """The commands in the header of a shipped configuration, for this folder; the one that writes the demo is left out."""
    copy = packaged_copy(config)
    assert copy is not None
    header = re.match(r"(?:#.*\n)*", read_text(str(copy)))
    assert header is not None
    lines = re.sub(r"\\\n#", "", header[0]).splitlines()
    commands = [shlex.split(line.removeprefix("# ")) for line in lines if line.startswith("# emollama ")]
    return [_at(place, words[1:]) for words in commands if words[1] != "demo"]


def _at(place: DemoFolder, arguments: list[str]) -> str:
    if place.is_default:
        return shlex.join(["emollama", *arguments])
    moved = [re.sub(rf"^((?:[\w.]+=)?){re.escape(place.default)}(?=/)", rf"\g<1>{place.root}", word) for word in arguments]
    return place.shown(moved) if "--cfg-path" in moved else shlex.join(["emollama", *moved])
