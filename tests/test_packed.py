"""Packed shards: values, names, damage that is detected on opening, and folders of version 1."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import pickle
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from ranks import fork_context

from emollama.errors import UserError
from emollama.stores import packed_v1
from emollama.stores.index import Location, build
from emollama.stores.packed import PackedStore, digest, is_packed
from emollama.stores.shard_writers import PackedWriter

NAMES = ["00012", "12", "a b", "a/b", "c.d", "clip_7", "表情", "\u00e9", "e\u0301", "\udcff", "", "z\0"]
NAMES += ["x" * 43, "x" * 44, "y" * 300]
LARGE = 2**30


def numbers(*shape, dtype=np.float32, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def arrays_of_every_kind():
    shapes = [((16,), np.float32), ((1, 16), np.float32), ((16,), np.float64), ((5, 8), np.float16)]
    return {name: numbers(*shapes[index % 4][0], dtype=shapes[index % 4][1], seed=index) for index, name in enumerate(NAMES)}


def write_packed(folder, arrays, shard_bytes=LARGE):
    folder.mkdir(parents=True)
    writer = PackedWriter(folder, shard_bytes)
    for name, array in arrays.items():
        writer.add(name, (np.ascontiguousarray(array),))
    writer.finish()
    return PackedStore.open(folder)


def same(first, second):
    return first.dtype == second.dtype and first.shape == second.shape and np.array_equal(first, second)


def redescribed(folder, change):
    """Change store.json and update its digest."""
    about = json.loads((folder / "store.json").read_text())
    change(about)
    (folder / "store.json").write_text(json.dumps(about | {"digest": digest(about)}))


def refusal(folder):
    with pytest.raises(UserError) as error:
        PackedStore.open(folder)
    return str(error.value)


@pytest.fixture
def folder(tmp_path):
    """Eight clips in four shards."""
    write_packed(tmp_path / "packed", {f"clip_{number}": numbers(64, seed=number) for number in range(8)}, 512)
    return tmp_path / "packed"


# Reading


def test_arrays_of_different_shapes_and_types_are_unchanged_after_packing(tmp_path):
    arrays = arrays_of_every_kind()
    store = write_packed(tmp_path / "packed", arrays)
    assert all(same(store.load(name), array) for name, array in arrays.items())
    assert all(store.header(name) == (array.shape, array.dtype) for name, array in arrays.items())


def test_clip_names_are_compared_as_exact_strings(tmp_path):
    store = write_packed(tmp_path / "packed", arrays_of_every_kind())
    assert list(store.names()) == NAMES and len(store) == len(NAMES)
    assert all(name in store for name in NAMES)
    assert not any(name in store for name in ["0012", "clip_", "clip_7 ", "clip_7\0", "z", "A B", "x" * 42, "x" * 45, 12, None])


def test_changing_a_loaded_array_does_not_change_the_store(folder):
    store = PackedStore.open(folder)
    store.load("clip_1")[:] = 0
    assert same(store.load("clip_1"), numbers(64, seed=1))


def test_equal_kinds_of_arrays_have_a_fixed_stride_in_shards_of_the_requested_size(folder):
    raw = b"".join((folder / f"shard-{number:05d}.bin").read_bytes() for number in range(4))
    assert same(np.frombuffer(raw, np.float32).reshape(8, 64), np.stack([numbers(64, seed=number) for number in range(8)]))
    assert {path.stat().st_size for path in folder.glob("shard-*.bin")} == {512}


def test_a_missing_clip_is_an_error_with_its_name(folder):
    store = PackedStore.open(folder)
    for read in (store.load, store.header, store.stamp):
        with pytest.raises(OSError, match="clip_9"):
            read("clip_9")


def test_location_names_the_shard_and_the_clip(folder):
    assert PackedStore.open(folder).location("clip_7") == f"{folder}/shard-00003.bin, clip_7"


def test_a_stamp_changes_with_the_shard_and_differs_between_clips(folder):
    store = PackedStore.open(folder)
    before = store.stamp("clip_0")
    assert before == store.stamp("clip_0") != store.stamp("clip_1")
    (folder / "shard-00000.bin").touch()
    assert store.stamp("clip_0") != before


def test_a_stamp_changes_if_a_shard_is_replaced_by_one_of_the_same_size_and_time(folder):
    store, shard = PackedStore.open(folder), folder / "shard-00000.bin"
    before, status = store.stamp("clip_0"), shard.stat()
    (folder / "new").write_bytes(bytes(512))
    os.utime(folder / "new", ns=(status.st_atime_ns, status.st_mtime_ns))
    (folder / "new").replace(shard)
    assert shard.stat().st_mtime_ns == status.st_mtime_ns and store.stamp("clip_0") != before


def sums(store, names):
    return [float(store.load(name).sum()) for name in names]


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_processes_and_threads_read_the_same_arrays_as_one_process(folder, method):
    store, names = PackedStore.open(folder), [f"clip_{number}" for number in range(8)]
    expected = sums(store, names)
    context = fork_context() if method == "fork" else multiprocessing.get_context(method)
    with context.Pool(2) as pool:
        assert pool.starmap(sums, [(store, [name]) for name in names]) == [[value] for value in expected]
    with ThreadPoolExecutor(8) as threads:
        assert [*threads.map(lambda name: sums(store, [name])[0], names * 50)] == expected * 50


def test_a_pickled_store_contains_no_arrays_and_no_names(tmp_path):
    store = write_packed(tmp_path / "packed", {f"clip_{number}": numbers(64) for number in range(1000)})
    assert len(pickle.dumps(store)) < 500


# Checks when a store is opened


def cut(path, by=1):
    path.write_bytes(path.read_bytes()[:-by])


def flip(path, position):
    raw = bytearray(path.read_bytes())
    raw[position] ^= 1
    path.write_bytes(bytes(raw))


@pytest.mark.parametrize("name", ["shard-00003.bin", "shard-00000.bin", "index.sqlite3"])
def test_a_truncated_file_is_refused_with_its_name(folder, name):
    cut(folder / name)
    assert name in refusal(folder) and "bytes" in refusal(folder)


@pytest.mark.parametrize("name", ["shard-00002.bin", "index.sqlite3", "store.json"])
def test_a_missing_file_is_refused_with_its_name(folder, name):
    (folder / name).unlink()
    assert name in refusal(folder)
    assert is_packed(str(folder))


def test_a_truncated_store_description_is_refused(folder):
    cut(folder / "store.json", 40)
    assert "store.json: not JSON" in refusal(folder)


@pytest.mark.parametrize("key", ["clips", "kinds", "shards", "index"])
def test_a_store_description_without_a_key_is_refused(folder, key):
    redescribed(folder, lambda about: about.pop(key))
    assert key in refusal(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda about: about["kinds"][0].update(shape=[32]),
        lambda about: about.update(clips=7),
        lambda about: about["shards"].reverse(),
        lambda about: about.pop("digest"),
    ],
)
def test_a_modified_store_description_is_detected_by_its_digest(folder, change):
    """With a smaller shape, for example, only part of each array would be read."""
    about = json.loads((folder / "store.json").read_text())
    change(about)
    (folder / "store.json").write_text(json.dumps(about))
    assert "store.json: its digest" in refusal(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"kinds": []},
        {"kinds": [{"shape": [64, 64], "dtype": "<f4", "scales": 0}]},
        {"kinds": [{"shape": [2**80], "dtype": "<f4", "scales": 0}]},
        {"kinds": [{"shape": [-64], "dtype": "<f4", "scales": 0}]},
        {"kinds": [{"shape": [], "dtype": "<f4", "scales": 0}]},
        {"kinds": [{"shape": [64.0], "dtype": "<f4", "scales": 0}]},
        {"kinds": [{"shape": [64], "dtype": "<f4", "scales": 2}]},
        {"kinds": [{"shape": [8, 8], "dtype": "|i1", "scales": 1}]},
        {"kinds": 3},
        *({"clips": count} for count in (0, 7, 9, 10**9, 10**30, -1, "8", None)),
        {"shards": []},
        {"shards": 4},
        {"index": None},
    ],
    ids=str,
)
def test_an_impossible_description_is_rejected_even_with_a_correct_digest(folder, change):
    redescribed(folder, lambda about: about.update(change))
    assert "incomplete or damaged" in refusal(folder)


def replaced_index(folder, content):
    """Replace the index, and describe it in store.json."""
    (folder / "index.sqlite3").write_bytes(content)
    digest_of_index = hashlib.sha256(content).hexdigest()
    redescribed(folder, lambda about: about.update(index={"bytes": len(content), "sha256": digest_of_index}))


@pytest.mark.parametrize(
    ("location", "problem"),
    [
        (Location(3, 2**63 - 64, 0, 0), "beyond the end"),
        (Location(3, 320, 0, 0), "beyond the end"),
        (Location(3, -64, 0, 0), "beyond the end"),
        (Location(4, 0, 0, 0), "unknown kind or shard"),
        (Location(3, 0, 1, 0), "unknown kind or shard"),
    ],
)
def test_a_location_outside_the_shards_is_rejected_even_with_a_correct_digest(folder, location, problem):
    locations = [Location(number // 2, number % 2 * 256, 0, 0) for number in range(7)]
    replaced_index(folder, build((f"clip_{number}", entry) for number, entry in enumerate([*locations, location])))
    assert problem in refusal(folder)


def test_an_index_that_is_no_database_is_rejected_even_with_a_correct_digest(folder):
    replaced_index(folder, b"no database" * 1000)
    assert "incomplete or damaged" in refusal(folder)


@pytest.mark.parametrize("dtype", ["|O", "O", [["a", "O"]], "<U4"])
def test_a_store_description_with_an_object_or_string_dtype_is_refused(folder, dtype):
    """numpy would interpret mapped bytes as addresses."""
    redescribed(folder, lambda about: about["kinds"][0].update(dtype=dtype))
    assert "dtype" in refusal(folder)


def test_a_later_version_is_refused(folder):
    about = json.loads((folder / "store.json").read_text())
    (folder / "store.json").write_text(json.dumps(about | {"version": 3}))
    assert "version 1 to 2" in refusal(folder)


def test_a_flipped_bit_in_the_index_is_detected(folder):
    flip(folder / "index.sqlite3", 700)
    assert "index.sqlite3" in refusal(folder) and "digest" in refusal(folder)


@pytest.mark.parametrize("files", [["shard-00001.bin"], ["index.sqlite3"], ["index.sqlite3", "store.json"]])
def test_files_from_another_store_of_the_same_clips_are_refused(folder, tmp_path, files):
    other = {f"clip_{number}": numbers(64, seed=100 + number) for number in range(8)}
    other["clip_0"] = numbers(64, dtype=np.float32, seed=5)
    write_packed(tmp_path / "other", dict(reversed(other.items())), 512)
    for name in files:
        (folder / name).write_bytes((tmp_path / "other" / name).read_bytes())
    assert "incomplete or damaged" in refusal(folder)


def test_a_shard_truncated_after_the_store_was_opened_is_an_error(folder):
    store = PackedStore.open(folder)
    cut(folder / "shard-00003.bin")
    with pytest.raises(ValueError, match="shard-00003"):
        store.load("clip_7")


def test_a_folder_of_npy_files_is_not_packed(tmp_path):
    np.save(tmp_path / "clip.npy", numbers(4))
    assert not is_packed(str(tmp_path)) and not is_packed(str(tmp_path / "none"))


def test_a_flipped_bit_in_the_first_bytes_of_a_shard_is_detected_when_opening(folder):
    flip(folder / "shard-00002.bin", 300)
    assert "shard-00002.bin: not the shard" in refusal(folder)


def test_find_damaged_detects_a_flipped_bit_and_names_the_clip(tmp_path):
    store = write_packed(tmp_path / "packed", {f"clip_{number}": numbers(2048, seed=number) for number in range(4)})
    assert store.find_damaged(list) == {}
    flip(tmp_path / "packed/shard-00000.bin", 2 * 8192 + 77)
    assert PackedStore.open(tmp_path / "packed").find_damaged(list) == {"shard-00000.bin": ["clip_2"]}


# Folders of version 1


@pytest.fixture
def first_version(tmp_path):
    """A copy of a folder that was written by version 1."""
    return Path(shutil.copytree(Path(__file__).with_name("stores_v1") / "packed", tmp_path / "packed"))


def test_a_folder_of_version_1_is_read(first_version):
    names = ["clip_2", "clip_10", "a/b", "c.d", "表情", "\udcff", "x" * 43, "x" * 44, "y" * 60]
    store = PackedStore.open(first_version)
    assert list(store.names()) == names
    for number, name in enumerate(names):
        assert same(store.load(name), np.arange(number, number + 4 + number % 2, dtype=("f4", "f2")[number % 2]))
    assert store.find_damaged(list) == {}


def test_the_index_of_version_1_is_converted_once(first_version, monkeypatch):
    PackedStore.open(first_version)
    monkeypatch.setattr(packed_v1, "read", None)
    assert len(PackedStore.open(first_version)) == 9


@pytest.mark.parametrize("name", ["index.bin", "shard-00001.bin"])
def test_damage_in_a_folder_of_version_1_is_detected(first_version, name):
    PackedStore.open(first_version)
    flip(first_version / name, 150)
    assert name in refusal(first_version)
    (first_version / name).unlink()
    assert name in refusal(first_version)


@pytest.mark.parametrize("change", [{"clips": 8}, {"table_bytes": 64}, {"table_bytes": 100}, {"table_bytes": None}], ids=str)
def test_an_impossible_description_of_version_1_is_rejected(first_version, change, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    redescribed(first_version, lambda about: about.update(change))
    assert "incomplete or damaged" in refusal(first_version)


# Speed


def store_of(folder: Path, count: int) -> PackedStore:
    return write_packed(folder / str(count), {f"sample_{number:08d}": np.zeros(1, np.float32) for number in range(count)})


def seconds(work):
    """Return CPU seconds, which do not depend on the machine's other work."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def lookup_ratio(small, large):
    """Return the CPU time of random lookups in a large store divided by that in a small one (minimum of several rounds)."""
    times = {}
    for store in (small, large):
        looked_up = [f"sample_{number:08d}" for number in np.random.default_rng(0).integers(0, len(store), 20_000)]
        times[store] = (looked_up, [])
    for _ in range(6):
        for store, (looked_up, durations) in times.items():
            durations.append(seconds(lambda store=store, looked_up=looked_up: [name in store for name in looked_up]))
    return min(times[large][1]) / min(times[small][1])


