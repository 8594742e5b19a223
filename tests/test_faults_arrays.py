"""Faults in feature arrays: impossible headers, overflowing values, flipped bits, and files of other kinds."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import resource
import shutil
import subprocess
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pytest
from helpers import GOLDEN, NAMES, loaded, training_tree, write

from emollama.checks.check_data import check
from emollama.data import features
from emollama.data.features import Features
from emollama.data.slots import SlotShape
from emollama.errors import UserError
from emollama.extraction.arrays import ArrayWriter
from emollama.stores import checksums, tar_index
from emollama.stores.feature_cache import FeatureCache
from emollama.stores.manifest import Manifest
from emollama.stores.packing import index_tars
from emollama.stores.store import NpyFolder, open_store

pytestmark = pytest.mark.faults

AUDIO, WIDTH = "HL-UTT", 1024
VALUES = np.linspace(-1, 1, WIDTH, dtype="<f4")


def header(text):
    """The bytes of a .npy file before its values, with any text as its header."""
    raw = text.encode()
    raw += b" " * (-(len(raw) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(raw).to_bytes(2, "little") + raw


def npy(dtype, shape, values=VALUES):
    return header(f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}") + values.tobytes()


IMPOSSIBLE = {  # kind -> (bytes of a .npy file, text of the error)
    "1e12 elements": (npy("<f4", "(1000000000000,)"), "bytes are missing at its end; its header says shape (1000000000000,)"),
    "1e30 elements": (npy("<f4", f"({10**30},)"), f"impossible shape ({10**30},)"),
    "1e30 x 0 elements": (npy("<f4", f"({10**30}, 0)", VALUES[:0]), "impossible shape (1000"),
    "a number of 5000 digits": (npy("<f4", f"({'1' * 5000},)"), "its header is damaged"),
    "dtype <f3": (npy("<f3", "(1024,)"), "unknown dtype: data type '<f3' not understood"),
    "dtype <f99": (npy("<f99", "(1024,)"), "unknown dtype"),
    "dtype <i3": (npy("<i3", "(1024,)"), "unknown dtype"),
    "a negative shape": (npy("<f4", "(-1024,)"), "impossible shape (-1024,)"),
    "two negative sizes": (npy("<f4", "(-1, -1024)"), "impossible shape (-1, -1024)"),
    "a shape of True": (npy("<f4", "(True,)", VALUES[:1]), "impossible shape (True,)"),
    "a shape of floats": (npy("<f4", "(1024.0,)"), "its header is damaged"),
    "trailing bytes": (npy("<f4", "(1024,)") + b"xx", "2 bytes too many at its end"),
    "missing bytes": (npy("<f4", "(1024,)")[:-3], "3 bytes are missing at its end"),
    "an unclosed header": (header("{'descr': '<f4', "), "its header is damaged"),
    "a nested header": (header("(" * 5000), "its header is damaged"),
    "a header of 4 GiB": (b"\x93NUMPY\x02\x00" + b"\xff" * 4 + b"{}", "its header claims to have 4,294,967,295 bytes"),
    "71 dimensions": (npy("<f4", f"({'1, ' * 70}1024)"), "impossible shape (1, 1, 1, 1, 1, 1, ...)"),
    "a zip archive": (b"PK\x03\x04" + bytes(500), "it is a zip archive, as np.savez and torch.save write it"),
}


@pytest.fixture
def tree(tmp_path, corpus):
    """A configuration with one training block on the copied corpus."""
    return training_tree(tmp_path, corpus)


@pytest.fixture
def audio(corpus):
    """The audio feature of the first clip."""
    return corpus / AUDIO / f"{NAMES[0]}.npy"


def problems(tmp_path, tree, *, deep=False):
    """Texts and clips of the problems that check-data reports."""
    return [(finding.text, finding.clips) for finding in check(loaded(tmp_path, tree), deep=deep).of_level("problem")]


def refusal(tmp_path, tree):
    """The error of a training run before it loads weights."""
    config = loaded(tmp_path, tree)
    with pytest.raises(UserError) as error:
        config.runner_class(config)
    return str(error.value)


# Headers and sizes


@pytest.mark.parametrize("kind", IMPOSSIBLE)
def test_an_impossible_file_is_reported_by_check_data_and_refused_by_training_and_packing(tmp_path, tree, audio, emollama, kind):
    raw, message = IMPOSSIBLE[kind]
    audio.write_bytes(raw)
    ((text, clips),) = problems(tmp_path, tree)
    for shown in (text, refusal(tmp_path, tree), emollama("pack", "--source", audio.parent, "--output", tmp_path / "p").stderr):
        assert f"{audio}" in shown and message in shown and "failed with" not in shown and "Traceback" not in shown
    assert clips == (NAMES[0],) and "(slot audio)" in text


def test_processes_of_a_run_print_the_error_of_an_impossible_file_once_and_write_nothing(tmp_path, tree, audio, launch):
    raw, message = IMPOSSIBLE["1e30 elements"]
    audio.write_bytes(raw)
    completed = launch("train.py", "--cfg-path", write(tmp_path, tree), processes=2)
    assert completed.returncode == 1 and completed.stderr.count(f"{audio} (slot audio): cannot be read: ") == 1
    assert message in completed.stderr and "Traceback" not in completed.stderr and not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["1e12 elements", "1e30 elements", "dtype <f3", "a negative shape", "trailing bytes"])
def test_the_header_of_a_large_array_is_checked_in_the_same_way(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(features, "VALUES_CHECKED_UP_TO", 0)
    raw, message = IMPOSSIBLE[kind]
    (tmp_path / "clip.npy").write_bytes(raw)
    (problem,) = Features.open(str(tmp_path), ("audio",), SlotShape(1, WIDTH), "key").problems(["clip"])
    assert message in problem.text


@pytest.mark.parametrize("kind", ["1e12 elements", "1e30 elements", "a header of 4 GiB"])
def test_no_memory_is_allocated_for_the_size_that_a_header_claims(tmp_path, kind):
    (tmp_path / "clip.npy").write_bytes(IMPOSSIBLE[kind][0])
    tracemalloc.start()
    try:
        for read in (NpyFolder.open(tmp_path).load, NpyFolder.open(tmp_path).header):
            with pytest.raises(ValueError):
                read("clip")
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", IMPOSSIBLE)
def test_the_feature_cache_ignores_an_impossible_file(tmp_path, kind):
    (tmp_path / "clip.npy").write_bytes(IMPOSSIBLE[kind][0])
    assert FeatureCache(str(tmp_path), (1, WIDTH)).read("clip.npy") is None


@pytest.mark.parametrize("kind", IMPOSSIBLE)
def test_a_tar_with_an_impossible_member_is_refused_with_the_tar_and_the_member(tmp_path, kind):
    raw, message = IMPOSSIBLE[kind]
    tar_of(tmp_path / "train.tar", {"clip": raw})
    with pytest.raises(UserError, match=re.escape(message)) as error:
        index_tars(f"{tmp_path}/train.tar", None)
    assert f"{tmp_path}/train.tar: member 'clip.npy' is not an array of plain numbers: " in str(error.value)


def test_a_tar_index_whose_arrays_claim_impossible_sizes_is_refused_with_the_command_that_rewrites_it(tmp_path):
    tar_of(tmp_path / "train.tar", {"clip": npy("<f4", "(1024,)")})
    for kind in ("1e12 elements", "1e30 elements", "dtype <f3", "an unclosed header"):
        with open(tmp_path / "train.tar.idx.npz", "wb") as file:
            write_zip(file, dict.fromkeys(("about", "entries", "ends", "names"), IMPOSSIBLE[kind][0]))
        with pytest.raises(UserError, match=r"train.tar: cannot read its index .*emollama pack --index"):
            tar_index.read(f"{tmp_path}/train.tar.idx.npz")


def tar_of(path, members):
    with tarfile.open(path, "w") as tar:
        for name, raw in members.items():
            info = tarfile.TarInfo(f"{name}.npy")
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))


def write_zip(file, members):
    with zipfile.ZipFile(file, "w") as archive:
        for name, raw in members.items():
            archive.writestr(f"{name}.npy", raw)


# Values that overflow


@pytest.mark.parametrize(("amp_dtype", "value"), [("fp16", 3e38), ("fp16", -70000.0), ("bf16", 3.4e38), ("auto", -3.4e38)])
def test_a_finite_value_that_overflows_the_compute_dtype_is_reported_and_refused(tmp_path, tree, audio, amp_dtype, value):
    tree["run"] |= {"amp": True, "amp_dtype": amp_dtype}
    array = VALUES.copy()
    array[7] = value
    np.save(audio, array)
    ((text, clips),) = problems(tmp_path, tree)
    dtype = amp_dtype.replace("auto", "bf16")
    largest = {"fp16": "65504", "bf16": "3.38953e+38"}[dtype]
    expected = f"{audio} (slot audio): contains a value of size {abs(array[7]):.6g}, but this run computes in {dtype}, whose"
    assert f"{expected} largest value is {largest}. Set run.amp" in text and clips == (NAMES[0],)
    assert expected in refusal(tmp_path, tree)


@pytest.mark.parametrize("run", [{"amp": True, "amp_dtype": "bf16"}, {"amp": False, "amp_dtype": "fp16"}])
def test_a_value_that_the_compute_dtype_represents_is_accepted(tmp_path, tree, audio, run):
    tree["run"] |= run
    np.save(audio, np.full(WIDTH, 3e38, np.float32) * VALUES)
    assert problems(tmp_path, tree) == []


def test_a_result_of_a_check_for_one_dtype_is_not_used_for_another(tmp_path, tree, audio):
    np.save(audio, VALUES * np.float32(70000))
    tree["run"] |= {"amp": True, "amp_dtype": "bf16"}
    assert problems(tmp_path, tree) == []
    tree["run"]["amp_dtype"] = "fp16"
    assert len(problems(tmp_path, tree)) == 1


def test_an_overflowing_value_in_a_large_array_is_refused_when_the_array_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "VALUES_CHECKED_UP_TO", 0)
    np.save(tmp_path / "clip.npy", VALUES * 1e6)
    source = Features.open(str(tmp_path), ("audio",), SlotShape(1, WIDTH, compute_dtype="fp16"), "key")
    assert source.problems(["clip"]) == []
    with pytest.raises(UserError, match="clip.npy .slot audio.: contains a value of size 1e.06, but this run computes in fp16"):
        source.read("clip")


# Digests


def extracted(folder, arrays):
    """Write .npy files as an extraction does."""
    writer = ArrayWriter(folder.parent, folder.name, packed=False)
    writer.open(Manifest(("audio",), 1, WIDTH, {"encoder": "x"}, "0" * 64, "float32"))
    for name, array in arrays.items():
        writer.write(name, array)
    writer.finish()


@pytest.fixture(params=["npy", "packed", "tar", "tar index"])
def stored(request, corpus, tree, emollama):
    """The audio features in a store with digests; returns its kind and the file that contains the array of the second clip."""
    kind, source = request.param, corpus / AUDIO
    arrays = {path.stem: np.load(path) for path in source.glob("*.npy")}
    if kind == "npy":
        shutil.rmtree(source)
        extracted(source, arrays)
        return kind, source / f"{NAMES[1]}.npy"
    if kind == "tar index":
        (corpus / "shards").mkdir()
        tar_of(corpus / "shards/shard-00000.tar", {name: npy("<f4", array.shape, array) for name, array in arrays.items()})
        assert emollama("pack", "--index", corpus / "shards").returncode == 0
    else:
        assert emollama("pack", "--source", source, "--output", corpus / "shards", "--to", kind).returncode == 0
    tree["datasets"]["golden"]["features"] = {"audio": "shards"}
    return kind, next((corpus / "shards").glob("shard-00000.*[rn]"))


def flip(path, values, bit=0):
    """Change one bit of a file, in the last of these values."""
    raw = bytearray(path.read_bytes())
    position = raw.index(values.tobytes()) + values.nbytes - 4
    raw[position] ^= 1 << bit
    path.write_bytes(raw)


def test_a_deep_check_of_intact_stores_reports_nothing(tmp_path, tree, stored):
    report = check(loaded(tmp_path, tree, "datasets.golden.features.image=null", "model.slots.image=null"), deep=True)
    assert [finding for finding in report.findings if "audio" in finding.text] == []


@pytest.mark.parametrize("bit", [0, 5])
def test_a_deep_check_finds_a_flipped_bit_and_names_the_clip(tmp_path, tree, stored, bit):
    kind, path = stored
    flip(path, np.load(GOLDEN / "data" / AUDIO / f"{NAMES[1]}.npy"), bit)
    assert problems(tmp_path, tree) == []
    ((text, clips),) = problems(tmp_path, tree, deep=True)
    assert "(slot audio): the bytes of these arrays differ from the digests that were recorded when they were written" in text
    assert clips == (NAMES[1],), kind


def test_the_option_deep_of_the_command_compares_digests(tmp_path, tree, corpus, emollama):
    source = corpus / AUDIO
    arrays = {path.stem: np.load(path) for path in source.glob("*.npy")}
    shutil.rmtree(source)
    extracted(source, arrays)
    flip(source / f"{NAMES[3]}.npy", arrays[NAMES[3]])
    path = write(tmp_path, tree)
    assert emollama("check-data", "--cfg-path", path).returncode == 0
    completed = emollama("check-data", "--cfg-path", path, "--deep")
    assert completed.returncode == 1 and f"remove their lines in SHA256SUMS: {NAMES[3]}" in completed.stdout


def test_a_damaged_file_of_digests_is_reported(tmp_path, tree, corpus):
    (corpus / AUDIO / "SHA256SUMS").write_text("garbage\n")
    assert problems(tmp_path, tree) == []
    ((text, _),) = problems(tmp_path, tree, deep=True)
    assert "SHA256SUMS is damaged: it contains no digest" in text


def test_stores_without_digests_are_read_and_the_deep_check_says_so(tmp_path, tree):
    report = check(loaded(tmp_path, tree), deep=True)
    assert report.of_level("problem") == []
    (audio_note,) = (note for note in report.of_level("note") if note.kind == "no digests" and "slot audio" in note.text)
    assert sorted(audio_note.clips) == NAMES and "no digest was recorded for these arrays" in audio_note.text


def test_a_tar_index_of_the_earlier_version_is_read_and_has_no_digests():
    store = open_store(str(GOLDEN.parent / "stores_v1/train-{000..001}.tar"), "key")
    names = list(store.names())
    assert len(names) > 1 and all(store.load(name).size for name in names)
    assert {store.is_intact(name) for name in names} == {None}


def test_packed_shards_of_the_first_version_have_digests():
    store = open_store(str(GOLDEN.parent / "stores_v1/packed"), "key")
    assert {store.is_intact(name) for name in store.names()} == {True}


def test_the_earlier_version_can_read_a_tar_index_with_digests(tmp_path):
    """It reads four arrays by their names and rejects versions above 2."""
    tar_of(tmp_path / "train.tar", {"clip": npy("<f4", "(1024,)")})
    (path,) = index_tars(f"{tmp_path}/train.tar", None)
    index = tar_index.read(str(path))
    with np.load(path) as arrays:
        assert sorted(arrays) == ["about", "ends", "entries", "names", "values"] and b'"version": 2' in arrays["about"].tobytes()
    assert index.checksums is not None
    tar_index.write(tar_index.TarIndex(*list(vars(index).values())[:-1]), tmp_path / "old.idx.npz")
    old = tar_index.read(str(tmp_path / "old.idx.npz"))
    assert old.checksums is None and np.array_equal(old.entries, index.entries) and old.names == index.names


def test_a_changed_header_of_a_tar_member_is_found_by_the_deep_check(tmp_path):
    tar_of(tmp_path / "train.tar", {"first": npy("<f4", "(1024,)"), "clip": npy("<f4", "(1024,)")})
    index_tars(f"{tmp_path}/train.tar", None)
    raw = bytearray((tmp_path / "train.tar").read_bytes())
    raw[raw.index(b"clip.npy") + 120] ^= 1  # the modification time in the tar header
    (tmp_path / "train.tar").write_bytes(raw)
    store = open_store(f"{tmp_path}/train.tar", "key")
    assert (store.is_intact("first"), store.is_intact("clip")) == (True, False)


def test_the_program_sha256sum_verifies_the_digests_of_an_extraction(tmp_path):
    extracted(tmp_path / AUDIO, {"a": VALUES, "sub/ü b": VALUES * 2})
    line = ["sha256sum", "--check", "--strict", checksums.FILE]
    assert subprocess.run(line, cwd=tmp_path / AUDIO, capture_output=True, check=False).returncode == 0
    flip(tmp_path / AUDIO / "sub/ü b.npy", VALUES * 2)
    assert subprocess.run(line, cwd=tmp_path / AUDIO, capture_output=True, check=False).returncode == 1


def test_digests_of_an_extraction_that_was_killed_remain_and_an_array_that_is_written_again_has_a_new_one(tmp_path):
    folder = tmp_path / AUDIO
    writer = ArrayWriter(tmp_path, AUDIO, packed=False)
    writer.write("a", VALUES)
    writer.write("b", VALUES)
    with open(folder / checksums.FILE, "a") as file:
        file.write("0123  incomplete\n")
    extracted(folder, {"b": VALUES * 2})
    store = NpyFolder.open(folder)
    assert (store.is_intact("a"), store.is_intact("b"), store.is_intact("other")) == (True, True, None)
    assert len((folder / checksums.FILE).read_text().splitlines()) == 2


def test_a_replaced_array_is_no_longer_reported_after_its_digest_was_removed(tmp_path):
    folder = tmp_path / AUDIO
    extracted(folder, {"a": VALUES, "b": VALUES})
    np.save(folder / "a.npy", VALUES * 3)
    assert (NpyFolder.open(folder).is_intact("a"), NpyFolder.open(folder).is_intact("b")) == (False, True)
    path = folder / checksums.FILE
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if not line.endswith("  a.npy\n")))
    assert (NpyFolder.open(folder).is_intact("a"), NpyFolder.open(folder).is_intact("b")) == (None, True)


def test_an_incomplete_last_line_does_not_damage_the_next_digest(tmp_path):
    folder = tmp_path / AUDIO
    writer = ArrayWriter(tmp_path, AUDIO, packed=False)
    writer.write("a", VALUES)
    with open(folder / checksums.FILE, "a") as file:
        file.write("0123")
    writer.write("b", VALUES)
    assert (NpyFolder.open(folder).is_intact("a"), NpyFolder.open(folder).is_intact("b")) == (True, True)


def test_a_digest_that_does_not_fit_on_the_disk_is_an_error_and_the_earlier_ones_remain(tmp_path):
    checksums.append(tmp_path, "a", b"array")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (tmp_path / checksums.FILE).stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            checksums.append(tmp_path, "b", b"array")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    checksums.append(tmp_path, "c", b"array")
    assert checksums.read(tmp_path).keys() == {"a", "c"}


def test_an_array_whose_replacement_failed_does_not_count_as_changed(tmp_path):
    writer = ArrayWriter(tmp_path, AUDIO, packed=False)
    writer.write("a", VALUES)
    # A folder in place of the temporary file ends the replacement where a kill could end it.
    (tmp_path / AUDIO / f".a.npy.tmp{os.getpid()}").mkdir()
    with pytest.raises(UserError):
        writer.write("a", VALUES * 2)
    store = NpyFolder.open(tmp_path / AUDIO)
    assert "a" not in store or store.is_intact("a")


def test_files_of_macos_in_a_tar_are_skipped_and_counted(tmp_path):
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        for name, content in (("clip.npy", npy("<f4", "(1024,)")), ("._clip.npy", b"\0\5\x16\7")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    index_tars(f"{tmp_path}/train.tar", None)
    store = open_store(f"{tmp_path}/train.tar", "key")
    assert list(store.names()) == ["clip"]
    note = tar_index.skipped_note(store.skipped.values())
    assert note == (
        "1 members of the tar shards are not read, because their names do not end with .npy, or start with ._ (files of macOS):"
        " .npy (1)"
    )


def test_an_index_is_not_cached_under_the_name_by_which_the_earlier_version_finds_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tar_of(tmp_path / "train.tar", {"clip": npy("<f4", "(1024,)")})
    (path,) = index_tars(f"{tmp_path}/train.tar", None)
    open_store(f"{tmp_path}/train.tar", "key")
    earlier = hashlib.sha256(json.dumps([tar_index.fingerprint(str(path))]).encode()).hexdigest()
    (cached,) = (tmp_path / "cache").rglob("*.sqlite3")
    assert not cached.name.startswith(earlier)
