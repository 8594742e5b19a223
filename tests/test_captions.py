"""Caption metrics: published check values, comparison with pycocoevalcap, subsets of the metric inputs, files and tables."""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from emollama.commands import score
from emollama.errors import UserError
from emollama.evaluation.captions.java import NEEDS_JAVA, JavaFailed, folder_of, java, lacks_java, lacks_spice, run_java
from emollama.evaluation.captions.metric_inputs import (
    Alignments,
    Consensus,
    NGrams,
    Propositions,
    Subsequences,
    spice_scores,
)
from emollama.evaluation.captions.reader import Captions
from emollama.evaluation.captions.tokenizers import tokenizer
from emollama.evaluation.input_files import read_predictions, read_references
from emollama.evaluation.metrics import metric
from emollama.evaluation.prediction_files import scores_as_dict, write_metrics, write_predictions
from emollama.evaluation.predictions import Prediction
from emollama.evaluation.rating import write_sheets
from emollama.evaluation.scoring import Scoring
from emollama.evaluation.statistics import Resampling, compare
from emollama.reporting.comparison import compare_runs
from emollama.reporting.report import write_report
from emollama.run_folder import PredictionRecord

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="no Java runtime on this machine")
WORDS = "a man woman dog dogs is are run runs running the big large child in on street road two of house , . '".split()
PLAIN = ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d"]
CHECKED = [
    Prediction(
        "one", "caption", "a man is speaking",
        ["a man speaks.", "someone speaks.", "a man is speaking while a bird is chirping in the background"],
    ),
    Prediction("two", "caption", "rain falls", ["rain is falling hard on a surface"]),
]  # fmt: skip
HOSTILE = ["", "  ", "...", "a\nb", "a\tb\r\nc", "a ||| b |||", "|||", "東京 😀", "\u2028", "</s>", "EVAL ||| 1 2"]


def scored(answers, **keys):
    """Scores of answers to the task caption, without Java unless the keys configure it."""
    cfg = Scoring.Config(**{"caption_tokenizer": "treebank", "metrics": PLAIN} | keys)
    caption_scoring = Scoring(cfg, labels=[], aliases={}, tasks={"caption": ("reference",)}, key="k")
    return caption_scoring.score(answers)["caption"]


def caption(rng, least=1):
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(least, 12)))


def random_captions(seed, clips=12):
    """Tokenized captions, some of them empty or repeated, with 1 to 5 references each."""
    rng = random.Random(seed)
    references = [[caption(rng) for _ in range(rng.randint(1, 5))] for _ in range(clips)]
    predicted = [rng.choice(["", caption(rng), caption(rng), "a man is running", rng.choice(true)]) for true in references]
    return Captions(tuple(f"c{index}" for index in range(clips)), predicted, references, "none")


def theirs(captions):
    """The two dictionaries that pycocoevalcap expects."""
    return dict(enumerate(captions.references)), {index: [text] for index, text in enumerate(captions.predicted)}


def alone(evidence, name):
    """The metric of each clip alone."""
    return [metric(name).compute(evidence.take([index])) for index in range(len(evidence.names))]


# Values


@pytest.mark.parametrize("choice", ["treebank", pytest.param("ptb", marks=needs_java)])
def test_both_tokenizers_reproduce_the_published_reference_scores(choice):
    scores = scored(CHECKED, caption_tokenizer=choice)
    assert scores.metrics["cider_d"] == pytest.approx(0.9614, abs=1e-4)
    assert alone(scores.inputs["consensus"], "cider_d") == pytest.approx([1.3641, 0.5587], abs=1e-4)
    assert scores.metrics["bleu_1"] == pytest.approx(0.4278, abs=1e-4)
    assert scores.inputs["ngrams"].tokenizer == choice


