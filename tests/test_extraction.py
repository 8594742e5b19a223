"""Feature extraction around the encoders: output files, errors, failed clips, stopping and resuming, several processes."""

from __future__ import annotations

import csv
import json
import logging
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from errno import ENOSPC
from types import SimpleNamespace

import encoding
import numpy as np
import pytest
import torch
import yaml
from helpers import GOLDEN
from media_files import write_broken, write_video
from ranks import Group, fork_context
from safetensors.torch import load_file, save_file

from emollama import cli
from emollama import config as configuration
from emollama.errors import UserError
from emollama.extraction.arrays import ArrayWriter
from emollama.extraction.videos import VideoExtraction, _summary
from emollama.logs import console
from emollama.logs.logger import get_logger
from emollama.registry import ENCODERS, EXTRACTORS
from emollama.runners.provenance import mismatches
from emollama.stores.manifest import Manifest
from emollama.stores.packed import PackedStore

IMPORTED = "tests.workers.byte_encoders"
SENTENCE = "the quick brown fox jumps over the lazy dog"
TROUBLE = {"text": "no video", "empty": "", "broken": "clip broken", "heavy": "clip heavy", "endless": "clip endless"}
WHY = {
    "text": "no clip",
    "empty": "no clip",
    "broken": "OSError: a bad sector",
    "heavy": "RuntimeError: too heavy",
    "endless": "features are not finite with precision fp32 and dtype float32",
}


@pytest.fixture(scope="module", autouse=True)
def own_encoders():
    """Register the encoders of these configurations only for the tests of this file."""
    yield
    for name in ("bytes", "grid", "meeting", "series"):
        ENCODERS._entries.pop(name, None)
    sys.modules.pop(IMPORTED, None)


@pytest.fixture
def root(tmp_path):
    """A folder with weights and 9 clips; two are in subfolders and one has a space in its name."""
    names = [*(f"clip_{number}" for number in range(6)), "a/clip_0", "a/b/x", "with space"]
    (tmp_path / "weights.bin").write_bytes(b"seed")
    add_clips(tmp_path, names)
    return tmp_path


@pytest.fixture
def log_lines():
    """The logged messages."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    get_logger().addHandler(handler)
    yield lines
    get_logger().removeHandler(handler)


def add_clips(root, names, content="clip {name} " + SENTENCE):
    for number, name in enumerate(names):
        path = root / "videos" / f"{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content.format(name=name) + " " * number)


def add_trouble(root):
    for name, content in TROUBLE.items():
        (root / "videos" / f"{name}.mp4").write_text(content)


def configured(root, *, encoders=("bytes",), model=None, **extraction):
    """Write a YAML file; ``encoders`` is a sequence of names or maps names to keys."""
    keys = encoders if isinstance(encoders, dict) else {label: {} for label in encoders}
    tree = {
        "imports": [IMPORTED],
        "encoders": {label: {"weights": str(root / "weights.bin"), "batch_size": 3} | values for label, values in keys.items()},
        "extraction": {"videos": str(root / "videos"), "output": str(root / "out"), "device": "cpu", **extraction},
    } | ({"model": model} if model else {})
    path = root / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return str(path)


def extract(path, *options):
    """Extract in this process with one thread, like the processes that tests start."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        config = configuration.load(path, list(options), needs_model=False)
        config.extractor_class(config).run()
    finally:
        torch.set_num_threads(threads)


def dry_run(path, *, processes=1):
    """The output of ``emollama extract --dry-run``."""
    config = configuration.load(path, [], needs_model=False)
    return config.extractor_class(config).dry_run(processes)


def in_child(function, *arguments):
    """Fork a process from this one, which has already imported the libraries."""
    process = fork_context().Process(target=function, args=arguments)
    process.start()
    return process


HANG = 240.0  # seconds after which a process is considered hung; a loaded machine takes far less


def commanded(path, log_path, variables):
    """Run the command in a forked process; its standard error goes to a file."""
    os.environ.update(variables)
    get_logger().handlers.clear()
    torch.set_num_threads(1)
    with open(log_path, "w", buffering=1) as sys.stderr:
        os.dup2(sys.stderr.fileno(), 2)
        sys.argv = ["emollama", "extract", "--cfg-path", path]
        cli.main()


@contextmanager
def running_together(root, path, processes):
    """Run the command in processes of one group, which write ``log_<rank>``; kill those that remain at the end."""
    group = Group(processes)
    variables = [group.variables(rank) if processes > 1 else {} for rank in range(processes)]
    running = [in_child(commanded, path, root / f"log_{rank}", environment) for rank, environment in enumerate(variables)]
    try:
        yield running
    finally:
        for process in running:
            process.kill()
            process.join()


def together(root, path, processes):
    """Run the command in processes of one group; return the (exit status, standard error) of each."""
    with running_together(root, path, processes) as running:
        for process in running:
            process.join(HANG)
    return [(process.exitcode, (root / f"log_{rank}").read_text()) for rank, process in enumerate(running)]


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def listed_failures(root):
    with open(root / "out/failures.csv", newline="") as file:
        return {(row["folder"], row["name"]): row for row in csv.DictReader(file)}


def expected(root, name, width=24):
    matrix = np.random.default_rng(list(b"seed")).standard_normal((256, width), np.float32)
    counts = np.bincount(np.frombuffer((root / f"videos/{name}.mp4").read_bytes(), np.uint8), minlength=256)
    return counts.astype(np.float32) @ matrix


