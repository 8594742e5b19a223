"""The limit of interpreters that the default tests may start, and the order in which they start."""

from __future__ import annotations

import os
import subprocess
import sys
from multiprocessing import util
from types import SimpleNamespace

import conftest
import pytest
from launches import LIMIT, Launches, group_of
from scheduling import Groups


def watcher(expression="not slow and not gpu", dist="no", **attributes):
    """A plugin that does not watch this process."""
    options = {"markexpr": expression, "dist": dist}
    return Launches(SimpleNamespace(getoption=lambda name, *_: options[name], **attributes))


def status(launches, config=None):
    """The exit status of a session whose tests passed."""
    session = SimpleNamespace(exitstatus=0, config=config)
    launches.pytest_sessionfinish(session)
    return session.exitstatus


def test_only_python_interpreters_are_counted_and_recorded_with_their_test():
    launches = watcher()
    launches.pytest_runtest_logstart("tests/test_x.py::test_y")
    for program in (sys.executable, b"/usr/bin/python3", "emollama", "bash", "/usr/bin/ps", "nvidia-smi"):
        launches.note(program)
    assert [line.partition(": ")[0] for line in launches.started] == ["tests/test_x.py::test_y"] * 3


def test_too_many_interpreters_fail_only_the_default_test_selection():
    for expression, number, expected in (("not slow and not gpu", 0, 0), ("not slow and not gpu", 1, 1), ("", 1, 0)):
        launches = watcher(expression)
        launches.started = ["x"] * (LIMIT + number)
        assert status(launches) == expected


def test_the_controller_counts_the_interpreters_of_its_workers_but_not_the_workers():
    controller, config = watcher(dist="loadgroup"), SimpleNamespace(workeroutput={})
    controller.note(sys.executable)
    assert controller.started == []
    worker = watcher(workerinput={})
    worker.started = ["x"] * (LIMIT + 1)
    assert status(worker, config) == 0
    controller.pytest_testnodedown(SimpleNamespace(workeroutput=config.workeroutput))
    controller.pytest_testnodedown(SimpleNamespace())  # it crashed
    assert status(controller) == 1


def test_interpreters_started_in_this_process_are_recorded(request, tmp_path):
    launches = request.config.pluginmanager.get_plugin("launches")
    before, absent = len(launches.started), str(tmp_path / "python")
    starts = (
        lambda: subprocess.run([absent]),
        lambda: subprocess.Popen(args=[sys.executable], executable=absent),
        lambda: os.posix_spawn(absent, [absent], {}),
        lambda: util.spawnv_passfds(b"python", [], ["not a number"]),
    )
    for start in starts:
        with pytest.raises((FileNotFoundError, ValueError)):
            start()
        assert launches.started.pop() == f"{request.node.nodeid}: python"
    assert os.system("python_that_is_absent 2> /dev/null") != 0
    assert launches.started.pop().startswith(request.node.nodeid)
    subprocess.run("true", shell=True, check=True)
    assert len(launches.started) == before


@pytest.mark.parametrize("name", ["distributed", "no_such_file"])
def test_an_unknown_name_in_the_list_of_long_groups_is_an_error(name, monkeypatch):
    monkeypatch.setattr(conftest, "LONG", [name])
    with pytest.raises(pytest.UsageError, match=f"LONG.*{name}"):
        conftest.pytest_collection_modifyitems(SimpleNamespace(getoption=lambda _: "not slow"), [])


def test_test_files_that_fork_are_in_the_group_forks(request):
    fixtures = {"fork_server", "ranks", "launch"}
    forking = {item.path for item in request.session.items if fixtures & set(getattr(item, "fixturenames", ()))}
    assert {path.name for path in forking if group_of(path) != "forks"} == set()
    assert group_of(conftest.ROOT / "tests/test_docs.py") == "docs"
    assert group_of(conftest.ROOT / "tests/test_ranks.py", fast=False) == "ranks"


class Worker:
    """A worker of xdist. It starts a test only when it knows the next one or shuts down."""

    def __init__(self):
        self.queue = []
        self.shutting_down = False
        self.gateway = SimpleNamespace(id="gw")

    def send_runtest_some(self, indexes):
        self.queue += indexes

    def shutdown(self):
        self.shutting_down = True

    def next_test(self):
        return self.queue.pop(0) if len(self.queue) > (0 if self.shutting_down else 1) else None


class Session:
    """A session of xdist that replaces workers that died."""

    def __init__(self, folder, tests):
        for file in {test.partition("::")[0] for test in tests}:
            (folder / file).touch()
        config = SimpleNamespace(
            getvalue=lambda name: ["2*popen"],
            getoption=lambda name: "not slow",
            rootpath=folder,
            option=SimpleNamespace(loadscopereorder=False),
        )
        self.scheduler, self.tests, self.passed, self.crashed = Groups(config), tests, [], []

    def start(self):
        worker = Worker()
        self.scheduler.add_node(worker)
        self.scheduler.add_node_collection(worker, self.tests)
        return worker

    def run(self):
        workers = [self.start(), self.start()]
        self.scheduler.schedule()
        while ready := [(worker, test) for worker in workers if (test := worker.next_test()) is not None]:
            for worker, test in ready:
                if self.tests[test].endswith("_dies"):
                    self.crashed.append(self.scheduler.remove_node(worker))
                    assert len(self.crashed) <= len(self.tests)
                    workers[workers.index(worker)] = self.start()
                    self.scheduler.schedule()
                else:
                    self.passed.append(self.tests[test])
                    self.scheduler.mark_test_complete(worker, test)
            if self.scheduler.tests_finished:
                for worker in workers:
                    worker.shutdown()


@pytest.mark.parametrize("contents", ["aaD", "Dab", "aDa", "D", "DD", "aaaaDaaD"])
def test_a_test_that_ends_its_worker_fails_once_and_all_others_run(contents, tmp_path):
    files = [contents, "a", "abcd", contents, "ab", "a"]
    tests = [
        f"test_{number}.py::{at}{'_dies' * (letter == 'D')}"
        for number, file in enumerate(files)
        for at, letter in enumerate(file)
    ]
    session = Session(tmp_path, tests)
    session.run()
    assert sorted(session.crashed) == [test for test in tests if test.endswith("_dies")]
    assert sorted(session.passed) == [test for test in tests if not test.endswith("_dies")]