@pytest.mark.parametrize("seeds", [range(20), pytest.param(range(20, 200), marks=pytest.mark.slow)], ids=["20", "200"])
def test_all_scores_equal_those_of_pycocoevalcap_on_random_captions(seeds):
    for seed in seeds:
        captions = random_captions(seed)
        true, predicted = theirs(captions)
        counts, parts, weights = NGrams.of(captions), Subsequences.of(captions), Consensus.of(captions)
        whole, by_clip = Bleu(4).compute_score(true, predicted, verbose=0)
        for longest in range(4):
            name = f"bleu_{longest + 1}"
            assert metric(name).compute(counts) == pytest.approx(whole[longest], abs=1e-6)
            assert alone(counts, name) == pytest.approx(by_clip[longest], abs=1e-6)
        whole, by_clip = Rouge().compute_score(true, predicted)
        assert (metric("rouge_l").compute(parts), alone(parts, "rouge_l")) == (
            pytest.approx(whole, abs=1e-6),
            pytest.approx(by_clip, abs=1e-6),
        )
        whole, by_clip = Cider().compute_score(true, predicted)
        assert metric("cider_d").compute(weights) == pytest.approx(whole, abs=1e-6)
        assert alone(weights, "cider_d") == pytest.approx(by_clip, abs=1e-6)


def alignments(captions):
    """METEOR's alignments of several sets of captions from one start of the program, which takes ten CPU seconds."""
    parts = zip(*((one.names, one.predicted, one.references) for one in captions), strict=True)
    alignment = Alignments.of(Captions(*([item for part in column for item in part] for column in parts), captions[0].tokenizer))
    ends = np.cumsum([len(one.names) for one in captions])
    return [alignment.take(range(end - len(one.names), end)) for one, end in zip(captions, ends, strict=True)]


@needs_java
@pytest.mark.slow
def test_meteor_equals_pycocoevalcap_and_empty_captions_score_0():
    from pycocoevalcap.meteor.meteor import Meteor

    captions = random_captions(7, clips=150)
    program, (true, predicted) = Meteor(), theirs(captions)
    whole, by_clip = program.compute_score(true, predicted)
    hostile, empty = (Captions.of(answers, tokenizer("ptb")) for answers in (hostile_answers(), empty_answers()))
    alignment, of_hostile, of_empty = alignments([captions, hostile, empty])
    assert any(true == [text] or text in true for true, text in zip(captions.references, captions.predicted, strict=True))
    assert metric("meteor").compute(alignment) == pytest.approx(whole, abs=1e-6)
    assert alone(alignment, "meteor") == pytest.approx(by_clip, abs=1e-6)
    places = random.Random(1).choices(range(150), k=40)  # with repetitions
    drawn = {new: true[old] for new, old in enumerate(places)}, {new: predicted[old] for new, old in enumerate(places)}
    assert metric("meteor").compute(alignment.take(places)) == pytest.approx(program.compute_score(*drawn)[0], abs=1e-6)
    assert all(map(math.isfinite, alone(of_hostile, "meteor"))) and math.isfinite(metric("meteor").compute(of_hostile))
    by_name = dict(zip(of_hostile.names, alone(of_hostile, "meteor"), strict=True))
    assert [by_name[f"p{index}"] for index in EMPTY_ONES] == [0, 0, 0, 0]
    assert metric("meteor").compute(of_empty) == pytest.approx(0, abs=1e-9)


def test_cider_weights_of_a_subset_are_those_of_the_whole_set():
    whole = Consensus.of(random_captions(3, clips=30))
    half = list(range(0, 30, 2))
    assert alone(whole.take(half), "cider_d") == [alone(whole, "cider_d")[index] for index in half]
    captions = random_captions(3, clips=30)
    part = Captions(captions.names[:15], captions.predicted[:15], captions.references[:15], "none")
    assert alone(Consensus.of(part), "cider_d") != pytest.approx(alone(whole.take(range(15)), "cider_d"), abs=1e-3)


def test_taking_all_samples_reproduces_the_scores_and_repeats_equal_a_recomputation():
    captions = random_captions(5, clips=40)
    places = random.Random(0).choices(range(40), k=40)
    drawn = Captions(
        *([list(each)[index] for index in places] for each in (captions.names, captions.predicted, captions.references)), ""
    )
    for kind, names in ((NGrams, PLAIN[:4]), (Subsequences, ["rouge_l"]), (Consensus, ["cider_d"])):
        whole = kind.of(captions)
        for name in names:
            assert metric(name).compute(whole.take(range(40))) == metric(name).compute(whole)
            if kind is not Consensus:
                assert metric(name).compute(whole.take(places)) == pytest.approx(metric(name).compute(kind.of(drawn)), abs=1e-12)
    assert NGrams.of(captions).take(places).names == tuple(captions.names[index] for index in places)


