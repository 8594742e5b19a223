"""result/report.html: it shows the values of the files, needs no other file, and no content of a file can break it."""

from __future__ import annotations

import argparse
import base64
import dataclasses
import io
import json
import random
import shutil
import subprocess
import time
from html.parser import HTMLParser

import pytest
from invented_runs import (
    CONFIG,
    SIX,
    description_rows,
    description_scores,
    label_rows,
    label_scores,
    log_rows,
    validation_rows,
    write_json,
    write_lines,
    write_run,
)
from PIL import Image
from plots import RENDERED, plots

from emollama.commands import report as command
from emollama.errors import UserError
from emollama.reporting.configuration import DEFAULTS, LABEL_DEFAULTS, changed_settings
from emollama.reporting.curves import draw_curves, logged_curves
from emollama.reporting.panels import Line, Panel, draw_panel, legend_entries
from emollama.reporting.report import write_report, write_report_if_possible
from emollama.reporting.run_files import read_run
from emollama.reporting.sections import report_sections
from emollama.run_folder import StepRecord

HOSTILE = "</td></pre></style><script>alert(1)</script><img src=http://example.org/x onerror=alert(2)>"
VOID = {"meta", "img", "col", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """A parsed page: elements with attributes, texts, and tables by class as rows of cells."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.open, self.tables, self.texts, self.described = [], [], [], [], []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == [], "elements that are not closed"

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append((dict(attributes).get("class", ""), []))
        if tag == "tr":
            self.tables[-1][1].append([])
        if tag in ("td", "th"):
            self.tables[-1][1][-1].append("")
        if tag == "data":
            self.tables and self.open.count("table") and self.add(dict(attributes)["value"] + "=")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if "style" not in self.open:
            self.texts.append(text)
        if {"article", "strong"} <= {*self.open}:
            self.described.append(text)
        if {"td", "th"} & {*self.open}:
            self.add(text)

    def add(self, text):
        self.tables[-1][1][-1][-1] += text

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def rows(self, kind):
        """Return the rows of all tables of this class."""
        tables = [rows for name, rows in self.tables if kind in name.split()]
        assert tables, f"no table {kind}"
        return [[cell.strip() for cell in row] for rows in tables for row in rows]

    def images(self):
        sources = [attributes["src"] for tag, attributes in self.elements if tag == "img"]
        return [base64.b64decode(source.removeprefix("data:image/png;base64,"), validate=True) for source in sources]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a complete run, and its report."""
    folder = write_run(tmp_path_factory.mktemp("runs") / "stage_2", steps=600)
    with plots(RENDERED):
        return folder, Page(write_report(folder))


@pytest.fixture
def folder(tmp_path):
    """The folder of a small run, which tests may damage."""
    return write_run(tmp_path / "spoilt", clips=40)


@pytest.fixture
def scored(folder):
    """The folder of an evaluation without training, which has no curves."""
    for name in ("log.jsonl", "eval.jsonl"):
        (folder / name).unlink()
    return folder


def value_of(cell):
    """Return the number in a cell as stored in the file and as shown."""
    whole, _, shown = cell.partition("=")
    return (float(whole) if whole else None), shown


# Contents


def test_the_report_is_in_result_and_has_every_part(whole):
    folder, page = whole
    assert (folder / "result/report.html").is_file()
    parts = {attributes.get("id") for tag, attributes in page.elements if tag == "section"}
    assert parts == {"scores", "training", "epochs", "task-1", "task-2", "configuration", "versions"}
    for text in ("stage_2", "runs/stage_2/checkpoint_best.pth", "invented-judge-1", "6, best at epoch 4", "599 (epoch 5)"):
        assert text in page.text


def test_scores_in_the_report_equal_those_in_the_metrics_files(whole):
    folder, page = whole
    shown = [value_of(row[1]) for row in page.rows("scores")]
    files = [json.loads((folder / f"result/metrics_{block}.json").read_text())["tasks"] for block in ("dev", "emer")]
    expected = [value for tasks in files for content in tasks.values() for value in content["metrics"].values()]
    assert [value for value, _ in shown] == expected
    assert all(abs(float(text) - value) <= 0.005 for value, text in shown)


def test_confusion_matrix_and_per_class_metrics_equal_those_in_the_metrics_files(whole):
    folder, page = whole
    recognition = json.loads((folder / "result/metrics_dev.json").read_text())["tasks"]["emotion"]["recognition"]
    head, *rows = page.rows("confusion")
    assert head == ["true label", *SIX, "invalid"]
    assert rows == [[label, *map(str, counts)] for label, counts in zip(SIX, recognition["confusion"], strict=True)]
    shown = [[row[0], int(row[1]), *(value_of(cell)[0] for cell in row[2:])] for row in page.rows("per-class")[1:]]
    assert shown == [[row[key] for key in ("label", "support", "precision", "recall", "f1")] for row in recognition["per_class"]]


def test_metrics_by_epoch_equal_those_in_eval_jsonl(whole):
    _, page = whole
    head, *rows = page.rows("epochs")
    expected = validation_rows(6, 4)
    assert head == ["epoch", *expected[0]["metrics"]]
    assert [row[0] for row in rows] == ["0", "1", "2", "3", "4 (best)", "5"]
    assert [[value_of(cell)[0] for cell in row[1:]] for row in rows] == [[*row["metrics"].values()] for row in expected]


def test_the_samples_contain_ten_wrong_and_ten_right_answers_of_every_label(whole):
    folder, page = whole
    predictions = {row["name"]: row for row in map(json.loads, (folder / "result/predictions_dev.jsonl").open())}
    rows = page.rows("samples")[1:]
    assert len(rows) == 20
    for name, truth, answer, read, verdict in rows:
        assert (truth, answer) == (predictions[name]["reference"], predictions[name]["prediction"])
        assert verdict == ("✓ correct" if read == truth else "✗ wrong")
        assert read == next((label for label in SIX if label in answer), "invalid")
    assert [row[4] for row in rows] == ["✗ wrong"] * 10 + ["✓ correct"] * 10
    assert {row[1] for row in rows[10:]} == {*SIX}


def test_labels_are_parsed_with_the_rules_of_the_configuration(scored):
    rows = [{"name": name, "task": "emotion", "prediction": answer, "reference": "happy"}
            for name, answer in (("a", "gleeful"), ("b", "sad, no: happy"), ("c", "happy"))]  # fmt: skip
    content = label_scores([{"loss": 0.0, **row} for row in rows])
    content["recognition"]["invalid"] = []
    write_lines(scored / "result/predictions_dev.jsonl", rows)
    write_json(scored / "result/metrics_dev.json", {"tasks": {"emotion": content}})
    assert [row[3] for row in Page(write_report(scored)).rows("samples")[1:]] == ["invalid", "invalid", "happy"]
    keys = "    several_hits: last\n    aliases: {gleeful: happy}\n"
    (scored / "result/config.yaml").write_text(CONFIG.replace("    answer_rule: search\n", keys))
    assert [row[3] for row in Page(write_report(scored)).rows("samples")[1:]] == ["happy", "happy", "happy"]


def test_descriptions_are_sorted_from_the_lowest_to_the_highest_score_with_their_truth(whole):
    _, page = whole
    rows, scores = description_rows(30)
    sums = {row["name"]: row["clue_overlap"] + row["label_overlap"] for row in scores if row["clue_overlap"] is not None}
    judged = [sums[name] for name in page.described]
    assert len(judged) == 8 and judged == sorted(judged)
    assert (judged[0], judged[-1]) == (min(sums.values()), max(sums.values()))
    for row in rows:
        if row["name"] in page.described:
            assert f"Reference {row['reference']}" in page.text and f"Answer {row['prediction']}" in page.text


def test_usage_and_failures_of_the_judge_are_shown(whole):
    _, page = whole
    for text in ("calls 90", "prompt tokens 412,345", "cost 0.1284", "1 judgement failed"):
        assert text in page.text
    assert page.rows("failures")[1:] == [["invented_00000005", "clue_overlap", "the reply has no number"]]


def test_the_configuration_is_shown_unresolved_without_values_of_the_environment(scored, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret-of-the-environment")
    source = write_report(scored).read_text()
    assert "${oc.env:JUDGE_KEY}" in source and "${oc.env:LLAMA_FOLDER}" in source
    assert "secret-of-the-environment" not in source


def test_without_evaluation_results_the_report_shows_the_best_or_the_last_validation(folder):
    for epoch in (0, 4, 5):
        shutil.copytree(folder / "result", folder / f"moved/epoch_{epoch}")
        path = folder / f"moved/epoch_{epoch}/metrics_emer.json"
        content = json.loads(path.read_text())
        content["tasks"]["reason"]["metrics"]["clue_overlap"] = float(epoch)
        write_json(path, content)
    shutil.rmtree(folder / "result")
    (folder / "moved").rename(folder / "result")
    assert ["clue overlap", "4.0=4.00", "of 10"] in Page(write_report(folder)).rows("scores")
    (folder / "eval.jsonl").unlink()
    page = Page(write_report(folder))
    assert ["clue overlap", "5.0=5.00", "of 10"] in page.rows("scores")
    assert [row[0] for row in page.rows("epochs")[1:]] == ["0", "4", "5"]


def test_images_in_the_page_equal_the_plot_files_and_are_not_empty(whole):
    folder, page = whole
    files = {path.name: path.read_bytes() for path in (folder / "result/plots").iterdir()}
    assert set(files) == {"training.png", "metrics_by_epoch.png", "confusion_dev_emotion.png"}
    assert sorted(page.images()) == sorted(files.values())
    for content in files.values():
        image = Image.open(io.BytesIO(content))
        image.load()
        assert 800 <= image.width <= 2000 and 600 <= image.height <= 3000
        assert len(image.convert("RGB").getcolors(1_000_000)) > 50
    assert len(page.source) < 3_000_000


def test_writing_a_report_leaves_no_temporary_files(whole):
    folder, _ = whole
    assert [path for path in folder.rglob("*") if "tmp" in path.name] == []


def test_an_unnamed_line_of_a_panel_is_not_in_the_legend():
    line = Line("", [(0, 0.5), (1, 0.6)])
    assert [mark["label"] for mark in legend_entries([Panel("loss", "dev", False, [line])])] == ["best epoch"]


def ticks_of(axis):
    """Return (position, label) of each major tick of an axis."""
    positions = axis.get_majorticklocs()
    return list(zip(positions, axis.get_major_formatter().format_ticks(positions), strict=True))


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 20, 33, 250, 1000, 150_000])
def test_ticks_of_steps_are_integers_at_their_labelled_positions(steps):
    from matplotlib.figure import Figure

    figure = Figure()
    draw_curves(figure, logged_curves([StepRecord(step, loss=1.0, lr=0.1) for step in (0, steps - 1)]))
    ticks = ticks_of(figure.axes[-1].xaxis)
    assert ticks == [(position, f"{position:,.0f}") for position, _ in ticks]
    assert all(position == int(position) for position, _ in ticks)
    assert 1 <= len(ticks) <= 12 and (steps == 1 or len(ticks) > 1)


