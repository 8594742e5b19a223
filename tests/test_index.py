"""The SQLite index of packed shards and tar shards: look-ups, order, repeated names, and files that are only read."""

from __future__ import annotations

import pytest

from emollama.stores.index import Index, Location, RepeatedName, build, file_digest, open_cached


@pytest.mark.parametrize("count", [1, 2, 1000, 20_000])
def test_every_name_of_an_index_is_found_and_no_other_name(count):
    locations = {f"sample_{number:08d}": Location(number % 3, number * 64, number % 2, 2**32 - 1) for number in range(count)}
    index = Index(build(locations.items()))
    assert len(index) == count and all(index.find(name) == location for name, location in locations.items())
    assert not any(index.find(f"sample_{number:08d}") for number in range(count, 2 * count))


def test_names_are_in_the_order_in_which_the_arrays_are_stored():
    locations = {
        "b": Location(1, 0, 0, 0),
        "z": Location(0, 64, 0, 0),
        "a": Location(1, 64, 1, 0),
        "é\udcff": Location(0, 0, 1, 0),
    }
    assert list(Index(build(locations.items())).names()) == ["é\udcff", "z", "b", "a"]


def test_looking_up_the_shards_of_many_names_gives_the_same_results_as_one_by_one():
    names = [f"sample_{number:08d}" for number in range(1000)]
    index = Index(build((name, Location(number % 7, number, 0, 0)) for number, name in enumerate(names)))
    looked_up = [*reversed(names), "nobody", ""]
    one_by_one = [location.shard if (location := index.find(name)) else -1 for name in looked_up]
    assert index.shards(looked_up).tolist() == one_by_one and index.shards([]).tolist() == []


def test_a_repeated_name_is_reported_with_both_shards():
    with pytest.raises(RepeatedName) as error:
        build((name, Location(shard, 0, 0, 0)) for shard, name in enumerate(["a", "b", "c", "b"]))
    assert error.value.name == "b" and error.value.shards == (1, 3)


def test_reading_an_index_changes_no_file_and_creates_none(tmp_path):
    folder = tmp_path / "a?b#c%20d"  # characters with a meaning in the address of a database
    folder.mkdir()
    path = folder / "index.sqlite3"
    path.write_bytes(build([("clip", Location(0, 0, 0, 0))]))
    before = path.read_bytes()
    index = Index(path)
    assert index.find("clip") and list(index.names()) == ["clip"] and list(folder.iterdir()) == [path]
    assert path.read_bytes() == before


def test_a_cached_index_is_built_once_and_named_after_its_content(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    content = [build([("clip", Location(0, 5, 0, 0))], {"key": "value"})]
    indexes = [open_cached("abc", content.pop) for _ in range(2)]
    assert [index.find("clip").offset for index in indexes] == [5, 5] and indexes[1].description == {"key": "value"}
    (path,) = (tmp_path / "emollama/indexes-1").iterdir()
    assert path.name == f"abc-{file_digest(path)}.sqlite3"
