"""Predictions and groups of synonyms as they are published, and tables that a spreadsheet program opens."""

from __future__ import annotations

import csv
import io
import json
import shutil
import zipfile

import numpy as np
import pytest
from helpers import GOLDEN
from importing import run, sentences, write_file

from emollama.data.csv_files import escape_formula, restore_formula, write_csv
from emollama.evaluation.prediction_files import write_predictions
from emollama.evaluation.synonyms import read_synonyms
from emollama.extraction import failures
from emollama.extraction.failures import ExtractionFailure
from emollama.paths import PACKAGE
from emollama.reporting.checkpoint_table import CheckpointRow, CheckpointTable, write_checkpoint_table
from emollama.run_folder import PredictionRecord

pytestmark = pytest.mark.faults

OV = GOLDEN / "ov2024"
EXPECTED = json.loads((OV / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture
def scored(tmp_path, emollama):
    """A function that runs ``emollama score`` and returns its process and, by metric, the values of the first file."""

    def call(predictions, *arguments, status=0):
        out = tmp_path / "scores"
        shutil.rmtree(out, ignore_errors=True)
        done = emollama("score", "--predictions", predictions, *arguments, "--resamples", 0, "--output", out)
        assert done.returncode == status, done.stderr
        if status:
            return done, {}
        ((_, task),) = json.loads((out / "scores.json").read_text(encoding="utf-8"))["tasks"].items()
        return done, {name: one["value"] for name, one in task["files"][str(predictions)]["estimates"].items()}

    return call


def jsonl(path, rows):
    return write_file(path, "".join(json.dumps(row) + "\n" for row in rows))


def close(value):
    return pytest.approx(value, abs=1e-12)


# Groups of synonyms


def unpacked(tmp_path):
    with zipfile.ZipFile(OV / "openset-synonym.zip") as archive:
        archive.extractall(tmp_path)
    return tmp_path / "openset-synonym"


def as_texts(tmp_path):
    texts = {path.stem: str(np.load(path)) for path in unpacked(tmp_path).glob("*.npy")}
    return write_file(tmp_path / "texts.json", json.dumps(texts))


def as_lists(tmp_path):
    by_sample = read_synonyms(str(OV / "openset-synonym.zip")).by_sample
    groups = {}
    for name, mapping in by_sample.items():
        words = {group: [word for word in mapping if mapping[word] == group] for group in mapping.values()}
        groups[name] = [[group, *others] for group, others in words.items()]
    return write_file(tmp_path / "lists.json", json.dumps(groups))


@pytest.mark.parametrize(
    ("synonyms", "case"),
    [
        (lambda _: OV / "openset-synonym.zip", "per_clip_groups"),
        (unpacked, "per_clip_groups"),
        (as_texts, "per_clip_groups"),
        (as_lists, "per_clip_groups"),
        (lambda _: OV / "global_groups.json", "one_grouping"),
        (None, "no_groups"),
    ],
    ids=["archive", "folder", "texts", "lists", "one grouping", "none"],
)
def test_the_score_of_mer2024_ov_equals_that_of_the_published_scorer(tmp_path, scored, synonyms, case):
    options = ("--synonyms", synonyms(tmp_path)) if synonyms else ()
    done, values = scored(OV / "predict-openset.csv", "--truth", OV / "check-openset.csv", *options)
    expected = EXPECTED[case]
    assert [values[name] for name in ("ov_precision", "ov_recall", "ov")] == [
        close(expected[name]) for name in ("accuracy", "recall", "score")
    ]
    left_out = 59 - expected["clips"]
    assert (f"ov leaves out {left_out} samples: clip_07967, clip_18310" in done.stderr) == bool(left_out)


# truth, prediction, groups, (precision, recall) of the published scorer. Where it stops, None means that the clip is left out.
EDGES = [
    ("[]", "[]", "[]", (0, 0)),
    ("", "", "[]", (0, 0)),
    ("[]", "['glad']", "[]", None),  # stops
    ("", "['glad']", "[]", None),  # stops
    ("glad", "['glad']", "[]", (1, 1)),  # stops
    ("['glad']", "glad", "[]", (1, 1)),  # stops
    ("glad, sad", "['sad', 'glad']", "[]", (1, 1)),  # stops
    ("['glad']", "", "[]", (0, 0)),
    ("['glad']", "['glad', 'sad']", "", (0.5, 1)),
    ("['glad, merry']", "['glad']", "[['glad', 'merry']]", (0, 0)),
    ("[glad, sad]", "['glad', 'sad']", "[]", (0, 0)),
    ("['glad', 'sad']", "[glad, sad]", "[]", (0, 0)),
    ("[glad, sad]", "[glad, sad]", "[]", (1, 1)),
    ("['glad ']", "['glad']", "[]", (0, 0)),
    ("[' GLAD']", "[' glad']", "[]", (1, 1)),
    ("['glad']", "['merry']", "[['glad', ' merry']]", (0, 0)),
    ('["don\'t care"]', "['t care', 'don']", "[]", (1, 1)),
    ("['glad', 'glad', 'sad']", "['glad']", "[]", (1, 0.5)),
    ("['glad']", "['merry']", "[['glad', 'merry'], ['merry', 'sad']]", (0, 0)),
    ("['glad']", "['merry']", "[['sad', 'merry'], ['merry', 'glad']]", (1, 1)),
    ("['Glad']", "['Merry']", "[['Glad', 'Merry']]", (0, 0)),
    ("['glad']", "['merry']", [["Glad", "Merry"]], (0, 0)),
    ("['glad']", "['merry']", [["glad", "merry"]], (1, 1)),
    ("['glad']", "['merry']", "[[glad, merry]]", (0, 0)),
    ("['glad, merry']", "['sad']", "[[glad, merry], ['sad', 'glad, merry']]", (1, 1)),
    ("['glad']", "['merry']", "[['glad', 'merry'", (1, 1)),
]


@pytest.mark.parametrize(("truth", "predicted", "groups", "expected"), EDGES)
def test_lists_and_groups_of_a_clip_are_read_as_by_the_published_scorer(tmp_path, scored, truth, predicted, groups, expected):
    # A second clip, whose words match in part, shows whether the first one counts.
    files = {name: tmp_path / f"{name}.csv" for name in ("truth", "predicted")}
    for name, cell, other in (("truth", truth, "['calm', 'x']"), ("predicted", predicted, "['calm', 'y']")):
        with files[name].open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("name", "openset"), ("a", cell), ("b", other)])
    synonyms = write_file(tmp_path / "s.json", json.dumps({"a": groups, "b": "[['x']]"}))
    _, values = scored(files["predicted"], "--truth", files["truth"], "--synonyms", synonyms)
    scores = (0.5, 0.5) if expected is None else tuple((value + 0.5) / 2 for value in expected)
    assert (values["ov_precision"], values["ov_recall"]) == scores