@pytest.mark.parametrize("epochs", [1, 2, 3, 6, 20, 300])
def test_ticks_of_epochs_are_whole(epochs):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 3))
    ax = figure.subplots()
    draw_panel(ax, Panel("loss", "dev", False, [Line("", [(epoch, 0.5) for epoch in range(epochs)])]), [""], 0)
    ticks = ticks_of(ax.xaxis)
    assert ticks and all(position == int(label) for position, label in ticks)


# Reasons for missing scores, and explanations


def spoilt_scores(folder, block, **changed):
    """Rewrite the only task of a block with other parts; None removes a part."""
    path = folder / f"result/metrics_{block}.json"
    content = json.loads(path.read_text())
    for scores in content["tasks"].values():
        scores |= changed
        for key in [key for key, value in changed.items() if value is None]:
            del scores[key]
    write_json(path, content)


def test_an_unreachable_judge_is_reported_with_its_error_and_the_missing_scores(scored):
    error = "http://judge.invalid:1/v1: connection refused after 5 attempts"
    judge = {"name": "invented-judge-1", "calls": 0, "unreachable": error}
    spoilt_scores(
        scored, "emer", metrics={"clue_overlap": None, "label_overlap": None, "loss": 0.5}, judge=judge, clip_scores=None
    )
    page = Page(write_report(scored))
    expected = f"The judge invented-judge-1 could not be reached : {error} Missing metrics: clue overlap, label overlap."
    assert page.text.count(expected) == 2  # next to the scores, and in the section of the task
    assert "Judge invented-judge-1 (could not be reached)" in page.text
    assert "emollama score scores them" in page.text.replace("  ", " ")
    assert "unreachable" not in page.text and "the means are over" not in page.text
    assert ["loss", "0.5=0.5000", "lower is better"] in page.rows("scores")


