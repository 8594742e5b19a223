"""Tar shards: reading through an index, the permitted contents of a shard, and remote shards."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import multiprocessing
import os
import pickle
import shutil
import tarfile
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import webdataset
from file_server import serving
from iopath.common.file_io import PathHandler
from ranks import fork_context

from emollama.data.features import Features
from emollama.data.slots import SlotShape
from emollama.errors import UserError
from emollama.paths import PATHS
from emollama.stores import tar_index
from emollama.stores.manifest import Manifest
from emollama.stores.packing import index_tars
from emollama.stores.tar_paths import is_tar_path, list_shards, split_slot
from emollama.stores.tars import TarStore


def numbers(*shape, dtype=np.float32, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def npy(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def tar_of(path, members, format=tarfile.PAX_FORMAT):
    """Write a tar file of (name, bytes) pairs or existing members."""
    with tarfile.open(path, "w", format=format) as tar:
        for member, raw in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
    return path


def indexed(path, members, **options):
    tar_of(path, members, **options)
    index_tars(str(path), None)
    return TarStore.open(str(path))


def same(first, second):
    return first.dtype == second.dtype and first.shape == second.shape and np.array_equal(first, second)


def refusal(work, *arguments):
    with pytest.raises(UserError) as error:
        work(*arguments)
    return str(error.value)


def stored(folder, shards=3, clips=4, seed=0):
    """Indexed shards train-000.tar and so on, with their names and arrays."""
    folder.mkdir(exist_ok=True)
    arrays = {f"clip_{number}": numbers(16, seed=seed + number) for number in range(shards * clips)}
    names = list(arrays)
    for shard in range(shards):
        mine = names[shard * clips : (shard + 1) * clips]
        tar_of(folder / f"train-{shard:03d}.tar", [(f"{name}.npy", npy(arrays[name])) for name in mine])
    index_tars(str(folder), None)
    return arrays


# Reading


@pytest.mark.parametrize("path", ["", "/train-{000..002}.tar", "/train-*.tar", "/train-{000,001,002}.tar", "/train-0*.tar::"])
def test_folders_braces_and_wildcards_select_shards(tmp_path, path):
    arrays = stored(tmp_path / "shards")
    assert is_tar_path(f"{tmp_path}/shards{path}")
    store = TarStore.open(f"{tmp_path}/shards{path}")
    assert list(store.names()) == list(arrays)
    assert all(same(store.load(name), array) for name, array in arrays.items())


def test_a_single_shard_can_be_opened(tmp_path):
    arrays = stored(tmp_path / "shards")
    store = TarStore.open(f"{tmp_path}/shards/train-001.tar")
    assert list(store.names()) == list(arrays)[4:8]
    assert "clip_4" in store and "clip_3" not in store and 4 not in store


def test_the_shards_of_the_clips_are_returned(tmp_path):
    stored(tmp_path / "shards")
    store = TarStore.open(f"{tmp_path}/shards")
    assert store.shard_ids(["clip_11", "clip_0", "clip_5", "nobody", "clip_6"]).tolist() == [2, 0, 1, -1, 1]
    assert store.location("clip_5") == f"{tmp_path}/shards/train-001.tar, clip_5.npy"


def test_several_arrays_of_a_clip_are_distinguished_by_slot(tmp_path):
    """The shards are as written by webdataset's own writer, with JSON next to the arrays."""
    face, video = (
        {f"clip_{number}": numbers(8, dtype=dtype, seed=number) for number in range(5)} for dtype in (np.float32, np.float16)
    )
    with webdataset.TarWriter(str(tmp_path / "train.tar")) as writer:
        for name in face:
            writer.write({"__key__": name, "face.npy": face[name], "video.npy": video[name], "json": {"label": "happy"}})
    index_tars(f"{tmp_path}/train.tar", None)
    for slot, arrays in {"face": face, "video": video}.items():
        store = TarStore.open(f"{tmp_path}/train.tar::{slot}")
        assert list(store.names()) == list(arrays) and "clip_1.face" not in store
        assert all(same(store.load(name), array) for name, array in arrays.items())


