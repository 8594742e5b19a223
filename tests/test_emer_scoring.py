"""EMER scores: the requests to a judge, and the means over the clips that have a score."""

from dataclasses import dataclass

import pytest
from judging import judge_server, refusal

from emollama.evaluation.emer import ClueOverlaps, LabelOverlaps
from emollama.evaluation.judges.judge import Extraction, Verdict
from emollama.evaluation.metrics import metric
from emollama.evaluation.predictions import Prediction
from emollama.registry import JUDGES, METRICS

LEXICAL = JUDGES.built({"type": "lexical"}, "judge")
SAD = "Her lips tremble and she is sad."


def answer(name, prediction, reference=SAD):
    return Prediction(name, "reason", prediction, reference)


def value(name, evidence):
    return metric(name).compute(evidence)


class Listening:
    """A judge that records its requests; clips with "odd" in a text get no score."""

    @dataclass
    class Config:
        pass

    name = "listening"

    def __init__(self):
        self.cfg, self.requests = self.Config(), []

    def clue_overlap(self, pairs):
        self.requests.append(("clues", list(pairs)))
        return [Verdict(None, "odd") if "odd" in prediction else Verdict(4.0) for _, prediction in pairs]

    def emotion_words(self, texts):
        self.requests.append(("words", list(texts)))
        return [Extraction(None, "odd") if "odd" in text else Extraction(("sad",) if "sad" in text else ()) for text in texts]

    def label_overlap(self, pairs):
        self.requests.append(("labels", list(pairs)))
        return [Verdict(6.0) for _ in pairs]

    def usage(self):
        return {"calls": 0, "cached": 0}


def test_clue_overlap_is_judged_once_per_sample_and_averaged():
    judge = Listening()
    overlaps = ClueOverlaps.of(judge, [answer("a", "lips"), answer("b", "")])
    assert judge.requests == [("clues", [(SAD, "lips")])]
    assert [verdict.score for verdict in overlaps.verdicts] == [4, 0]
    assert value("clue_overlap", overlaps) == 2


def test_label_overlap_extracts_emotion_words_once_per_distinct_text():
    judge = Listening()
    answers = [answer("a", "so sad"), answer("b", "so sad"), answer("c", "sad", reference="sad, too"), answer("d", SAD)]
    overlaps = LabelOverlaps.of(judge, answers)
    assert judge.requests == [("words", [SAD, "so sad", "sad, too", "sad"]), ("labels", [(("sad",), ("sad",))] * 4)]
    assert overlaps.names == ("a", "b", "c", "d")
    assert overlaps.reference_words == overlaps.predicted_words == (("sad",),) * 4
    assert value("label_overlap", overlaps) == 6


def test_an_empty_prediction_scores_0_without_a_call_of_the_judge():
    judge = Listening()
    for judged in (ClueOverlaps.of, LabelOverlaps.of):
        assert [verdict.score for verdict in judged(judge, [answer("a", ""), answer("b", " \n")]).verdicts] == [0, 0]
    assert judge.requests == []


def test_a_prediction_without_emotion_words_scores_0_without_a_comparison():
    judge = Listening()
    overlaps = LabelOverlaps.of(judge, [answer("a", "a table")])
    assert value("label_overlap", overlaps) == 0
    assert [kind for kind, _ in judge.requests] == ["words"]


@pytest.mark.parametrize(
    ("truth", "why"), [("", "empty"), (" ", "empty"), (None, "empty"), ("a table", "no emotion words in the reference")]
)
def test_a_reference_without_emotion_words_gives_no_score(truth, why):
    overlaps = LabelOverlaps.of(Listening(), [answer("a", "sad", truth), answer("b", "sad")])
    assert [verdict.score for verdict in overlaps.verdicts] == [None, 6]
    assert why in overlaps.failures()[0]["failure"]
    assert value("label_overlap", overlaps) == 6