def test_bleu_is_computed_on_many_resamples_of_a_thousand_clips():
    rng = np.random.default_rng(0)
    ngrams = NGrams(tuple(map(str, range(1000))), rng.integers(1, 9, (1000, 10)).astype(float), "none")
    cuts = [ngrams.take(places) for places in Resampling(100, 0).indices(1000).tolist()]
    assert len({metric("bleu_4").compute(cut) for cut in cuts}) > 50


# Unusual captions


EMPTY_ONES = (0, 1, 2, 8)  # indices of the texts in HOSTILE without any word


def hostile_answers():
    rng = random.Random(0)
    answers = [Prediction(f"p{index}", "caption", text, ["a b c", caption(rng)]) for index, text in enumerate(HOSTILE)]
    return answers + [Prediction(f"r{index}", "caption", "a man", [text, "x"]) for index, text in enumerate(HOSTILE)]


def empty_answers():
    pairs = (("", "a man"), ("...", "..."), ("a man", "..."))
    return [Prediction(str(index), "caption", prediction, [true]) for index, (prediction, true) in enumerate(pairs)]


@pytest.mark.parametrize("choice", ["treebank", pytest.param("ptb", marks=needs_java)])
def test_unusual_texts_have_finite_scores_and_empty_texts_score_0(choice):
    scores = scored(hostile_answers(), caption_tokenizer=choice, metrics=PLAIN)
    assert [*scores.metrics] == PLAIN
    assert all(value is not None and math.isfinite(value) for value in scores.metrics.values())
    for name in PLAIN:
        evidence = scores.inputs[metric(name).metric_input]
        by_clip = dict(zip(evidence.names, alone(evidence, name), strict=True))
        assert [by_clip[f"p{index}"] for index in EMPTY_ONES] == [0, 0, 0, 0], name


@pytest.mark.parametrize("choice", ["treebank", pytest.param("ptb", marks=needs_java)])
def test_only_empty_captions_score_0(choice):
    scores = scored(empty_answers(), caption_tokenizer=choice, metrics=PLAIN)
    assert scores.metrics == pytest.approx(dict.fromkeys(PLAIN, 0), abs=1e-9)


def test_without_answers_every_caption_score_is_none():
    assert scored([]).metrics == dict.fromkeys(PLAIN)


def test_a_single_reference_text_counts_as_a_list_of_one():
    pair = [Prediction("a", "caption", "a man runs", "a man runs fast"), CHECKED[1]]
    assert scored(pair).metrics == scored([Prediction("a", "caption", "a man runs", ["a man runs fast"]), CHECKED[1]]).metrics


def test_clips_without_references_are_left_out_and_named(caplog):
    bare = [
        Prediction("bare", "caption", "a dog"),
        Prediction("none", "caption", "a dog", []),
        Prediction("blank", "caption", "x", [" "]),
    ]
    with caplog.at_level(logging.WARNING, "emollama"):
        scores = scored([*CHECKED, *bare])
    assert "caption metrics leave out samples without a reference caption (3 samples: bare, none, blank" in caplog.text
    assert scores.metrics == scored(CHECKED).metrics
    assert scores_as_dict(scores)["captions"] == {"tokenizer": "treebank", "without_reference": ["bare", "none", "blank"]}


# SPICE, as far as it runs without its models


def test_spice_results_are_read_in_any_order_and_undefined_scores_are_0():
    pairs = [(1, 0.5), (0, None), (2, "NaN"), (3, float("nan"))]
    results = [{"image_id": index, "scores": {"All": {"f": f, "pr": 1.0}}} for index, f in pairs]
    assert spice_scores(results, 4) == [[0.0], [0.5], [0.0], [0.0]]
    with pytest.raises(JavaFailed, match="scores of 1 samples, expected 2"):
        spice_scores(results[1:2], 2)


