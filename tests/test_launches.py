"""The limit of interpreters that the default tests may start, and the order in which they start."""

from __future__ import annotations

import os
import subprocess
import sys
from multiprocessing import util
from types import SimpleNamespace

import conftest
import pytest
from launches import LIMIT, Launches


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
        conftest.pytest_collection_modifyitems(SimpleNamespace(), [])


def test_test_files_that_fork_are_in_the_group_forks(request):
    fixtures = {"fork_server", "ranks", "launch"}
    forking = {item.path for item in request.session.items if fixtures & set(getattr(item, "fixturenames", ()))}
    assert {path.name for path in forking if conftest.group_of(path) != "forks"} == set()
    assert conftest.group_of(conftest.ROOT / "tests/test_docs.py") == "docs"