def calls(work):
    """Return the number of Python and C function calls, a measure of work that no other load changes."""
    count = 0

    def called(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(called)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


def test_opening_stays_fast_as_a_store_grows(tmp_path):
    few, many = (store_of(tmp_path, count) for count in (100, 10_000))
    for store in (few, many):
        PackedStore.open(store.folder)  # one-time imports and compilation are not counted
    assert calls(lambda: PackedStore.open(many.folder)) <= calls(lambda: PackedStore.open(few.folder)) + 20


@pytest.mark.slow
def test_a_store_of_a_million_clips_opens_in_half_a_second_with_constant_lookup_time(tmp_path):
    large = store_of(tmp_path, 1_000_000)
    assert median(seconds(lambda: PackedStore.open(large.folder)) for _ in range(5)) <= 0.5
    assert lookup_ratio(store_of(tmp_path, 1000), large) <= 1.5


def reading_ratio(tmp_path, shape, dtype, count):
    """Return the median CPU time of np.load from a folder divided by that of packed shards."""
    arrays = {f"sample_{number:08d}": numbers(*shape, dtype=dtype, seed=number) for number in range(count)}
    (tmp_path / "npy").mkdir()
    for name, array in arrays.items():
        np.save(tmp_path / "npy" / f"{name}.npy", array)
    store = write_packed(tmp_path / "packed", arrays)
    ways = [lambda name: np.load(tmp_path / "npy" / f"{name}.npy", allow_pickle=False), store.load]
    order = [f"sample_{number:08d}" for number in np.random.default_rng(1).permutation(count)]
    times = [[seconds(lambda way=way: [way(name).shape for name in order]) for way in ways] for _ in range(6)]
    return median(row[0] for row in times[1:]) / median(row[1] for row in times[1:])


def test_reading_utterance_features_needs_fewer_operations_from_packed_shards(tmp_path):
    array = numbers(1024)
    np.save(tmp_path / "clip.npy", array)
    store = write_packed(tmp_path / "packed", {"clip": array, "other": array})
    store.load("other")  # maps the shard
    read = [lambda: np.load(tmp_path / "clip.npy", allow_pickle=False), lambda: store.load("clip")]
    of_file, of_shard = (calls(way) for way in read)
    assert of_file >= 4 * of_shard


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "dtype", "count", "ratio"), [((1025, 1408), "f2", 100, 1.3), ((1024,), "f4", 4000, 7)])
def test_reading_packed_shards_is_faster_by_the_required_ratio(tmp_path, shape, dtype, count, ratio):
    assert reading_ratio(tmp_path, shape, dtype, count) >= ratio
