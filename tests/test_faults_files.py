"""Files that a command cannot read or write: damaged files of the package itself, full disks, permissions, names of runs."""

from __future__ import annotations

import ctypes
import json
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from helpers import GOLDEN, golden_tree, write

from emollama.stores.manifest import Manifest

pytestmark = pytest.mark.faults


@contextmanager
def unprivileged():
    """Give up root's right to read and write all files, which a container's user often has."""

    class Header(ctypes.Structure):
        _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))

    class Sets(ctypes.Structure):
        _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))

    header, sets, libc = Header(0x20080522, 0), (Sets * 2)(), ctypes.CDLL(None, use_errno=True)
    assert libc.capget(ctypes.byref(header), sets) == 0
    before = sets[0].effective
    sets[0].effective = before & ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    assert libc.capset(ctypes.byref(header), sets) == 0
    try:
        yield
    finally:
        sets[0].effective = before
        assert libc.capset(ctypes.byref(header), sets) == 0


# Damaged files of the package itself

RUN = "out/run"


def tree(folder: Path) -> dict:
    """Two epochs of one step with an evaluation, whose audio features are packed and whose face features are in a tar."""
    content = golden_tree(folder, folder / "data")
    features = {"features": {"audio": "audio", "face": "faces"}}
    content["datasets"]["golden"] |= features
    content["evaluation_datasets"]["answers"] |= features | {"task_pool": ["emotion"], "max_new_tokens": 2}
    content["run"] |= {"max_epoch": 2, "iters_per_epoch": 1, "evaluate": True, "save_best": True, "log_freq": 1}
    return content


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """A folder with the files that commands write and read again: a run, its evaluation, stores of features and a cache."""
    from emollama.cli import main

    folder = tmp_path_factory.mktemp("files") / "work"
    data = Path(shutil.copytree(GOLDEN / "data", folder / "data"))
    config = write(folder, tree(folder))
    Manifest(("image", "cls"), 64, 176, {"encoder": "eva"}, "0" * 64, "float32").write(data / "eva")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        for line in (
            ["pack", "--source", data / "HL-UTT", "--output", data / "audio"],
            ["pack", "--source", data / "mae_340_UTT", "--output", data / "faces", "--to", "tar"],
            ["train", "--cfg-path", config],
            ["check-data", "--cfg-path", config],
            ["eval-checkpoints", "--cfg-path", config, "--run-folder", folder / RUN],
        ):
            with suppress(SystemExit):  # check-data ends so after a problem
                main([str(argument) for argument in line])
    return Path(shutil.copytree(folder, folder.with_name("intact")))