@needs_java
@pytest.mark.skipif(lacks_spice() is None, reason="SPICE's models are there")
def test_spice_starts_and_its_failure_is_reported_and_only_costs_its_own_value(caplog, monkeypatch):
    captions = Captions(("a",), ["a man runs"], [["a man runs"]], "none")
    with pytest.raises(JavaFailed, match=r"SPICE failed in Java .*edu/stanford/nlp"):
        Propositions.of(captions)
    monkeypatch.setattr("emollama.evaluation.captions.metric_inputs.lacks_spice", lambda: None)
    caption_scoring = Scoring(
        Scoring.Config(metrics=["bleu_1", "spice"]), labels=[], aliases={}, tasks={"caption": ("reference",)}, key="k"
    )
    with caplog.at_level(logging.WARNING, "emollama"):
        metrics = caption_scoring.score(CHECKED, tolerant=True)["caption"].metrics
    assert metrics == {"bleu_1": pytest.approx(0.4278, abs=1e-4), "spice": None}
    assert "k: SPICE failed in Java" in caplog.text
    with pytest.raises(JavaFailed):
        caption_scoring.score(CHECKED)


@needs_java
@pytest.mark.skipif(lacks_spice() is not None, reason="SPICE's models are not there")
def test_spice_scores_a_caption_equal_to_its_reference_with_1():
    captions = Captions(("a", "b"), ["a man rides a brown horse", ""], [["a man rides a brown horse"]] * 2, "none")
    assert alone(Propositions.of(captions), "spice") == [1, 0]


def programs(folder, monkeypatch, text):
    """Set PATH to a folder that contains only ``java``."""
    path = folder / "java"
    path.write_text(text)
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_a_java_for_another_machine_does_not_count(tmp_path, monkeypatch):
    programs(tmp_path, monkeypatch, "\x00\x01 of another machine")
    assert java() is None and lacks_java() == NEEDS_JAVA
    with pytest.raises(JavaFailed, match="METEOR: Java does not start"):
        run_java("METEOR", [], tmp_path)
    assert set(scored(CHECKED, metrics=[], caption_tokenizer="auto").metrics) >= {"bleu_1", "cider_d"}


def test_a_java_program_that_does_not_end_is_stopped_and_reported(tmp_path, monkeypatch):
    programs(tmp_path, monkeypatch, '#!/bin/sh\n[ "$1" = -version ] || exec /bin/sleep 60\n')
    monkeypatch.setattr("emollama.evaluation.captions.java.LIMIT", 0.6)
    with pytest.raises(JavaFailed, match=r"METEOR: Java did not finish within 0.01 minutes and was stopped"):
        run_java("METEOR", [], tmp_path)


@needs_java
def test_tokenizing_writes_nothing_into_the_folder_of_pycocoevalcap():
    before = {str(path) for path in folder_of("").rglob("*") if "__pycache__" not in path.parts}
    scored(CHECKED, caption_tokenizer="ptb", metrics=["bleu_1"])
    assert {str(path) for path in folder_of("").rglob("*") if "__pycache__" not in path.parts} == before


# Files, tables, reports


def rows_of(clips=30, seed=0, noise=0.5):
    """The predictions of a run."""
    rng, other = random.Random(0), random.Random(seed)
    rows = []
    for index in range(clips):
        true = [caption(rng, 4) for _ in range(rng.randint(1, 5))]
        prediction = caption(other) if other.random() < noise else other.choice(true)
        rows.append(PredictionRecord(f"image_{index}", "caption", "?", prediction, " ".join(true), true, None))
    return rows


@pytest.fixture
def printed(capsys):
    """A function that runs ``emollama score`` in this process and returns what it prints."""
    parser = argparse.ArgumentParser()
    score.add_arguments(parser)
    parser.set_defaults(resamples=100, caption_tokenizer="treebank", metrics=PLAIN)

    def call(*arguments):
        score.run(parser.parse_args([str(argument) for argument in arguments]))
        return capsys.readouterr().out

    return call


