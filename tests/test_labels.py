"""Extraction of labels from answers."""

from __future__ import annotations

import random

import pytest

from emollama.errors import UserError
from emollama.evaluation.labels import LabelReader

LABELS = ("happy", "sad", "neutral", "angry", "surprise", "mixed feelings")


def read(answer, rule="search", several="invalid", aliases=None, labels=LABELS):
    return LabelReader(labels, aliases or {}, rule, several).read(answer)


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("happy", "happy"),
        ("Happy.", "happy"),
        (' "HAPPY"!\n', "happy"),
        ("**happy**", "happy"),
        ("_happy_", "happy"),
        ("emotion: happy", "happy"),
        ("The person is happy, I think.", "happy"),
        ("happy/happy", "happy"),
        ("(sad)", "sad"),
        ("- sad - the voice shakes", "sad"),
        ("sad\nbecause", "sad"),
        ("Mixed   feelings", "mixed feelings"),
        ("these are mixed\nfeelings.", "mixed feelings"),
        ("unhappy", None),
        ("happyish", None),
        ("happy-go-lucky", None),
        ("non-happy", None),
        ("sad2", None),
        ("saddened", None),
        ("feelings, mixed", None),
        ("", None),
        ("   ", None),
        ("...", None),
        ("I cannot tell", None),
        ("чай", None),
    ],
)
def test_the_search_rule_matches_a_label_only_as_a_whole_word(answer, label):
    assert read(answer).label == label
    assert read(answer).mentioned == ({label} if label else set())


@pytest.mark.parametrize(("several", "label"), [("invalid", None), ("first", "sad"), ("last", "happy")])
def test_an_answer_with_several_labels_is_resolved_by_the_configured_rule(several, label):
    reading = read("sad, then angry, sad again, then happy", several=several)
    assert reading.label == label
    assert reading.mentioned == {"sad", "angry", "happy"}


@pytest.mark.parametrize("several", ["invalid", "first", "last"])
def test_a_label_repeated_in_an_answer_counts_as_one_label(several):
    assert read("sad, very sad and joyless", several=several, aliases={"joyless": "sad"}).label == "sad"


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("happy", "happy"),
        (" Happy. ", "happy"),
        ("joyful!", "happy"),
        ("Over  the moon", "happy"),
        ("he is happy", None),
        ("", None),
    ],
)
def test_the_exact_rule_accepts_only_a_label_or_an_alias(answer, label):
    assert read(answer, "exact", aliases={"joyful": "happy", "over the moon": "happy"}).label == label


def test_the_labels_named_in_an_answer_do_not_depend_on_the_rule():
    for rule in ("search", "exact", "last_word"):
        assert read("Happy or sad.", rule).mentioned == {"happy", "sad"}


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("happy", "happy"),
        ("the person is sad", "sad"),
        ("the person is sad \n", "sad"),
        ("happy and then sad", "sad"),
        ("happy.", None),  # the published evaluation is case-sensitive
        ("Happy", None),
        ("happy because he laughs", None),
        ("emotion:\nhappy", None),  # and only separates words at spaces
        ("emotion:happy", None),
        ("disgust", None),  # and calls this neutral
        ("", None),
    ],
)
def test_the_last_word_rule_matches_the_published_evaluation_without_its_neutral_default(answer, label):
    assert read(answer, "last_word").label == label


def published_reading(answer, labels):
    """The last word by single spaces; None where the published evaluation calls it an error and writes neutral."""
    word = answer.split(" ")[-1]
    return word if word in labels else None


def test_the_last_word_rule_equals_the_published_evaluation_on_random_answers():
    rng = random.Random(3)
    pieces = ["happy", "sad", "neutral", "Happy", "sad.", "the", "is", "disgust", "unhappy", "angry,", "\n"]
    answers = [" ".join(rng.choices(pieces, k=rng.randrange(6))).strip() for _ in range(500)]
    readings = [read(answer, "last_word").label for answer in answers]
    assert readings == [published_reading(answer, LABELS) for answer in answers]
    assert len({*readings}) == 4


def test_an_alias_counts_as_its_label():
    aliases = {"Joyful": "happy", "in two minds": "Mixed Feelings", "surprised": "surprise"}
    assert read("so JOYFUL!", aliases=aliases).label == "happy"
    assert read("happy and joyful", aliases=aliases).label == "happy"
    assert read("she is in two  minds", aliases=aliases).label == "mixed feelings"
    assert read("she is surprised", "last_word", aliases=aliases).label == "surprise"


def test_labels_are_matched_in_any_case_and_returned_as_spelled():
    labels = ("Happy", "Very Sad")
    assert read("happy", labels=labels).label == "Happy"
    assert read("VERY SAD", "exact", labels=labels).label == "Very Sad"


def test_the_longest_of_overlapping_labels_is_matched():
    labels = ("doubt", "self-doubt", "no doubt", "doubt it")
    for answer, label in (
        ("self-doubt", "self-doubt"),
        ("no doubt", "no doubt"),
        ("I doubt it", "doubt it"),
        ("a doubt", "doubt"),
    ):
        assert read(answer, labels=labels) == read(label, labels=labels)
        assert read(answer, labels=labels).mentioned == {label}
    assert read("doubt and self-doubt", labels=labels).mentioned == {"doubt", "self-doubt"}


def test_pattern_characters_in_labels_are_matched_literally():
    assert read("level a.c now", labels=("a.c", "a+b")).label == "a.c"
    assert read("abc aab", labels=("a.c", "a+b")).label is None


def test_without_labels_no_label_is_read():
    assert read("happy", labels=()) == read("", labels=())
    assert read("happy", labels=()).label is None


def refusal(labels=LABELS, aliases=None):
    with pytest.raises(UserError) as error:
        LabelReader(labels, aliases or {})
    return str(error.value)


def test_labels_that_differ_by_case_or_have_no_letter_are_refused():
    assert refusal(("happy", "sad", "Happy")).startswith("labels: 'Happy' differs from 'happy' only in case")
    assert refusal(("happy", "!?")).startswith("labels: '!?' has no letter")


def test_an_alias_of_an_unknown_label_is_refused_with_the_nearest_label():
    text = refusal(aliases={"joyful": "hapy"})
    assert text.startswith("aliases: 'joyful' stands for 'hapy'") and "Did you mean 'happy'?" in text


def test_an_alias_of_an_alias_is_refused():
    assert refusal(aliases={"glad": "happy", "cheery": "glad"}).startswith(
        "aliases: 'cheery' stands for 'glad', which is not a label. Expected one of"
    )


@pytest.mark.parametrize(
    ("aliases", "alias"), [({"Sad": "happy"}, "Sad"), ({"blue": "sad", "BLUE.": "happy"}, "BLUE."), ({"--": "sad"}, "--")]
)
def test_an_ambiguous_or_unreadable_alias_is_refused_by_name(aliases, alias):
    assert refusal(aliases=aliases).startswith(f"aliases: '{alias}' ")


def test_an_alias_that_repeats_a_label_or_another_alias_is_accepted():
    assert read("blue", aliases={"happy": "happy", "blue": "sad", "Blue": "sad"}).label == "sad"
