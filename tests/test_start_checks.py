"""The checks of many clips at the start of a run: what is read again, and how much memory the names take."""

from __future__ import annotations

import os
import tracemalloc

import numpy as np
import pytest

from emollama.data.annotations import Table, read_annotations
from emollama.data.array_cache import ArrayCache, FileCheck
from emollama.data.features import Features
from emollama.data.slots import SlotShape
from emollama.datasets.clip_texts import with_shared_names
from emollama.stores.name_set import NameSet
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


def test_the_names_and_columns_of_a_clip_take_at_most_400_bytes(tmp_path):
    names = [f"sample_{index:08d}" for index in range(500)]
    (tmp_path / "list.txt").write_text("".join(f"{name} {100 + index % 9} happy\n" for index, name in enumerate(names)))
    for kind in "abcd":
        (tmp_path / kind).mkdir()
        for name in names:
            os.mknod(tmp_path / kind / f"{name}.npy")
    texts = {name: f"{name} smiles" for name in names}
    read_annotations(str(tmp_path / "list.txt"))  # what is imported on the first call does not count
    tracemalloc.start()
    stores = [NpyFolder.open(tmp_path / kind) for kind in "abcd"]
    # Each file has objects of its own for the names, as readers return them.
    parsed = [{f"{name}": text for name, text in texts.items()} for _ in range(2)]
    table = with_shared_names(Table(read_annotations(str(tmp_path / "list.txt")), parsed[0], {"reason": parsed[1]}))
    parsed.clear()
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert size / len(names) <= 400
    assert all(names[-1] in held for held in (*stores, table.sentences, table.captions["reason"]))


def test_a_table_with_shared_names_has_the_same_texts(tmp_path):
    (tmp_path / "list.txt").write_text("a 3 happy 1\nb 3 sad\n")
    clips = read_annotations(str(tmp_path / "list.txt"))
    table = Table(clips, {"b": "x", "unlisted": "y"}, {"reason": {"a": "z"}})
    assert with_shared_names(table) == table
    assert [dict(clip.columns) for clip in clips] == [{"count": "3", "valence": "1"}, {"count": "3"}]