def test_a_predictions_file_is_scored_again_without_other_files(printed, tmp_path):
    (path,) = write_predictions(tmp_path, "flickr30k", rows_of())
    text = printed("--predictions", path, "--output", tmp_path / "out")
    assert "task caption: 30 samples; tokenizer: treebank\n" in text
    assert "bleu_4" in text and "BLEU-4" not in text  # a self-explanatory name has no legend
    record = json.loads((tmp_path / "out/scores.json").read_text())["tasks"]["caption"]["files"][str(path)]
    answers = [Prediction(row.name, "caption", row.prediction, row.reference) for row in rows_of()]
    assert record["metrics"] == pytest.approx(scored(answers).metrics)
    for name in PLAIN:
        one = record["estimates"][name]
        assert one["low"] < one["value"] < one["high"] and one["clips"] == 30
    lines = (tmp_path / "out/scores.csv").read_text().splitlines()
    assert lines[0] == "task,file,name,bleu_1,bleu_2,bleu_3,bleu_4,rouge_l,cider_d" and len(lines) == 31


def test_two_files_are_compared_on_the_same_samples_and_the_tokenizer_without_java_is_named(printed, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (good,) = write_predictions(tmp_path, "good", rows_of(noise=0.1))
    (poor,) = write_predictions(tmp_path, "poor", rows_of(seed=1, noise=0.9)[:28])
    text = printed("--predictions", good, poor, "--caption-tokenizer", "auto")
    assert "tokenizer: treebank (no Java)" in text
    assert "Differences from predictions_good.jsonl" in text and "p <= 0.020 (30)" in text
    assert "samples without a prediction, which count as empty (2): image_28, image_29" in text


def test_other_models_captions_are_scored_against_a_caption_file(printed, tmp_path):
    rows = rows_of(4)
    (tmp_path / "other.csv").write_text("name,prediction\n" + "".join(f'{row.name},"{row.prediction}"\n' for row in rows))
    entries = [{"image_id": row.name, "caption": " ".join(row.reference), "captions": row.reference} for row in rows]
    (tmp_path / "test.json").write_text(json.dumps({"annotations": entries}))
    (tmp_path / "bare.json").write_text(json.dumps(entries))
    (path,) = write_predictions(tmp_path, "own", rows)
    for truth in (["--truth", tmp_path / "test.json"], ["--truth", tmp_path / "bare.json"]):
        assert "task caption: 4 samples" in printed("--predictions", tmp_path / "other.csv", *truth)
    assert "task caption: 4 samples" in printed("--predictions", path, tmp_path / "other.csv")
    assert read_references(str(tmp_path / "test.json")).references == {"caption": {row.name: row.reference for row in rows}}


COCO_PREDICTED = {42: "a dog runs in the street", 7: "a man reads a book"}
COCO_TRUE = {42: ["a dog runs on the street", "the dog is running"], 7: ["a man reads a large book", "someone reads"]}


def coco(folder):
    """A COCO caption file of two images, with ids and names like those of COCO."""
    images = [{"id": number, "file_name": f"{number:012d}.jpg", "height": 2} for number in COCO_TRUE]
    captions = [{"image_id": number, "caption": text} for number, texts in COCO_TRUE.items() for text in texts]
    annotations = [{"id": index, **caption} for index, caption in enumerate(captions)]
    path = folder / "captions_val2017.json"
    path.write_text(json.dumps({"info": {}, "licenses": [], "images": images, "annotations": annotations}))
    return path


def results(path, names):
    """A COCO results file with COCO_PREDICTED under other ids."""
    path.write_text(json.dumps([{"image_id": names(number), "caption": text} for number, text in COCO_PREDICTED.items()]))
    return path


@pytest.mark.parametrize(
    "names",
    [int, str, "{:012d}".format, "{:012d}.jpg".format],
    ids=["numbers", "numbers as texts", "names", "names of files"],
)
def test_coco_results_are_scored_against_coco_captions(printed, tmp_path, names):
    path = results(tmp_path / "results.json", names)
    text = printed("--predictions", path, "--truth", coco(tmp_path), "--output", tmp_path / "out")
    assert "task caption: 2 samples" in text and "without reference data" not in text
    scores = json.loads((tmp_path / "out/scores.json").read_text())["tasks"]["caption"]["files"][str(path)]
    answers = [Prediction(f"{number:012d}", "caption", COCO_PREDICTED[number], COCO_TRUE[number]) for number in COCO_PREDICTED]
    assert scores["metrics"] == pytest.approx(scored(answers).metrics) and scores["metrics"]["bleu_4"] > 0
    assert (scores["missing"], scores["unknown"]) == ([], [])


def test_a_table_of_image_ids_is_read_like_coco_results(printed, tmp_path):
    table, truth = tmp_path / "results.csv", coco(tmp_path)
    table.write_text("image_id,caption\n" + "".join(f'{number},"{text}"\n' for number, text in COCO_PREDICTED.items()))
    assert read_predictions(str(table)).predictions == read_predictions(str(results(tmp_path / "results.json", int))).predictions
    assert "task caption: 2 samples" in printed("--predictions", table, tmp_path / "results.json", "--truth", truth)


def test_image_ids_are_matched_with_the_samples_of_a_run_and_unknown_numbers_are_reported(printed, tmp_path):
    rows = [PredictionRecord(f"{n:012d}", "caption", "?", "a dog", "x", COCO_TRUE[n], None) for n in COCO_PREDICTED]
    (own,) = write_predictions(tmp_path, "own", rows)
    other = results(tmp_path / "other.json", "{:012d}.jpg".format)
    assert "task caption: 2 samples" in printed("--predictions", own, other)
    with pytest.raises(UserError, match="has '42', '7'; .* pass COCO's captions with --truth: their \"images\" list"):
        printed("--predictions", own, results(tmp_path / "numbers.json", int))
    both = results(tmp_path / "both.json", {42: 42, 7: "000000000042.jpg"}.get)
    with pytest.raises(UserError, match="a sample appears twice, by number and by file name"):
        printed("--predictions", both, "--truth", coco(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.json", '{"7": "a dog"}', r"a\.json: expected a JSON list of captions \(COCO results, \[{\"image_id\": 7"),
        ("a.json", "[]", "contains no predictions"),
        ("a.json", '[{"image_id": 7, "caption": "x"}, {"image_id": true, "caption": "x"}, 5]', "entry 2: .*\n.*entry 3: "),
        ("a.json", '[{"image_id": 7, "caption": null}]', "entry 1: expected an image_id and a caption"),
        (
            "a.json",
            '[{"image_id": 7, "caption": "x"}, {"image_id": "7", "caption": "y"}]',
            "entry 2: entry 1 already has a caption",
        ),
        ("a.csv", "image_id,caption\n7,x\n7,y\n8,x,y\n", "line 4: more cells.*\n.*line 3: line 2 already has a caption"),
        ("a.csv", "image_id,caption\n,x\n", "line 2: expected an image_id"),
    ],
)
def test_invalid_captions_by_image_are_refused_with_their_line_or_entry(tmp_path, name, content, expected):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=expected):
        read_predictions(str(tmp_path / name))


def test_missing_java_is_reported_once_and_only_for_requested_metrics(caplog, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with caplog.at_level(logging.WARNING, "emollama"):
        with pytest.raises(UserError, match="k.metrics: 'meteor' cannot be computed here: it needs a Java runtime"):
            scored(CHECKED, caption_tokenizer="auto", metrics=["meteor"])
        assert not caplog.records
        scored(CHECKED, caption_tokenizer="auto", metrics=["bleu_1"])
        assert len(caplog.records) == 1 and "treebank splits captions" in caplog.text and "METEOR" not in caplog.text
        scored(CHECKED, caption_tokenizer="auto", metrics=[])
    assert len(caplog.records) == 2 and "METEOR is not computed" in caplog.text


@pytest.mark.parametrize(
    ("reference", "expected"),
    [([1], "expected 'reference' to be a string or a list"), ({"a": "b"}, "expected an object"), (5, "expected")],
)
def test_a_reference_that_is_neither_text_nor_list_of_texts_is_refused_with_its_line(tmp_path, reference, expected):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"name": "a", "prediction": "x", "task": "caption", "reference": reference}))
    with pytest.raises(UserError, match=rf"line 1: .*{expected}"):
        read_predictions(str(path))


