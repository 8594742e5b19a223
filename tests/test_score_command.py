"""``emollama score``: file formats, counts, tables, written files and exit codes, with the real lexical judge."""

from __future__ import annotations

import argparse
import csv
import json

import numpy as np
import pytest
from judging import in_turn, judge_server, refusal, sensibly

from emollama.commands import score
from emollama.errors import UserError
from emollama.evaluation.input_files import read_predictions, read_references
from emollama.evaluation.matching import match
from emollama.evaluation.submission import write_submission

TRUTH = {
    "clip_1": "She smiles warmly and her voice is bright, so she seems happy.",
    "clip_2": "His fists are clenched and he shouts; he is angry.",
    "clip_3": "Tears run down her cheeks and she sobs, deeply sad.",
    "clip_4": "He speaks evenly with a still face and appears calm.",
}
KEY = "sk-secret-of-this-test"
LABELS = {"clip_1": "happy", "clip_2": "angry", "clip_3": "sad", "clip_4": "neutral"}


def rows_of(text, name):
    """The other cells of all table rows that begin with this cell."""
    rows = [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return [cells for first, *cells in rows if first == name]


@pytest.fixture
def scored(capsys):
    """A function that runs ``emollama score`` in this process and returns its output."""
    parser = argparse.ArgumentParser()
    score.add_arguments(parser)
    parser.set_defaults(resamples=0)  # for speed

    def call(*arguments):
        score.run(parser.parse_args([str(argument) for argument in arguments]))
        return capsys.readouterr().out

    return call


@pytest.fixture
def refused(scored):
    def call(*arguments):
        with pytest.raises(UserError) as error:
            scored(*arguments)
        return str(error.value)

    return call


@pytest.fixture
def table(tmp_path):
    """A function that writes a CSV file with a header and rows."""

    def write(name, header, rows):
        with open(tmp_path / name, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header.split(","), *rows])
        return tmp_path / name

    return write


@pytest.fixture
def emer(table):
    """Four reference descriptions in the format of EMER's first table."""
    return table("emer.csv", "names,emotions,subtitles,reasons", [[n, "x", "Well, then.", text] for n, text in TRUTH.items()])


@pytest.fixture
def perfect(table):
    return table("perfect.csv", "names,chi_reasons", TRUTH.items())


@pytest.fixture
def poor(table):
    return table("poor.csv", "names,chi_reasons", [[name, "A person sits in a room."] for name in TRUTH])


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def prediction_rows(task, predictions, references):
    keys = {"task": task, "instruction": "?", "target": "x", "loss": 0.5}
    return [{"name": name, "prediction": text, "reference": references.get(name), **keys} for name, text in predictions.items()]


def read_scores(folder):
    with open(folder / "scores.csv", encoding="utf-8", newline="") as file:
        return json.loads((folder / "scores.json").read_text(encoding="utf-8")), list(csv.DictReader(file))


def values(record, task):
    """Return the metrics of each file, by its name without the extension."""
    files = record["tasks"][task]["files"]
    name = {file: file.rpartition("/")[2].rpartition(".")[0] for file in files}
    return {name[file]: {key: one["value"] for key, one in entry["estimates"].items()} for file, entry in files.items()}


# Files of predictions and references


def test_every_file_format_of_answers_is_read(table, tmp_path):
    words = {"clip_1": ("happy", "don't care"), "clip_2": ()}
    write_submission(str(tmp_path / "words.npz"), [*words], [*words.values()])
    forms = {
        table("a.csv", "names,chi_reasons", [["clip_1", "glad, she is"]]): ("", "glad, she is", False),
        table("b.csv", "name,english", [["clip_1", "glad"]]): ("", "glad", False),
        table("c.csv", "name,prediction", [["clip_1", "glad"]]): ("", "glad", False),
        table("d.csv", "name,label", [["clip_1", "happy"]]): ("", "happy", True),
        table("e.csv", "name,openset", [["clip_1", "['glad', 'proud']"]]): ("", "['glad', 'proud']", False),
        tmp_path / "words.npz": ("", """['happy', "don't care"]""", False),
        jsonl(tmp_path / "f.jsonl", [{"name": "clip_1", "prediction": "glad"}]): ("", "glad", False),
        jsonl(tmp_path / "g.jsonl", prediction_rows("emotion", {"clip_1": "happy"}, LABELS)): ("emotion", "happy", False),
    }
    for path, (task, text, of_labels) in forms.items():
        parsed = read_predictions(str(path))
        assert (parsed.predictions[0].name, parsed.predictions[0].task, parsed.predictions[0].text) == ("clip_1", task, text)
        assert parsed.of_labels == of_labels
    assert read_predictions(str(tmp_path / "words.npz")).predictions[1].text == "[]"
    (answer,) = read_predictions(str(tmp_path / "g.jsonl")).predictions
    assert (answer.reference, answer.loss) == ("happy", 0.5)