def test_one_grouping_ignores_case_white_space_and_quotes(tmp_path, scored):
    truth = write_file(tmp_path / "t.csv", "name,openset\na,\"[' Glad ', 'SAD']\"\nb,[]\n")
    predicted = write_file(tmp_path / "p.csv", 'name,openset\na,"[merry, sad]"\nb,[]\n')
    synonyms = write_file(tmp_path / "s.json", '[["Glad", "Merry "]]')
    _, values = scored(predicted, "--truth", truth, "--synonyms", synonyms)
    assert values["ov"] == 1


def archive(path, files):
    with zipfile.ZipFile(path, "w") as target:
        for name, content in files.items():
            target.writestr(name, content)
    return path


def npy(value, **options):
    buffer = io.BytesIO()
    np.save(buffer, value, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"s/a.npy": npy(np.array([{"a": 1}], dtype=object))}, "s.zip, a.npy: cannot be read"),
        ({"s/a.npy": npy(np.zeros(3))}, "s.zip, a.npy: expected one text such as"),
        ({"s/a.npy": npy("[]"), "t/a.npy": npy("[]")}, "s.zip: the sample 'a' has two files"),
        ({"s/readme.txt": b""}, "s.zip: contains no file <sample>.npy"),
        (
            {"s/other.npy": npy("[['glad']]")},
            "s.zip: has groups for no sample with reference words, only for others such as",
        ),
        (b"no archive", "s.zip: cannot be read as a zip archive"),
        ({"s/a.npy": npy("[]").replace(b"(), ", b"(9999999999999,), ")[:-8]}, "s.zip, a.npy: cannot be read"),
        ({"s/a.npy": npy("[]").replace(b"<U2", b"<U999999999999")}, "s.zip, a.npy: cannot be read"),
        ({"s/a.npy": npy("x" * 2**20)}, "s.zip, a.npy: cannot be read (it is larger than 1,048,576 bytes)"),
    ],
    ids=["objects", "numbers", "twice", "empty", "other samples", "no archive", "size", "dtype", "large"],
)
def test_an_unusable_archive_is_refused_before_anything_is_scored(tmp_path, scored, content, expected):
    path = tmp_path / "s.zip"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        archive(path, content)
    done, _ = scored(OV / "predict-openset.csv", "--truth", OV / "check-openset.csv", "--synonyms", path, status=1)
    assert expected in done.stderr