def test_lists_of_references_are_read_back_as_written(tmp_path):
    rows = rows_of(3)
    rows[0] = replace(rows[0], reference=["half a pair \ud83d", 'a "quote"\nand a line'], prediction="x")
    path = tmp_path / "predictions_a.jsonl"
    path.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))
    answers = read_predictions(str(path)).predictions
    assert answers[0].reference == ["half a pair ?", 'a "quote"\nand a line']
    assert [answer.reference for answer in answers[1:]] == [row.reference for row in rows[1:]]


def test_several_references_as_one_text_are_one_per_line(tmp_path):
    answer = Prediction("a", "reason", "She smiles.", ["She smiles.", "Her voice is bright."])
    assert answer.reference_text == "She smiles.\nHer voice is bright."
    cfg = Scoring.Config(judge={"type": "lexical"}, metrics=["clue_overlap"])
    caption_scoring = Scoring(cfg, labels=[], aliases={}, tasks={"reason": ("reference",)}, key="k")
    assert 0 < caption_scoring.score([answer])["reason"].metrics["clue_overlap"] < 10
    (path,) = (tmp_path / "a.jsonl",)
    path.write_text(json.dumps({"name": "a", "task": "reason", "prediction": "She smiles.", "reference": answer.reference}))
    from emollama.evaluation.matching import match

    files = match([str(path)], []).tasks["reason"]
    write_sheets(tmp_path / "sheet.csv", "reason", files, num_samples=None, raters=1, seed=0)
    assert "She smiles.\nHer voice is bright." in (tmp_path / "sheet.csv").read_text(encoding="utf-8-sig")