def test_every_file_format_of_reference_data_is_read(table, tmp_path, emer):
    (tmp_path / "list.txt").write_text("clip_1 12 happy\nclip_2 9 angry -1.5\n")
    (tmp_path / "captions.json").write_text(
        json.dumps({"clip_1": {"caption": "coarse", "smp_reason_caption": "fine"}, "clip_2": {"caption": "only"}})
    )
    (tmp_path / "openset.json").write_text(json.dumps({"clip_1": ["happy"]}))
    by_path = {path: read_references(str(path)) for path in tmp_path.iterdir()}
    assert by_path[emer].references["reason_v2"] == by_path[emer].references[""] == TRUTH
    assert by_path[emer].is_emer
    assert by_path[tmp_path / "list.txt"].references == {"emotion": {"clip_1": "happy", "clip_2": "angry"}}
    captions = by_path[tmp_path / "captions.json"].references
    assert captions["reason"] == {"clip_1": "coarse", "clip_2": "only"}
    assert captions["reason_v2"] == captions[""] == {"clip_1": "fine", "clip_2": "only"}
    assert by_path[tmp_path / "openset.json"].openset == {"clip_1": ("happy",)}
    v2 = read_references(str(table("v2.csv", "name,chinese,english", [["clip_1", "-", "glad"], ["clip_2", "-", ""]])))
    assert v2.references["reason"] == {"clip_1": "glad"}
    for header in ("name,label", "name,discrete", "name,discrete,valence"):
        row = ["clip_1", "happy", "1"][: header.count(",") + 1]
        assert read_references(str(table("l.csv", header, [row]))).references == {"emotion": {"clip_1": "happy"}}
    own = read_references(str(table("own.csv", "name,emotion,reason", [["clip_1", "happy", "smiles"]])))
    assert (own.references["emotion"], own.references["reason"]) == ({"clip_1": "happy"}, {"clip_1": "smiles"})
    assert not own.is_emer


def test_dfew_label_numbers_and_names_with_leading_zeros_are_recognized(table, scored, tmp_path):
    truth = table("set_1.csv", "video_name,label", [["1", "1"], ["2", "6"], ["16000", "7"]])
    ours = jsonl(tmp_path / "ours.jsonl", prediction_rows("emotion", {"00001": "happy", "00002": "fear", "16000": "fear"}, {}))
    theirs = table("theirs.csv", "video_name,label", [["1", "1"], ["2", "6"], ["16000", "2"]])
    text = scored("--predictions", ours, theirs, "--truth", truth, "--output", tmp_path / "out")
    assert "labels happy fear disgust" in text
    record, _ = read_scores(tmp_path / "out")
    metrics = values(record, "emotion")
    assert (metrics["ours"]["war"], metrics["theirs"]["war"]) == (2 / 3, 2 / 3)
    assert metrics["theirs"]["invalid_rate"] == 1 / 3  # sad is not a label of these clips
    twice = table("twice.csv", "video_name,label", [["1", "1"], ["00001", "2"]])
    with pytest.raises(UserError, match="with and without leading zeros"):
        match([str(twice)], [str(truth)])


def test_an_annotation_file_with_placeholder_labels_is_refused_as_reference_data(refused, perfect, tmp_path):
    (tmp_path / "EMER_NCE.txt").write_text("clip_1 12 0\nclip_2 9 0\n")
    assert "as labels, got 0" in refused("--predictions", perfect, "--truth", tmp_path / "EMER_NCE.txt")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "twice.csv",
            "name,prediction\nclip_1,a\nclip_2,b\nclip_1,c\nclip_2,d\n",
            ["line 4", "already listed on line 2", "line 5"],
        ),
        ("twice.jsonl", '{"name": "clip_1", "prediction": "a"}\n' * 2, ["line 2", "line 1 already"]),
        ("list.jsonl", '["clip_1"]\n{"name": "clip_1"}\n{"name": 1, "prediction": "a"}\n', ["line 1", "line 2", "line 3"]),
        ("cut.jsonl", '{"name": "clip_1", "predic', ["line 1: invalid JSON"]),
        ("empty.jsonl", "\n", ["contains no predictions"]),
        ("empty.csv", "name,prediction\n", ["no usable row"]),
        ("other.csv", "name,text\nclip_1,a\n", ["expected one of the columns chi_reasons, prediction"]),
        ("wide.csv", "name,prediction\nclip_1,a,b\n", ["line 2", "more cells than columns"]),
        ("answers.txt", "clip_1 happy\n", ["Expected a file with the extension .jsonl"]),
        ("broken.npz", "no archive", ["broken.npz"]),
        ("gone.csv", None, ["--predictions: no file"]),
    ],
)
def test_an_unusable_answer_file_is_refused_with_its_lines(refused, tmp_path, emer, name, content, expected):
    if content is not None:
        (tmp_path / name).write_text(content)
    message = refused("--predictions", tmp_path / name, "--truth", emer, "--judge", "lexical")
    assert name in message and all(word in message for word in expected), message


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("twice.csv", "names,reasons\nclip_1,a\nclip_1,b\n", "already listed on line 2"),
        ("other.csv", "name,text\nclip_1,a\n", "expected one of the columns reasons, english"),
        ("none.json", '{"clip_1": {"text": "a"}}', "expected a caption in 'smp_reason_caption'"),
        ("list.json", "[]", "expected one JSON object"),
        ("truth.npz", "", "unknown reference format"),
        ("gone.csv", None, "--truth: no file"),
    ],
)
def test_an_unusable_reference_file_is_refused(refused, tmp_path, perfect, name, content, expected):
    if content is not None:
        (tmp_path / name).write_text(content)
    assert expected in refused("--predictions", perfect, "--truth", tmp_path / name, "--judge", "lexical")