def test_a_missing_or_unknown_slot_is_an_error_that_names_the_existing_slots(tmp_path):
    members = [(f"clip_{number}.{slot}.npy", npy(numbers(4))) for number in range(3) for slot in ("face", "video")]
    tar_of(tmp_path / "train.tar", members)
    index_tars(f"{tmp_path}/train.tar", None)
    assert "train.tar::face'" in refusal(TarStore.open, f"{tmp_path}/train.tar")
    text = refusal(TarStore.open, f"{tmp_path}/train.tar::fcae")
    assert ".fcae.npy" in text and ".face.npy, .video.npy" in text


def test_dots_in_clip_names_are_preserved(tmp_path):
    store = indexed(tmp_path / "a.tar", [("clip.1.npy", npy(numbers(4, seed=1))), ("clip.npy", npy(numbers(4, seed=2)))])
    assert list(store.names()) == ["clip.1", "clip"]
    tar_of(tmp_path / "b.tar", [("v.1-2.npy", npy(numbers(4))), ("v.2-3.npy", npy(numbers(4)))])
    index_tars(f"{tmp_path}/b.tar", None)
    assert "::" in refusal(TarStore.open, f"{tmp_path}/b.tar")
    assert list(TarStore.open(f"{tmp_path}/b.tar::").names()) == ["v.1-2", "v.2-3"]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_of_every_format_are_read(tmp_path, format):
    names = ["clip_7", "a b", "a/b", "00012", "表情", "d" * 60 + "/" + "x" * 90]
    arrays = {name: numbers(4, seed=number) for number, name in enumerate(names)}
    store = indexed(tmp_path / "train.tar", [(f"{name}.npy", npy(array)) for name, array in arrays.items()], format=format)
    assert list(store.names()) == names
    assert all(same(store.load(name), array) for name, array in arrays.items())


@pytest.mark.parametrize(
    "array",
    [np.asfortranarray(numbers(5, 8)), numbers(1, 16, dtype=np.float64), numbers(6, dtype=">f4"), numbers(33, 7, dtype="f2")],
)
def test_arrays_have_the_values_shape_and_dtype_that_numpy_wrote(tmp_path, array):
    store = indexed(tmp_path / "train.tar", [("clip.npy", npy(array))])
    assert same(store.load("clip"), array)
    assert store.header("clip") == (array.shape, array.dtype)


def test_a_tar_with_entries_for_folders_is_read(tmp_path):
    (tmp_path / "data/deep").mkdir(parents=True)
    np.save(tmp_path / "data/deep/clip.npy", numbers(4))
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        tar.add(tmp_path / "data", "./")
    index_tars(f"{tmp_path}/train.tar", None)
    assert same(TarStore.open(f"{tmp_path}/train.tar").load("deep/clip"), numbers(4))


def test_changing_a_loaded_array_does_not_change_the_store(tmp_path):
    arrays = stored(tmp_path / "shards")
    store = TarStore.open(f"{tmp_path}/shards")
    store.load("clip_1")[:] = 0
    assert same(store.load("clip_1"), arrays["clip_1"])


def test_a_missing_clip_is_an_error_with_its_name(tmp_path):
    stored(tmp_path / "shards")
    store = TarStore.open(f"{tmp_path}/shards")
    for read in (store.load, store.header, store.stamp):
        with pytest.raises(OSError, match="clip_99"):
            read("clip_99")


def test_a_stamp_changes_if_only_values_in_the_shard_change(tmp_path):
    """Size, headers and time of modification do not change."""
    stored(tmp_path / "shards")
    store, shard = TarStore.open(f"{tmp_path}/shards"), tmp_path / "shards/train-001.tar"
    before, status = store.stamp("clip_5"), shard.stat()
    assert before == store.stamp("clip_5") != store.stamp("clip_6")
    raw = bytearray(shard.read_bytes())
    raw[1024 + 512 + 128 + 10] ^= 1  # behind a member, and the headers of the next
    time.sleep(0.02)  # the clock of file systems ticks every few milliseconds
    shard.write_bytes(raw)
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert shard.stat().st_mtime_ns == status.st_mtime_ns and store.stamp("clip_5") != before


