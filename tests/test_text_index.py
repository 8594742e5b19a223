"""The index of a dataset's texts: the same texts as those of the annotation files, shared by processes, and never outdated."""

from __future__ import annotations

import hashlib
import json
import os
import tracemalloc

import numpy as np
import pytest

from emollama.data import text_index
from emollama.data.annotations import Clip, Table
from emollama.data.text_columns import NameColumn, TextColumn
from emollama.data.text_table import in_arrays
from emollama.datasets import indexed_texts
from emollama.datasets.clip_texts import ClipTexts
from emollama.datasets.custom import Custom
from emollama.datasets.feature_face_caption import FeatureFaceCaption

CLIPS = ["a 3 happy 1", "b 4 sad", "c 5 HAPPY -10", "ä/d 6 fear 2"]
CAPTIONS = {"a": "one", "ä/d": "two", "b": " three ", "c": "", "unlisted": "four"}
SENTENCES = {"a": "so, what?", "b": "", "c": "Mädchen\nzwei", "ä/d": "x"}
NO_FEATURES = dict.fromkeys(("image", "face", "video", "audio"))


def write_files(folder, clips=CLIPS, *, age=60):
    """Write annotation files that were changed ``age`` seconds ago."""
    (folder / "list.txt").write_text("".join(f"{line}\n" for line in clips), encoding="utf-8")
    (folder / "captions.json").write_text(json.dumps({name: {"caption": text} for name, text in CAPTIONS.items()}))
    rows = "".join(f'{name},"{sentence}"\n' for name, sentence in SENTENCES.items())
    (folder / "transcripts.csv").write_text(f"name,sentence\n{rows}", encoding="utf-8")
    settle(folder, age)


def settle(folder, age=60):
    """Let the files of a folder look as old as this: the index does not use times of change in these tests."""
    for path in folder.iterdir():
        if path.is_file():
            os.utime(path, ns=(path.stat().st_mtime_ns - int(age * 1e9),) * 2)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with annotation files, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # A time of change cannot be set, so all files are old enough if the limit is below zero.
    monkeypatch.setattr(text_index, "_SETTLED_SECONDS", -1.0)
    write_files(tmp_path)
    return tmp_path


def build(folder, cls=FeatureFaceCaption, **keys):
    cfg = FeatureFaceCaption.Config(
        annotation_file=str(folder / "list.txt"),
        coarse_grained_json_path="captions.json",
        transcription_path="transcripts.csv",
        features=NO_FEATURES,
        **{"task_pool": ["emotion", "reason"], "exclude": ["c"], **keys},
    )
    return cls(cfg, slot_shapes={}, block_path="datasets.merr")


def contents(dataset):
    """Return everything that a dataset says about its texts."""
    content = dataset.inspect()
    return (
        list(dataset.clips),
        list(dataset.table.clips),
        dataset.table.sentences,
        dataset.table.captions,
        content.answers,
        content.labels,
        [dataset.user_text(index, "reason", "Why?") for index in range(len(dataset))],
        dataset.digest(),
        dataset.notes,
        dataset.problems(),
    )


class Reading:
    """Counts how often annotation files are read."""

    def __init__(self, monkeypatch):
        self.count = 0
        read = FeatureFaceCaption.read_table

        def counted(dataset):
            self.count += 1
            return read(dataset)

        counted.__module__ = read.__module__
        monkeypatch.setattr(FeatureFaceCaption, "read_table", counted)


def test_a_table_in_arrays_equals_the_lists_and_dictionaries_of_the_readers():
    clips = [Clip("a", "x", 1, {"count": "1", "valence": "2"}), Clip("b", "", 7, {"count": ""}), Clip("\udcff", "x", 9)]
    table = Table(clips, {"b": "", "other": "\udc80\n"}, {"reason": {"a": "t", "last": "u"}})
    packed = in_arrays(table)
    assert packed.clips == clips and packed.sentences == table.sentences and packed.captions == table.captions
    assert packed.clips[-1] == clips[-1] and packed.clips[:2] == clips[:2] and packed.clips.names[1:] == ["b", "\udcff"]
    assert "other" in packed.sentences and "a" not in packed.sentences and 1 not in packed.sentences
    assert in_arrays(Table([clips[0]])).sentences is None and in_arrays(packed) is packed


def test_names_with_the_same_checksum_are_told_apart():
    names = NameColumn.of(["plumless", "x", "buckeroo"])
    assert [names.find(name) for name in ("buckeroo", "plumless", "x", "y")] == [2, 0, 1, -1]
    assert NameColumn.of(["plumless"]).find("buckeroo") == -1 and NameColumn.of([]).find("") == -1
    assert list(TextColumn.of(["", None, "ü"]).all(np.arange(3))) == ["", None, "ü"]


def test_the_texts_of_the_index_equal_those_of_the_files(folder, monkeypatch):
    reading = Reading(monkeypatch)
    first, second = build(folder, held_out=0.3), build(folder, held_out=0.3)
    assert reading.count == 1 and contents(first) == contents(second)


def test_the_digest_of_texts_is_that_of_their_json(folder):
    texts = [["a", "so, what?", "happy", "one"], ["b", "", "sad", "three"], ["ä/d", "x", "fear", "two"]]
    expected = hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]
    assert [build(folder).digest() for _ in range(2)] == [expected, expected]