@pytest.fixture
def work(intact, monkeypatch):
    """A copy of the intact folder, always with the same path, because caches and indexes contain paths."""
    folder = intact.with_name("work")
    shutil.rmtree(folder)
    shutil.copytree(intact, folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.chdir(folder)
    return folder


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def empty(path):
    path.write_bytes(b"")


def fill_with_bytes(path):
    path.write_bytes(b"\x80\xff\x00\x1f\x8b" * 40)


def replace_by_a_list(path):
    path.write_text('[1, {"step": "x"}, null]\n', encoding="utf-8")


def replace_by_wrong_types(path):
    keys = ("step", "epoch", "metrics", "name", "tasks", "run", "version")
    path.write_text(json.dumps({key: [3.5] for key in keys}) + "\n", encoding="utf-8")


def nest_deeply(path):
    path.write_text("[" * 100_000, encoding="utf-8")


def replace_by_a_folder(path):
    path.unlink()
    path.mkdir()


def forbid(path):
    path.chmod(0)


KINDS = (
    *(truncate, empty, fill_with_bytes, replace_by_a_list, replace_by_wrong_types, nest_deeply, replace_by_a_folder),
    forbid,
)

RESUME = ("train", "--cfg-path", "config.yaml", "--options", "run.max_epoch=3", "run.resume_ckpt_path=auto")
REPORT = ("report", RUN)
COMPARE = ("compare", RUN, RUN, "--output", "chart.png")
SCORE = ("score", "--predictions", f"{RUN}/result/epoch_0/predictions_answers.jsonl", "--truth", "data/MERR_coarse_grained.txt")
CHECK = ("check-data", "--cfg-path", "config.yaml")
EVALUATE_ALL = ("eval-checkpoints", "--cfg-path", "config.yaml", "--run-folder", RUN)
TABLE = (*EVALUATE_ALL, "--table-only")
EVALUATE = ("eval", "--cfg-path", "config.yaml", "--options", f"model.ckpt={RUN}/checkpoint_1.pth", "run.job_id=other")
# Files that are damaged together, and a command that reads all of them: it continues without them, and names each.
TOLERATED = [
    (("log.jsonl", "eval.jsonl", "checkpoint_1.pth", "checkpoint_best.pth.sha256"), RESUME),
    (("log.jsonl", "eval.jsonl", "config.yaml"), REPORT),
    (("result/epoch_1/metrics_*.json", "result/epoch_1/predictions_*.jsonl"), REPORT),
    (("sweep_config/epoch_0/evaluated.json", "sweep_config/epoch_1/result/metrics_answers.json"), EVALUATE_ALL),
    (("cache/emollama/arrays-*.json", "cache/emollama/lengths-*.json", "cache/emollama/indexes-1/*.sqlite3"), CHECK),
]
# A file, and a command that cannot continue without it.
NEEDED = [
    ("config.yaml", EVALUATE_ALL),
    ("result/epoch_0/predictions_answers.jsonl", SCORE),
    ("checkpoint_1.pth", EVALUATE),
    ("checkpoint_1.pth.sha256", EVALUATE),
    ("sweep_config/sweep.json", TABLE),
    ("data/audio/store.json", CHECK),
    ("data/audio/index.sqlite3", CHECK),
    ("data/audio/shard-*", CHECK),
    ("data/faces/*.idx.npz", CHECK),
    ("data/faces/*.tar", CHECK),
    ("data/eva/manifest.json", CHECK),
]


def damaged(kind, *names):
    """Damage files of the run, the features or the cache, and return their paths."""
    paths = []
    for name in names:
        folder = Path() if name.startswith(("data/", "cache/")) else Path(RUN)
        found = sorted(folder.glob(name))
        assert found, name
        paths += found
    for path in paths:
        kind(path)
    return paths


@pytest.fixture
def said(emollama):
    """Run a command without root's rights and return its exit status and everything that it says, in a report too."""

    def run(command):
        with unprivileged():
            completed = emollama(*command)
        page = Path(RUN, "result/report.html").read_text(encoding="utf-8") if command == REPORT else ""
        return completed.returncode, completed.stdout + completed.stderr + page

    return run


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(("names", "command"), TOLERATED, ids=lambda value: value[0])
def test_damaged_files_that_are_not_needed_are_named_in_warnings(work, said, names, command, kind):
    paths = damaged(kind, *names)
    status, text = said(command)
    unnamed = [str(path) for path in paths if path.name not in text]
    if command == RESUME and kind in (replace_by_a_folder, forbid):
        assert status == 1 and len(unnamed) < len(paths), text  # nothing may be lost, so training does not start
        return
    # Values of a wrong type are left out of tables and reports.
    assert unnamed == [] or kind is replace_by_wrong_types, text
    if command != CHECK and kind not in (replace_by_a_folder, forbid, replace_by_wrong_types):
        assert status == 0, text


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(("name", "command"), NEEDED, ids=lambda value: value if isinstance(value, str) else value[0])
def test_a_damaged_file_that_is_needed_is_named_in_an_error(work, said, name, command, kind):
    (path,) = damaged(kind, name)
    status, text = said(command)
    assert status == 1
    assert path.name in text or (command == TABLE and kind is replace_by_wrong_types), text