def sums(store, names):
    return [float(store.load(name).sum()) for name in names]


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_several_processes_read_the_same_arrays_as_one_process(tmp_path, method):
    names = list(stored(tmp_path / "shards"))
    store = TarStore.open(f"{tmp_path}/shards")
    context = fork_context() if method == "fork" else multiprocessing.get_context(method)
    with context.Pool(2) as pool:
        assert pool.starmap(sums, [(store, [name]) for name in names]) == [[value] for value in sums(store, names)]


# Contents of a shard


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


GOOD = ("clip.npy", npy(numbers(4)))


@pytest.mark.parametrize(
    "name", ["clip.pkl", "clip.pyd", "clip.pickle", "clip.pth", "clip.npz", "clip.txt", "clip", "clip.npy.gz"]
)
def test_a_member_that_is_not_npy_is_not_read_and_is_counted(tmp_path, name):
    tar_of(tmp_path / "train.tar", [GOOD, (name, pickle.dumps(Trap(str(tmp_path / "sprung"))))])
    assert index_tars(f"{tmp_path}/train.tar", None) == {
        tmp_path / "train.tar.idx.npz": {name.rpartition(".")[2] if "." in name else "": 1}
    }
    store = TarStore.open(f"{tmp_path}/train.tar")
    assert list(store.names()) == ["clip"] and (store.load("clip") == numbers(4)).all()
    assert not (tmp_path / "sprung").exists()


def test_pickled_objects_in_an_npy_member_are_refused_without_unpickling(tmp_path):
    array = np.array([Trap(str(tmp_path / "sprung"))], dtype=object)
    tar_of(tmp_path / "train.tar", [GOOD, ("trap.npy", npy(array, allow_pickle=True))])
    text = refusal(index_tars, f"{tmp_path}/train.tar", None)
    assert "'trap.npy'" in text and "object" in text
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["../clip.npy", "a/../../clip.npy", "/clip.npy", "a/..", "../x.json"])
def test_a_member_whose_path_leads_out_of_its_folder_is_rejected(tmp_path, name):
    tar_of(tmp_path / "train.tar", [GOOD, (name, npy(numbers(4)))])
    text = refusal(index_tars, f"{tmp_path}/train.tar", None)
    assert f"'{name}'" in text and "leads out of its folder" in text


@pytest.mark.parametrize("type", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path, type):
    member = tarfile.TarInfo("link.npy")
    member.type, member.linkname = type, "clip.npy"
    tar_of(tmp_path / "train.tar", [GOOD, (member, b"")])
    text = refusal(index_tars, f"{tmp_path}/train.tar", None)
    assert "'link.npy'" in text and "link" in text


@pytest.mark.parametrize(
    ("name", "raw", "problem"),
    [
        ("clip_2.npy", npy(numbers(4))[:-1], "1 bytes are missing"),
        ("clip_2.npy", npy(numbers(4)) + b"xx", "2 bytes too many"),
        ("clip_2.npy", b"no array", "magic"),
        ("clip_2.npy", b"", "magic"),
        ("clip_2.npy", npy(np.array(["text"])), "dtype <U4"),
        ("clip.npy", npy(numbers(4)), "twice"),
        ("./clip.npy", npy(numbers(4)), "twice"),
    ],
)
def test_a_member_with_other_content_than_its_name_is_rejected(tmp_path, name, raw, problem):
    tar_of(tmp_path / "train.tar", [GOOD, (name, raw)])
    text = refusal(index_tars, f"{tmp_path}/train.tar", None)
    assert f"'{name}'" in text and problem in text


@pytest.mark.parametrize("size", [2100, 2048, 1536, 700, 512, 100, 0])
def test_a_truncated_shard_is_refused(tmp_path, size):
    """The shard consists of two members of 1024 bytes each and the end mark."""
    path = tar_of(tmp_path / "train.tar", [(f"clip_{number}.npy", npy(numbers(64))) for number in range(2)])
    path.write_bytes(path.read_bytes()[:size])
    assert "train.tar" in refusal(index_tars, str(path), None)


def test_a_damaged_header_is_refused(tmp_path):
    path = tar_of(tmp_path / "train.tar", [(f"clip_{number}.npy", npy(numbers(64))) for number in range(4)])
    raw = bytearray(path.read_bytes())
    raw[2 * 1024 + 3] ^= 1
    path.write_bytes(raw)
    assert "after 2 members" in refusal(index_tars, str(path), None)


