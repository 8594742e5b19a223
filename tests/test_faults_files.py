"""Files that a command cannot read or write: damaged files of the package itself, full disks, permissions, names of runs."""

from __future__ import annotations

import ctypes
import errno
import html
import json
import os
import re
import resource
import shlex
import shutil
import signal
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import GOLDEN, golden_tree, write
from running import read_jsonl
from small_disks import small_disk
from torch.utils.data import DataLoader

from emollama import checkpoint, file_digests
from emollama.config import loading
from emollama.errors import UserError
from emollama.evaluation.judges.cache import Reply, ReplyCache
from emollama.extraction import failures
from emollama.logs import tracking
from emollama.runners.checkpoints import step_of
from emollama.runners.run_checkpoints import RunCheckpoints
from emollama.runners.runner_base import RunnerBase
from emollama.stores.feature_cache import FeatureCache
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
    (("cache/emollama/arrays-*.bin", "cache/emollama/lengths-*.json", "cache/emollama/indexes-1/*.sqlite3"), CHECK),
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


def cached_features(folder):
    cache = FeatureCache(str(folder / "cache"), (1, 2))
    cache.write("a/b.npy", np.ones((1, 2), np.float32))
    return folder / "cache/a/b.npy", lambda: cache.read("a/b.npy") is None


def manifest_of_cached_features(folder):
    cache, manifest = FeatureCache(str(folder / "cache"), (1, 2)), Manifest(("image",), 1, 2, {}, "0", "float32")
    (folder / "cache").mkdir()
    manifest.write(folder / "cache")
    return folder / "cache/manifest.json", lambda: cache.require_same_manifest(manifest, "model.cache_visual", write=True)


def failed_clips(folder):
    failures.write(folder, [failures.ExtractionFailure("a", "image", "eva", "eva", "a.mp4", "it is broken")])
    return folder / failures.FILE, lambda: failures.read(folder)


def judge_replies(folder):
    path = folder / "replies.sqlite3"
    ReplyCache(str(path)).store("key", "model", Reply("text", "stop", 1, 1))
    return path, lambda: ReplyCache(str(path)).get(["key"])


OTHERS = (cached_features, manifest_of_cached_features, failed_clips, judge_replies)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("make", OTHERS, ids=lambda make: make.__name__)
def test_a_damaged_file_of_a_cache_is_replaced_or_named_in_an_error(tmp_path, make, kind):
    path, read = make(tmp_path)
    kind(path)
    try:
        with unprivileged():
            result = read()
    except UserError as error:
        assert path.name in str(error)
    else:
        # Empty is a valid database, and a folder has no rows.
        assert result is True or (make, kind) in ((judge_replies, empty), (failed_clips, replace_by_a_folder))


@pytest.mark.parametrize("kind", KINDS[1:5], ids=lambda kind: kind.__name__)
def test_a_damaged_id_of_a_tracked_run_is_replaced_after_a_warning(tmp_path, caplog, kind):
    path = tmp_path / "wandb_id.txt"
    path.write_text("1a2b3c4d\n")
    assert tracking.stored_id(path) == "1a2b3c4d"
    kind(path)
    assert tracking.stored_id(path) is None and str(path) in caplog.text


# Full disks


def training(folder, **run):
    """A configuration of training on the golden corpus that logs each step and evaluates."""
    content = golden_tree(folder)
    content["evaluation_datasets"]["answers"] |= {"task_pool": ["emotion"], "max_new_tokens": 2}
    content["run"] |= {"log_freq": 1, "evaluate": True} | run
    return content


def fill(folder, leave=0):
    """Fill a file system except for some bytes."""
    with (folder / "filler").open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    if leave:
        os.truncate(folder / "filler", (folder / "filler").stat().st_size - leave)


@pytest.fixture
def during(monkeypatch):
    """Call functions during steps, while no checkpoint is being written: ``during({2: function})``."""
    gradients = RunnerBase._gradients

    def act(functions):
        def changed(self, step, *args):
            if step in functions:
                self.checkpoints.finish()
                functions[step]()
            return gradients(self, step, *args)

        monkeypatch.setattr(RunnerBase, "_gradients", changed)

    return act