def test_lone_surrogates_and_nan_in_an_answer_file_are_accepted(scored, table, tmp_path):
    line = '{"name": "clip_1", "prediction": "happy \\ud83d", "reference": "happy", "loss": NaN, "task": "emotion"}\n'
    (tmp_path / "a.jsonl").write_text(line + line.replace("clip_1", "clip_2").replace("happy \\ud83d", "\\ud83d"))
    text = scored("--predictions", tmp_path / "a.jsonl", "--output", tmp_path / "out")
    assert "without a valid label (1): clip_2 '?'" in text
    metrics = values(read_scores(tmp_path / "out")[0], "emotion")["a"]
    assert (metrics["war"], metrics["loss"]) == (0.5, None)


# Matching of predictions with references


def test_missing_unknown_empty_and_invalid_answers_are_counted_and_listed(scored, table, tmp_path):
    truth = table("truth.csv", "name,label", LABELS.items())
    rows = [["clip_1", "Happy."], ["clip_2", ""], ["clip_3", "gloomy"], ["clip_9", "sad"]]
    answers = table("a.csv", "name,prediction", rows)
    text = scored("--predictions", answers, "--truth", truth, "--output", tmp_path / "out", "--metrics", "war", "invalid_rate")
    assert rows_of(text, "a.csv")[-1] == ["2", "1", "1", "1", "3", "-"]
    assert "count as empty (1): clip_4" in text
    assert "predictions without a reference, which are ignored (1): clip_9" in text
    assert "empty predictions (1): clip_2" in text
    assert "without a valid label (3): clip_2 ''; clip_3 'gloomy'; clip_4 ''" in text
    record, rows = read_scores(tmp_path / "out")
    scores = record["tasks"]["emotion"]["files"][str(answers)]
    assert (scores["metrics"], scores["clips"]) == ({"war": 0.25, "invalid_rate": 0.75}, 4)
    assert (scores["missing"], scores["unknown"], scores["empty"]) == (["clip_4"], ["clip_9"], ["clip_2"])
    assert [(row["name"], row["truth"], row["label"]) for row in rows] == [
        ("clip_1", "happy", "happy"),
        ("clip_2", "angry", ""),
        ("clip_3", "sad", ""),
        ("clip_4", "neutral", ""),
    ]


def test_a_missing_description_is_scored_zero(scored, table, emer, tmp_path):
    answers = table("half.csv", "names,chi_reasons", [*TRUTH.items()][:2])
    scored("--predictions", answers, "--truth", emer, "--judge", "lexical", "--output", tmp_path / "out")
    record, rows = read_scores(tmp_path / "out")
    assert values(record, "")["half"] == {"clue_overlap": 5, "label_overlap": 5, "loss": None}
    assert [row["clue_overlap"] for row in rows] == ["10.0", "10.0", "0.0", "0.0"]


def test_files_without_a_common_sample_are_refused_with_names_from_both(refused, table, emer):
    answers = table("a.csv", "names,chi_reasons", [["video_1.mp4", "a"]])
    message = refused("--predictions", answers, "--truth", emer, "--judge", "lexical")
    assert "no sample in common" in message and "'video_1.mp4'" in message and "'clip_1', 'clip_2'" in message


@pytest.mark.parametrize("name", ["{}.mp4", "videos/{}", "videos/{}.avi"])
def test_names_that_differ_only_in_a_folder_or_an_extension_are_reported(refused, table, emer, name):
    answers = table("a.csv", "names,chi_reasons", [[name.format(clip), text] for clip, text in TRUTH.items()])
    message = refused("--predictions", answers, "--truth", emer, "--judge", "lexical")
    assert "no sample in common" in message and "differ only in a folder or a file extension" in message
    other = table("b.csv", "names,chi_reasons", [["x.mp4", "a"]])
    assert "differ by" not in refused("--predictions", other, "--truth", emer, "--judge", "lexical")


def test_an_unknown_task_is_refused_by_name(refused, perfect, emer):
    message = refused("--predictions", perfect, "--truth", emer, "--task", "emotions")
    assert (
        "--task: unknown task 'emotions'. Did you mean 'emotion'?" in message
        and "Expected one of emotion, reason, reason_v2, caption." in message
    )