def test_groups_of_one_clip_that_are_no_lists_are_refused_with_its_name(tmp_path, scored):
    synonyms = write_file(tmp_path / "s.json", json.dumps({"clip_04153": [["happy", "glad"]], "clip_05227": [["sad"], "tired"]}))
    done, _ = scored(OV / "predict-openset.csv", "--truth", OV / "check-openset.csv", "--synonyms", synonyms, status=1)
    assert "s.json, 'clip_05227': expected the groups of this sample" in done.stderr


# Predictions of Emotion-LLaMA-v2

V2 = [
    {"video_id": "a", "answer": "happy", "response": "Happy", "mode": "test1"},
    {"video_id": "b", "answer": "sad", "response": "happy", "mode": "test1"},
    {"video_id": "c", "answer": "worried", "response": "", "mode": "test1"},
    {"video_id": "d", "answer": "sad", "response": "neutral", "new_response": "sad", "mode": "test1"},
    {"video_id": "e", "answer": "sad", "response": "happy", "mode": "test2"},
]


def test_labels_of_emotion_llama_v2_are_scored_with_their_answers_and_mode(tmp_path, scored):
    _, values = scored(jsonl(tmp_path / "mer2023.jsonl", V2), "--mode", "test1")
    assert (values["war"], values["invalid_rate"]) == (0.5, 0.25)


def test_several_modes_of_a_file_are_reported(tmp_path, scored):
    done, values = scored(jsonl(tmp_path / "mer2023.jsonl", V2))
    assert values["war"] == 0.4
    assert "mer2023.jsonl: has predictions of the modes test1 (4), test2 (1). Choose one with --mode." in done.stderr


def test_an_unknown_mode_is_refused_with_those_of_the_file(tmp_path, scored):
    done, _ = scored(jsonl(tmp_path / "mer2023.jsonl", V2), "--mode", "test3", status=1)
    assert "mer2023.jsonl: --mode: no prediction has the mode 'test3'. Its modes: test1, test2." in done.stderr


def test_a_clip_in_two_modes_needs_a_choice(tmp_path, scored):
    path = jsonl(tmp_path / "x.jsonl", [*V2, {**V2[0], "mode": "test2"}])
    done, _ = scored(path, status=1)
    assert "x.jsonl, line 6: line 1 already has a prediction for 'a'. Choose one of their modes with --mode" in done.stderr
    assert scored(path, "--mode", "test1")[1]["war"] == 0.5


def test_labels_of_emotion_llama_v2_are_scored_with_a_table(tmp_path, scored):
    path = jsonl(tmp_path / "x.jsonl", [{"video_id": 7, "mode": "test", "response": "joy"}, {"video_id": "8", "response": "sad"}])
    truth = write_file(tmp_path / "truth.csv", "name,label\n7,happy\n8,sad\n")
    assert scored(path, "--truth", truth)[1]["war"] == 0.5
    assert scored(path, "--truth", truth, "--answer-rule", "exact")[1]["war"] == 1


@pytest.mark.parametrize("answer", ["Surprised.", "The person is surprised."])
def test_another_form_of_a_label_in_an_answer_counts_independently_of_its_place(tmp_path, scored, answer):
    truth = write_file(tmp_path / "truth.csv", "name,label\na,surprise\nb,sad\n")
    path = write_file(tmp_path / "p.csv", f"name,prediction\na,{answer}\nb,sad\n")
    assert scored(path, "--truth", truth, "--task", "emotion")[1]["war"] == 0.5
    assert scored(path, "--truth", truth, "--task", "emotion", "--aliases", "surprised=surprise")[1]["war"] == 1


