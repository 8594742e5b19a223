"""The kind mertools, and the reader of dictionaries in .npz files: what is read, what is rejected, and that no code runs."""

from __future__ import annotations

import collections
import contextlib
import datetime
import io
import os
import pickle
import random
import zipfile

import numpy as np
import pytest
from importing import listed, run, table, write_file

from emollama.errors import UserError
from emollama.importers.npz import read_dictionaries


def saved(path, **corpora):
    np.savez_compressed(path, **corpora)
    return path


def with_pickle(path, payload, protocol=4, key="train_corpus"):
    """Write an .npz whose header declares an object array and whose content is this pickle."""
    entry = io.BytesIO()
    np.lib.format.write_array_header_1_0(entry, {"descr": "|O", "fortran_order": False, "shape": ()})
    entry.write(payload if isinstance(payload, bytes) else pickle.dumps(payload, protocol))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{key}.npy", entry.getvalue())
    return path


def as_object_array(value):
    array = np.empty((), object)
    array[()] = value
    return array


def refusal(path, out, *arguments):
    with pytest.raises(UserError) as error:
        run("mertools", path, "--split", "train", "--output", out, *arguments)
    assert not out.exists()
    return str(error.value)


TRAIN = {"00012": {"emo": "angry", "val": -1.5}, "b": {"emo": "happy", "val": ""}, "c": {"emo": "worried", "val": -10}}


def test_a_split_is_imported_as_a_list_with_valences(tmp_path):
    path = saved(tmp_path / "label-6way.npz", train_corpus=TRAIN, test1_corpus={"d": {"emo": "sad"}})
    run("mertools", path, "--split", "train", "--output", tmp_path / "train")
    assert (tmp_path / "train" / "clips.txt").read_text() == "00012 0 angry -1.5\nb 0 happy -10\nc 0 worried -10\n"
    run("mertools", path, "--split", "test1", "--output", tmp_path / "test1")
    assert (tmp_path / "test1" / "clips.txt").read_text() == "d sad\n"
    run("mertools", path, "--split", "test1", "train", "--output", tmp_path / "both")
    assert listed(tmp_path / "both") == [("d", "sad"), ("00012", "angry"), ("b", "happy"), ("c", "worried")]


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_numpy_strings_and_numbers_are_read_in_every_pickle_protocol(tmp_path, protocol):
    corpus = {
        np.str_("a"): {"emo": np.str_("sad"), "val": np.float64(1.5)},
        "b": {"emo": "sad", "val": np.float32(0.25), "more": np.arange(3), "flag": np.bool_(True), "raw": b"\xff"},
        "样本": {"emo": "sad", "val": np.int64(2), "words": np.array(["x", "yy"]), "big": np.array([1.0], ">f4")},
    }
    path = with_pickle(tmp_path / "l.npz", as_object_array(corpus), protocol)
    entries = read_dictionaries(str(path), ["train_corpus"])["train_corpus"]
    assert entries["a"] == {"emo": "sad", "val": 1.5}
    assert entries["b"]["val"] == 0.25 and entries["b"]["more"].values == [0, 1, 2] and entries["b"]["flag"] is True
    assert entries["b"]["raw"] == b"\xff"
    assert entries["样本"]["words"].values == ["x", "yy"] and entries["样本"]["big"].values == [1.0]
    run("mertools", path, "--split", "train", "--output", tmp_path / "out")
    assert (tmp_path / "out" / "clips.txt").read_text() == "a 0 sad 1.5\nb 0 sad 0.25\n样本 0 sad 2.0\n"


