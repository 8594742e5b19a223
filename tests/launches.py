"""Count the interpreters that tests start and fail the default tests if there are too many: each costs CPU seconds."""

from __future__ import annotations

import functools
import os
import re
import subprocess
from collections.abc import Callable
from functools import cache
from multiprocessing import util
from pathlib import Path
from typing import Any

import pytest

LIMIT = 10
INTERPRETERS = ("python", "emollama")  # prefixes of their names; a shell, ps or a small JVM costs almost nothing


def is_fast(config: pytest.Config) -> bool:
    """Whether this session runs the default tests. Only few of them fork, so that one of its workers needs a fork server."""
    return "not slow" in config.getoption("markexpr")


@cache
def group_of(path: Path, fast: bool = True) -> str:
    """The group of a test file: of the default tests, one for all files that fork from the server of tests/ranks.py."""
    if not fast:
        return path.stem.removeprefix("test_")
    forks = re.search(r"^ *def \w+\([^)]*\b(fork_server|ranks|launch)\b", path.read_text(encoding="utf-8"), re.MULTILINE)
    return "forks" if forks else path.stem.removeprefix("test_")


class Launches:
    """A plugin of pytest. Workers of xdist send their launches to the controller, which compares their sum with the limit.

    Attributes:
        started: "test: command" of each interpreter that was started, also by fork servers; forks do not count.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.started: list[str] = []
        self._test = "before the first test"
        self._is_worker = hasattr(config, "workerinput")
        self._is_controller = not self._is_worker and config.getoption("dist", "no") != "no"
        self._is_limited = is_fast(config)

    def watch(self) -> None:
        """Record every program that this process starts from now on.

        The functions that start processes are replaced, because an audit hook is called for millions of other events.
        """
        self._watch(subprocess.Popen, "__init__", lambda _, args, *more, **settings: _program(args, **settings))
        self._watch(util, "spawnv_passfds", lambda path, *_: path)
        self._watch(os, "posix_spawn", lambda path, *_, **__: path)
        self._watch(os, "system", lambda command: command.split()[0])

    def _watch(self, owner: Any, name: str, program_of: Callable[..., Any]) -> None:
        start = getattr(owner, name)

        @functools.wraps(start)
        def noted(*args: Any, **settings: Any) -> Any:
            self.note(program_of(*args, **settings))
            return start(*args, **settings)

        setattr(owner, name, noted)

    def note(self, program: str | bytes | os.PathLike[str]) -> None:
        """Record a started program if it is an interpreter."""
        name = Path(os.fsdecode(program)).name
        if name.startswith(INTERPRETERS) and not self._is_controller:
            self.started.append(f"{self._test}: {name}")

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Store the name of the running test."""
        self._test = nodeid

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Add the launches of a worker."""
        self.started += getattr(node, "workeroutput", {}).get("launches", [])

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Send the launches to the controller, or fail the session if there are too many."""
        if self._is_worker:
            session.config.workeroutput["launches"] = self.started  # type: ignore[attr-defined]
        elif self.excess():
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print all launches when there are too many."""
        if self.excess():
            terminalreporter.section(
                f"{len(self.started)} interpreters were started, and {LIMIT} are allowed (tests/launches.py)"
            )
            terminalreporter.write("".join(f"{line}\n" for line in self.started))

    def excess(self) -> bool:
        """Whether the default tests started too many interpreters."""
        return self._is_limited and len(self.started) > LIMIT


def _program(args: Any, *, executable: Any = None, shell: bool = False, **_: Any) -> Any:
    """The program that a call of ``subprocess.Popen`` starts."""
    if shell:
        return executable or "/bin/sh"
    return executable or (args if isinstance(args, str | bytes | os.PathLike) else args[0])
