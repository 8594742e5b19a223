"""Open-vocabulary emotion words: how they are read, and the set metrics of MER2024-OV."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass, field

import pytest
from importing import run, write_file

from emollama.errors import UserError
from emollama.evaluation.judges.judge import Extraction
from emollama.evaluation.metrics import metric
from emollama.evaluation.openset import OpenSets, extract_words, read_openset
from emollama.evaluation.submission import write_submission
from emollama.evaluation.synonyms import Synonyms, read_synonyms
from emollama.evaluation.word_lists import parse_words, split_words

GROUPS = {"glad": "happy", "happy": "happy", "cheerful": "happy", "cross": "angry", "angry": "angry"}


def scores(truth, predicted, synonyms=GROUPS):
    names = [f"clip_{i}" for i in range(len(truth))]
    sets = OpenSets.of(names, truth, predicted, Synonyms(synonyms))
    return [metric(name).compute(sets) for name in ("ov_precision", "ov_recall", "ov")]


# The metrics


def test_scores_equal_manually_computed_values():
    truth = [["glad", "calm"], ["cross"], ["sad", "tired", "hurt"]]
    predicted = [["happy", "cheerful"], ["cross", "glad", "sad"], ["hurt", "sad"]]
    # G and P of the clips: {happy, calm} and {happy}; {angry} and {angry, happy, sad}; {sad, tired, hurt} and {hurt, sad}
    precision, recall = (1 + 1 / 3 + 1) / 3, (1 / 2 + 1 + 2 / 3) / 3
    assert scores(truth, predicted) == pytest.approx([precision, recall, (precision + recall) / 2], abs=1e-12)


def test_words_of_no_group_are_groups_of_their_own():
    assert scores([["wistful"]], [["wistful"]]) == [1, 1, 1]
    assert scores([["wistful"]], [["pensive"]]) == [0, 0, 0]


def test_case_whitespace_and_repetition_of_words_are_ignored():
    assert scores([["Happy", " glad "]], [["CHEERFUL", "cheerful"]]) == [1, 1, 1]


def test_an_empty_prediction_counts_as_zero():
    assert scores([["happy"], ["sad"]], [["happy"], []]) == [0.5, 0.5, 0.5]


def test_clips_without_true_words_are_excluded():
    assert scores([["happy"], []], [["happy"], ["sad"]]) == [1, 1, 1]
    assert scores([["happy"], []], [["happy"], []]) == [1, 1, 1]


@pytest.mark.parametrize(("truth", "predicted"), [([], []), ([[], []], [["sad"], []])])
def test_without_reference_words_there_is_no_value(truth, predicted):
    assert scores(truth, predicted) == [None] * 3


def test_scores_of_random_sets_follow_the_published_formula():
    rng = random.Random(1)
    words = [*GROUPS, "sad", "calm", "proud"]
    for _ in range(50):
        truth = [rng.sample(words, rng.randrange(1, 5)) for _ in range(8)]
        predicted = [rng.sample(words, rng.randrange(5)) for _ in range(8)]
        precisions, recalls = [], []
        for true, guess in zip(truth, predicted, strict=True):
            g, p = ({GROUPS.get(word, word) for word in side} for side in (true, guess))
            precisions.append(len(g & p) / len(p) if p else 0)
            recalls.append(len(g & p) / len(g) if p else 0)
        result = scores(truth, predicted)
        means = sum(precisions) / 8, sum(recalls) / 8
        assert result == pytest.approx([*means, sum(means) / 2], abs=1e-12)
        assert all(math.isfinite(figure) for figure in result)


def test_take_selects_clips_with_their_words_and_may_repeat_them():
    sets = OpenSets.of(["a", "b"], [["happy"], ["sad"]], [["glad"], ["angry"]], Synonyms(GROUPS)).take([0, 1, 0])
    assert sets.names == ("a", "b", "a")
    assert metric("ov").compute(sets) == pytest.approx(2 / 3)


# Lists of words


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("['happy', 'sad']", ("happy", "sad")),
        ("['happy']", ("happy",)),
        ("[happy, sad]", ("happy", "sad")),
        ('["Happy", "don\'t care"]', ("happy", "don't care")),
        (str(["don't", 'the "end"', 'it\'s "so"']), ("don't", 'the "end"', 'it\'s "so"')),
        ("happy", ("happy",)),
        ("don't care, sad", ("don't care", "sad")),
        (" looking forward to ,happy, ", ("looking forward to", "happy")),
        ("['a, b', 'c']", ("a, b", "c")),
        ("['happy', 'Happy', ' sad ']", ("happy", "sad")),
        ("['高兴', '难过']", ("高兴", "难过")),
        ("[]", ()),
        ("['']", ()),
        ("", ()),
        (" ", ()),
    ],
)
def test_a_cell_contains_a_list_or_plain_words(cell, words):
    assert parse_words(cell) == words


@pytest.mark.parametrize(
    "cell",
    [
        "['happy', 'sad'",
        "'happy', 'sad']",
        "['happy' 'sad']",
        "[['happy'], ['sad']]",
        "['happy]",
        "['don't care', 'sad']",
        "[",
        "]",
        "[1,2]",
        "happy, -3.5",
    ],
)
def test_a_cell_that_is_not_a_list_is_refused(cell):
    with pytest.raises(ValueError, match="expected a list of words"):
        parse_words(cell)


def test_split_words_splits_malformed_lists_like_the_published_scorers():
    assert split_words("['happy' 'sad'") == ("happy", "sad")
    assert split_words("[happy, 'don't care']") == ("happy", "don", "t care")


# Files


def test_a_csv_contains_lists_and_single_words_by_sample(tmp_path):
    path = write_file(tmp_path / "truth.csv", "name,openset\n00012,\"['Angry', 'mad']\"\nb,['surprised']\nc,[]\nd,calm\n")
    assert read_openset(str(path)) == {"00012": ("angry", "mad"), "b": ("surprised",), "c": (), "d": ("calm",)}


def test_the_output_of_an_import_is_read(tmp_path):
    path = write_file(tmp_path / "words.csv", "name,openset\na,\"['Sad', 'tired']\"\nb,['calm']\n")
    run("mer2025", path, "--output", tmp_path / "imported")
    assert (
        read_openset(str(tmp_path / "imported/openset.json"))
        == read_openset(str(path))
        == {"a": ("sad", "tired"), "b": ("calm",)}
    )


def test_a_submission_is_read(tmp_path):
    write_submission(str(tmp_path / "words.npz"), ["a", "b"], [["happy", "don't care"], []])
    assert read_openset(str(tmp_path / "words.npz")) == {"a": ("happy", "don't care"), "b": ()}


@pytest.mark.parametrize(
    ("file", "text", "fault"),
    [
        (
            "t.csv",
            "name,openset\na,['sad']\nb,\"['sad', 'tired'\"\n",
            "t.csv, line 3: expected a list of words such as ['happy', 'sad'] or happy, sad, got ['sad', 'tired'",
        ),
        ("t.csv", "name,openset\na,['sad']\na,['sad']\n", "t.csv, line 3: 'a' already has a row"),
        ("t.csv", "name,openset\n,['sad']\n", "t.csv, line 2: the row has no name"),
        ("t.csv", "name,words\na,sad\n", "expected one of the columns openset"),
        ("t.csv", "clip,openset\na,sad\n", "expected one of the columns name, names, video_name"),
        ("t.csv", "name,openset\na,sad,tired\n", "t.csv, line 2: more cells than columns"),
        ("t.json", '{"a": ["sad"], "a": []}', "the key 'a' appears twice"),
        ("t.json", '{"a": ["sad"], "b": "tired"}', "t.json, 'b': expected a list of words"),
        ("t.json", '{"a": ["sad", 3]}', "t.json, 'a': expected a list of words"),
        ("t.json", '["sad"]', "expected one object keyed by sample name"),
        ("t.json", "{", "t.json, line 1: not valid JSON"),
    ],
)
def test_an_invalid_file_is_refused_with_the_line_or_clip(tmp_path, file, text, fault):
    with pytest.raises(UserError) as error:
        read_openset(str(write_file(tmp_path / file, text)))
    assert fault in str(error.value)


def test_a_missing_file_is_reported_with_its_key(tmp_path):
    with pytest.raises(UserError, match="^openset_path: no file"):
        read_openset(str(tmp_path / "none.csv"))
    with pytest.raises(UserError, match="^synonyms_path: no file"):
        read_synonyms(str(tmp_path / "none.json"))


# Synonyms


@pytest.mark.parametrize(
    "table",
    [
        [["Happy", "glad", " cheerful "], ["angry", "cross"], []],
        {"glad": "happy", "cheerful": "happy", "cross": "angry"},
        {"happy": ["glad", "Cheerful"], "angry": ["cross", "angry"]},
    ],
)
def test_synonyms_are_read_from_groups_of_words_and_from_words_with_their_group(tmp_path, table):
    assert read_synonyms(str(write_file(tmp_path / "s.json", json.dumps(table)))) == Synonyms(GROUPS)


def test_synonym_groups_may_have_numbers_as_names(tmp_path):
    synonyms = read_synonyms(str(write_file(tmp_path / "s.json", '{"glad": 1, "happy": 1, "cross": 2}'))).groups
    assert synonyms["glad"] == synonyms["happy"] != synonyms["cross"]


@pytest.mark.parametrize(
    ("table", "fault"),
    [
        ([["happy", "glad"], ["fond", "Glad"]], "'glad' is in two groups, 'happy' and 'fond'"),
        ({"glad": "happy", "happy": "content"}, "'happy' is in two groups, 'happy' and 'content'"),
        (["happy", "glad"], "expected groups of words"),
        ([["happy", 1]], "expected groups of words"),
        ({"happy": ["glad"], "cross": "angry"}, "or, for each sample"),
        ({"happy": {"glad": 1}}, "expected groups of words"),
        ({"happy": ["glad", 1]}, "expected groups of words"),
        ({"happy": None}, "expected groups of words"),
        ("happy", "expected groups of words"),
    ],
)
def test_invalid_synonyms_are_refused(tmp_path, table, fault):
    with pytest.raises(UserError) as error:
        read_synonyms(str(write_file(tmp_path / "s.json", json.dumps(table))))
    assert fault in str(error.value)


# Emotion words in predictions


@dataclass
class Finder:
    """A judge that extracts two emotion words, and fails for texts that contain ``fail``."""

    requests: list[list[str]] = field(default_factory=list)

    def emotion_words(self, texts):
        self.requests.append([*texts])
        vocabulary = ("happy", "sad")
        return [
            Extraction(None, "no answer") if "fail" in text else Extraction(tuple(word for word in vocabulary if word in text))
            for text in texts
        ]


def test_lists_are_parsed_and_only_descriptions_go_to_the_judge():
    judge = Finder()
    predictions = {
        "a": "['Calm', 'proud']",
        "b": "He is happy.",
        "c": "",
        "d": "this will fail",
        "e": " [calm] ",
        "f": "['calm', 'sad",
        "g": "[]",
        "h": "sad",
    }
    words = extract_words(predictions, judge)
    assert [*words] == [*predictions]
    assert words == {
        "a": ("calm", "proud"), "b": ("happy",), "c": (), "d": None, "e": ("calm",), "f": ("sad",), "g": (), "h": ("sad",),
    }  # fmt: skip
    assert judge.requests == [["He is happy.", "this will fail", "['calm', 'sad", "sad"]]


def test_the_judge_is_not_asked_without_descriptions():
    judge = Finder()
    assert extract_words({"a": "[happy]", "b": "  "}, judge) == {"a": ("happy",), "b": ()}
    assert extract_words({}, judge) == {}
    assert judge.requests == []