def test_without_references_a_report_says_why_there_are_no_scores(scored):
    for block, noun in (("dev", "labels"), ("emer", "descriptions")):
        path = scored / f"result/predictions_{block}.jsonl"
        rows = [json.loads(line) | {"reference": None, "target": None, "loss": None} for line in path.open()]
        write_lines(path, rows)
        for metrics in ({}, {"loss": None}):
            spoilt_scores(scored, block, metrics=metrics, recognition=None, judge=None, clip_scores=None)
            page = Page(write_report(scored))
            assert f"No scores: the data has no {noun} to compare the answers with." in page.text
    assert rows[0]["prediction"] in page.text and "(none in the data)" in page.text


def test_failure_of_all_judgements_is_reported(scored):
    judge = {"name": "j", "failures": [{"name": "a", "metric": "clue_overlap", "failure": "the reply has no number"}]}
    spoilt_scores(scored, "emer", metrics={"clue_overlap": None}, judge=judge, clip_scores=None)
    page = Page(write_report(scored))
    assert "No scores: every judgement failed." in page.text and "the means are over" not in page.text


def test_blocks_are_in_the_order_of_the_configuration_with_others_at_the_end(folder):
    (folder / "config.yaml").write_text("evaluation_datasets:\n  emer: {}\n  dev: {}\n")
    for block in ("extra", "another"):
        write_json(folder / f"result/metrics_{block}.json", {"tasks": {"emotion": {"metrics": {"waf": 0.5}}}})
    assert [result.block for result in read_run(folder).results] == ["emer", "dev", "another", "extra"]
    (folder / "result/config.yaml").write_text("evaluation_datasets:\n  extra: {}\n  emer: {}\n")
    assert [result.block for result in read_run(folder).results] == ["extra", "emer", "another", "dev"]


