"""Fixtures for the golden corpus and for processes. No fixture imports torch before a test needs it."""

from __future__ import annotations

import gc
import logging
import os
import re
import shutil
import signal
import ssl
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import plots
import pytest
import ranks as forks
from helpers import GOLDEN, golden_tree, loaded, loaded_shipped_configs
from launches import Launches, group_of, is_fast
from ranks import ROOT
from registrations import restored_registries

from emollama.config import RunConfig
from emollama.logs.logger import set_up

# A shell starts background commands with SIGINT ignored, so tests that interrupt a process would wait forever.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The slowest groups of tests. xdist starts them first, so that both workers end at about the same time.
LONG = (
    "forks validation report convert captions check_data extraction flickr30k_caption provenance datasets online_frames media"
    " bad_input encoders score_command"
).split()
# Those of make test-slow and make test-faults.
LONG_OTHERS = (
    "faults_nodes demo demo_flickr sharding faults_saves faults_stops faults_restarts nodes_launch faults_hangs app faults_files"
    " plan_memory compile api plan demo_videos faults_decoding faults_serve serve remote_llm faults_app faults_remote"
).split()
FOLDERS = count()  # numbers of temporary folders


def pytest_configure(config: pytest.Config) -> None:
    """Count the interpreters that are started."""
    launches = Launches(config)
    launches.watch()
    config.pluginmanager.register(launches, "launches")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Start the fork server early in workers of xdist whose tests fork: of the default tests, in the one that is the first."""
    config = session.config
    worker = getattr(config, "workerinput", {}).get("workerid")
    forks_tests = worker == "gw0" or (worker is not None and not is_fast(config) and config.option.markexpr != "models")
    is_usual = os.environ.get("OMP_NUM_THREADS") == "1" and not config.pluginmanager.hasplugin("randomly")
    if forks_tests and is_usual and not config.option.collectonly:
        forks.SERVER.fork()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Collect without the garbage collector: modules and rewritten tests are never garbage, and scanning them takes seconds."""
    gc.disable()
    try:
        return (yield)
    finally:
        _let_loggers_propagate()
        gc.freeze()
        gc.enable()
        gc.set_threshold(10_000, 20, 20)  # ten times as rare as usual, because it takes 5% of the time otherwise


def _let_loggers_propagate() -> None:
    """Pytest adds and removes six handlers for each test in each logger that does not propagate: torch has more than forty."""
    for logger in logging.getLogger().manager.loggerDict.values():
        if isinstance(logger, logging.Logger) and logger.name.partition(".")[0] == "torch":
            logger.propagate = True


def pytest_unconfigure() -> None:
    """End the fork server and let the interpreter clean up what :func:`pytest_collection` hid from the garbage collector."""
    forks.SERVER.close()
    gc.unfreeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give all tests of a group to the same worker."""
    from scheduling import Groups

    return Groups(config, log) if config.getvalue("dist") == "loadgroup" else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the longest groups first in workers of xdist."""
    fast = is_fast(config)
    groups, names = {group_of(path, fast) for path in (ROOT / "tests").glob("test_*.py")}, LONG if fast else LONG_OTHERS
    if stale := [name for name in names if name not in groups]:
        raise pytest.UsageError(f"LONG in tests/conftest.py: {stale} are no groups. Remove them: they fork or do not exist.")
    if hasattr(config, "workerinput") and not config.pluginmanager.hasplugin("randomly"):
        position = {name: number for number, name in enumerate(names)}
        items.sort(key=lambda item: position.get(group_of(item.path, fast), len(names)))


@pytest.fixture(autouse=True)
def package_log() -> None:
    """The package's log goes to standard error and to ``caplog`` in every test, also after tests that changed it."""
    set_up(is_main=True)
    logging.getLogger("emollama").propagate = True