def test_a_compressed_shard_is_refused(tmp_path):
    path = tar_of(tmp_path / "train.tar", [GOOD])
    (tmp_path / "train.tar.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert is_tar_path(f"{tmp_path}/train.tar.gz")
    assert "Decompress" in refusal(TarStore.open, f"{tmp_path}/train.tar.gz")
    assert "compress" in refusal(index_tars, f"{tmp_path}/train.tar.gz", None)


def test_a_shard_without_arrays_is_refused(tmp_path):
    tar_of(tmp_path / "train.tar", [("clip.json", b"{}")])
    assert "no .npy" in refusal(index_tars, f"{tmp_path}/train.tar", None)


# Paths


def test_a_path_without_a_matching_shard_is_an_error(tmp_path):
    stored(tmp_path / "shards")
    assert "train-003.tar" in refusal(TarStore.open, f"{tmp_path}/shards/train-{{000..003}}.tar")
    assert "val-*.tar" in refusal(TarStore.open, f"{tmp_path}/shards/val-*.tar")
    assert "braces" in refusal(TarStore.open, f"{tmp_path}/shards/train-{{000..002.tar")


def test_a_folder_with_npy_files_and_a_tar_is_not_a_tar_store(tmp_path):
    np.save(tmp_path / "clip.npy", numbers(4))
    tar_of(tmp_path / "backup.tar", [GOOD])
    assert not is_tar_path(str(tmp_path)) and not is_tar_path(str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("a.tar", ("a.tar", None)),
        ("a.tar::face", ("a.tar", "face")),
        ("a.tar::", ("a.tar", "")),
        ("http://[::1]:80/a.tar", ("http://[::1]:80/a.tar", None)),
        ("http://[::1]:80/a.tar::face", ("http://[::1]:80/a.tar", "face")),
    ],
)
def test_a_slot_is_specified_after_two_colons_at_the_end_of_a_path(path, parts):
    assert split_slot(path) == parts


# Indexes


def test_shards_without_an_index_are_refused_with_the_command_that_writes_it(tmp_path):
    tar_of(tmp_path / "train.tar", [GOOD])
    assert f"emollama pack --index '{tmp_path}/train.tar'" in refusal(TarStore.open, f"{tmp_path}/train.tar")


def test_a_folder_of_indexes_can_be_opened_instead_of_the_shards(tmp_path, monkeypatch):
    arrays = stored(tmp_path / "shards")
    for path in (tmp_path / "shards").glob("*.npz"):
        path.unlink()
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "shards").iterdir())
    monkeypatch.chdir(tmp_path)
    index_tars("shards/train-{000..002}.tar", tmp_path / "indexes")
    assert is_tar_path(f"{tmp_path}/indexes")
    monkeypatch.chdir("/")
    store = TarStore.open(f"{tmp_path}/indexes")
    assert all(same(store.load(name), array) for name, array in arrays.items())
    assert before == sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "shards").iterdir())


def test_an_index_whose_tar_is_missing_is_an_error(tmp_path):
    stored(tmp_path / "shards")
    index_tars(f"{tmp_path}/shards", tmp_path / "indexes")
    (tmp_path / "shards/train-001.tar").unlink()
    assert "train-001.tar" in refusal(TarStore.open, f"{tmp_path}/indexes")