@pytest.mark.parametrize(("sign", "called"), [(";", "';'"), ("\t", "tabs")])
def test_a_table_with_other_separators_is_refused_with_one_message(refused, perfect, emer, tmp_path, sign, called):
    text = f'"name"{sign}"prediction"\nclip_1{sign}"glad, she is"\nclip_2{sign}"sad, and tired, too"\n'
    (tmp_path / "other.csv").write_text(text)
    for files in (
        ("--predictions", tmp_path / "other.csv", "--truth", emer),
        ("--predictions", perfect, "--truth", tmp_path / "other.csv"),
    ):
        message = refused(*files)
        assert f"other.csv, line 1: the columns seem to be separated by {called}. Save the file as CSV with commas." in message
        assert "\n" not in message


def test_the_references_of_one_prediction_file_are_used_for_the_other_files(scored, table, tmp_path):
    ours = jsonl(tmp_path / "ours.jsonl", prediction_rows("reason_v2", dict.fromkeys(TRUTH, "He waits."), TRUTH))
    theirs = table("theirs.csv", "names,chi_reasons", TRUTH.items())
    scored("--predictions", ours, theirs, "--judge", "lexical", "--output", tmp_path / "out")
    metrics = values(read_scores(tmp_path / "out")[0], "reason_v2")
    assert metrics["theirs"]["clue_overlap"] == 10 > metrics["ours"]["clue_overlap"]
    assert (metrics["ours"]["loss"], metrics["theirs"]["loss"]) == (0.5, None)


def test_tasks_missing_from_the_reference_file_use_the_references_of_the_predictions(scored, table, emer, tmp_path):
    rows = prediction_rows("reason_v2", TRUTH, {}) + prediction_rows("emotion", {"a": "happy"}, {"a": "happy"})
    printed = scored("--predictions", jsonl(tmp_path / "both.jsonl", rows), "--truth", emer, "--judge", "lexical")
    assert "task emotion: 1 samples" in printed and "task reason_v2: 4 samples" in printed


def test_references_that_contradict_each_other_are_refused(refused, tmp_path):
    one = jsonl(tmp_path / "one.jsonl", prediction_rows("emotion", LABELS, LABELS))
    other = jsonl(tmp_path / "other.jsonl", prediction_rows("emotion", LABELS, LABELS | {"clip_2": "sad"}))
    assert "the reference of 'clip_2' (the task 'emotion') differs from that in a previous file" in refused(
        "--predictions", one, other
    )


def test_contradictory_references_of_unscored_tasks_are_ignored(scored, table, tmp_path):
    one = jsonl(tmp_path / "one.jsonl", prediction_rows("emotion", LABELS, LABELS) + prediction_rows("reason", TRUTH, {}))
    other = jsonl(tmp_path / "other.jsonl", prediction_rows("emotion", LABELS, LABELS | {"clip_2": "sad"}))
    described = jsonl(tmp_path / "described.jsonl", prediction_rows("reason_v2", TRUTH, TRUTH))
    theirs = table("theirs.csv", "names,chi_reasons", TRUTH.items())
    files = ("--predictions", one, other, "--truth", table("truth.csv", "name,reason", TRUTH.items()))
    assert "task reason: 4 samples" in scored(*files[:2], *files[3:], "--task", "reason", "--judge", "lexical")
    # The first file has no references for its reasons.
    text = scored("--predictions", one, described, theirs, "--judge", "lexical")
    assert "task reason_v2: 4 samples" in text and "task reason:" not in text


def test_answers_without_reference_data_are_refused(refused, perfect):
    assert "--truth is required" in refused("--predictions", perfect, "--judge", "lexical")


def test_several_tasks_of_a_file_are_scored_with_their_own_references(scored, tmp_path, refused, table):
    rows = (
        prediction_rows("emotion", LABELS, LABELS)
        + prediction_rows("reason", TRUTH, TRUTH)
        + prediction_rows("reason_v2", TRUTH, TRUTH)
    )
    ours = jsonl(tmp_path / "ours.jsonl", rows)
    text = scored("--predictions", ours, "--judge", "lexical", "--output", tmp_path / "out")
    assert [line for line in text.splitlines() if line.startswith("task ")] == [
        "task emotion: 4 samples; labels happy sad neutral angry",
        "task reason: 4 samples",
        "task reason_v2: 4 samples",
    ]
    record, _ = read_scores(tmp_path / "out")
    assert values(record, "emotion")["ours"]["waf"] == 1 and values(record, "reason")["ours"]["label_overlap"] == 10
    only = scored("--predictions", ours, "--task", "emotion")
    assert "task emotion" in only and "task reason" not in only
    theirs = table("theirs.csv", "name,english", TRUTH.items())
    assert "could be for reason or reason_v2" in refused("--predictions", ours, theirs, "--judge", "lexical")
    both = scored("--predictions", ours, theirs, "--judge", "lexical", "--task", "reason")
    assert "Differences from" in both and "reason_v2" not in both
    message = refused("--predictions", theirs, "--task", "reason")
    assert "none of the predictions for the task 'reason' has a reference; the predictions are for reason" in message
    truth = table("truth.csv", "name,label", LABELS.items())
    message = refused("--predictions", theirs, "--truth", truth, "--task", "reason")
    assert "nothing to score. The predictions are for reason; the references are for emotion." in message