def refusal(path, *options):
    with pytest.raises(UserError) as error:
        extract(path, *options)
    return str(error.value)


# Output files


def test_extraction_writes_exactly_one_array_per_clip_and_encoder(root, log_lines):
    extract(configured(root, encoders=("bytes", "grid")))
    names = {path.relative_to(root / "videos").with_suffix("").as_posix() for path in (root / "videos").rglob("*.mp4")}
    assert len(names) == 9 and {"a/b/x", "with space"} <= names
    arrays = {f"{folder}/{name}.npy" for folder in ("bytes", "grid") for name in names}
    others = {f"{folder}/{name}" for folder in ("bytes", "grid") for name in ("manifest.json", "SHA256SUMS")}
    assert contents(root / "out").keys() == arrays | others | {"failures.csv"}
    for name in names:
        array = np.load(root / f"out/bytes/{name}.npy")
        assert array.dtype == np.float32 and np.allclose(array, expected(root, name), atol=1e-4)
        assert np.load(root / f"out/grid/{name}.npy").shape == (5, 24)
    assert listed_failures(root) == {}
    assert any(
        line.startswith("bytes: 9 clips, 0 done before, 9 done now (") and line.endswith(", 0 failed") for line in log_lines
    )


def test_the_manifest_contains_the_encoder_settings_weight_digest_and_versions(root):
    extract(configured(root, encoders={"mine": {"type": "bytes", "folder": "features", "dtype": "float16", "layers": [-2, -1]}}))
    manifest = Manifest.read(str(root / "out/features"))
    assert manifest.slots == ("face",) and (manifest.num_vectors, manifest.dim, manifest.dtype) == (1, 24, "float16")
    assert manifest.settings == {"encoder": "bytes", "layers": [-2, -1]}
    assert manifest.weights == "19b25856e1c150ca834cffc8b59b23adbd0ec0389e58eb22b3b64768098d002b"  # sha256sum of "seed"
    assert (
        manifest.versions["torch"] == torch.__version__ and {"emollama", "transformers", "timm", "av"} <= manifest.versions.keys()
    )
    assert np.load(root / "out/features/clip_0.npy").dtype == np.float16


@pytest.mark.parametrize("extension", ["txt", "csv"])
def test_only_listed_clips_are_extracted_and_a_missing_video_is_listed_as_a_failure(root, extension):
    text = {"txt": "clip_1 25 happy\nnowhere 10 sad\na/b/x 3 sad\n", "csv": "name,label\nclip_1,happy\nnowhere,sad\na/b/x,sad\n"}
    (root / f"list.{extension}").write_text(text[extension])
    extract(configured(root, annotation_file=str(root / f"list.{extension}")))
    assert {path for path in contents(root / "out") if path.endswith(".npy")} == {"bytes/clip_1.npy", "bytes/a/b/x.npy"}
    (row,) = listed_failures(root).values()
    expected_row = {
        "name": "nowhere",
        "slot": "face",
        "encoder": "bytes",
        "folder": "bytes",
        "video": "",
        "reason": "no video file",
    }
    assert row == expected_row


def test_a_finished_clip_remains_valid_after_its_video_is_deleted(root):
    (root / "list.txt").write_text("clip_1\nclip_2\n")
    path = configured(root, annotation_file=str(root / "list.txt"))
    extract(path)
    (root / "videos/clip_1.mp4").unlink()
    before = contents(root / "out")
    extract(path)
    assert contents(root / "out") == before and listed_failures(root) == {}


def test_finished_clips_are_not_extracted_again(root):
    path = configured(root)
    extract(path)
    (root / "out/bytes/clip_3.npy").unlink()
    before = {file: file.stat().st_ino for file in (root / "out/bytes").rglob("*.npy")}
    extract(path)
    after = {file: file.stat().st_ino for file in (root / "out/bytes").rglob("*.npy")}
    assert len(after) == 9 and all(after[file] == inode for file, inode in before.items())


def test_without_a_terminal_lines_show_the_progress(root, log_lines, monkeypatch):
    monkeypatch.setattr(console, "LINE_SECONDS", 0.0)
    extract(configured(root))  # three groups; the first is encoded before any is written
    assert [line.split(" clips")[0] for line in log_lines if " of 9 clips (" in line] == [
        f"bytes: {count} of 9" for count in (3, 6, 9)
    ]


def test_face_images_replace_the_keys_of_face_detection_in_the_manifest(tmp_path):
    clip = encoding.face_clip(tmp_path, "anna", 3)
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos/anna.mp4")
    weights = str(encoding.save_mae(tmp_path / "mae"))
    for frames in (32, 64):
        path = configured(tmp_path, encoders={"mae": {"weights": weights, "max_frames": frames}}, face_path=str(clip.faces))
        extract(path)
    manifest = Manifest.read(str(tmp_path / "out/mae_340_UTT"))
    assert manifest.inputs == {"faces": "images"} and not {"face", "max_frames"} & manifest.settings.keys()
    source = SimpleNamespace(slots=("face",), frame_selection=None, path=str(tmp_path / "out/mae_340_UTT"), key="datasets.a.face")
    config = configuration.load(path, [], needs_model=False)
    assert mismatches(config, [SimpleNamespace(features=[source])]) == []
    config.encoders["mae"].pooling = "patches"
    assert "pooling" in mismatches(config, [SimpleNamespace(features=[source])])[0]