def test_indexing_shards_of_the_same_name_into_one_folder_is_refused(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        tar_of(tmp_path / folder / "train.tar", [GOOD])
    text = refusal(index_tars, f"{tmp_path}/{{a,b}}/train.tar", tmp_path / "indexes")
    assert "train.tar" in text and not (tmp_path / "indexes").exists()


def test_an_index_of_another_shard_of_the_same_size_is_detected(tmp_path):
    stored(tmp_path / "shards")
    first, second = (tmp_path / f"shards/train-00{number}.tar.idx.npz" for number in (0, 1))
    second.write_bytes(first.read_bytes())
    text = refusal(TarStore.open, f"{tmp_path}/shards/train-001.tar")
    assert "another shard" in text and f"emollama pack --index '{tmp_path}/shards/train-001.tar'" in text


def test_an_index_of_a_shard_that_has_grown_is_detected(tmp_path):
    stored(tmp_path / "shards")
    with tarfile.open(tmp_path / "shards/train-002.tar", "a") as tar:
        for number in range(20):
            tar.addfile(tarfile.TarInfo(f"late_{number}.npy"), io.BytesIO(b""))
    assert "train-002.tar" in refusal(TarStore.open, f"{tmp_path}/shards")


def test_an_index_of_a_shard_with_reordered_members_is_detected_when_they_are_loaded(tmp_path):
    arrays = {f"clip_{number}": npy(numbers(4, seed=number)) for number in range(3)}
    indexed(tmp_path / "train.tar", [(f"{name}.npy", raw) for name, raw in arrays.items()])
    tar_of(tmp_path / "train.tar", [(f"{name}.npy", arrays[name]) for name in ("clip_0", "clip_2", "clip_1")])
    store = TarStore.open(f"{tmp_path}/train.tar")
    assert same(store.load("clip_0"), numbers(4, seed=0))
    for name in ("clip_1", "clip_2"):
        with pytest.raises(ValueError, match="another shard"):
            store.load(name)


@pytest.mark.parametrize("damage", [lambda raw: raw[:-30], lambda raw: b"", lambda raw: b"x" * 500, lambda raw: npy(numbers(4))])
def test_a_damaged_index_is_refused_with_the_command_that_rewrites_it(tmp_path, damage):
    stored(tmp_path / "shards")
    path = tmp_path / "shards/train-001.tar.idx.npz"
    path.write_bytes(damage(path.read_bytes()))
    assert "emollama pack --index" in refusal(TarStore.open, f"{tmp_path}/shards")


def test_an_index_with_pickled_objects_is_refused_without_unpickling(tmp_path):
    stored(tmp_path / "shards")
    with open(tmp_path / "shards/train-001.tar.idx.npz", "wb") as file:
        np.savez(file, about=np.array([Trap(str(tmp_path / "sprung"))], dtype=object))
    assert "emollama pack --index" in refusal(TarStore.open, f"{tmp_path}/shards")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"version": 7}, "version 7"),
        ({"layouts": [[[16], "|O", False, 640]]}, "plain numbers"),
        ({"layouts": [[[16], [["a", "O"]], False, 640]]}, "index"),
        ({"layouts": [[[10**9], "<f4", False, 640]]}, "beyond the end"),
        ({"layouts": [[[-1], "<f4", False, 640]]}, "index"),
        ({"layouts": []}, "index"),
        ({"layouts": 3}, "index"),
    ],
)
def test_an_impossible_index_is_rejected(tmp_path, change, problem):
    """The index has another version, object arrays (numpy would read their bytes as addresses) or arrays beyond the shard."""
    stored(tmp_path / "shards")
    path = tmp_path / "shards/train-001.tar.idx.npz"
    arrays = dict(np.load(path))
    about = json.loads(arrays["about"].tobytes()) | change
    np.savez(path, **arrays | {"about": np.frombuffer(json.dumps(about).encode(), np.uint8)})
    text = refusal(TarStore.open, f"{tmp_path}/shards")
    assert problem in text and "emollama pack --index" in text


def test_a_clip_in_two_shards_is_an_error_that_names_both_shards(tmp_path):
    for name in ("a", "b"):
        tar_of(tmp_path / f"{name}.tar", [(f"only_{name}.npy", npy(numbers(4))), GOOD])
    index_tars(str(tmp_path), None)
    text = refusal(TarStore.open, str(tmp_path))
    assert "'clip.npy'" in text and "a.tar" in text and "b.tar" in text


# The index of several shards, in the user's cache folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of cached indexes, which is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    return tmp_path / "user/emollama/indexes-1"


def read_all(path, names):
    store = TarStore.open(path)
    return list(store.names()), store.shard_ids(names).tolist(), [(name in store, store.location(name)) for name in names]


