"""``emollama compare``: its table contains the values of the run folders, and missing values are reported."""

from __future__ import annotations

import argparse
import io
import json
import shutil

import pytest
from invented_runs import CONFIG, validation_rows, write_json, write_lines, write_results, write_run
from PIL import Image

from emollama.commands import compare as command
from emollama.errors import UserError
from emollama.reporting.comparison import compare_runs, comparison_panels
from emollama.reporting.panels import legend_entries


@pytest.fixture
def runs(tmp_path):
    """Two trained runs with the same name and one run that was only evaluated."""
    first, second = write_run(tmp_path / "a/stage_2"), write_run(tmp_path / "b/stage_2", epochs=8, best=7)
    for folder in (first, second):
        shutil.rmtree(folder / "result")
    (second / "config.yaml").write_text(CONFIG.replace("1.0e-05", "5.0e-06") + "  weight_decay: 0.1\n")
    write_results(tmp_path / "zero_shot/result", 40, None)
    (tmp_path / "zero_shot/result/config.yaml").write_text(CONFIG.replace("lora_r: 64", "lora_r: 8"))
    return [first, second, tmp_path / "zero_shot"]


@pytest.fixture
def printed(runs, tmp_path, capsys):
    """A function that compares the runs and returns the output; the chart is ``tmp_path / chart.png``."""

    def run_command(*arguments, folders=runs):
        parser = argparse.ArgumentParser()
        command.add_arguments(parser)
        command_line = [*map(str, folders), "--output", str(tmp_path / "chart.png"), *arguments]
        command.run(parser.parse_args(command_line))
        return capsys.readouterr().out

    return run_command


def rows_of(text, heading):
    """Cells of the Markdown table under a heading."""
    head, _, *lines = text.partition(f"{heading}\n\n")[2].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in (head, *lines)]


def size_of(path):
    return Image.open(io.BytesIO(path.read_bytes())).size


def test_the_table_has_rows_for_the_best_and_last_epochs_and_for_evaluations(printed, tmp_path):
    text = printed("--metric", "waf")
    first, second = validation_rows(6, 4), validation_rows(8, 7)
    script = json.loads((tmp_path / "zero_shot/result/metrics_dev.json").read_text())["tasks"]["emotion"]["metrics"]["waf"]
    best, last, other = (row["metrics"]["dev/emotion/waf"] for row in (first[4], first[5], second[7]))
    leader = max(best, last, other, script)
    shown = [f"**{value:.4f}**" if value == leader else f"{value:.4f}" for value in (best, last, other, script)]
    assert rows_of(text, "dev/emotion") == [
        ["run", "results", "epoch", "waf"],
        ["a/stage_2", "best", "4", shown[0]],
        ["a/stage_2", "last", "5", shown[1]],
        ["b/stage_2", "best, last", "7", shown[2]],
        ["zero_shot", "evaluation", "-", shown[3]],
    ]


def test_json_contains_every_value_of_the_files_at_full_precision(printed, runs):
    report = json.loads(printed("--json"))
    validations = validation_rows(6, 4)
    key = "emer/reason/clue_overlap"
    assert report["standings"][0] == {
        "run": "a/stage_2", "of": "best", "epoch": 4, "checkpoint": None, "metrics": validations[4]["metrics"],
    }  # fmt: skip
    assert report["by_epoch"][key]["a/stage_2"] == [[row["epoch"], row["metrics"][key]] for row in validations]
    assert report["runs"]["zero_shot"] == str(runs[2])
    assert report["notes"] == []


def test_the_best_value_of_a_column_follows_the_direction_of_the_metric(printed):
    (head, *rows) = rows_of(printed("--metric", "loss"), "emer/reason")
    values = {row[-1].strip("*"): row[-1].endswith("**") for row in rows}
    assert head[-1] == "loss"
    assert [value for value, best in values.items() if best] == [min(values, key=float)]


def settings_of(text):
    return [line.split() for line in text.split("Settings that differ\n")[1].split("\n\n")[0].splitlines()]


def test_only_differing_settings_are_listed_and_training_settings_only_of_training_runs(printed):
    assert settings_of(printed("--metric", "waf")) == [
        ["a/stage_2", "b/stage_2", "zero_shot"],
        ["model.lora_r", "64", "64", "8"],
        ["run.init_lr", "1e-05", "5e-06", "-"],
        ["run.weight_decay", "-", "0.1", "-"],
    ]


def test_only_the_seed_and_not_the_training_differs_from_a_run_that_was_only_evaluated(printed, runs):
    config_text = CONFIG.replace("seed: 42", "seed: 1").replace("1.0e-05", "1.0e-06").replace("batch_size: 4", "batch_size: 9")
    (runs[2] / "result/config.yaml").write_text(config_text)
    shown = settings_of(printed("--metric", "waf", folders=runs[1:]))
    assert shown == [["stage_2", "zero_shot"], ["run.seed", "42", "1"]]