def test_training_continues_on_a_full_disk_and_logs_again_when_there_is_space(tmp_path, emollama, during):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with small_disk("8m") as disk:
        path = write(tmp_path, training(tmp_path, output_dir=str(disk / "out"), iters_per_epoch=40))
        during({5: lambda: fill(disk), 30: (disk / "filler").unlink})
        completed = emollama("train", "--cfg-path", path)
        run = disk / "out/run"
        assert completed.returncode == 0, completed.stderr
        assert completed.stderr.count("could not be written") == 1 and "Traceback" not in completed.stderr
        assert "No space left on device. Free disk space. Training continues" in completed.stderr
        assert "the log is written again" in completed.stderr
        assert [row["step"] for row in read_jsonl(run / "log.jsonl")] == list(range(40))
        steps = {event.step for event in EventAccumulator(str(run)).Reload().Scalars("train/loss")}
        assert {0, 39} <= steps
        assert (run / "checkpoint_0.pth").is_file() and (run / "eval.jsonl").is_file()


def test_an_evaluation_on_a_full_disk_does_not_end_the_training(tmp_path, emollama, monkeypatch):
    """The checkpoint still fits; the answers, metrics, eval.jsonl and the report do not."""
    save = RunCheckpoints.maybe_save

    with small_disk("8m") as disk:

        def save_and_fill(self, completed_steps):
            save(self, completed_steps)
            if completed_steps == 2:
                self.finish()
                fill(disk)

        monkeypatch.setattr(RunCheckpoints, "maybe_save", save_and_fill)
        path = write(tmp_path, training(tmp_path, output_dir=str(disk / "out"), iters_per_epoch=2))
        completed = emollama("train", "--cfg-path", path)
        assert completed.returncode == 0 and "Traceback" not in completed.stderr, completed.stderr
        assert completed.stderr.count("could not be written") == 1
        assert "cannot write the report: " in completed.stderr
        assert (disk / "out/run/checkpoint_0.pth").is_file() and not (disk / "out/run/eval.jsonl").exists()


def test_a_disk_without_space_for_a_checkpoint_is_reported_before_weights_are_loaded(tmp_path, emollama):
    with small_disk("8m") as disk:
        fill(disk, leave=100_000)
        completed = emollama("train", "--cfg-path", write(tmp_path, training(tmp_path, output_dir=str(disk / "out"))))
        assert completed.returncode == 1 and "loading the language model" not in completed.stderr
        text = f"error: run.output_dir: the disk of '{disk}/out/run' has 0.000 GiB of free space, but a checkpoint"
        assert re.search(rf"^{text} of this run needs about 0.00\d GiB there", completed.stderr, re.MULTILINE), completed.stderr


def test_only_space_that_a_run_needs_is_checked(tmp_path, emollama):
    """What an interrupted save has left is deleted first, and a run that has ended writes no checkpoint."""
    with small_disk("8m") as disk:
        options = {"iters_per_epoch": 1, "max_epoch": 1, "evaluate": False, "resume_ckpt_path": "auto"}
        path = write(tmp_path, training(tmp_path, output_dir=str(disk / "out"), **options))
        (disk / "out/run").mkdir(parents=True)
        left = disk / "out/run/.checkpoint_last.pth.new"
        left.write_bytes(bytes(shutil.disk_usage(disk).free - 100_000))
        completed = emollama("train", "--cfg-path", path)
        assert completed.returncode == 0 and not left.exists(), completed.stderr
        fill(disk, leave=100_000)
        completed = emollama("train", "--cfg-path", path)
        assert completed.returncode == 0, completed.stderr


def test_a_checkpoint_that_does_not_fit_ends_the_run_and_leaves_the_earlier_one(tmp_path, emollama, during):
    with small_disk("8m") as disk:
        path = write(tmp_path, training(tmp_path, output_dir=str(disk / "out"), iters_per_epoch=3, max_epoch=2, evaluate=False))
        during({4: lambda: fill(disk, leave=100_000)})
        completed = emollama("train", "--cfg-path", path)
        assert completed.returncode == 1
        assert (
            f"error: {disk}/out/run/checkpoint_1.pth could not be written: No space left on device. Free disk space, or set"
            " another run.output_dir. Earlier checkpoints are intact."
        ) in completed.stderr
        run = disk / "out/run"
        assert file_digests.is_intact(run / "checkpoint_0.pth") and not (run / "checkpoint_1.pth").exists()
        assert not list(run.glob(".*"))


@pytest.fixture
def unwritable(tmp_path):
    """Paths of checkpoints that cannot be written for other reasons than a full disk -> what the message advises."""
    (tmp_path / "folder").mkdir(mode=0o500)
    (tmp_path / "file").touch()
    (tmp_path / "checkpoint_1.pth").mkdir()
    (tmp_path / "checkpoint_1.pth/a").touch()
    return {
        tmp_path / "folder/checkpoint_0.pth": "Permission denied. Correct the permissions, or",
        tmp_path / "file/checkpoint_0.pth": "File exists. Set another",
        tmp_path / "checkpoint_1.pth": "Is a directory. Move this folder away, or",
        tmp_path / ("n" * 300) / "checkpoint_0.pth": "File name too long. Set another",
    }