def test_a_file_that_does_not_answer_a_task_is_not_in_its_table(scored, tmp_path, table):
    rows = prediction_rows("emotion", LABELS, LABELS) + prediction_rows("reason", TRUTH, TRUTH)
    ours = jsonl(tmp_path / "ours.jsonl", rows)
    theirs = table("theirs.csv", "name,label", LABELS.items())
    scored("--predictions", theirs, ours, "--judge", "lexical", "--output", tmp_path / "out")
    record, _ = read_scores(tmp_path / "out")
    assert [*values(record, "emotion")] == ["theirs", "ours"] and [*values(record, "reason")] == ["ours"]


def test_a_repeated_file_is_refused(refused, perfect, emer):
    assert "the same file appears twice" in refused("--predictions", perfect, perfect, "--truth", emer)


def test_two_reference_files_of_one_kind_are_refused(refused, perfect, emer, table):
    other = table("other.csv", "name,english", TRUTH.items())
    assert "and a previous file contain descriptions. Specify one of the two" in refused(
        "--predictions", perfect, "--truth", emer, other
    )


# Labels


def test_labels_aliases_and_answer_rules_are_applied_and_aliases_also_to_the_reference(scored, refused, table, tmp_path):
    truth = table("truth.csv", "name,label", [["a", "Bliss"], ["b", "sad"], ["c", "sad"]])
    answers = table("a.csv", "name,prediction", [["a", "a happy person"], ["b", "sad, not happy"], ["c", "gloom"]])
    common = ("--predictions", answers, "--truth", truth, "--labels", "happy", "sad", "--output")
    assert "the references have other labels: 'Bliss'" in refused(*common, tmp_path / "none")
    for rules, accuracy in (
        (("bliss=happy",), 1 / 3),
        (("bliss=happy", "gloom=sad"), 2 / 3),
        (("bliss=happy", "gloom=sad", "--several-hits", "first"), 1),
        (("bliss=happy", "gloom=sad", "--answer-rule", "exact"), 1 / 3),
    ):
        out = tmp_path / "_".join(rules)
        scored(*common, out, "--aliases", *rules)
        assert values(read_scores(out)[0], "emotion")["a"]["war"] == accuracy, rules


# Metrics, judges and emotion words


def test_an_unknown_metric_or_one_that_cannot_be_computed_is_refused(refused, perfect, emer):
    common = ("--predictions", perfect, "--truth", emer)
    assert "Did you mean 'clue_overlap'?" in refused(*common, "--metrics", "clue_overlaps")
    assert "'clue_overlap' cannot be computed here: it needs a judge" in refused(*common, "--metrics", "clue_overlap")
    assert "'waf' cannot be computed here: it needs the task 'emotion'" in refused(*common, "--metrics", "waf")
    assert "'ew' cannot be computed here" in refused(*common, "--metrics", "ew")


def test_descriptions_without_a_judge_say_what_is_missing(scored, perfect, emer):
    assert "descriptions need a judge, --judge" in scored("--predictions", perfect, "--truth", emer)


@pytest.mark.parametrize(
    ("judge", "expected"),
    [
        (["lexicle"], "Did you mean 'lexical'?"),
        (["lexical", "model=x"], "--judge: unknown key 'model'"),
        (["openai", "model"], "expected KEY=VALUE, got 'model'"),
        (["openai", "model=x", "model=y"], "'model' occurs twice"),
        (["openai", "model=x", "concurrency=many"], "concurrency"),
    ],
)
def test_an_invalid_judge_configuration_is_refused(refused, perfect, emer, judge, expected):
    assert expected in refused("--predictions", perfect, "--truth", emer, "--judge", *judge)


def test_emotion_words_without_brackets_are_parsed_as_lists_in_answers_and_references(scored, table, tmp_path):
    openset = table("words.csv", "name,openset", [["a", "happy, pensive"], ["b", "['sad', 'pensive']"], ["c", "thoughtful"]])
    answers = table("same.csv", "name,openset", [["a", "happy, pensive"], ["b", "['sad', 'pensive']"], ["c", "thoughtful"]])
    scored("--predictions", answers, "--truth", openset, "--output", tmp_path / "out")
    record, _ = read_scores(tmp_path / "out")
    (task,) = record["tasks"]
    assert values(record, task)["same"]["ov"] == 1.0


def test_samples_without_true_words_have_no_score_and_are_not_counted(scored, table):
    truth = table("openset.csv", "name,openset", [["a", "['happy']"], ["b", "[]"], ["c", "['sad']"]])
    answers = table("a.csv", "name,openset", [["a", "['happy']"], ["b", "['sad']"], ["c", "[]"]])
    text = scored("--predictions", answers, "--truth", truth, "--resamples", 100)
    assert rows_of(text, "a.csv")[0][:3] == ["0.5000"] * 3 and text.count("2 of 3 samples") == 3


