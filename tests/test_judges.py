"""The lexical judge: scores from shared words, and emotion words except for negated ones."""

import random

import pytest

from emollama.evaluation.judges.text_rules import emotion_words, stem
from emollama.evaluation.judges.wheel import FAMILY, NEIGHBOUR, nearness
from emollama.registry import JUDGES

JUDGE = JUDGES.built({"type": "lexical"}, "judge")
CLUES = "brows lips smile eyes voice tone posture hands jaw window door table coat running quickly street colour garden".split()
TRUTH = "His brows are furrowed, his lips pressed together, and he speaks in a low voice while looking at the floor."


def clue(truth, prediction):
    return JUDGE.clue_overlap([(truth, prediction)])[0].score


def label(truth, prediction):
    return JUDGE.label_overlap([(truth, prediction)])[0].score


# Clues


def test_identical_descriptions_score_10():
    assert clue(TRUTH, TRUTH) == 10


def test_different_forms_of_a_word_are_one_clue():
    assert clue("She raises her eyebrows and cries", "with raised brows, crying") == 10


def test_descriptions_without_a_common_word_score_0():
    assert clue(TRUTH, "She jumps around and claps.") == 0


def test_stop_words_and_standard_phrases_of_a_description_score_0():
    assert clue("In the video the person appears to be frowning", "In the video the person appears to be smiling") == 0