def test_failures_are_listed_and_left_out_of_the_mean():
    answers = [answer("a", "an odd one"), answer("b", "sad"), answer("c", "sad", "an odd truth")]
    clues, labels = ClueOverlaps.of(Listening(), answers), LabelOverlaps.of(Listening(), answers)
    assert clues.failures() == [{"name": "a", "metric": "clue_overlap", "failure": "odd"}]
    assert labels.failures() == [
        {"name": "a", "metric": "label_overlap", "failure": "emotion words of the prediction: odd"},
        {"name": "c", "metric": "label_overlap", "failure": "emotion words of the reference: odd"},
    ]
    assert (value("clue_overlap", clues), value("label_overlap", labels)) == (4, 6)


def test_a_score_of_0_is_included_in_the_mean():
    assert value("clue_overlap", ClueOverlaps(("a", "b"), (Verdict(0.0), Verdict(5.0)))) == 2.5


@pytest.mark.parametrize("name", ["clue_overlap", "label_overlap"])
def test_without_any_score_the_metric_is_none(name):
    judged = {"clue_overlap": ClueOverlaps.of, "label_overlap": LabelOverlaps.of}[name]
    assert value(name, judged(Listening(), [])) is None
    assert value(name, judged(Listening(), [answer("a", "odd")])) is None


def test_take_returns_the_samples_in_this_order_and_again_if_an_index_repeats():
    answers = [answer("a", ""), answer("b", "sad"), answer("c", "odd")]
    for judged in (ClueOverlaps.of, LabelOverlaps.of):
        taken = judged(Listening(), answers).take([1, 1, 0])
        assert taken.names == ("b", "b", "a")
        assert [failure["name"] for failure in judged(Listening(), answers).take([2, 0]).failures()] == ["c"]
    assert value("label_overlap", LabelOverlaps.of(Listening(), answers).take([1, 1, 0])) == 4


def test_both_overlap_metrics_are_registered_with_a_scale_of_10():
    assert {"clue_overlap", "label_overlap"} <= set(METRICS.names())
    assert metric("clue_overlap").max_value == metric("label_overlap").max_value == 10
    assert metric("clue_overlap").is_better(7, than=6)


def test_the_lexical_judge_scores_a_reference_against_itself_with_10():
    answers = [answer("a", SAD)]
    assert (
        value("clue_overlap", ClueOverlaps.of(LEXICAL, answers))
        == value("label_overlap", LabelOverlaps.of(LEXICAL, answers))
        == 10
    )


def test_an_openai_judge_is_called_only_once_per_reference_over_several_files(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with judge_server() as server:
        cache = {"key_env": None, "cache_path": str(tmp_path / "cache.sqlite3")}
        judge = JUDGES.built({"type": "openai", "model": "m", "base_url": server.url, **cache}, "judge")
        for file in ("one", "two"):
            answers = [answer(name, f"{file} {name} is sad", f"{name} is sad") for name in "abc"]
            assert value("label_overlap", LabelOverlaps.of(judge, answers)) == 7
            assert value("clue_overlap", ClueOverlaps.of(judge, answers)) == 7
    texts = [call.data["text"] for call in server.calls if call.kind == "words"]
    assert len(texts) == len(set(texts)) == 3 + 6
    assert [call.kind for call in server.calls].count("labels") == 1


def test_failures_of_an_openai_judge_are_listed_with_their_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def oddly(call):
        candidate = str(call.data.get("candidate"))
        return refusal(500, "broken") if "two" in candidate else "11" if "three" in candidate else "8"

    with judge_server(oddly) as server:
        keys = {"key_env": None, "cache_path": str(tmp_path / "cache.sqlite3"), "retries": 0}
        judge = JUDGES.built({"type": "openai", "model": "m", "base_url": server.url, **keys}, "judge")
        overlaps = ClueOverlaps.of(judge, [answer(name, name) for name in ("one", "two", "three")])
    assert value("clue_overlap", overlaps) == 8
    failures = {failure["name"]: failure["failure"] for failure in overlaps.failures()}
    assert "broken" in failures["two"]
    assert "11" in failures["three"]
    assert judge.usage()["failed"] == 2