def test_a_cached_index_gives_the_same_results_as_the_index_files_of_the_shards(tmp_path, cache, monkeypatch):
    names = [*stored(tmp_path / "shards", shards=4), "nobody"]
    paths = [f"{tmp_path}/shards{part}" for part in ("", "/train-{003,001}.tar", "/train-002.tar", "/train-*.tar")]
    built = [read_all(path, names) for path in paths]
    monkeypatch.setattr(tar_index, "read", None)
    assert [read_all(path, names) for path in paths] == built
    assert built[1][1][4:8] == [1] * 4 and built[1][1][-5:] == [0] * 4 + [-1] and built[1][1][:4] == [-1] * 4
    assert len(list(cache.iterdir())) == 3  # the first path and the last one have the same shards


def test_a_slot_of_several_shards_is_read(tmp_path):
    for shard in range(2):
        members = [(f"clip_{shard}{number}.{slot}.npy", npy(numbers(4))) for number in "ab" for slot in ("face", "video")]
        tar_of(tmp_path / f"train-{shard:03d}.tar", members)
    index_tars(str(tmp_path), None)
    store = TarStore.open(f"{tmp_path}::video")
    assert list(store.names()) == ["clip_0a", "clip_0b", "clip_1a", "clip_1b"]
    assert store.shard_ids(["clip_1b", "clip_0a", "clip_0a.face"]).tolist() == [1, 0, -1]


def test_a_cached_index_is_not_used_after_one_of_its_shards_is_indexed_again(tmp_path):
    """Two arrays of a shard are swapped, which does not change its size and first headers."""
    arrays = stored(tmp_path / "shards")
    TarStore.open(f"{tmp_path}/shards")
    order = ["clip_4", "clip_6", "clip_5", "clip_7"]
    tar_of(tmp_path / "shards/train-001.tar", [(f"{name}.npy", npy(arrays[name])) for name in order])
    index_tars(f"{tmp_path}/shards/train-001.tar", None)
    store = TarStore.open(f"{tmp_path}/shards")
    assert all(same(store.load(name), array) for name, array in arrays.items())


@pytest.mark.parametrize("position", [0, 30, 3000, 9000, -5])
def test_a_damaged_cached_index_is_replaced(tmp_path, cache, position):
    arrays = stored(tmp_path / "shards")
    TarStore.open(f"{tmp_path}/shards")
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    raw = bytearray(whole)
    raw[position] ^= 1
    for damaged in (bytes(raw), whole[:position], b""):
        path.write_bytes(damaged)
        assert list(TarStore.open(f"{tmp_path}/shards").names()) == list(arrays)
        assert path.read_bytes() == whole


def test_shards_are_read_without_a_writable_cache_folder(tmp_path, cache):
    arrays = stored(tmp_path / "shards")
    (tmp_path / "user").write_text("a file instead of a folder")
    store = TarStore.open(f"{tmp_path}/shards")
    assert list(store.names()) == list(arrays) and same(store.load("clip_5"), arrays["clip_5"])
    with fork_context().Pool(2) as pool:
        assert pool.starmap(sums, [(store, ["clip_5"])] * 2) == [sums(store, ["clip_5"])] * 2


def test_processes_that_build_an_index_at_the_same_time_read_the_same_arrays(tmp_path, cache):
    arrays = stored(tmp_path / "shards")
    with fork_context().Pool(4) as pool:
        listed = pool.map(names_at, [f"{tmp_path}/shards"] * 8)
    assert listed == [list(arrays)] * 8
    assert [path.suffix for path in cache.iterdir()] == [".sqlite3"]


def names_at(path):
    return list(TarStore.open(path).names())


def test_index_files_of_version_1_are_read(tmp_path):
    for path in Path(__file__).with_name("stores_v1").glob("train-*"):
        shutil.copy(path, tmp_path)
    store = TarStore.open(str(tmp_path))
    names = ["clip_2", "clip_10", "a/b", "c.d", "表情", "x" * 43, "x" * 44, "y" * 60]
    assert list(store.names()) == names
    assert [store.load(name)[0] for name in names] == [0, 1, 2, 3, 4, 6, 7, 8]
    assert store.shard_ids(names).tolist() == [0] * 4 + [1] * 4