BLOCKS = "evaluation_datasets:\n"
LONG = "".join(f"    key_{index}: 1\n" for index in range(40))


def test_the_distinguishing_keys_of_a_block_that_one_run_lacks_are_listed(printed, runs):
    (runs[0] / "config.yaml").write_text(f"{BLOCKS}  all:\n    mask_slots: []\n    judge: {{type: lexical}}\n{LONG}")
    (runs[1] / "config.yaml").write_text(f"{BLOCKS}  deaf:\n    mask_slots: [audio]\n    judge: {{type: lexical}}\n{LONG}")
    assert settings_of(printed("--metric", "waf", folders=runs[:2])) == [
        ["a/stage_2", "b/stage_2"],
        ["evaluation_datasets.all.mask_slots", "[]", "-"],
        ["evaluation_datasets.deaf.mask_slots", "-", '["audio"]'],
    ]


def test_a_missing_evaluation_block_is_listed_if_short_and_otherwise_counted(printed, runs):
    (runs[0] / "config.yaml").write_text("model: {lora_r: 8}\n")
    (runs[1] / "config.yaml").write_text(f"model: {{lora_r: 8}}\n{BLOCKS}  dev:\n    judge: {{type: lexical}}\n    top_p: 0.5\n")
    assert settings_of(printed("--metric", "waf", folders=runs[:2]))[1:] == [
        ["evaluation_datasets.dev.judge.type", "-", '"lexical"'],
        ["evaluation_datasets.dev.top_p", "-", "0.5"],
    ]
    (runs[1] / "config.yaml").write_text(f"model: {{lora_r: 8}}\n{BLOCKS}  dev:\n{LONG}")
    assert settings_of(printed("--metric", "waf", folders=runs[:2]))[1:] == [["evaluation_datasets.dev", "-", "(40", "keys)"]]


