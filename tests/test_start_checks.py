"""The checks of many clips at the start of a run: what is read again, and how much memory the names take."""

from __future__ import annotations

import json
import zlib
from types import SimpleNamespace

import numpy as np
import pytest

from emollama.data import array_cache, remembered_checks
from emollama.data.array_cache import ArrayCache, FileCheck
from emollama.data.features import Features
from emollama.data.remembered_checks import RememberedChecks
from emollama.data.slots import SlotShape
from emollama.data.text_columns import NameColumn, Names
from emollama.stores.index import Index
from emollama.stores.name_set import NameSet
from emollama.stores.packed import digest
from emollama.stores.shard_writers import PackedWriter
from emollama.stores.store import NpyFolder

NAMES = ["a", "b", "c"]
RESULT = FileCheck("float32", "(8,)", "32", "00112233aabbccdd")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the arrays of :data:`NAMES`, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "face").mkdir()
    for number, name in enumerate(NAMES):
        np.save(tmp_path / "face" / f"{name}.npy", np.arange(8.0, dtype=np.float32) + number)
    return tmp_path / "face"


def features(folder):
    return Features.open(str(folder), ("face",), SlotShape(1, 8), "features.face")


def opened(folder, monkeypatch):
    """Check all clips; return the result and the names of the clips whose files were read."""
    read, load = [], NpyFolder.load

    def counted(store, name):
        read.append(name)
        return load(store, name)

    with monkeypatch.context() as patch:
        patch.setattr(NpyFolder, "load", counted)
        return features(folder).check(NAMES), read


def test_only_changed_arrays_are_read_again_and_the_results_are_the_same(folder, monkeypatch):
    first, read = opened(folder, monkeypatch)
    assert read == NAMES
    np.save(folder / "b.npy", np.zeros(8, np.float32))
    second, read = opened(folder, monkeypatch)
    assert read == ["b"]
    assert second.valid == first.valid | {"b": FileCheck("float32", "(8,)", "32", "alike")}
    assert opened(folder, monkeypatch) == (second, [])


def test_the_cache_keeps_the_arrays_of_other_lists_of_clips(folder, monkeypatch):
    for names in (["a"], ["b", "c"], ["b"]):
        features(folder).check(names)
    assert opened(folder, monkeypatch)[1] == []


def test_results_of_other_code_are_not_used(folder, monkeypatch):
    store = SimpleNamespace(files_stamp=lambda: (1,))
    RememberedChecks.of(store, "settings").add("usable", ["a"], True)
    opened(folder, monkeypatch)
    assert RememberedChecks.of(store, "settings").get("usable", ["a"]) and opened(folder, monkeypatch)[1] == []
    for module in (remembered_checks, array_cache):
        monkeypatch.setattr(module, "code_stamps", lambda *_: "other")
    assert RememberedChecks.of(store, "settings").get("usable", ["a"]) is None and opened(folder, monkeypatch)[1]


@pytest.mark.parametrize("stamps", [[(1, 2)], [(1, 2, (1 << 64) - 1)], [()]])
def test_a_cached_result_is_found_with_the_same_stamp_only(folder, stamps):
    for _ in range(2):
        cache = ArrayCache.load("settings")
        cache.add("a", stamps[0], RESULT)
        cache.save()
    cache = ArrayCache.load("settings")
    assert cache.find(["a"], stamps) == [RESULT if stamps[0] else None]
    assert cache.find(["a", "b"], [(3, *stamps[0][1:]), stamps[0]]) == [None, None]


def test_an_array_in_another_kind_of_store_replaces_the_cached_ones(folder):
    for stamp in ((1, 2), (1, 2, 3)):
        cache = ArrayCache.load("settings")
        cache.add("a", stamp, RESULT)
        cache.save()
    assert ArrayCache.load("settings").find(["a"], [(1, 2, 3)]) == [RESULT]


def test_a_damaged_cache_is_reported_and_everything_is_checked_again(folder, monkeypatch, caplog):
    opened(folder, monkeypatch)
    (path,) = (folder.parent / "cache").rglob("arrays-*")
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    _, read = opened(folder, monkeypatch)
    assert read == NAMES and "this cache cannot be used (it is damaged)" in caplog.text


def test_a_set_of_names_contains_exactly_its_names():
    # The first two have the same CRC-32.
    names = {"plumless", "x", "Mädchen", "\udcff", "folder/clip", *map(str, range(50))}
    name_set = NameSet(names)
    assert "buckeroo" not in name_set and all(name in name_set for name in names)
    assert "buckeroo" in NameSet(["plumless", "buckeroo"]) and "plumless" in NameSet(["plumless", "buckeroo"])
    assert set(name_set) == names and len(name_set) == len(names)
    assert not any(name in name_set for name in ("", "y", "1000", "plumless\0x", 1, None))
    assert list(NameSet()) == [] and "" not in NameSet()


@pytest.fixture
def packed(folder):
    """A packed store with the arrays of :data:`NAMES`."""
    target = folder.parent / "packed"
    target.mkdir()
    writer = PackedWriter(target, 1 << 20)
    for name in NAMES:
        writer.add(name, (np.load(folder / f"{name}.npy"),))
    writer.finish()
    return target


def test_arrays_of_unchanged_shards_are_not_looked_up_again(packed, monkeypatch):
    assert features(packed).problems(NAMES) == [] and features(packed).missing([*NAMES, "x"]) == ["x"]
    with monkeypatch.context() as patch:
        patch.setattr(Index, "find", lambda *arguments: pytest.fail("an array was looked up"))
        assert features(packed).problems(NAMES) == [] and features(packed).missing([*NAMES, "x"]) == ["x"]


def test_arrays_of_a_changed_shard_are_checked_again(packed):
    assert features(packed).problems(NAMES) == []
    shard = packed / "shard-00000.bin"
    raw = bytearray(shard.read_bytes())
    raw[-4:] = np.float32(np.nan).tobytes()
    metadata = json.loads((packed / "store.json").read_text())
    shard.write_bytes(raw)
    metadata["shards"][0]["head"] = zlib.crc32(raw[:4096])
    metadata["digest"] = digest(metadata)
    (packed / "store.json").write_text(json.dumps(metadata))
    (problem,) = features(packed).problems(NAMES)
    assert "NaN" in problem.text and features(packed).problems(NAMES) == [problem]


def test_names_in_an_array_have_a_digest_of_their_order():
    rows = np.arange(3, dtype=np.uint32)
    columns = [NameColumn.of(names) for names in (["a", "b", "c"], ["a", "bc", ""])]
    digests = [Names(column, rows[::step]).digest() for column in columns for step in (1, -1)]
    assert len(set(digests)) == 4 and Names(columns[0], rows).digest() == digests[0]