def test_only_a_full_disk_is_advised_to_be_freed(unwritable):
    for path, advice in unwritable.items():
        with pytest.raises(UserError) as error, unprivileged():
            checkpoint.save(path, {"model": {"a": torch.ones(2)}})
        assert f"{path} could not be written: {advice}" in str(error.value)
        assert "disk space" not in str(error.value)


def test_a_file_size_limit_is_named(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(UserError, match=r"File too large. Raise the limit for the size of a file \(ulimit -f\)"):
            checkpoint.save(tmp_path / "checkpoint_0.pth", {"model": {"a": torch.ones(10_000)}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_file_that_does_not_fit_on_the_disk_is_an_error_of_any_command(work, emollama):
    with small_disk("16k") as disk:
        fill(disk)
        completed = emollama(*EVALUATE, f"run.output_dir={disk}")
    assert completed.returncode == 1
    path = f"{disk}/other/result/predictions_answers.jsonl"
    assert completed.stderr.endswith(f"error: {path}: No space left on device. Free disk space.\n")


# Permissions


@pytest.fixture(scope="module")
def private(tmp_path_factory):
    """Copies of everything that a run reads, in one folder."""
    folder = tmp_path_factory.mktemp("private") / "work"
    shutil.copytree(GOLDEN / "data", folder / "data")
    shutil.copytree(GOLDEN / "llama", folder / "llama")
    shutil.copy(GOLDEN / "checkpoint_slim.pth", folder)
    content = golden_tree(folder, folder / "data")
    content["model"] |= {"llama_model": str(folder / "llama"), "ckpt": str(folder / "checkpoint_slim.pth")}
    for block in (content["datasets"]["golden"], content["evaluation_datasets"]["answers"]):
        block["task_pool"] = ["emotion", "reason"]
    write(folder, content)
    (folder / "out").mkdir()
    return folder


TRAIN = ("train", "--cfg-path", "config.yaml")
MERR, CLIP = "MERR_coarse_grained", "HL-UTT/sample_00000104.npy"
# A path without permissions -> a command that needs it, and the option or key that its message names.
PRIVATE = {
    "config.yaml": (TRAIN, "--cfg-path"),
    f"data/{MERR}.txt": (TRAIN, "datasets.golden.annotation_file"),
    f"data/{MERR}.json": (TRAIN, "datasets.golden.coarse_grained_json_path"),
    "data/transcription_en_all.csv": (TRAIN, "datasets.golden: transcription_path"),
    f"data/{CLIP}": (TRAIN, "slot audio"),
    "data/HL-UTT": (TRAIN, "datasets.golden.features.audio"),
    "data": (TRAIN, "datasets.golden.annotation_file"),
    "checkpoint_slim.pth": (TRAIN, "model.ckpt"),
    "llama": (TRAIN, "model.llama_model"),
    "llama/config.json": (TRAIN, "model.llama_model"),
    "llama/tokenizer.json": (TRAIN, "model.llama_model"),
    "llama/model.safetensors": (TRAIN, "model.llama_model"),
    "out": (TRAIN, "run.output_dir"),
}


@pytest.mark.parametrize("name", PRIVATE)
def test_a_file_or_folder_without_permissions_is_named_with_its_key(private, emollama, monkeypatch, name):
    command, key = PRIVATE[name]
    monkeypatch.chdir(private)
    mode = (private / name).stat().st_mode
    (private / name).chmod(0)
    try:
        with unprivileged():
            completed = emollama(*command)
    finally:
        (private / name).chmod(mode)
    assert completed.returncode == 1
    message = completed.stderr[completed.stderr.index("error: ") :]
    assert key in message and name in message and "ermission" in message


@pytest.mark.parametrize(
    "line",
    [
        ["score", "--predictions", "SECRET.jsonl", "--truth", "a.csv"],
        ["score", "--predictions", "a.jsonl", "--truth", "SECRET.csv"],
        ["checkpoint", "inspect", "SECRET.pth"],
        ["checkpoint", "convert", "SECRET.pth", "--to", "peft", "--output", "new"],
        ["pack", "--source", "SECRET", "--output", "new"],
        ["pack", "--index", "SECRET.tar"],
        ["plan", "--cfg-path", "SECRET.yaml"],
        ["config", "show", "--cfg-path", "SECRET.yaml"],
        ["report", "SECRET"],
        ["compare", "SECRET", "run"],
        ["extract", "--cfg-path", "SECRET.yaml"],
        ["submission", "--predictions", "SECRET.csv", "--output", "new.npz"],
        ["import", "mer-factory", "SECRET", "--output", "new"],
        ["check-data", "--cfg-path", "SECRET.yaml"],
        ["predict", "--cfg-path", "SECRET.yaml", "--video", "SECRET.mp4"],
    ],
    ids=" ".join,
)
def test_no_command_shows_a_traceback_for_a_path_without_permissions(tmp_path, emollama, monkeypatch, line):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/log.jsonl").write_text('{"step": 0}\n')
    (tmp_path / "a.jsonl").write_text('{"name": "a", "task": "emotion", "prediction": "happy"}\n')
    (tmp_path / "a.csv").write_text("name,label\na,happy\n")
    for name in {word for word in line if word.startswith("SECRET")}:
        path = tmp_path / name
        path.write_bytes(b"x") if path.suffix else path.mkdir()
        path.chmod(0)
    with unprivileged():
        completed = emollama(*line)
    assert completed.returncode in (1, 2) and "SECRET" in completed.stderr and "Traceback" not in completed.stderr


# Names of runs

JOB_IDS = ["two words", "Größe 😀", "it's", 'a "b"', "a: b #c", "[x]{y}", "$HOME `id`", "-x", "n" * 200, "é" * 100, " space "]


@pytest.mark.parametrize("job_id", JOB_IDS)
def test_a_run_with_an_unusual_name_is_trained_resumed_evaluated_and_reported(tmp_path, emollama, job_id):
    content = training(tmp_path, job_id=job_id, iters_per_epoch=1, evaluate=False)
    path = write(tmp_path, json.dumps(content, ensure_ascii=False))
    completed = emollama("train", "--cfg-path", path)
    assert completed.returncode == 0, completed.stderr
    run = tmp_path / "out" / job_id
    (following,) = re.findall(r"next command +emollama (.*)", completed.stderr)
    evaluated = emollama(*shlex.split(following))
    assert evaluated.returncode == 0 and (run / "result/metrics_answers.json").is_file(), evaluated.stderr
    options = ["--options", "run.resume_ckpt_path=auto", "run.max_epoch=2"]
    assert emollama("train", "--cfg-path", path, *options).returncode == 0
    assert (run / "checkpoint_1.pth").is_file()
    assert emollama("report", run).returncode == 0
    assert html.escape(job_id) in (run / "result/report.html").read_text().replace("&#39;", "&#x27;").replace("&#34;", "&quot;")


@pytest.mark.parametrize(
    ("job_id", "problem"),
    [
        ("n" * 201, "job_id has 201 characters"),
        ("é" * 150, "job_id has 150 characters (300 bytes). The name of a folder has at most 200 characters and 255 bytes"),
        ("a\nb", "contains characters that cannot be printed"),
        ("a\x1b[31m", "contains characters that cannot be printed"),
        ("a/b", "without '/'"),
        (".a", "not starting with '.'"),
        ("..", "not starting with '.'"),
        ("", "must be the name of a folder"),
    ],
)
def test_a_name_that_cannot_be_a_folder_is_refused(tmp_path, emollama, job_id, problem):
    completed = emollama("train", "--cfg-path", write(tmp_path, training(tmp_path, job_id=job_id)))
    assert completed.returncode == 1 and problem in completed.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "job_id", ["007", "0x10", "1e5", "1.10", "12:30:45", "yes", "1_000", "run #1", "#1", "2024-01-01", "None"]
)
def test_a_name_on_the_command_line_is_used_as_written(tmp_path, job_id):
    config = loading.load(str(write(tmp_path, training(tmp_path))), [f"run.job_id={job_id}"])
    assert config.run.job_id == job_id and config.resolved()["run"]["job_id"] == job_id


@pytest.mark.parametrize(("value", "job_id"), [("'007'", "007"), ('"run #1"', "run #1"), ("null", None), ("!!str 7", "7")])
def test_quotes_around_a_name_are_removed_and_null_is_no_name(tmp_path, value, job_id):
    assert loading.load(str(write(tmp_path, training(tmp_path))), [f"run.job_id={value}"]).run.job_id == job_id


def test_the_last_option_for_a_name_counts(tmp_path):
    options = ["run.job_id=007", "run={job_id: x}"]
    assert loading.load(str(write(tmp_path, training(tmp_path))), options).run.job_id == "x"


@pytest.mark.parametrize("value", ["007", "0x10", "yes", "12:30:45", "1.10"])
def test_a_name_that_yaml_reads_as_another_value_is_refused_in_a_file(tmp_path, emollama, value):
    content = training(tmp_path)
    content["run"]["job_id"] = "NAME"
    completed = emollama("train", "--cfg-path", write(tmp_path, json.dumps(content).replace('"NAME"', value)))
    assert completed.returncode == 1 and "'run.job_id': YAML reads this value as" in completed.stderr
    assert "Write it in quotes, as in job_id: '007'" in completed.stderr and not (tmp_path / "out").exists()


# Checkpoints that are written or replaced while something else happens


class EndsWorker:
    """An object whose pickling ends a data worker and waits until torch notices that."""

    def __init__(self, pid):
        self.pid = pid

    def __reduce__(self):
        os.kill(self.pid, signal.SIGKILL)
        signal.sigtimedwait([signal.SIGUSR1], 30)  # is interrupted by SIGCHLD
        return int, ()


def test_a_data_worker_that_ends_during_a_save_is_not_a_problem_of_the_disk(tmp_path):
    batches = iter(DataLoader(list(range(100)), num_workers=1))
    next(batches)
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid \d+\) is killed by signal: Killed"):
        checkpoint.save(tmp_path / "checkpoint_0.pth", {"model": EndsWorker(batches._workers[0].pid)})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("function", [file_digests.is_intact, lambda path: checkpoint.read(path, "model.ckpt")])
def test_a_checkpoint_that_a_training_replaces_while_it_is_read_is_not_damaged(tmp_path, monkeypatch, function):
    path, stored, replacements = tmp_path / "checkpoint_last.pth", file_digests.stored_digests, [2.0]
    checkpoint.save(path, {"model": {"a": torch.tensor(1.0)}})

    def replaced_before(digest):
        while replacements:
            checkpoint.save(path, {"model": {"a": torch.tensor(replacements.pop())}})
        return stored(digest)

    monkeypatch.setattr(file_digests, "stored_digests", replaced_before)
    assert function(str(path)) in (True, {"model": {"a": 2.0}}) and not replacements


def test_a_last_checkpoint_that_does_not_fit_is_saved_after_a_step_with_space(tmp_path, emollama, during):
    with small_disk("8m") as disk:
        settings = {"output_dir": str(disk / "out"), "iters_per_epoch": 6, "save_every_iters": 2, "evaluate": False}
        during({1: lambda: fill(disk, leave=50_000), 4: (disk / "filler").unlink})
        completed = emollama("train", "--cfg-path", write(tmp_path, training(tmp_path, **settings)))
        assert completed.returncode == 0, completed.stderr
        assert completed.stderr.count("checkpoint_last.pth could not be written: No space left on device") == 1
        assert step_of(disk / "out/run/checkpoint_last.pth") == 5 and step_of(disk / "out/run/checkpoint_0.pth") == 6


def test_a_best_checkpoint_that_does_not_fit_is_copied_after_a_step_with_space(tmp_path, emollama, during, monkeypatch):
    """On a file system without hard links, where the best checkpoint is a copy."""
    save, steps = RunCheckpoints.save_best, []

    def no_links(source, target):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    with small_disk("24m") as disk:
        best = disk / "out/run/checkpoint_best.pth"

        def save_after_filling(self, completed_steps):
            self.finish()
            if completed_steps == 3:
                fill(disk, leave=50_000)
            return save(self, completed_steps)

        monkeypatch.setattr(os, "link", no_links)
        monkeypatch.setattr(RunCheckpoints, "save_best", save_after_filling)
        during({3: (disk / "filler").unlink, 4: lambda: steps.append(step_of(best))})
        settings = {"output_dir": str(disk / "out"), "iters_per_epoch": 3, "max_epoch": 2, "save_best": True}
        completed = emollama("train", "--cfg-path", write(tmp_path, training(tmp_path, **settings)))
        assert completed.returncode == 0, completed.stderr
        assert completed.stderr.count("checkpoint_best.pth could not be written: No space left on device") == 1
        assert steps == [3] and file_digests.is_intact(best)


def test_a_stop_checkpoint_that_does_not_fit_is_an_error(tmp_path, emollama, during):
    with small_disk("8m") as disk:
        settings = {"output_dir": str(disk / "out"), "iters_per_epoch": 6, "evaluate": False}
        during({1: lambda: (fill(disk, leave=50_000), signal.raise_signal(signal.SIGTERM))})
        completed = emollama("train", "--cfg-path", write(tmp_path, training(tmp_path, **settings)))
        assert completed.returncode == 1
        assert "error: " in completed.stderr and "checkpoint_last.pth could not be written: No space left" in completed.stderr