def test_interpolations_stay_unresolved(printed, runs, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret-of-the-environment")
    (runs[1] / "config.yaml").write_text(CONFIG.replace("oc.env:JUDGE_KEY", "oc.env:OTHER_KEY"))
    settings = json.loads(printed("--json"))["settings"]
    assert settings["evaluation_datasets.emer.judge.api_key"] == {
        "a/stage_2": "${oc.env:JUDGE_KEY}", "b/stage_2": "${oc.env:OTHER_KEY}", "zero_shot": "${oc.env:JUDGE_KEY}",
    }  # fmt: skip


@pytest.mark.slow
def test_the_chart_has_a_panel_for_each_metric(printed, tmp_path, rendered_plots):
    text = printed()
    assert text.splitlines()[-1] == f"chart: {tmp_path / 'chart.png'}"
    width, height = size_of(tmp_path / "chart.png")
    assert 1200 <= width <= 2000 and 1000 <= height <= 2500  # eight panels in three rows
    printed("--metric", "waf", "--metric", "clue_overlap")
    assert size_of(tmp_path / "chart.png")[1] < height / 2


def test_a_run_without_epochs_is_plotted_as_a_level_and_the_others_as_lines(runs):
    panels = {(panel.title, panel.block): panel for panel in comparison_panels(compare_runs(runs))}
    first, second, third = panels["clue overlap", "emer · reason"].lines
    validations = validation_rows(6, 4)
    assert first.points == [(row["epoch"], value) for row in validations if (value := row["metrics"]["emer/reason/clue_overlap"])]
    assert (first.name, first.level, len(second.points)) == ("a/stage_2", None, 7)
    assert (third.name, third.points) == ("zero_shot", []) and third.level is not None


@pytest.mark.slow
def test_runs_without_any_epochs_are_charted_too(printed, tmp_path, rendered_plots):
    write_results(tmp_path / "other/result", 40)
    folders = [tmp_path / "zero_shot", tmp_path / "other"]
    assert "chart: " in printed(folders=folders)
    assert size_of(tmp_path / "chart.png")[0] > 1000


def test_the_legend_names_the_run_even_where_only_one_has_curves(runs):
    marks = legend_entries(comparison_panels(compare_runs(runs[1:], ["label_overlap"])))
    assert [mark["label"] for mark in marks] == ["stage_2", "zero_shot", "best epoch", "evaluation without an epoch"]
    shutil.rmtree(runs[2] / "result")
    write_lines(runs[2] / "log.jsonl", [{"step": 0}])
    marks = legend_entries(comparison_panels(compare_runs(runs[1:])))
    assert [mark["label"] for mark in marks] == ["stage_2", "best epoch"]


def test_a_metric_with_a_single_value_has_no_panel(printed, runs, tmp_path):
    (runs[0] / "eval.jsonl").unlink()
    write_lines(runs[1] / "eval.jsonl", [{"epoch": 0, "metrics": {"dev/emotion/waf": 0.5, "dev/emotion/own": 0.5}}])
    assert {panel.title for panel in comparison_panels(compare_runs(runs))} == {"weighted F1 (WAF)"}
    text = printed("--metric", "own")
    assert text.splitlines()[-1] == "no chart: there are no metrics to compare"
    assert ["b/stage_2", "last", "0", "0.5000"] in rows_of(text, "dev/emotion")
    assert not (tmp_path / "chart.png").exists()


def test_missing_values_of_a_run_are_a_note_and_not_a_row_of_dashes(printed, runs):
    (runs[2] / "result/metrics_emer.json").unlink()
    (runs[2] / "result/config.yaml").unlink()
    (runs[1] / "eval.jsonl").write_text('{"epoch": 0, "metr')
    text = printed()
    assert [row[0] for row in rows_of(text, "emer/reason")] == ["run", "a/stage_2", "a/stage_2"]
    assert [row[0] for row in rows_of(text, "dev/emotion")] == ["run", "a/stage_2", "a/stage_2", "zero_shot"]
    for note in (
        "note: zero_shot: missing metrics: emer/reason\n",
        f"note: {runs[2]}: no config.yaml, so its settings are not compared",
        "note: b/stage_2: no metrics in result/metrics_*.json and eval.jsonl",
        "eval.jsonl: 1 of 1 lines read were left out, because they are not JSON objects",
    ):
        assert note in text


def test_a_metric_of_a_users_own_module_is_shown_without_a_best(printed, runs):
    for folder in runs[:2]:
        write_lines(folder / "eval.jsonl", [{"epoch": epoch, "metrics": {"dev/emotion/own": 0.5 + epoch}} for epoch in (0, 1)])
    rows = rows_of(printed("--metric", "own"), "dev/emotion")
    assert [row[-1] for row in rows] == ["own", "1.5000", "1.5000"]


def test_missing_metrics_of_an_unreachable_judge_are_noted_with_its_error(printed, runs):
    task = {"metrics": {"clue_overlap": None, "loss": 0.5}, "judge": {"name": "j", "unreachable": "connection refused"}}
    write_json(runs[2] / "result/metrics_emer.json", {"tasks": {"reason": task}})
    text = printed("--metric", "clue_overlap")
    assert [row[0] for row in rows_of(text, "emer/reason")] == ["run", "a/stage_2", "a/stage_2", "b/stage_2"]
    assert "note: zero_shot: emer/reason: the judge could not be reached: connection refused\n" in text
    assert "note: zero_shot: missing metrics: emer/reason" in text
    text = printed("--metric", "clue_overlap", folders=[runs[2], write_run_without_results(runs)])
    assert "best value of the column" not in text and "no chart" in text


def write_run_without_results(runs):
    folder = runs[0].parent / "stage_0"
    write_lines(folder / "log.jsonl", [{"step": 0}])
    return folder


def test_an_unknown_metric_is_refused_with_the_available_metrics(printed, tmp_path):
    with pytest.raises(UserError, match=r"has 'waff'. Did you mean 'waf'\? Available metrics: waf, war, .*clue_overlap"):
        printed("--metric", "waff")
    assert not (tmp_path / "chart.png").exists()


def test_fewer_than_two_runs_repeated_runs_and_other_folders_are_refused(printed, runs, tmp_path):
    with pytest.raises(UserError, match="at least two runs"):
        printed(folders=runs[:1])
    with pytest.raises(UserError, match="named twice"):
        printed(folders=[runs[0], runs[0].parent / "../a/stage_2"])
    with pytest.raises(UserError, match="expected one of log.jsonl"):
        printed(folders=[runs[0], tmp_path / "a"])


@pytest.mark.parametrize("output", ["chart.svg", "chart", "folder.png"])
def test_the_output_path_must_be_a_png_file(printed, tmp_path, output):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError, match="--output"):
        printed("--output", str(tmp_path / output))


def test_run_names_use_no_more_parent_folders_than_needed(tmp_path):
    places = ["x/one/run", "x/two/run", "other"]
    for folder in places:
        write_json(tmp_path / folder / "result/metrics_dev.json", {"tasks": {"emotion": {"metrics": {"waf": 0.5}}}})
    assert [*compare_runs([tmp_path / folder for folder in places]).runs] == ["one/run", "two/run", "other"]


def test_compare_is_a_command_of_emollama(runs, tmp_path, emollama):
    completed = emollama("compare", *runs, "--metric", "waf", "--output", str(tmp_path / "waf.png"))
    assert completed.returncode == 0, completed.stderr
    assert "dev/emotion" in completed.stdout and (tmp_path / "waf.png").is_file()