def test_settings_that_affect_the_meaning_of_scores_are_shown_next_to_them(scored):
    (scored / "result/config.yaml").write_text(
        "model: {ckpt: [a.pth, b.pth, c.pth], ensemble: predictions}\n"
        "evaluation_datasets:\n"
        "  dev: {mask_slots: [audio, face], answer_by: likelihood, prompt_layout: train, aliases: {joyful: happy}}\n"
        '  emer: {prompt_layout: upstream_eval, answer_by: likelihood, instruction: "What is felt?", mask_slots: []}\n'
    )
    dev, emer = report_sections(read_run(scored))
    ensemble = "3 checkpoints: the mean of their predictions"
    assert dev.unusual == ["slots masked: audio, face", "answered by: likelihood", "aliases: joyful → happy", ensemble]
    assert emer.unusual == ["prompt layout: upstream_eval", "instruction: What is felt?", ensemble]
    page = Page(write_report(scored))
    assert page.text.count("slots masked: audio, face") == 2  # next to the scores, and in the section of the task


def test_default_values_of_keys_are_not_shown_as_unusual():
    from emollama.datasets.clip_config import ClipConfig
    from emollama.tasks.image_text_pretrain import ImageTextPretrain

    configs = (ClipConfig("list.txt"), ImageTextPretrain.Config(), ImageTextPretrain.scoring.Config())
    keys = {key: value for one in configs for key, value in dataclasses.asdict(one).items()}
    assert {*DEFAULTS, *LABEL_DEFAULTS} <= {*keys}
    assert list(changed_settings(keys, "emotion")) == []