def test_a_column_of_labels_is_read_like_that_of_the_references(tmp_path, scored):
    truth = write_file(tmp_path / "truth.csv", "name,label\na,surprise\nb,sad\n")
    path = write_file(tmp_path / "p.csv", "name,label\na,Surprised\nb,sadness\n")
    assert scored(path, "--truth", truth)[1]["war"] == 1


def test_words_of_emotion_llama_v2_are_lists(tmp_path, scored):
    path = jsonl(tmp_path / "ov.jsonl", [{"video_id": "a", "response": "Sad, very  calm", "mode": "test"}])
    truth = write_file(tmp_path / "t.csv", "name,openset\na,\"['very  calm', 'sad']\"\n")
    assert scored(path, "--truth", truth)[1]["ov"] == 1


def test_lists_of_emotion_llama_v2_score_as_in_the_published_scorer(tmp_path, scored):
    with (OV / "predict-openset.csv").open(newline="", encoding="utf-8") as file:
        rows = [(row["name"], row["openset"]) for row in csv.DictReader(file)]
    path = jsonl(tmp_path / "ov.jsonl", [{"video_id": name, "response": words, "mode": "test"} for name, words in rows])
    options = ("--truth", OV / "check-openset.csv", "--synonyms", OV / "openset-synonym.zip")
    _, values = scored(path, *options)
    assert values["ov"] == close(EXPECTED["per_clip_groups"]["score"])


def test_sentences_of_emotion_llama_v2_are_read_by_the_judge(tmp_path, scored):
    path = jsonl(tmp_path / "x.jsonl", [{"video_id": "a", "response": "She is sad, because her dog, an old one, has died."}])
    _, values = scored(path, "--truth", write_file(tmp_path / "t.csv", "name,openset\na,sad\n"))
    assert values["ov"] == 1


@pytest.mark.parametrize(
    "line",
    ['{"video_id": "a"}', '{"video_id": null, "response": "x"}', '{"video_id": "a", "response": ["x"]}',
     '{"video_id": "a", "response": "x", "mode": 3}', "[]", '{"name": "a", "prediction": "x"}', "{"],
)  # fmt: skip
def test_an_invalid_line_of_emotion_llama_v2_is_refused_with_its_number(tmp_path, scored, line):
    path = write_file(tmp_path / "x.jsonl", json.dumps(V2[0]) + "\n" + line + "\n")
    done, _ = scored(path, status=1)
    assert f"{path}, line 2: " in done.stderr


def test_a_submission_is_written_from_words_of_emotion_llama_v2(tmp_path, emollama):
    path = jsonl(tmp_path / "x.jsonl", [{"video_id": "a", "response": "wistful, no emotion", "mode": "test"}])
    assert emollama("submission", "--predictions", path, "--output", tmp_path / "s.npz").returncode == 0
    with np.load(tmp_path / "s.npz") as submission:
        assert submission["fileitems"].tolist() == ["['wistful', 'no emotion']"]


# Cells that a spreadsheet program executes

FORMULAS = [
    "=1+1",
    '=HYPERLINK("http://x")',
    "+1+1",
    "-2+3",
    "- No!",
    "@SUM(A1)",
    "\n=1",
    "\uff1d1+1",
    "\uff0b1",
    "\uff0d1+1",
    "\uff20SUM(A1)",
    "\t=1",
    "\r=1",
    "'=1",
    "-",
    "+",
]
PLAIN = ["", "happy", "-0.5", "+3", "-1e-05", "-.5", "12%", "a=b", "'quoted'", " =1", "a\n=1", "-10", 0.5, -0.5, None]


@pytest.mark.parametrize("text", FORMULAS)
def test_a_formula_is_escaped_and_can_be_restored(text):
    assert escape_formula(text) == f"'{text}" and restore_formula(escape_formula(text)) == text


@pytest.mark.parametrize("cell", PLAIN)
def test_other_cells_are_not_escaped(cell):
    assert escape_formula(cell) == cell and (not isinstance(cell, str) or restore_formula(cell) == cell)


def rows_of(path):
    with path.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.reader(file))