def test_index_files_can_be_in_another_folder_than_their_shards(tmp_path):
    arrays = stored(tmp_path / "shards")
    index_tars(f"{tmp_path}/shards", tmp_path / "indexes")
    store = TarStore.open(str(tmp_path / "indexes"))
    assert all(same(store.load(name), array) for name, array in arrays.items())
    assert store.location("clip_5") == f"{tmp_path}/shards/train-001.tar, clip_5.npy"


def test_shards_of_several_folders_are_read_together(tmp_path):
    first, second = stored(tmp_path / "a", shards=1), stored(tmp_path / "b", shards=2)
    index_tars(f"{tmp_path}/{{a/train-000,b/train-001}}.tar", None)
    store = TarStore.open(f"{tmp_path}/{{a/train-000,b/train-001}}.tar")
    assert list(store.names()) == [*first, *list(second)[4:]]
    assert all(same(store.load(name), second[name]) for name in list(second)[4:])


def large_set(folder, count):
    """Write ten sparse shards of zero bytes, and their indexes of this many arrays."""
    folder.mkdir()
    head, stride, each = 640, 5120, count // 10
    layout = tar_index.Layout((1024,), np.dtype(np.float32), False, head)
    for shard in range(10):
        names = [f"sample_{number:08d}" for number in range(shard * each, (shard + 1) * each)]
        rows = [(0, head + stride * number, zlib.crc32(bytes(head))) for number in range(each)]
        index = tar_index.TarIndex(None, stride * each, (layout,), {"npy": each}, {}, names, np.array(rows, tar_index.ENTRY))
        path = folder / f"train-{shard:03d}.tar"
        tar_index.write(index, f"{path}.idx.npz")
        with open(path, "wb") as file:
            file.truncate(stride * each)