# Safety


def test_a_page_refers_to_nothing_outside_itself(whole):
    _, page = whole
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    assert not {tag for tag, _ in page.elements} & {"script", "link", "iframe", "object", "embed", "base", "form", "video"}
    for _, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "srcset", "action", "data", "poster", "background"):
                assert value.startswith("data:image/png;base64,") or value.removeprefix("#") in ids
    assert "url(" not in page.source and "@import" not in page.source
    policy = next(attributes["content"] for tag, attributes in page.elements if "http-equiv" in attributes)
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_hostile_texts_are_escaped(folder, rendered_plots):
    (folder / "log.jsonl").unlink()  # it contains numbers only
    rows, scores = label_rows(40), label_scores(label_rows(40))
    for row in (*rows, *scores["recognition"]["invalid"]):
        row["prediction"] = row["name"] = row["reference"] = row["instruction"] = HOSTILE
    scores["recognition"]["labels"] = [*scores["recognition"]["labels"][:-1], HOSTILE]
    scores["recognition"]["per_class"][0]["label"] = HOSTILE
    scores["metrics"][HOSTILE] = 0.5
    scores["judge"] = {"name": HOSTILE, HOSTILE: HOSTILE, "failures": [{"name": HOSTILE, "metric": HOSTILE, "failure": HOSTILE}]}
    write_lines(folder / "result/predictions_dev.jsonl", rows)
    write_json(folder / "result/metrics_dev.json", {"checkpoint": HOSTILE, "tasks": {"emotion": scores, HOSTILE: {"clips": 1}}})
    described, judged = description_rows(8)
    for row in described:
        row["prediction"] = row["reference"] = HOSTILE
    write_lines(folder / "result/predictions_emer.jsonl", described)
    write_lines(folder / "eval.jsonl", [{"epoch": 0, "metrics": {f"a/{HOSTILE}/{HOSTILE}": 0.5}}])
    (folder / "config.yaml").write_text(HOSTILE)
    page = Page(write_report(folder))
    assert not {tag for tag, _ in page.elements} & {"script", "iframe"}
    assert all(attributes["src"].startswith("data:") for tag, attributes in page.elements if tag == "img")
    assert page.text.count("<script>alert(1)</script>") > 30
    assert judged