def test_headers_and_cells_of_a_written_table_are_escaped(tmp_path):
    write_csv(tmp_path / "t.csv", [("name", "=column"), ("@a", -0.5)])
    assert rows_of(tmp_path / "t.csv") == [["name", "'=column"], ["'@a", "-0.5"]]


def test_the_table_of_checkpoints_is_escaped(tmp_path):
    row = CheckpointRow("=label", None, ("+file.pth",))
    table = CheckpointTable(tmp_path, {}, [row], {"=label": {"=column": -0.5}}, {"=column": "dev/emotion/loss"})
    write_checkpoint_table(table)
    assert rows_of(tmp_path / "sweep.csv") == [["checkpoint", "epoch", "file", "'=column"], ["'=label", "", "'+file.pth", "-0.5"]]


def test_the_table_of_scores_is_escaped(tmp_path, scored):
    truth = write_file(tmp_path / "t.csv", "name,label\n=1+1,-happy\nb,sad\n")
    scored(write_file(tmp_path / "p.csv", "name,prediction\n=1+1,happy\nb,@sad\n"), "--truth", truth)
    cells = [cell for row in rows_of(tmp_path / "scores/scores.csv") for cell in row]
    assert {"'=1+1", "'-happy"} <= {*cells} and not [cell for cell in cells if cell.startswith(("=", "@", "-"))]


def test_failures_of_an_extraction_are_escaped_and_read_again(tmp_path):
    rows = [
        ExtractionFailure(name, "audio", "hubert", "HL-UTT", f"v/{name}.mp4", "-22: broken") for name in ("+clip", "-1", "=a")
    ]
    failures.write(tmp_path, rows)
    assert [row[0] for row in rows_of(tmp_path / "failures.csv")[1:]] == ["'+clip", "-1", "'=a"]
    assert failures.read(tmp_path) == rows


def test_exchange_files_contain_the_texts_as_they_are(tmp_path):
    text = "- She smiles."
    write_predictions(tmp_path, "dev", [PredictionRecord("=a", "reason", "?", text, None, None, None)])
    assert rows_of(tmp_path / "predictions_dev.csv") == [["names", "chi_reasons"], ["=a", text]]
    source = write_file(tmp_path / "emer.csv", f"names,emotions,subtitles,reasons\na,sad,{text},She smiles.\n")
    run("emer", source, "--output", tmp_path / "out")
    assert sentences(tmp_path / "out") == [["a", text]]


def test_only_one_module_writes_csv_files():
    texts = {str(path.relative_to(PACKAGE)): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
    assert [path for path, text in texts.items() if "csv.writer" in text or "DictWriter" in text] == ["data/csv_files.py"]


# Arguments of score


def test_two_maps_with_different_labels_for_one_code_are_refused(tmp_path, scored):
    path = write_file(tmp_path / "t.csv", "name,label\na,3\n")
    done, _ = scored(path, "--truth", path, "--aliases", "mer", "ravdess", status=1)
    assert "--aliases: '1' stands for both 'angry' and 'neutral' in mer and ravdess. Name one of these maps." in done.stderr


def test_a_pair_replaces_a_conflicting_entry_of_two_maps(tmp_path, scored):
    truth = write_file(tmp_path / "t.csv", "name,label\na,joy\n")
    assert scored(truth, "--truth", truth, "--aliases", "meld", "dfew", "joy=glad")[1]["war"] == 1


def test_skip_is_no_label_that_an_alias_can_stand_for(tmp_path, scored):
    path = write_file(tmp_path / "t.csv", "name,label\na,happy\nb,x\n")
    done, _ = scored(path, "--truth", path, "--aliases", "x=skip", status=1)
    assert "--aliases: 'x=skip' would make skip a label" in done.stderr


def test_a_mode_is_reported_for_files_without_modes(tmp_path, scored):
    path = write_file(tmp_path / "t.csv", "name,label\na,happy\n")
    done, _ = scored(path, "--truth", path, "--mode", "test1")
    assert f"{path}: --mode does not apply, because the predictions have no modes" in done.stderr


def test_a_damaged_first_line_does_not_decide_the_kind_of_a_file(tmp_path, scored):
    path = write_file(tmp_path / "x.jsonl", "{\n" + "".join(json.dumps(row) + "\n" for row in V2))
    done, _ = scored(path, status=1)
    assert f"{path}, line 1: invalid JSON" in done.stderr and "line 2" not in done.stderr