def test_confidence_intervals_of_caption_scores_are_reproducible():
    answers = [Prediction(row.name, "caption", row.prediction, row.reference) for row in rows_of(60)]
    estimates = [compare({"a": scored(answers)}, Resampling(200, 3)).estimates["a"] for _ in range(2)]
    assert estimates[0] == estimates[1] and all(one.low < one.high for one in estimates[0].values())


def run_folder(folder, tokenizer):
    """A run folder with an evaluation of captions."""
    rows = rows_of()
    answers = [Prediction(row.name, "caption", row.prediction, row.reference) for row in rows]
    write_predictions(folder / "result", "flickr30k", rows)
    write_metrics(folder / "result", "flickr30k", {"caption": scored(answers)}, "checkpoint_4.pth")
    path = folder / "result/metrics_flickr30k.json"
    path.write_text(path.read_text().replace('"tokenizer": "treebank"', f'"tokenizer": "{tokenizer}"'))
    return folder


def test_the_report_shows_caption_metrics_the_tokenizer_and_all_references(tmp_path):
    folder = run_folder(tmp_path / "run", "treebank (no Java)")
    scores = json.loads((folder / "result/metrics_flickr30k.json").read_text())["tasks"]["caption"]
    assert [*scores["clip_scores"][0]] == ["name", "rouge_l", "cider_d"]
    page = write_report(folder).read_text(encoding="utf-8")
    for text in ("BLEU-4", "ROUGE-L", "CIDEr-D", "tokenizer: treebank (no Java)", "from the worst to the best score", "cider d"):
        assert text in page
    best = max(scores["clip_scores"], key=lambda row: row["cider_d"])["name"]
    true = next(row.reference for row in rows_of() if row.name == best)
    assert "\n".join(true).replace("'", "&#39;") in page
    assert "[&#34;" not in page


def test_a_comparison_of_runs_notes_that_they_used_different_caption_tokenizers(tmp_path):
    folders = [run_folder(tmp_path / name, way) for name, way in (("a", "ptb"), ("b", "treebank"), ("c", "ptb"))]
    notes = [note for note in compare_runs(folders).notes if "split" in note]
    assert len(notes) == 1 and "flickr30k/caption" in notes[0] and "a by ptb, b by treebank, c by ptb" in notes[0]
    assert not [note for note in compare_runs(folders[::2]).notes if "split" in note]
