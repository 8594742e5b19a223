"""Counts the interpreters that tests start, and fails the default tests when there are too many: each costs CPU seconds."""

from __future__ import annotations

import os
import sys
from multiprocessing import util
from pathlib import Path
from typing import Any

import pytest

LIMIT = 10
INTERPRETERS = ("python", "emollama")  # what their names begin with; a shell, ps or a small JVM costs next to nothing
STARTS = ("subprocess.Popen", "os.posix_spawn", "os.spawn", "os.system")  # audit events


class Launches:
    """A plugin of pytest. Workers of xdist send their launches to the controller, which compares their sum with the limit.

    Attributes:
        started: "test: command" of each interpreter that was started, also of fork servers; forks are no launches.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.started: list[str] = []
        self._test = "before the first test"
        self._is_worker = hasattr(config, "workerinput")
        self._is_controller = not self._is_worker and config.getoption("dist", "no") != "no"
        self._is_limited = config.getoption("markexpr") == "not slow and not gpu"

    def watch(self) -> None:
        """Note what this process starts from now on, to its end."""
        sys.addaudithook(self.note)
        spawn = util.spawnv_passfds

        def noted(path: bytes, args: list[Any], passfds: list[int]) -> int:
            self.note("os.spawn", (None, path, args, None))  # multiprocessing starts processes without an audit event
            return spawn(path, args, passfds)

        util.spawnv_passfds = noted

    def note(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit hook."""
        if event not in STARTS:
            return
        program = arguments[1] if event == "os.spawn" else arguments[0]
        name = Path(os.fsdecode(program)).name
        if name.startswith(INTERPRETERS) and not self._is_controller:
            self.started.append(f"{self._test}: {name}")

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Remember which test runs."""
        self._test = nodeid

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take over what a worker started."""
        self.started += getattr(node, "workeroutput", {}).get("launches", [])

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Send the launches to the controller, or fail."""
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
        """Whether the default tests started too many."""
        return self._is_limited and len(self.started) > LIMIT