class Runs:
    """An object that creates a folder if it is unpickled without checks."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_a_file_that_would_run_code_is_refused_with_the_function_name_and_not_executed(tmp_path):
    mark = tmp_path / "it_ran"
    path = saved(tmp_path / "l.npz", train_corpus=as_object_array({"a": {"emo": Runs(mark), "val": 1.0}}))
    message = refusal(path, tmp_path / "out", "--on-problem", "skip")
    assert "posix.mkdir" in message and "No code of the file was executed" in message and f"{path}, 'train_corpus'" in message
    assert not mark.exists()
    np.load(path, allow_pickle=True)["train_corpus"]
    assert mark.exists()  # the file would have run code


def test_a_split_that_is_not_requested_is_never_unpickled(tmp_path):
    mark = tmp_path / "it_ran"
    path = saved(tmp_path / "l.npz", train_corpus=TRAIN, test1_corpus=as_object_array(Runs(mark)))
    run("mertools", path, "--split", "train", "--output", tmp_path / "out")
    assert len(listed(tmp_path / "out")) == 3 and not mark.exists()


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (collections.OrderedDict(a=1), "collections.OrderedDict"),
        (datetime.date(2024, 1, 2), "datetime.date"),
        (getattr, "builtins.getattr"),
        (eval, "builtins.eval"),
        (np.zeros(1, [("a", "O")]), "numpy.dtype('V8')"),
        (np.array(["2024-01-02"], "datetime64[D]"), "numpy.dtype('M8')"),
        (np.ma.array([1]), "numpy.ma"),
        (np.load, "numpy.load"),
    ],
)
def test_objects_other_than_plain_data_are_refused_by_name(tmp_path, value, named):
    path = with_pickle(tmp_path / "l.npz", as_object_array({"a": value}))
    assert f"it refers to {named}" in refusal(path, tmp_path / "out")


GLOBAL = b"cnumpy\n%b\n"
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n"
DTYPE = b"cnumpy\ndtype\n"


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x80\x04",
        b"not a pickle",
        pickle.dumps([{"a": 1}]),
        pickle.dumps({"a": 1}),
        pickle.dumps(np.arange(3)),
        pickle.dumps(as_object_array([1])),
        GLOBAL % b"ndarray" + b")R.",  # called
        ARRAY + b"}b.",  # state on a function
        ARRAY + b"(N}S'__class__'\nS'x'\nstb.",
        DTYPE + b"(S'O8'\ntR(I3\nS'|'\nNNNI0\nI0\nI0\ntb.",  # a bare type
        b"cnumpy.core.multiarray\nscalar\n(" + DTYPE + b"(S'O8'\ntRS'x'\ntR.",  # an object made of bytes
        b"cnumpy.core.multiarray\nscalar\n(" + DTYPE + b"(S'f8'\ntRS'x'\ntR.",  # too few bytes
        b"cnumpy.core.multiarray\nscalar\n(" + DTYPE + b"(S'U999999999'\ntRS'x'\ntR.",
        DTYPE + b"(I3\ntR.",
        DTYPE + b"(S'f8'\ntR(I3\nS'@'\nNNNI0\nI0\nI0\ntb.",
        DTYPE + b"(S'f8'\ntR(I3\nS'|'\nN(tNI0\nI0\nI0\ntb.",  # fields
        b"c_codecs\nencode\n(Vabc\nVzlib\ntR.",
        b"c_codecs\nencode\n(I3\nVlatin1\ntR.",
        b"Pnowhere\n.",  # a persistent id
        b"\x80\x02\x82\x01.",  # an extension code
        b"\x8d" + (1 << 60).to_bytes(8, "little") + b"x.",  # text of an exabyte
        b"(" * 100_000 + b".",
        b"]" * 100_000 + b"a" * 99_999 + b".",
    ],
)
def test_handmade_pickles_are_refused_with_file_and_key(tmp_path, payload):
    path = with_pickle(tmp_path / "l.npz", payload)
    message = refusal(path, tmp_path / "out")
    assert message.startswith(f"{path}, 'train_corpus': ")


def test_a_pickle_that_tampers_with_the_reader_does_not_affect_the_next_file(tmp_path):
    spoils = ARRAY + b"(NV__defaults__\nNdNV__kwdefaults__\nNdtb."
    refusal(with_pickle(tmp_path / "bad.npz", spoils), tmp_path / "out")
    run("mertools", saved(tmp_path / "l.npz", train_corpus=TRAIN), "--split", "train", "--output", tmp_path / "out")
    assert len(listed(tmp_path / "out")) == 3


@pytest.mark.parametrize("kind", ["text", "npy", "cut"])
def test_a_file_that_is_not_an_npz_archive_is_refused(tmp_path, kind):
    path = tmp_path / "l.npz"
    if kind == "text":
        write_file(path, "name,discrete\n")
    elif kind == "npy":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    else:
        whole = saved(tmp_path / "whole.npz", train_corpus=TRAIN).read_bytes()
        write_file(path, whole[: len(whole) // 2])
    assert "not an .npz file" in refusal(path, tmp_path / "out")


def test_damaged_bytes_inside_an_npz_are_refused(tmp_path):
    path = saved(tmp_path / "l.npz", train_corpus=TRAIN)
    whole = bytearray(path.read_bytes())
    whole[90:110] = b"\0" * 20
    assert "cannot be read as a dictionary" in refusal(write_file(path, bytes(whole)), tmp_path / "out")


def test_a_file_with_random_byte_changes_is_either_read_or_refused(tmp_path):
    generator = random.Random(11)
    packed = saved(tmp_path / "packed.npz", train_corpus=TRAIN).read_bytes()
    plain = with_pickle(tmp_path / "plain.npz", as_object_array(TRAIN)).read_bytes()
    refused = 0
    for round_ in range(600):
        spoiled = bytearray(packed if round_ % 2 else plain)
        for _ in range(generator.randrange(1, 4)):
            spoiled[generator.randrange(len(spoiled))] = generator.randrange(256)
        path = write_file(tmp_path / "l.npz", bytes(spoiled))
        try:
            assert isinstance(read_dictionaries(str(path), ["train_corpus"])["train_corpus"], dict)
        except UserError:
            refused += 1
    assert 300 < refused < 600


def test_a_pickle_with_random_opcode_changes_is_either_read_or_refused(tmp_path):
    generator = random.Random(12)
    whole = pickle.dumps(as_object_array(TRAIN), 4)
    opcodes = b"().012NRabcdeghjlopqstu}]KMJIFVSXUCBGT\x80\x81\x85\x86\x87\x88\x89\x8c\x93\x94"
    for _ in range(600):
        spoiled = bytearray(whole)
        for _ in range(generator.randrange(1, 5)):
            spoiled[generator.randrange(len(spoiled))] = generator.choice(opcodes)
        path = with_pickle(tmp_path / "l.npz", bytes(spoiled))
        with contextlib.suppress(UserError):
            assert isinstance(read_dictionaries(str(path), ["train_corpus"])["train_corpus"], dict)


def test_a_missing_split_is_reported_with_the_available_entries(tmp_path):
    path = saved(tmp_path / "l.npz", whole_corpus=TRAIN, names=np.array(["a"]))
    assert "contains no 'train_corpus'. Its entries: whole_corpus, names." in refusal(path, tmp_path / "out")


@pytest.mark.parametrize("corpus", [np.arange(3), np.array([{"a": 1}, {"b": 1}], object), np.array("text")])
def test_an_entry_that_is_not_a_dictionary_is_refused(tmp_path, corpus):
    assert "cannot be read as a dictionary" in refusal(saved(tmp_path / "l.npz", train_corpus=corpus), tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "entry", "says"),
    [
        (7, {"emo": "sad"}, "expected a name with"),
        ("b", "sad", "expected a name with"),
        ("b", {"val": 1.0}, "expected a name with"),
        ("b", {"emo": np.arange(2)}, "expected a name with"),
        ("b", {"emo": "sad", "val": "high"}, "the valence 'high' is not a finite number"),
        ("b", {"emo": "sad", "val": float("nan")}, "the valence nan is not a finite number"),
        ("b", {"emo": "sad", "val": np.arange(2)}, "is not a finite number"),
        ("b c", {"emo": "sad"}, "contains white space"),
        ("../b", {"emo": "sad"}, "points outside its folder"),
        ("b", {"emo": "bored"}, "the label 'bored' is not one of"),
        ("b", {"emo": 3}, "the label '3' is not one of"),
    ],
)
def test_an_invalid_entry_is_reported_with_split_and_name_or_skipped(tmp_path, name, entry, says):
    path = saved(tmp_path / "l.npz", train_corpus={"a": {"emo": "sad"}, name: entry})
    message = refusal(path, tmp_path / "out")
    assert f"{path}, train_corpus, '{name}': " in message and says in message and "problems: 1." in message
    run("mertools", path, "--split", "train", "--output", tmp_path / "out", "--on-problem", "skip")
    assert listed(tmp_path / "out") == [("a", "sad")]


def test_numeric_labels_are_translated_by_a_label_map(tmp_path):
    path = saved(tmp_path / "l.npz", train_corpus={"a": {"emo": 0, "val": -10}, "b": {"emo": np.int64(1), "val": -10}})
    maps = write_file(tmp_path / "map.yaml", "0: anger\n1: joy\n")
    run("mertools", path, "--split", "train", "--output", tmp_path / "out", "--label-map", maps)
    assert listed(tmp_path / "out") == [("a", "angry"), ("b", "happy")]


def test_a_clip_in_two_splits_is_a_problem(tmp_path):
    path = saved(tmp_path / "l.npz", train_corpus=TRAIN, test1_corpus={"b": {"emo": "sad"}})
    message = refusal(path, tmp_path / "out", "--split", "train", "test1")
    assert "test1_corpus, 'b': the clip is also in another of these splits" in message


def test_a_split_with_a_single_label_is_noted(tmp_path, capsys):
    path = saved(tmp_path / "l.npz", train_corpus={name: {"emo": "neutral", "val": -10} for name in "abc"})
    run("mertools", path, "--split", "train", "--output", tmp_path / "out")
    assert "every clip of train_corpus is 'neutral'" in table(tmp_path / "out" / "import_report.json")["notes"][0]
    assert "note: every clip of train_corpus" in capsys.readouterr().out