def test_control_characters_and_labels_missing_from_the_font_do_not_prevent_a_report(scored, rendered_plots):
    rows = label_rows(40)
    for row in rows:
        row["prediction"] = "nul \x00 bell \x07 half \ud83d $x^{ 高兴 \u202e"
    scores = label_scores(rows)
    scores["recognition"]["labels"] = ["$x^{", "高兴", "\ud83d", "a" * 300, "\n", "worried"]
    (scored / "result/predictions_dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (scored / "result/metrics_dev.json").write_text(json.dumps({"tasks": {"emotion": scores}}))
    page = Page(write_report(scored))
    assert "nul � bell � half ? $x^{ 高兴" in page.text
    assert not any(ord(sign) < 32 and sign not in "\n\t" for sign in page.source)


# Missing, damaged or large files


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("log.jsonl", {"training"}),
        ("eval.jsonl", {"epochs"}),
        ("config.yaml", {"configuration"}),
        ("result/metrics_dev.json", {"scores", "task-1"}),
        ("result/predictions_emer.jsonl", {"scores", "task-1"}),
    ],
)
def test_a_single_file_is_enough_for_a_report(folder, name, parts):
    for path in [path for path in folder.rglob("*") if path.is_file() and path != folder / name]:
        path.unlink()
    page = Page(write_report(folder))
    assert {attributes["id"] for tag, attributes in page.elements if tag == "section"} == parts | {"versions"}
    assert "Some files could not be read completely" not in page.text


def test_a_truncated_line_is_reported_and_the_others_are_shown(folder):
    with (folder / "eval.jsonl").open("a") as file:
        file.write('{"step": 3500, "epoch": 6, "metrics": {"dev/emo')
    (folder / "result/metrics_dev.json").write_text('{"tasks": ')
    page = Page(write_report(folder))
    assert "eval.jsonl: 1 of 7 lines read were left out, because they are not JSON objects" in page.text
    assert "metrics_dev.json: left out, because it is not a JSON object" in page.text
    assert len(page.rows("epochs")) == 7


def test_an_invalid_file_is_reported_once(folder):
    (folder / "eval.jsonl").unlink()
    (folder / "result").rename(folder / "moved")
    (folder / "result").mkdir()
    (folder / "moved").rename(folder / "result/epoch_3")
    (folder / "result/epoch_3/metrics_dev.json").write_text('{"tasks": ')
    assert len(read_run(folder).notes) == 1
    assert Page(write_report(folder)).text.count("metrics_dev.json: left out, because it is not a JSON object") == 1


def spoilt(value, rng, share):
    """Return a value in which some parts are replaced."""
    if rng.random() < share:
        return rng.choice([None, True, -1, 10**400, float("nan"), "", "text", "\ud83d", [], {}, [[None]], {"a": {"b": 1}}])
    if isinstance(value, dict):
        return {"" if rng.random() < share / 3 else key: spoilt(item, rng, share) for key, item in value.items()}
    return [spoilt(item, rng, share) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("seed", [3, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (0, 1, 2))])