# Errors before anything is written

LLM = {"arch": "minigpt_v2", "llama_model": "nowhere", "slot_dims": {"image": 24, "face": 24}, "image_size": 28}
TWO = {"bytes": {}, "other": {"type": "bytes"}}
REFUSED = {
    "no encoder": ({"encoders": {}}, ["encoders: contains no encoder. Add one"]),
    "one folder": ({"encoders": {"bytes": {}, "grid": {"folder": "bytes"}}}, ["encoders.bytes", "encoders.grid", "same folder"]),
    "one slot": ({"encoders": TWO | {"other": {"type": "bytes", "folder": "b"}}}, ["encoders.bytes", "same slot, 'face'"]),
    "a way out": ({"encoders": {"bytes": {"folder": "../b"}}}, ["encoders.bytes.folder"]),
    "no folder": ({"videos": "nowhere"}, ["extraction.videos", "nowhere"]),
    "no faces": ({"face_path": "nowhere"}, ["extraction.face_path", "nowhere"]),
    "no list": ({"annotation_file": "nowhere.txt"}, ["annotation_file", "nowhere.txt"]),
    "other width": ({"encoders": {"bytes": {"width": 16}}, "model": LLM}, ["encoders.bytes", "16", "model.slots", "24"]),
    "other size": (
        {"encoders": ["grid"], "model": LLM | {"image_size": 56}},
        ["encoders.grid.image_size", "model.image_size", "16"],
    ),
    "not a place": ({"output": "/dev/null/out"}, ["extraction.output"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_invalid_extraction_is_refused_with_its_key_and_nothing_is_written(root, case):
    keys, expected_parts = REFUSED[case]
    before = contents(root)
    path = configured(root, **keys)
    text = refusal(path)
    assert all(word in text for word in expected_parts), text
    with pytest.raises(UserError, match=re.escape(text)):
        dry_run(path)
    assert {name: raw for name, raw in contents(root).items() if name != "config.yaml"} == before


def test_an_extractor_without_a_method_is_refused(root, monkeypatch):
    own = type("Own", (), {"Config": VideoExtraction.Config, "run": VideoExtraction.run})
    monkeypatch.setattr(EXTRACTORS, "_entries", {"own": own})
    with pytest.raises(UserError, match=r"^extraction.type: extractor 'own' \(Own, unknown file\) has no dry_run\. Add what"):
        configuration.load(configured(root, type="own"), [], needs_model=False)


def test_a_dry_run_counts_the_remaining_videos_of_each_encoder_and_writes_nothing(root):
    path = configured(root, encoders=("bytes", "grid"))
    before = contents(root)
    summary = dict(re.split(" {2,}", line) for line in dry_run(path, processes=2).splitlines()[:-1])
    assert contents(root) == before
    assert summary["processes"] == "2 on cpu" and summary["output"] == str(root / "out")
    assert summary["encoders.bytes"].startswith("9 videos to encode, 0 done")
    extract(path, "encoders.grid=null")
    summary = dict(re.split(" {2,}", line) for line in dry_run(path).splitlines()[:-1])
    assert summary["encoders.bytes"].startswith("0 videos to encode, 9 done")
    assert summary["encoders.grid"].startswith("9 videos to encode, 0 done")


def test_extraction_succeeds_if_the_features_fit_the_model(root):
    extract(configured(root, encoders=("bytes", "grid"), model=LLM))
    assert len(list((root / "out").rglob("*.npy"))) == 18


@pytest.mark.parametrize("name", ["../clip_1", "/clip_1", "a\\b", "x" * 240])
def test_a_listed_name_that_is_not_a_valid_file_name_is_refused(root, name):
    (root / "list.txt").write_text(f"clip_0\n{name}\n")
    text = refusal(configured(root, annotation_file=str(root / "list.txt")))
    assert "list.txt" in text and name.replace("\\", "\\\\") in text and not (root / "out").exists()


def test_a_video_whose_name_is_not_utf_8_is_refused(root):
    with open(os.fsencode(root / "videos") + b"/caf\xe9.mp4", "wb") as file:
        file.write(b"clip")
    assert r"'caf\udce9'" in refusal(configured(root))


def test_a_list_without_any_matching_video_is_refused(root):
    (root / "list.txt").write_text("clip_0.mp4\nclip_1.mp4\n")
    text = refusal(configured(root, annotation_file=str(root / "list.txt")))
    assert "none of the 2 clips" in text and "write the names without extensions" in text and not (root / "out").exists()


@pytest.mark.parametrize(
    ("change", "expected_parts"),
    [
        ({"layers": [-4, -1]}, ["layers: [-1] and [-4, -1]"]),
        ({"dtype": "float16"}, ["dtype: 'float32' and 'float16'"]),
        ({"width": 16}, ["width: 24 and 16"]),
        ({"type": "grid", "folder": "bytes"}, ["encoder: 'bytes' and 'grid'", "slots"]),
        ("weights", ["weights: '19b25856"]),
    ],
)
@pytest.mark.parametrize("stored_as", ["npy", "packed"])
def test_features_with_other_settings_are_not_mixed(root, change, expected_parts, stored_as):
    extract(configured(root, stored_as=stored_as))
    add_clips(root, ["later"])
    if change == "weights":
        (root / "weights.bin").write_bytes(b"other")
        change = {}
    before = contents(root / "out")
    text = refusal(configured(root, encoders={"bytes": change}, stored_as=stored_as))
    remedy = "Specify another folder, or delete that one"
    assert all(part in text for part in [*expected_parts, str(root / "out/bytes"), remedy]), text
    assert contents(root / "out") == before


@pytest.mark.parametrize("stored_as", ["npy", "packed"])
@pytest.mark.parametrize("then", ["npy", "packed"])
def test_an_extraction_without_arrays_does_not_block_a_corrected_one(root, stored_as, then):
    video = root / "videos/clip_0.mp4"
    content = video.read_text()
    for path in (root / "videos").rglob("*.mp4"):
        path.write_text("no clip")
    assert "could not process any clip" in refusal(configured(root, stored_as=stored_as))
    video.write_text(content)
    extract(configured(root, encoders={"bytes": {"layers": [-2]}}, stored_as=then))
    assert Manifest.read(str(root / "out/bytes")).settings["layers"] == [-2]
    assert np.allclose(loaded(root, "clip_0"), expected(root, "clip_0"), atol=1e-4)
    assert {path.name for path in (root / "out").iterdir()} == {"bytes", "failures.csv"}


@pytest.mark.parametrize("damage", ["truncated", "a tensor less"])
@pytest.mark.parametrize("kind", ["eva", "mae", "videomae", "hubert"])
def test_the_weights_of_all_encoders_are_checked_before_the_first_one_runs(root, kind, damage):
    if kind == "eva":
        folder, file = root, root / "eva.safetensors"
        shutil.copy(GOLDEN / "vision/eva_tiny.safetensors", file)
    else:
        folder = {"mae": encoding.save_mae, "videomae": encoding.save_videomae, "hubert": encoding.save_hubert}[kind](root / kind)
        file = folder / "model.safetensors"
    if damage == "truncated":
        os.truncate(file, file.stat().st_size - 100)
    else:
        tensors = load_file(file)
        tensors.pop(next(name for name in tensors if "layer.1." in name or "layers.1." in name or "blocks.1.attn.v" in name))
        save_file(tensors, file, {"format": "pt"})
    later = {"type": kind, "weights": str(file if kind == "eva" else folder), **({"image_size": 112} if kind == "eva" else {})}
    text = refusal(configured(root, encoders={"first": {"type": "meeting"}, "later": later}))
    assert text.startswith("encoders.later.weights: ") and ("truncated" in text or "1 tensor: " in text), text
    assert not (root / "out").exists()


def test_arrays_without_a_manifest_are_not_mixed(root):
    (root / "out/bytes").mkdir(parents=True)
    np.save(root / "out/bytes/old.npy", np.zeros(24, np.float32))
    before = contents(root / "out")
    assert "contains arrays but no manifest.json" in refusal(configured(root))
    assert contents(root / "out") == before


def test_a_failures_file_of_another_origin_is_not_overwritten(root):
    (root / "out").mkdir()
    (root / "out/failures.csv").write_text("my,own,notes\n1,2,3\n")
    assert "failures.csv: not a list of failed clips" in refusal(configured(root))
    assert (root / "out/failures.csv").read_text() == "my,own,notes\n1,2,3\n"


@pytest.mark.parametrize(("first", "second"), [("npy", "packed"), ("packed", "npy")])
def test_a_folder_cannot_contain_both_plain_and_packed_features(root, first, second):
    extract(configured(root, stored_as=first))
    before = contents(root / "out")
    text = refusal(configured(root, stored_as=second))
    assert "stored_as" in text and str(root / "out/bytes") in text
    assert contents(root / "out") == before


def test_other_versions_of_libraries_are_logged_and_the_extraction_continues(root, log_lines):
    extract(configured(root))
    manifest = json.loads((root / "out/bytes/manifest.json").read_text())
    manifest["versions"]["timm"] = "0.1"
    (root / "out/bytes/manifest.json").write_text(json.dumps(manifest))
    add_clips(root, ["later"])
    extract(configured(root))
    assert any("with other versions" in line and "timm: '0.1'" in line for line in log_lines)
    assert (root / "out/bytes/later.npy").exists()


# Failures


@pytest.mark.parametrize("failures", ["report", "zero"])
def test_failed_clips_are_listed_and_optionally_zero_filled_and_the_others_extracted(root, log_lines, failures):
    add_trouble(root)
    extract(configured(root, encoders=("bytes", "grid"), failures=failures))
    for folder, shape in (("bytes", (24,)), ("grid", (5, 24))):
        assert {name: row["reason"] for (where, name), row in listed_failures(root).items() if where == folder} == WHY
        for name in TROUBLE:
            path = root / f"out/{folder}/{name}.npy"
            assert path.exists() == (failures == "zero")
            if failures == "zero":
                array = np.load(path)
                assert array.shape == shape and array.dtype == np.float32 and not array.any()
        assert len(list((root / "out" / folder).rglob("*.npy"))) == 9 + len(TROUBLE) * (failures == "zero")
    assert listed_failures(root)["grid", "text"]["video"] == str(root / "videos/text.mp4")
    assert listed_failures(root)["grid", "text"]["slot"] == "image"
    summary = next(line for line in log_lines if line.startswith("bytes: 14 clips,"))
    assert "9 done now" in summary and "5 failed" in summary and "\n  2 no clip" in summary
    assert f"10 failed. {root}/out/failures.csv lists them with reasons" in log_lines[-1]


@pytest.mark.parametrize("stored_as", ["npy", "packed"])
@pytest.mark.parametrize("failures", ["report", "zero"])
def test_a_second_run_retries_failed_clips_and_removes_successful_ones_from_the_list(root, failures, stored_as):
    add_trouble(root)
    path = configured(root, failures=failures, stored_as=stored_as)
    extract(path)
    (root / "videos/text.mp4").write_text("clip " + SENTENCE)
    extract(path)
    assert {name for _, name in listed_failures(root)} == TROUBLE.keys() - {"text"}
    assert np.allclose(loaded(root, "text"), expected(root, "text"), atol=1e-4)


def loaded(root, name, folder="bytes"):
    path = root / f"out/{folder}/{name}.npy"
    return np.load(path) if path.exists() else PackedStore.open(root / "out" / folder).load(name)


@pytest.mark.parametrize("stored_as", ["npy", "packed"])
def test_zero_arrays_are_removed_when_failures_are_only_reported(root, stored_as):
    add_trouble(root)
    extract(configured(root, failures="zero", stored_as=stored_as))
    extract(configured(root, failures="report", stored_as=stored_as))
    store = root / "out/bytes"
    names = {*PackedStore.open(store).names()} if stored_as == "packed" else {path.stem for path in store.rglob("*.npy")}
    assert (
        len(names) in (8, 9)
        and not names & TROUBLE.keys()
        and listed_failures(root).keys() == {("bytes", name) for name in TROUBLE}
    )


def test_zero_arrays_are_not_written_before_the_list_of_failures(root):
    add_trouble(root)
    (root / "out/failures.csv").mkdir(parents=True)  # so that the list cannot be written
    assert "failures.csv" in refusal(configured(root, failures="zero"))
    assert {path.stem for path in (root / "out/bytes").rglob("*.npy")} & TROUBLE.keys() == set()


def test_failures_of_another_encoder_stay_in_the_list(root):
    add_trouble(root)
    extract(configured(root, failures="zero"))
    extract(configured(root, encoders=("grid",)))
    assert {folder for folder, _ in listed_failures(root)} == {"bytes", "grid"} and len(listed_failures(root)) == 2 * len(TROUBLE)


def test_values_beyond_float16_are_listed_as_a_failure_and_not_stored(root):
    add_clips(root, ["large"], "clip large")
    extract(configured(root, encoders={"bytes": {"dtype": "float16"}}))
    assert [name for _, name in listed_failures(root)] == ["large"] and not (root / "out/bytes/large.npy").exists()


def test_an_encoder_with_an_unexpected_shape_is_an_error_but_finished_clips_remain(root):
    add_clips(root, ["small"], "clip wide")
    text = refusal(configured(root))
    assert "(48,)" in text and "(24,)" in text and "encoders.bytes" in text
    assert len(list((root / "out").rglob("*.npy"))) >= 6


def test_arrays_with_any_number_of_vectors_of_a_new_slot_are_extracted(root):
    add_trouble(root)
    slots = {"gaze": {"dim": 24, "length": None}}
    model = {"arch": "minigpt_v2", "llama_model": "nowhere", "slots": slots}
    extract(configured(root, encoders={"series": {}}, model=model, failures="zero"))
    shapes = {path.stem: np.load(path).shape for path in (root / "out/series").glob("*.npy")}
    assert shapes["clip_0"] == (11, 24) and shapes["broken"] == (1, 24)
    assert Manifest.read(str(root / "out/series")).num_vectors is None


def test_insufficient_device_memory_is_an_error_but_finished_clips_remain(root):
    add_clips(root, ["small"], "clip hungry")
    text = refusal(configured(root))
    assert "encoders.bytes.batch_size: " in text and "too small for 3 clips" in text and "encoders.bytes.precision" in text
    assert len(list((root / "out").rglob("*.npy"))) >= 6


def test_an_encoder_that_fails_on_every_clip_fails_the_run_but_other_arrays_remain(root):
    eva = {"weights": str(GOLDEN / "vision/eva_tiny.safetensors"), "image_size": 112}
    message = refusal(configured(root, encoders={"eva": eva, "bytes": {}}))
    assert "encoders.eva: could not process any clip" in message and "failures.csv" in message
    assert len(list((root / "out/bytes").rglob("*.npy"))) == 9


def test_peaks_without_a_peak_file_are_refused_before_anything_is_written(root):
    eva = {"weights": str(GOLDEN / "vision/eva_tiny.safetensors"), "image_size": 112, "frame_selection": "peak"}
    message = refusal(configured(root, encoders={"eva": eva}))
    assert "encoders.eva.frame_selection: peak needs extraction.peak_index_path" in message
    assert not (root / "out").exists()


def test_failure_reasons_that_differ_only_in_a_number_are_counted_together():
    job = SimpleNamespace(label="mae", before=0, todo=[None] * 3, absent=[])
    text = _summary(job, 0, {"a": "no face found in 20 of its frames", "b": "no face found in 5 of its frames", "c": "cut"}, 1.0)
    assert text.splitlines()[1:] == ["  2 no face found in n of its frames", "  1 cut"]


def test_an_extraction_without_any_result_fails_and_names_the_list(root):
    for path in (root / "videos").rglob("*.mp4"):
        path.write_text("no clip at all")
    ((status, output),) = together(root, configured(root), 1)
    assert status == 1 and "error: encoders.bytes: could not process any clip" in output and "Traceback" not in output
    assert f"{root}/out/failures.csv" in output
    assert "could not process any clip" in refusal(configured(root, output=str(root / "packed"), stored_as="packed"))


# Packed


def test_packed_features_equal_plain_features_and_have_the_same_manifest(root):
    extract(configured(root, output=str(root / "plain")))
    extract(configured(root, stored_as="packed"))
    store = PackedStore.open(root / "out/bytes")
    assert len(store) == 9 and not (root / "out/bytes.npy_parts").exists()
    for name in store.names():
        assert np.array_equal(store.load(name), np.load(root / f"plain/bytes/{name}.npy"))
    assert Manifest.read(str(root / "out/bytes")) == Manifest.read(str(root / "plain/bytes"))
    assert {path.name for path in (root / "out").iterdir()} == {"bytes", "failures.csv"}


def test_a_second_run_without_new_clips_does_not_rewrite_packed_features(root):
    add_trouble(root)
    path = configured(root, stored_as="packed")
    extract(path)
    inodes = {file: file.stat().st_ino for file in (root / "out/bytes").iterdir()}
    extract(path)
    assert {file: file.stat().st_ino for file in (root / "out/bytes").iterdir()} == inodes
    assert {path.name for path in (root / "out").iterdir()} == {"bytes", "failures.csv"}


def test_new_clips_are_packed_together_with_the_existing_ones(root):
    path = configured(root, stored_as="packed")
    extract(path)
    earlier = {name: loaded(root, name) for name in PackedStore.open(root / "out/bytes").names()}
    add_clips(root, ["later"])
    extract(path)
    store = PackedStore.open(root / "out/bytes")
    assert {*store.names()} == {*earlier, "later"} and np.allclose(store.load("later"), expected(root, "later"), atol=1e-4)
    assert all(np.array_equal(store.load(name), array) for name, array in earlier.items())


def move_into_parts(out):
    """The state after a run is killed while it rewrites the pack."""
    extract_parts(out)
    (out / "bytes").rename(out / "bytes.npy_parts/.packed")


def extract_parts(out, count=2):
    """The state after a run is killed before it packs some new arrays, or after packing but before it deletes them."""
    store = PackedStore.open(out / "bytes")
    (out / "bytes.npy_parts").mkdir()
    shutil.copy(out / "bytes/manifest.json", out / "bytes.npy_parts")
    for name in [*store.names()][-count:]:
        np.save(out / f"bytes.npy_parts/{name}.npy", store.load(name))


def copy_into_parts(out):
    """The state after a run is killed when it has rewritten the pack."""
    extract_parts(out)
    shutil.copytree(out / "bytes", out / "bytes.npy_parts/.packed")


@pytest.mark.parametrize("state", [move_into_parts, extract_parts, copy_into_parts])
def test_a_run_killed_during_packing_is_completed_by_the_next_run(root, state):
    path = configured(root, stored_as="packed")
    extract(path)
    clean = contents(root / "out")
    state(root / "out")
    extract(path)
    assert contents(root / "out") == clean


# Stopping and resuming


def many(root, clips, seconds=0.0):
    """Add clips, some of them faulty, and return two encoders that take some time for each clip."""
    add_clips(root, [f"more_{number:02d}" for number in range(clips)])
    add_trouble(root)
    return {"bytes": {"seconds": seconds}, "grid": {"seconds": seconds / 2}}


def extract_until_killed(path, output, changes):
    """Extract, and be killed after a number of output files were opened or renamed: before the next one or during its writing."""
    left = [changes]

    def watch(event, arguments):
        begun = event == "open" and arguments[2] & os.O_WRONLY
        if (begun or event == "os.rename") and str(arguments[0]).startswith(output):
            left[0] -= 1
            if left[0] == 0 and begun:
                resource.setrlimit(resource.RLIMIT_FSIZE, (50, 50))  # a write beyond this number of bytes kills the process
            elif left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    sys.addaudithook(watch)
    extract(path)


SLOW_KILLS = [pytest.param(stored_as, 10, marks=pytest.mark.slow) for stored_as in ("npy", "packed")]


@pytest.mark.parametrize(("stored_as", "kills"), [("packed", 2), *SLOW_KILLS])
def test_runs_killed_at_random_points_finally_write_the_same_files_as_a_clean_run(root, stored_as, kills):
    keys = {"encoders": many(root, 3 * kills), "failures": "zero", "num_workers": 1, "stored_as": stored_as}
    extract(configured(root, **keys, output=str(root / "clean")))
    places = random.Random(stored_as)
    path, counts = configured(root, **keys), []
    while len(counts) < kills:
        process = in_child(extract_until_killed, path, str(root / "out"), places.randint(1, 60))
        process.join()
        if process.exitcode == 0:  # it had finished before
            shutil.rmtree(root / "out")
        else:
            assert process.exitcode in (-signal.SIGKILL, -signal.SIGXFSZ), "the run failed"
            counts.append(len(list((root / "out").rglob("*.npy"))))
    extract(path)
    assert contents(root / "out") == contents(root / "clean") and len(contents(root / "clean")) >= 9
    assert len(set(counts)) > kills / 3, counts


def test_incomplete_files_of_killed_runs_are_removed(root):
    path = configured(root)
    extract(path)
    clean = contents(root / "out")
    for left in ("bytes/.clip_1.npy.tmp77", "bytes/a/.clip_0.npy.tmp123456", "bytes/.manifest.json.tmp5", ".failures.csv.tmp7"):
        (root / "out" / left).write_bytes(b"half")
    (root / "out/.bytes.tmp9").mkdir()
    (root / "out/.bytes.tmp9/shard-00000.bin").write_bytes(b"half")
    extract(path)
    assert contents(root / "out") == clean


def test_a_concurrent_second_run_is_refused(root):
    first = in_child(extract, configured(root, encoders=many(root, 0) | {"bytes": {"stuck": "clip_4"}}, num_workers=1))
    wait_for_arrays(root, 1)
    in_use = f"extraction.output: '{root / 'out'}' is in use: process {first.pid} on {socket.gethostname()} (since "
    assert in_use in refusal(configured(root))
    otherwise = configured(root, encoders={"bytes": {"layers": [-2]}})
    assert in_use in refusal(otherwise), "what changes meanwhile is not looked at"
    (root / "go").touch()
    first.join()
    assert first.exitcode == 0


def wait_for_arrays(root, count):
    end = time.monotonic() + HANG
    while len([*(root / "out").rglob("*.npy")]) < count:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_an_interrupt_stops_immediately_and_the_same_command_resumes(root):
    """The interrupt takes effect while a clip is read that takes longer than this test waits."""
    keys = {"encoders": many(root, 20), "num_workers": 2}
    extract(configured(root, **keys, output=str(root / "clean")))
    path = configured(root, **keys | {"encoders": {label: {"stuck": "more_10"} for label in keys["encoders"]}})
    process = in_child(commanded, path, root / "log", {})
    wait_for_arrays(root, 1)
    os.kill(process.pid, signal.SIGINT)
    process.join(HANG)
    assert process.exitcode == 130
    output = (root / "log").read_text()
    assert "rerun the same command to continue" in output and "Traceback" not in output
    assert len([*(root / "out").rglob("*.npy")]) < 40 and (root / "out/failures.csv").is_file()
    assert not (root / "out/bytes/more_10.npy").exists()
    extract(configured(root, **keys))
    assert contents(root / "out") == contents(root / "clean")


# The disk


@pytest.fixture(params=["its own", "any"])
def small_disk(tmp_path, request, monkeypatch):
    """A folder on a disk of 128 KiB and a function that enlarges it: a separate file system, or simulated errors."""
    folder = tmp_path / "out"
    folder.mkdir()
    if request.param == "any":
        monkeypatch.setattr(os, "fsync", lambda descriptor: refuse_beyond(folder, 2**17))
        yield folder, monkeypatch.undo
        return
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "none", str(folder)], capture_output=True).returncode:
        pytest.skip("only root may mount a file system")
    yield folder, lambda: subprocess.run(["mount", "-o", "remount,size=4m", str(folder)], check=True)
    subprocess.run(["umount", str(folder)], check=True)


def refuse_beyond(folder, size):
    """Fail like a full disk when the bytes of a file are flushed to it."""
    if sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) > size:
        raise OSError(ENOSPC, os.strerror(ENOSPC))