def test_the_digest_is_computed_once_and_again_for_other_targets(folder, monkeypatch):
    first = build(folder).digest()
    computed, compute = [], ClipTexts._text_digest
    monkeypatch.setattr(ClipTexts, "_text_digest", lambda dataset: computed.append(dataset) or compute(dataset))
    assert build(folder).digest() == first and not computed
    assert build(folder, text_processor="verbatim").digest() != first and len(computed) == 1

    class Shouted(FeatureFaceCaption):
        def process_answer(self, text):
            return text.upper()

    assert build(folder, Shouted).digest() != first


@pytest.mark.parametrize("changed", ["list.txt", "captions.json", "transcripts.csv"])
def test_a_changed_file_is_read_again(folder, changed):
    before = contents(build(folder))
    path = folder / changed
    # The size stays the same.
    path.write_bytes(path.read_bytes().replace(b"so", b"no").replace(b"one", b"two").replace(b"b 4 sad", b"b 4 SAD"))
    assert contents(build(folder)) != before


@pytest.mark.parametrize("keys", [{"exclude": ["a"]}, {"label_map": {"sad": "fear"}}, {"task_pool": "emotion"}])
def test_another_selection_has_its_own_index(folder, keys):
    build(folder)
    fresh = contents(build(folder, **keys))
    assert contents(build(folder, **keys)) == fresh != contents(build(folder))


def test_other_code_has_its_own_index(folder, monkeypatch):
    build(folder)
    monkeypatch.setattr(indexed_texts, "code_stamps", lambda *_: "")
    reading = Reading(monkeypatch)
    build(folder)
    assert reading.count == 1


def test_other_keys_use_the_same_index(folder, monkeypatch):
    build(folder)
    reading = Reading(monkeypatch)
    build(folder, batch_size=8, shuffle=False, max_words=3)
    assert reading.count == 0


DAMAGE = {
    "shorter": lambda raw: raw[:-5],
    "another byte": lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]),
    "another label": lambda raw: raw.replace(b'"happy"', b'"iappy"', 1),
    "empty": lambda raw: b"",
    "another file": lambda raw: b"{}\n",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_index_is_reported_and_written_again(folder, monkeypatch, caplog, damage):
    expected = contents(build(folder))
    (path,) = (folder / "cache").rglob("texts-*")
    path.write_bytes(damage(path.read_bytes()))
    reading = Reading(monkeypatch)
    again, indexed = build(folder), build(folder)
    assert "this index of texts cannot be used" in caplog.text and reading.count == 1
    assert contents(again) == contents(indexed) == expected


def test_a_process_that_is_killed_while_it_writes_leaves_no_index(folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            build(folder)
    reading = Reading(monkeypatch)
    build(folder)
    assert reading.count == 1


def test_files_that_have_just_changed_are_not_indexed(folder, monkeypatch):
    monkeypatch.setattr(text_index, "_SETTLED_SECONDS", 1e6)
    build(folder)
    assert not list((folder / "cache").rglob("texts-*"))


def test_files_with_problems_are_reported_at_each_start(folder):
    write_files(folder, [*CLIPS, "a 3 happy"])
    first, second = (build(folder).problems() for _ in range(2))
    assert first == second != []


def test_a_reader_of_the_user_is_called_at_each_start(folder, monkeypatch):
    class Own(FeatureFaceCaption):
        def read_table(self):
            table = super().read_table()
            return Table(list(table.clips)[:1], table.sentences, table.captions)

    assert [len(build(folder, Own, exclude=[])) for _ in range(2)] == [1, 1] and len(build(folder)) == 3
    assert not any("Own" in path.name for path in (folder / "cache").rglob("*"))


def test_tables_with_further_columns_are_indexed(folder):
    rows = "name,emotion,reason,hardness\na,happy,one,3\nb,sad,,4\n"
    (folder / "table.csv").write_text(rows)
    keys = {"annotation_file": str(folder / "table.csv"), "features": NO_FEATURES, "task_pool": "emotion"}
    cfg = Custom.Config(**keys, transcription_path=None)
    first, second = (Custom(cfg, slot_shapes={}, block_path="datasets.custom") for _ in range(2))
    assert list(first.clips) == list(second.clips) and second.clips[1].columns["hardness"] == "4"
    assert second.caption_entries("reason") == {"a", "b"}


def test_texts_and_names_take_at_most_80_bytes_per_clip_besides_their_characters(folder):
    sizes = {}
    for count in (200, 1200):
        names = [f"sample_{index:08d}" for index in range(count)]
        texts = {name: f"{name} smiles" for name in names}
        table = Table([Clip(name, "happy", line, {"count": "10"}) for line, name in enumerate(names)], texts, {"reason": texts})
        tracemalloc.start()
        packed = in_arrays(table)
        table = None
        sizes[count] = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert packed.sentences[names[-1]] == f"{names[-1]} smiles"
    characters = len("sample_00000000") + len("sample_00000000 smiles") + len("10")
    assert (sizes[1200] - sizes[200]) / 1000 <= characters + 80