def seconds(work):
    """Return CPU seconds, which do not depend on the machine's other work."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


@pytest.mark.parametrize("count", [50_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_opening_an_index_of_a_million_clips_takes_half_a_second_and_finding_clips_a_few_times_that_of_hashing(tmp_path, count):
    large_set(tmp_path / "shards", count)
    names = [f"sample_{number:08d}" for number in np.random.default_rng(0).permutation(count)]
    opening = min(seconds(lambda: TarStore.open(f"{tmp_path}/shards")) for _ in range(3))
    store = TarStore.open(f"{tmp_path}/shards/train-*.tar")
    grouping = min(seconds(lambda: store.shard_ids(names)) for _ in range(2))
    hashing = min(seconds(lambda: [hashlib.sha256(name.encode()).digest() for name in names]) for _ in range(2))
    assert store.shard_ids(names).tolist() == [int(name[7:]) // (count // 10) for name in names]
    # About 2.5 times. CPU time, and compared with other work, because it doubles on a busy machine.
    assert not store.load(names[0]).any() and opening <= 0.5 and grouping <= 8 * hashing


def test_an_open_index_is_memory_mapped(tmp_path, cache):
    """Mapped memory is not private to a process."""
    large_set(tmp_path / "shards", 1000)
    store = TarStore.open(f"{tmp_path}/shards")
    (path,) = cache.iterdir()
    assert "sample_00000999" in store and str(path) in Path("/proc/self/maps").read_text()


# Remote shards


class Attic(PathHandler):
    """Files under a prefix, which are copied at the first request; the fetched files are counted."""

    def __init__(self, root, cache):
        super().__init__()
        self.root, self.cache, self.fetched = root, cache, []

    def _get_supported_prefixes(self):
        return ["attic://"]

    def _get_local_path(self, path, force=False, **options):
        name = path.removeprefix("attic://")
        target = self.cache / name
        if not target.exists():
            self.fetched.append(name)
            target.write_bytes((self.root / name).read_bytes())
        return str(target)

    def _isfile(self, path, **options):
        return (self.root / path.removeprefix("attic://")).is_file()

    def _isdir(self, path, **options):
        return False


@pytest.fixture
def attic(tmp_path, monkeypatch):
    (tmp_path / "cache").mkdir()
    handler = Attic(tmp_path / "shards", tmp_path / "cache")
    monkeypatch.setattr(PATHS, "_path_handlers", PATHS._path_handlers.copy())
    PATHS.register_handler(handler, allow_override=True)
    return handler


def test_a_registered_handler_fetches_each_shard_at_its_first_use_only(tmp_path, attic):
    arrays = stored(tmp_path / "shards")
    store = TarStore.open("attic://train-{000..002}.tar")
    assert attic.fetched == [f"train-00{number}.tar.idx.npz" for number in range(3)]
    assert store.header("clip_5") == ((16,), np.float32)
    assert len(attic.fetched) == 3
    assert same(store.load("clip_5"), arrays["clip_5"]) and same(store.load("clip_6"), arrays["clip_6"])
    assert attic.fetched[3:] == ["train-001.tar"]
    assert "train-003.tar" in refusal(TarStore.open, "attic://train-{000..003}.tar")


def test_an_index_of_remote_shards_is_written_into_a_folder(tmp_path, attic):
    arrays = stored(tmp_path / "shards")
    for path in (tmp_path / "shards").glob("*.npz"):
        path.unlink()
    assert "--output" in refusal(TarStore.open, "attic://train-000.tar")
    assert "--output" in refusal(index_tars, "attic://train-000.tar", None)
    index_tars("attic://train-{000..002}.tar", tmp_path / "indexes")
    store = TarStore.open(str(tmp_path / "indexes"))
    assert all(same(store.load(name), array) for name, array in arrays.items())
    assert store.location("clip_5") == "attic://train-001.tar, clip_5.npy"


def test_a_remote_shard_that_differs_from_its_index_is_detected_when_it_is_loaded(tmp_path, attic):
    stored(tmp_path / "shards")
    store = TarStore.open("attic://train-{000..002}.tar")
    path = tmp_path / "shards/train-001.tar"
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(ValueError, match="train-001.tar: its index"):
        store.load("clip_5")


def test_changed_values_of_remote_shards_are_problems_of_the_whole_shard_and_those_of_local_ones_are_checked_again(
    tmp_path, attic, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "remembered"))
    arrays = stored(tmp_path / "shards")

    def problems(path):
        return Features.open(path, ("face",), SlotShape(1, 16), "face_feature_path").problems(list(arrays))

    paths = ["attic://train-{000..002}.tar", f"{tmp_path}/shards"]
    assert [problems(path) for path in paths] == [[], []]
    for shard in (tmp_path / "shards/train-001.tar", tmp_path / "cache/train-001.tar"):
        raw = bytearray(shard.read_bytes())
        raw[1024 + 640 : 1024 + 644] = np.float32(np.nan).tobytes()
        time.sleep(0.02)
        shard.write_bytes(raw)
    remote, (local,) = map(problems, paths)
    stale = {problem.clips for problem in remote if "attic://train-001.tar: its index belongs to another shard" in problem.text}
    assert ("clip_5",) in stale and len(stale) == len(remote) < len(arrays)
    assert local.clips == ("clip_5",) and "NaN" in local.text


@pytest.fixture
def web(tmp_path, monkeypatch):
    """The address of a server on this machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for variable in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    with serving(tmp_path / "shards") as server:
        yield server.url


def test_shards_are_read_over_http(tmp_path, web):
    arrays = stored(tmp_path / "shards")
    path = f"{web}/train-{{000..002}}.tar"
    assert is_tar_path(path) and list_shards(path)[2] == f"{web}/train-002.tar"
    store = TarStore.open(path)
    assert all(same(store.load(name), array) for name, array in arrays.items())
    assert f"'{web}/train-003.tar': there is no such file" in refusal(TarStore.open, f"{web}/train-003.tar")


def test_shards_next_to_no_manifest_have_none(tmp_path, web):
    for path in (f"{web}/train-000.tar", f"{web}/train-{{000..001}}.tar", f"{web}/shards", f"{tmp_path}/train-000.tar"):
        assert Manifest.read(path) is None


def test_an_index_can_be_read_directly_and_a_pickled_store_is_small(tmp_path):
    arrays = stored(tmp_path / "shards")
    index = tar_index.read(f"{tmp_path}/shards/train-000.tar.idx.npz")
    assert index.endings == {"npy": 4} and index.size == (tmp_path / "shards/train-000.tar").stat().st_size
    assert len(pickle.dumps(TarStore.open(f"{tmp_path}/shards"))) < 500
    assert sorted(arrays) == sorted(TarStore.open(f"{tmp_path}/shards").names())