@pytest.mark.parametrize("stored_as", ["npy", "packed"])
def test_a_full_disk_leaves_no_incomplete_file_and_the_run_can_be_resumed(root, small_disk, stored_as):
    small_disk, make_room = small_disk
    add_clips(root, [f"more_{number}" for number in range(20)])
    keys = {"encoders": {"bytes": {"width": 1800}}, "stored_as": stored_as, "num_workers": 1}  # 7 KiB per clip, 29 clips
    extract(configured(root, **keys, output=str(root / "clean")))
    path = configured(root, **keys)
    text = refusal(path)
    assert "disk is full" in text and "same command again" in text and str(small_disk) in text
    stored = contents(small_disk)
    assert 5 < sum(name.endswith(".npy") for name in stored) < 29 and not any(".tmp" in name for name in stored)
    assert all(len(raw) == 128 + 4 * 1800 for name, raw in stored.items() if name.endswith(".npy"))
    make_room()
    extract(path)
    assert contents(small_disk) == contents(root / "clean")


# Real files, real encoders, several processes

VIDEOS = {
    "plain.mp4": {},
    "slow.avi": {"frames": 20, "fps": 12, "sound": (0.5, 0.2), "rate": 22050},
    "below/long.mp4": {"frames": 60, "fps": 30, "rate": 16000},
    "one.mp4": {"frames": 1},
    "turned.mp4": {"turned": (90,), "sound": (0.3,)},
    "silent.mp4": {"frames": 17, "sound": ()},
}
BROKEN = ("text", "empty", "cut")
FOLDERS = {"eva": (1 + 4, 176), "mae_340_UTT": (64,), "maeV_399_UTT": (64,), "HL-UTT": (64,)}


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Videos of several kinds, some of them broken, and a tiny encoder of each kind; features are in ``alone``."""
    root = tmp_path_factory.mktemp("real")
    (root / "videos/below").mkdir(parents=True)
    for name, keys in VIDEOS.items():
        write_video(root / "videos" / name, **keys)
    (root / "other").mkdir()
    for name in BROKEN:
        write_broken(root / "other")[name].rename(root / f"videos/{name}.mp4")
    (root / "weights.bin").write_bytes(b"seed")
    for save in (encoding.save_mae, encoding.save_videomae, encoding.save_hubert):
        save(root / save.__name__.removeprefix("save_"))
    extract(all_four(root, output=str(root / "alone")))
    return root


def all_four(root, more=None, **extraction):
    encoders = {
        "eva": {"random_weights": True, "width": 176, "depth": 2, "image_size": 28, "frame_selection": "middle"},
        "mae": {"weights": str(root / "mae"), "face": "centre"},
        "videomae": {"weights": str(root / "videomae")},
        "hubert": {"weights": str(root / "hubert")},
    }
    return configured(root, encoders=encoders | (more or {}), **extraction)


def failed(folder):
    with open(folder / "failures.csv", newline="") as file:
        return {(row["slot"], row["name"]): row["reason"] for row in csv.DictReader(file)}


def test_all_four_slots_of_real_files_are_extracted_and_broken_files_listed(real):
    failures = failed(real / "alone")
    slots = ("image", "face", "video", "audio")
    assert failures.keys() == {(slot, name) for slot in slots for name in BROKEN} | {("audio", "silent")}
    assert "audio" in failures["audio", "silent"] and all(reason and "Error" not in reason for reason in failures.values()), (
        failures
    )
    for folder, shape in FOLDERS.items():
        names = [name.rpartition(".")[0] for name in VIDEOS if (folder, name) != ("HL-UTT", "silent.mp4")]
        files = {path for path in contents(real / "alone" / folder) if path.endswith(".npy")}
        assert files == {f"{name}.npy" for name in names}
        arrays = [np.load(real / f"alone/{folder}/{name}.npy") for name in names]
        assert {(array.shape, array.dtype) for array in arrays} == {(shape, np.dtype(np.float32))}
        assert len({array.tobytes() for array in arrays}) == len(names), "no two clips are alike"


@pytest.mark.slow
def test_missing_streams_of_real_files_are_replaced_by_zeros(real):
    extract(all_four(real, failures="zero", output=str(real / "zero")))
    assert failed(real / "zero") == failed(real / "alone")
    for folder, shape in FOLDERS.items():
        assert len([*(real / "zero" / folder).rglob("*.npy")]) == len(VIDEOS) + len(BROKEN)
        for name in BROKEN:
            array = np.load(real / f"zero/{folder}/{name}.npy")
            assert array.shape == shape and not array.any()
    assert not np.load(real / "zero/HL-UTT/silent.npy").any() and np.load(real / "zero/eva/silent.npy").any()


def test_the_features_of_a_clip_do_not_depend_on_the_other_clips(real):
    (real / "list.txt").write_text("one\nslow\n")
    extract(all_four(real, output=str(real / "few"), annotation_file=str(real / "list.txt")))
    for folder in FOLDERS:
        for name in ("one", "slow"):
            few, all_of_them = (real / run / folder / f"{name}.npy" for run in ("few", "alone"))
            assert few.read_bytes() == all_of_them.read_bytes()


def test_two_processes_share_the_clips_and_write_the_same_files_as_one(real):
    (real / "meeting").mkdir()
    extract(all_four(real, {"meeting": {}}, output=str(real / "alone")))
    both = {"meeting": {"meeting_folder": str(real / "meeting"), "processes": 2}}
    (status, output), (other, silent) = together(real, all_four(real, both, num_workers=1), 2)
    assert (status, other) == (0, 0) and "Traceback" not in output + silent, output + silent
    assert contents(real / "out") == contents(real / "alone") and len(contents(real / "out")) == 4 * 6 - 1 + 9 + 2 * 5 + 1
    assert "meeting: 9 clips, 0 done before, 9 done now (" in output


@pytest.mark.slow
def test_an_error_of_one_process_alone_is_reported_once_and_the_others_end_silently(root):
    encoders = many(root, 100) | {"bytes": {"seconds": 0.2, "hungry_process": 1}}
    (status, output), (other, silent) = together(root, configured(root, encoders=encoders, num_workers=1), 2)
    assert (status, other) == (1, 1)
    assert output.count("error: encoders.bytes.batch_size: the memory of the device is too small for 3 clips") == 1
    assert "Traceback" not in output + silent and "error" not in silent, output + silent
    assert len([*(root / "out").rglob("*.npy")]) < 100, "the other one takes no more clips"


def test_arrays_of_other_processes_that_the_first_process_cannot_see_are_an_error(tmp_path):
    arrays = ArrayWriter(tmp_path, "bytes", packed=False)
    arrays.write("a/b", np.zeros(4))
    arrays.require_visible(["a/b"])
    with pytest.raises(UserError, match="cannot see 1 arrays of other ranks, such as 'c.npy'.*all machines share"):
        arrays.require_visible(["a/b", "c"])


@pytest.mark.slow
def test_two_processes_killed_ten_times_write_the_same_files_as_a_clean_run(root):
    quick = many(root, 300)
    extract(configured(root, encoders=quick, failures="zero", output=str(root / "clean")))
    slow = {label: {"seconds": 0.1} for label in quick}  # 31 s for two processes
    keys, moments = {"failures": "zero", "num_workers": 1}, random.Random(1)
    path = configured(root, **keys, encoders=slow)
    for _ in range(10):
        before = len([*(root / "out").rglob("*.npy")])
        with running_together(root, path, 2) as running:
            wait_for_arrays(root, before + moments.randint(1, 10))
            time.sleep(moments.uniform(0, 0.5))
            assert [process.exitcode for process in running] == [None, None]
    configured(root, **keys, encoders=quick)
    assert [status for status, _ in together(root, path, 2)] == [0, 0]
    assert contents(root / "out") == contents(root / "clean")