@pytest.fixture(autouse=True)
def own_registrations() -> Iterator[None]:
    """Components that a test registers do not exist in later tests."""
    with restored_registries():
        yield


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the test. The fixture of pytest looks through the folders of all other tests to find a free number."""
    name = re.sub(r"\W", "_", request.node.name)[:30]
    return tmp_path_factory.mktemp(f"{name}-{next(FOLDERS)}", numbered=False)


@pytest.fixture(scope="session")
def fork_server() -> Iterator[forks.ForkServer]:
    """The server from which ``launch`` and ``ranks`` fork; it starts when it is first used."""
    yield forks.SERVER
    forks.SERVER.close()


@pytest.fixture(scope="session")
def launch(fork_server: forks.ForkServer) -> Any:
    """``launch("train.py", "--cfg-path", path, processes=2)``: a command in new processes, see :func:`ranks.launch`."""
    return forks.launch


@pytest.fixture(scope="session")
def ranks(fork_server: forks.ForkServer) -> Iterator[forks.Ranks]:
    """``ranks(function, ...)``: a function in two processes of one group, see :class:`ranks.Ranks`."""
    both = forks.Ranks()
    yield both
    both.close()


@pytest.fixture(scope="session", autouse=True)
def own_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Results of earlier checks are cached for this test session only, also in its child processes."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def emollama(capsys: pytest.CaptureFixture[str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """``emollama("report", folder)``: a command in this process; returns its exit status and what it wrote."""
    from emollama.cli import main

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        line = [str(argument) for argument in arguments]
        capsys.readouterr()
        try:
            main(line)
            status = 0
        except SystemExit as ended:
            assert isinstance(ended.code, int)
            status = ended.code
        return subprocess.CompletedProcess(line, status, *capsys.readouterr())

    return call


@pytest.fixture(scope="session", autouse=True)
def one_ssl_context() -> Iterator[None]:
    """Clients share one SSL context: loading the certificates takes 20 ms for each client, even for an http address."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl, "create_default_context", cache(ssl.create_default_context))
        yield


@pytest.fixture(scope="session", autouse=True)
def blank_plots() -> Iterator[None]:
    """Do not render plots; see plots.py."""
    with plots.plots(plots.white_pixel):
        yield


@pytest.fixture
def rendered_plots() -> Iterator[None]:
    """Render plots in this test."""
    with plots.plots(plots.RENDERED):
        yield


@pytest.fixture(scope="session")
def shipped_configs() -> dict[str, RunConfig]:
    """Path below the repository's root -> each shipped configuration, loaded once, without environment variables."""
    return loaded_shipped_configs()


@pytest.fixture(scope="session")
def golden_config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """The loaded configuration of the golden corpus."""
    folder = tmp_path_factory.mktemp("golden")
    return loaded(folder, golden_tree(folder))


@pytest.fixture(scope="session")
def golden_prompt(golden_config: RunConfig) -> Any:
    """The prompt format of the tiny Llama."""
    return golden_config.model_class.prompt_format(golden_config.model)


@pytest.fixture(scope="session")
def golden_dataset(golden_config: RunConfig) -> Any:
    """The golden corpus with the answers of all three tasks."""
    shapes = golden_config.model_class.slot_shapes(golden_config.model)
    block = golden_config.evaluation_datasets["answers"].dataset
    return golden_config.dataset_class("evaluation_datasets.answers")(block, slot_shapes=shapes, block_path="golden")


@pytest.fixture(scope="session")
def golden_model(golden_config: RunConfig) -> Any:
    """The tiny model with the golden checkpoint, in eval mode. Tests must not change it."""
    import torch

    from emollama import checkpoint

    model = golden_config.model_class(golden_config.model, device=torch.device("cpu"), frozen_dtype=torch.float32)
    path = str(golden_config.model.ckpt)
    checkpoint.load_trainable(model, checkpoint.read(path, "model.ckpt")["model"], path=path, allow_missing=[])
    return model.eval()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A copy of the golden data that a test may damage."""
    return Path(shutil.copytree(GOLDEN / "data", tmp_path / "data"))