def test_broken_lists_of_words_are_listed(scored, table, tmp_path):
    truth = table("openset.csv", "name,openset", [[name, "['happy']"] for name in "abcde"])
    texts = ['["happy","proud"', "[1,2]", "['happy']", "[She] is happy", "happy, proud"]
    answers = table("a.csv", "name,prediction", zip("abcde", texts, strict=True))
    np.savez(tmp_path / "w.npz", filenames=np.array([*"abcde"]), fileitems=np.array(texts))
    text = scored("--predictions", answers, tmp_path / "w.npz", "--truth", truth)
    listed = [line.rpartition(" (")[2] for line in text.splitlines() if "broken lists of words" in line]
    assert listed == ["2): a, b", "3): a, b, d"]


@pytest.mark.parametrize("cell", ['["happy","proud"', "[1,2]"])
def test_malformed_lists_of_words_in_the_reference_are_refused_with_their_line(refused, table, cell):
    truth = table("openset.csv", "name,openset", [["a", "['happy']"], ["b", cell]])
    answers = table("a.csv", "name,openset", [["a", "['happy']"], ["b", "[]"]])
    assert f"openset.csv, line 3: expected a list of words such as ['happy', 'sad'] or happy, sad, got {cell}" in refused(
        "--predictions", answers, "--truth", truth
    )


def test_an_unstated_task_has_a_name_in_the_table_of_samples(scored, perfect, emer, tmp_path):
    scored("--predictions", perfect, "--truth", emer, "--judge", "lexical", "--output", tmp_path / "out")
    assert {row["task"] for row in read_scores(tmp_path / "out")[1]} == {"unnamed"}


def test_emotion_words_are_scored_with_synonyms(scored, table, tmp_path):
    truth = table("openset.csv", "name,openset", [["a", "['happy', 'proud']"], ["b", "['sad']"]])
    write_submission(str(tmp_path / "words.npz"), ["a"], [["glad"]])
    (tmp_path / "synonyms.json").write_text('[["happy", "glad"]]')
    listed = table("listed.csv", "name,openset", [["a", "['proud', 'happy']"], ["b", "[]"]])
    text = scored(
        "--predictions", tmp_path / "words.npz", listed, "--truth", truth, "--synonyms", tmp_path / "synonyms.json",
        "--output", tmp_path / "out",
    )  # fmt: skip
    assert "emotion words: 2 samples" in text and "empty predictions (1): b" in text
    metrics = values(read_scores(tmp_path / "out")[0], "")
    assert (metrics["words"]["ov_precision"], metrics["words"]["ov_recall"], metrics["words"]["ov"]) == (0.5, 0.25, 0.375)
    assert (metrics["listed"]["ov_precision"], metrics["listed"]["ov_recall"]) == (0.5, 0.5)


def wheel_folder(folder, levels):
    """Write five equal wheels whose inner ring consists of good and bad."""
    import openpyxl

    folder.mkdir()
    sheets = {
        "synonym": [["word_run1", "synonym_run1"], *([row[2], "[]"] for row in levels[1:])],
        **{f"wheel{number}": levels for number in range(1, 6)},
    }
    for name, rows in sheets.items():
        book = openpyxl.Workbook()
        for row in rows:
            book.active.append(row)
        book.save(folder / f"{name}.xlsx")
    (folder / "format.csv").write_text("name,format\n" + "".join(f"{row[2]},[]\n" for row in levels[1:]))
    return folder


def test_emotion_words_are_scored_on_wheels_at_both_levels(scored, refused, table, tmp_path):
    levels = [["level1", "level2", "level3"], ["good", "merry", "glad"], ["good", "warm", "fond"], ["bad", "low", "glum"]]
    wheels = wheel_folder(tmp_path / "wheels", levels)
    truth = table("openset.csv", "name,openset", [["a", "['glad']"], ["b", "['glum']"]])
    answers = table("a.csv", "name,openset", [["a", "['fond']"], ["b", "['glum']"]])
    common = ("--predictions", answers, "--truth", truth, "--wheels")
    for level, figure in ((1, 1.0), (2, 0.5)):
        scored(*common, wheels, "--wheel-level", level, "--output", tmp_path / f"out{level}")
        assert values(read_scores(tmp_path / f"out{level}")[0], "")["a"]["ew"] == figure
    (wheels / "wheel3.xlsx").unlink()
    assert "lacks wheel3.xlsx" in refused(*common, wheels)


def test_reference_descriptions_and_reference_words_can_be_combined(scored, perfect, emer, table, tmp_path):
    openset = table("openset.csv", "name,openset", [[name, f"['{label}']"] for name, label in LABELS.items()])
    scored("--predictions", perfect, "--truth", emer, openset, "--judge", "lexical", "--output", tmp_path / "out")
    metrics = values(read_scores(tmp_path / "out")[0], "")["perfect"]
    assert metrics["clue_overlap"] == 10 and metrics["ov_recall"] == 0.75  # calm is not neutral