def test_randomly_damaged_files_do_not_prevent_a_report(folder, seed, rendered_plots):
    rng = random.Random(seed)
    share = (0.003, 0.02, 0.1, 0.4)[seed]
    for path in sorted([*folder.rglob("*.json"), *folder.rglob("*.jsonl")]):
        lines = path.read_text().splitlines()
        text = "\n".join(json.dumps(spoilt(json.loads(line), rng, share)) for line in lines)
        path.write_bytes(text.encode()[: rng.randrange(len(text) // 2, len(text) + 1)] + rng.choice([b"", b"\xff\x00"]))
    assert Page(write_report(folder)).text


@pytest.mark.parametrize("content", [None, "empty", "other"])
def test_a_folder_that_is_not_a_runs_is_refused_with_the_missing_files(tmp_path, content):
    folder = tmp_path / "folder"
    if content:
        (folder / "result").mkdir(parents=True)
    if content == "other":
        (folder / "notes.txt").write_text("a file")
    with pytest.raises(UserError, match="is not a folder|expected one of log.jsonl, eval.jsonl"):
        write_report(folder)
    assert not (folder / "result/report.html").exists()


def test_a_folder_that_cannot_be_written_is_reported(folder):
    shutil.rmtree(folder / "result")
    (folder / "result").write_text("a file")
    with pytest.raises(UserError, match="cannot write"):
        write_report(folder)


def test_a_command_that_cannot_write_its_report_only_logs_a_warning(tmp_path, caplog):
    assert write_report_if_possible(tmp_path) is None
    assert "cannot write the report: UserError: " in caplog.text and f"emollama report {tmp_path}\n" in caplog.text


def write_large_run(folder, steps, clips):
    """Write a run with this many steps and clips; return the number of answers that the page omits."""
    write_lines(folder / "log.jsonl", log_rows(steps))
    rows = label_rows(clips)
    for row in rows[:3]:
        row["prediction"] = "no label here " * 10_000
    write_lines(folder / "result/predictions_dev.jsonl", rows)
    content = label_scores(rows)
    write_json(folder / "result/metrics_dev.json", {"tasks": {"emotion": content}})
    described, scores = description_rows(clips // 10)
    write_lines(folder / "result/predictions_emer.jsonl", described)
    write_json(folder / "result/metrics_emer.json", {"tasks": {"reason": description_scores(described, scores)}})
    return len(content["recognition"]["invalid"]) - 100


def check_large_page(page, steps, left):
    assert len(page.source) < 3_000_000
    assert len(page.rows("invalid")) == 101
    assert f"{left:,} more are in predictions_dev.jsonl." in page.text
    assert f"{steps - 1:,} (epoch 5)" in page.text


@pytest.mark.slow
def test_the_page_of_a_large_run_stays_small(folder):
    left = write_large_run(folder, 3000, 5000)
    check_large_page(Page(write_report(folder)), 3000, left)


@pytest.mark.slow
def test_the_time_of_a_report_is_proportional_to_the_length_of_the_run(folder, rendered_plots):
    times = []
    for steps, clips in ((10_000, 4_000), (100_000, 40_000)):
        left = write_large_run(folder, steps, clips)
        begun = time.process_time()
        page = Page(write_report(folder))
        times.append(time.process_time() - begun)
        check_large_page(page, steps, left)
    assert times[1] < 30 * times[0]  # about 5: the plots cost the same for both; with quadratic time 100


# The command and a browser


def parsed(*arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args([str(argument) for argument in arguments])


def test_the_command_prints_the_paths_of_the_reports(scored, capsys):
    (scored / "result/report.html").unlink(missing_ok=True)
    command.run(parsed(scored, f"{scored}/"))
    assert capsys.readouterr().out == f"{scored}/result/report.html\n" * 2
    assert (scored / "result/report.html").is_file()


def test_the_command_writes_nothing_if_one_of_the_folders_is_not_a_runs(folder, tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        command.run(parsed(folder, tmp_path / "absent"))
    assert not (folder / "result/report.html").exists()


def browser():
    return next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)


@pytest.mark.slow
@pytest.mark.skipif(browser() is None, reason="no Chromium is installed")
def test_a_browser_without_a_network_shows_the_report(whole, tmp_path):
    folder, _ = whole
    flags = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --hide-scrollbars".split()
    offline = ["--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND", "--proxy-server=127.0.0.1:9"]
    outputs = [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={tmp_path / 'page.png'}", "--window-size=1200,3000"]
    line = [browser(), *flags, *offline, *outputs, (folder / "result/report.html").as_uri()]
    subprocess.run(line, capture_output=True, timeout=120, check=True)
    shown = Image.open(tmp_path / "page.png").convert("RGB")
    assert shown.size == (1200, 3000)
    for top in range(0, 3000, 500):
        assert len(shown.crop((0, top, 1200, top + 500)).getcolors(1_000_000)) > 5  # each part of the page shows something
    plot = Image.open(folder / "result/plots/confusion_dev_emotion.png").convert("RGB")
    _, colour = max((count, colour) for count, colour in plot.getcolors(1_000_000) if len({*colour}) == 3)
    assert colour in {pixel for _, pixel in shown.getcolors(1_000_000)}  # pictures are shown too


def test_report_is_a_subcommand_of_emollama(emollama):
    result = emollama("report", "absent_folder")
    assert result.returncode == 1 and "'absent_folder' is not a folder" in result.stderr and "Traceback" not in result.stderr