def test_every_further_shared_clue_raises_the_score():
    rng = random.Random(0)
    for _ in range(50):
        clues = rng.sample(CLUES, 12)
        truth, other = clues[:8], clues[8:]
        scores = [clue(" ".join(truth), " ".join([*truth[:shared], *other[: 4 - shared // 2]])) for shared in range(9)]
        assert scores == sorted(set(scores))
        assert (scores[0], scores[-1]) == (0, 10)


def test_clue_overlap_is_symmetric_and_within_the_scale():
    rng = random.Random(1)
    for _ in range(50):
        one, other = (" ".join(rng.sample(CLUES, rng.randint(1, 15))) for _ in range(2))
        assert clue(one, other) == clue(other, one)
        assert 0 <= clue(one, other) <= 10


def test_words_about_face_or_voice_weigh_more_than_others():
    assert clue("frown and table", "frown and garden") > clue("frown and table", "smile and table")


def test_clue_overlap_equals_a_value_computed_by_hand():
    """Weights: lips 2, trembling 2, window 1; shared: lips and trembling, so 2 * 4 / (5 + 4)."""
    assert clue("Her lips tremble at the window", "trembling lips") == pytest.approx(10 * 8 / 9)


def test_the_explanation_lists_the_shared_clues():
    assert JUDGE.clue_overlap([(TRUTH, "pressed lips")])[0].explanation == "shared: lips, pressed"


def test_naming_the_emotion_is_not_a_clue():
    assert clue("He is sad, with tears", "He is sad, with a grin") == 0


def test_a_prediction_without_words_scores_0_and_a_reference_without_words_has_no_score():
    assert clue(TRUTH, "???") == 0
    verdict = JUDGE.clue_overlap([("他很伤心", "tears")])[0]
    assert verdict.score is None
    assert "English" in verdict.failure


# Emotion words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("He is happy.", ["happy"]),
        ("She looks WORRIED, even anxious; worried indeed", ["worried", "anxious"]),
        ("He is not happy", []),
        ("There is no sign of anger", []),
        ("without fear", []),
        ("He isn't angry, he is sad", ["sad"]),
        ("He isn\u2019t angry", []),
        ("no signs of anger, fear, or sadness, but joy", ["joy"]),
        ("neither happy nor sad", []),
        ("does not seem to be very happy", []),
        ("not only happy but also excited", ["happy", "excited"]),
        ("no doubt that he is happy", ["happy"]),
        ("She is not smiling and looks sad", ["sad"]),
        ("I don't think so. He is worried", ["worried"]),
        ("surprise rather than fear", ["surprise"]),
        ("sadness instead of joy", ["sadness"]),
        ("unhappy", ["unhappy"]),
        ("a table", []),
        ("", []),
    ],
)
def test_emotion_words_exclude_those_that_the_text_negates(text, expected):
    assert list(JUDGE.emotion_words([text])[0].words) == expected


def test_a_negated_emotion_does_not_match_the_reference():
    word_lists = [extraction.words for extraction in JUDGE.emotion_words(["He is happy", "He is not happy"])]
    assert label(word_lists[0], word_lists[1]) == 0


# Labels


def test_words_of_the_same_emotion_families_score_10():
    assert label(["sad", "angry"], ["furious", "sorrow", "anger"]) == 10


def test_neighbouring_emotion_families_score_half_and_distant_families_0():
    assert label(["worried"], ["fear"]) == 10 * NEIGHBOUR
    assert label(["happy"], ["disgust"]) == 0


def test_label_overlap_equals_a_value_computed_by_hand():
    """Precision: joy 1, anger 0 -> 1/2; recall: joy 1, worry 0, fear 0 -> 1/3; F1 = 2 * (1/2 * 1/3) / (5/6)."""
    assert label(["happy", "worried", "afraid"], ["joy", "angry"]) == pytest.approx(10 * 0.4)


def test_label_overlap_is_symmetric_and_within_the_scale():
    rng, words = random.Random(2), sorted(FAMILY)
    for _ in range(200):
        one, other = (rng.sample(words, rng.randint(1, 4)) for _ in range(2))
        assert label(one, other) == pytest.approx(label(other, one))
        assert 0 <= label(one, other) <= 10
        assert label(one, one) == 10


def test_words_outside_the_emotion_wheel_match_only_as_equal_strings():
    assert label(["Zestful"], ["zestful "]) == 10
    assert label(["zestful"], ["happy"]) == 0


def test_a_phrase_has_the_families_of_its_words_and_a_negation_is_its_own_family():
    assert label(["slightly worried"], ["anxious"]) == 10
    assert label(["not happy"], ["happy"]) == 0


def test_one_empty_list_scores_0_and_two_empty_lists_have_no_score():
    assert label(["sad"], []) == label([], ["sad"]) == 0
    assert JUDGE.label_overlap([([], [])])[0].score is None


# The wheel, and the judge as a component


def test_each_dataset_label_has_its_own_family_on_the_emotion_wheel():
    labels = "happy sad neutral angry worried surprise fear contempt doubt disgust".split()
    assert len({FAMILY[word] for word in labels}) == len(labels)


def test_every_emotion_family_has_a_neighbour_and_nearness_is_symmetric():
    families = set(FAMILY.values())
    assert 10 <= len(families) <= 13
    assert all(nearness(one, other) == nearness(other, one) for one in families for other in families)
    assert all(any(nearness(one, other) == NEIGHBOUR for other in families) for one in families)


def test_every_word_of_the_emotion_wheel_is_recognized_as_itself():
    assert len(FAMILY) > 300
    assert all(emotion_words(word) == (word,) for word in FAMILY)


@pytest.mark.parametrize(
    "forms",
    [
        "smile smiles smiled smiling",
        "cry cries cried crying",
        "nod nods nodded nodding",
        "brow brows eyebrow eyebrows",
        "press presses pressed pressing",
        "slow slowly",
        "family families",
        "voice voices",
        "speech spoke spoken speak speaking",
    ],
)
def test_forms_of_a_word_share_a_stem(forms):
    assert len({stem(form) for form in forms.split()}) == 1


def test_results_are_in_the_order_of_the_questions_without_any_request():
    verdicts = JUDGE.clue_overlap([(TRUTH, TRUTH), (TRUTH, "nothing of it"), (TRUTH, TRUTH)])
    assert [verdict.score == 10 for verdict in verdicts] == [True, False, True]
    assert JUDGE.name == "lexical"
    assert JUDGE.usage() == {"calls": 0, "cached": 0}


def test_an_unknown_key_of_the_judge_is_refused():
    with pytest.raises(ValueError, match="judge: unknown key 'model'. Keys of lexical: none"):
        JUDGES.built({"type": "lexical", "model": "x"}, "judge")