# An OpenAI-compatible judge


@pytest.fixture
def judge_arguments(tmp_path, monkeypatch):
    """A function that returns arguments for a judge on loopback, with a cache and a key of this test."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    cache = tmp_path / "cache.sqlite3"
    return lambda server: ["--judge", "openai", "model=m", f"base_url={server.url}", "concurrency=1", f"cache_path={cache}"]


def test_failures_of_a_judge_are_listed_and_excluded_from_differences(scored, perfect, poor, emer, judge_arguments, tmp_path):
    def failing(call):
        reluctant = call.kind == "clues" and "shouts" in call.data["reference"] and "sits" in call.data["candidate"]
        return "I would rather not." if reluctant else sensibly(call)

    with judge_server(failing) as server:
        arguments = ("--predictions", perfect, poor, "--truth", emer, *judge_arguments(server), "--metrics", "clue_overlap")
        text = scored(*arguments, "--resamples", 100, "--output", tmp_path / "out")
    assert "poor.csv: no score from the judge (1): clip_2 (clue_overlap): " in text
    assert [row for row in rows_of(text, "") if "samples" in row[0]] == [["3 of 4 samples"]]
    assert ", failed 1 (questions without a usable reply)" in text
    record, rows = read_scores(tmp_path / "out")
    first, second = (record["tasks"][""]["files"][str(path)] for path in (perfect, poor))
    assert second["estimates"]["clue_overlap"]["clips"] == second["differences"]["clue_overlap"]["clips"] == 3
    assert first["estimates"]["clue_overlap"] == {"value": 7, "low": 7, "high": 7, "clips": 4}
    assert [row["clue_overlap"] for row in rows if row["file"] == str(poor)] == ["7.0", "", "7.0", "7.0"]
    assert "judge m: " in text and f", calls {len(server.calls)}, cached 0, " in text


def test_a_metric_whose_judgements_all_failed_is_listed_with_the_reason(scored, perfect, emer, judge_arguments, tmp_path):
    def failing(call):
        return sensibly(call) if call.kind == "clues" and "shouts" not in call.data["reference"] else "I would rather not."

    with judge_server(failing) as server:
        text = scored("--predictions", perfect, "--truth", emer, *judge_arguments(server))
    assert "clue_overlap | label_overlap" in text
    assert rows_of(text, "perfect.csv")[0] == ["7.00", "-"]
    assert ["3 of 4 samples", "0 of 4 samples"] in rows_of(text, "")
    assert "perfect.csv: label_overlap: no sample has a score; most frequent reason: emotion words of the reference: " in text
    assert "clue_overlap 1, label_overlap 4" in text.split("judge failed")[1]


def test_a_second_run_sends_no_request_and_the_key_is_not_written_to_a_file(
    scored, perfect, poor, emer, judge_arguments, tmp_path
):
    with judge_server() as server:
        arguments = ("--predictions", perfect, poor, "--truth", emer, *judge_arguments(server))
        first = scored(*arguments, "--output", tmp_path / "out")
        calls = len(server.calls)
        second = scored(*arguments)
    assert calls == len(server.calls) > 0 and ", calls 0, " in second
    assert first.split("judge m:")[0] == second.split("judge m:")[0]
    assert KEY not in first and not any(KEY.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_an_unreachable_judge_stops_the_command_which_resumes_where_it_stopped(
    refused, scored, perfect, emer, judge_arguments, tmp_path
):
    with judge_server(in_turn("Score: 5", "Score: 5", refusal(401), "Score: 6")) as server:
        arguments = ("--predictions", perfect, "--truth", emer, *judge_arguments(server), "--metrics", "clue_overlap")
        message = refused(*arguments, "--output", tmp_path / "out")
        assert "2 of 4" in message and "run the same command again" in message.casefold()
        assert not (tmp_path / "out").exists()
        scored(*arguments, "--output", tmp_path / "out")
    # The question after the refused one may already be under way when the command stops.
    asked = [json.dumps(call.data, sort_keys=True) for call in server.calls]
    assert len(set(asked)) == 4 and asked.count(asked[0]) == asked.count(asked[1]) == 1
    assert values(read_scores(tmp_path / "out")[0], "")["perfect"] == {"clue_overlap": 5.5}


# Tables and files


def test_tables_show_the_shortest_distinct_suffix_of_each_path(scored, perfect, emer, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one/perfect.csv").write_bytes(perfect.read_bytes())
    (tmp_path / "far.csv").write_bytes(perfect.read_bytes())
    files = [tmp_path / "one/perfect.csv", perfect, tmp_path / "far.csv"]
    text = scored("--predictions", *files, "--truth", emer, "--judge", "lexical")
    assert text.splitlines()[:3] == [
        f"one/perfect.csv is {files[0]}", f"{tmp_path.name}/perfect.csv is {perfect}", f"far.csv is {files[2]}",
    ]  # fmt: skip
    assert all(text.count(str(file)) == 1 for file in files)


def test_the_smallest_p_value_of_the_resampling_is_marked_as_an_upper_bound(scored, perfect, poor, emer):
    arguments = ("--predictions", perfect, poor, "--truth", emer, "--judge", "lexical", "--metrics", "clue_overlap")
    assert "p <= 0.010 (4)" in scored(*arguments, "--resamples", 200)
    assert "p <= 0.003 (4)" in scored(*arguments, "--resamples", 800)  # 0.0025, rounded up


def test_the_published_table_follows_scores_of_emer_and_is_marked(scored, perfect, poor, emer, table):
    text = scored("--predictions", perfect, poor, "--truth", emer, "--judge", "lexical")
    ours, published = text.split("Published for EMER")
    assert "NOT comparable" in published.splitlines()[0]
    assert rows_of(published, "Emotion-LLaMA") == [["7.83", "6.25"]]
    assert "judge lexical: calls 0, cached 0" in ours
    own = table("own.csv", "name,reason", TRUTH.items())
    assert "Published" not in scored("--predictions", perfect, "--truth", own, "--judge", "lexical")


def test_the_record_contains_values_intervals_differences_and_scores_of_samples(scored, perfect, poor, emer, tmp_path):
    folder = tmp_path / "out"
    arguments = ("--predictions", perfect, poor, "--truth", emer, "--judge", "lexical", "--seed", 5, "--resamples", 200)
    arguments += ("--metrics", "label_overlap", "clue_overlap")
    text = scored(*arguments, "--output", folder)
    record, rows = read_scores(folder)
    first, second = (record["tasks"][""]["files"][str(path)] for path in (perfect, poor))
    assert (record["resamples"], record["seed"], record["judge"]) == (200, 5, {"name": "lexical", "calls": 0, "cached": 0})
    assert [*first["estimates"]] == ["label_overlap", "clue_overlap"]
    assert first["estimates"]["clue_overlap"] == {"value": 10, "low": 10, "high": 10, "clips": 4}
    apart = second["differences"]["clue_overlap"]
    assert apart["value"] == second["estimates"]["clue_overlap"]["value"] - 10 < 0 and apart["p"] < 0.05
    assert first["differences"] == {}
    clips = {row["name"]: row["clue_overlap"] for row in second["clip_scores"]}
    assert np.mean([*clips.values()]) == second["metrics"]["clue_overlap"]
    assert [(row["file"], row["name"], float(row["clue_overlap"])) for row in rows[4:]] == [
        (str(poor), name, value) for name, value in clips.items()
    ]
    assert text == scored(*arguments) + f"written: {folder}/scores.json, {folder}/scores.csv\n"


def test_text_that_a_spreadsheet_would_execute_is_escaped(scored, table, tmp_path):
    truth = table("truth.csv", "name,label", [["=1+1", "happy"], ["b", "sad"]])
    answers = table("a.csv", "name,prediction", [["=1+1", "happy"], ["b", "sad"]])
    scored("--predictions", answers, "--truth", truth, "--output", tmp_path / "out")
    assert [row["name"] for row in read_scores(tmp_path / "out")[1]] == ["'=1+1", "b"]


def test_an_output_that_is_a_file_or_contains_scores_is_refused_first(refused, perfect, emer, tmp_path):
    common = ("--predictions", perfect, "--truth", emer, "--judge", "lexical", "--output")
    assert "is a file" in refused(*common, emer)
    for name in ("scores.json", "scores.csv"):
        (tmp_path / name).write_text("what was written before")
        message = refused("--predictions", perfect, "--truth", tmp_path / "gone.csv", "--output", tmp_path)
        assert f"{name}' already exists. Specify another file" in message
        assert (tmp_path / name).read_text() == "what was written before"
        (tmp_path / name).unlink()


def test_an_unreachable_judge_ends_the_command_with_status_1_and_no_output(perfect, emer, tmp_path, emollama):
    judge = [
        "openai",
        "model=none",
        "base_url=http://127.0.0.1:9/v1",
        "key_env=null",
        "retries=0",
        f"cache_path={tmp_path}/cache",
    ]
    left = emollama("score", "--predictions", str(perfect), "--truth", str(emer), "--judge", *judge,
        "--output", str(tmp_path / "out"),
    )  # fmt: skip
    assert left.returncode == 1 and left.stdout == ""
    assert "Traceback" not in left.stderr and "run the same command again" in left.stderr.casefold()
    assert not (tmp_path / "out").exists()


def test_the_installed_command_exits_with_status_0_and_does_not_change_its_inputs(perfect, emer, tmp_path, emollama):
    before = [path.read_bytes() for path in (perfect, emer)]
    result = emollama("score", "--predictions", str(perfect), "--truth", str(emer), "--judge", "lexical")
    assert (result.returncode, result.stderr) == (0, "") and "clue_overlap" in result.stdout
    assert [path.read_bytes() for path in (perfect, emer)] == before
