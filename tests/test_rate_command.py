"""``emollama rate``: sheets do not reveal the model; filled sheets are read and agreement is computed."""

from __future__ import annotations

import argparse
import csv
import json
import re
from collections import Counter

import numpy as np
import pytest

from emollama.commands import rate, score
from emollama.errors import UserError

CLIPS = [f"clip_{number:02}" for number in range(24)]
TRUTH = {name: f"Truth number {name[-2:]}: she frowns, and is angry." for name in CLIPS}
SCALES = ("clue_overlap", "label_overlap")


def caller(command, capsys):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)

    def call(*arguments):
        command.run(parser.parse_args([str(argument) for argument in arguments]))
        return capsys.readouterr().out

    return call


@pytest.fixture
def rated(capsys):
    """A function that runs ``emollama rate`` in this process and returns its output."""
    return caller(rate, capsys)


@pytest.fixture
def refused(rated):
    def call(*arguments):
        with pytest.raises(UserError) as error:
            rated(*arguments)
        return str(error.value)

    return call


def write(path, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def read_rows(path):
    with open(path, newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def files(tmp_path):
    """Descriptions of 24 clips by two models, and reference descriptions."""
    good = write(tmp_path / "good.csv", [["names", "chi_reasons"], *([n, f"First words about {n[-2:]}."] for n in CLIPS)])
    bad = write(tmp_path / "bad.csv", [["names", "chi_reasons"], *([n, f"Other words about {n[-2:]}."] for n in CLIPS)])
    truth = write(
        tmp_path / "truth.csv", [["names", "emotions", "subtitles", "reasons"], *([n, "", "", t] for n, t in TRUTH.items())]
    )
    return ["--predictions", good, bad, "--truth", truth]


@pytest.fixture
def sheet(rated, files, tmp_path):
    rated(*files, "--output", tmp_path / "sheet.csv", "--seed", 1)
    return tmp_path / "sheet.csv"


def key_of(folder, name="sheet"):
    return json.loads((folder / f"{name}.key.json").read_text(encoding="utf-8"))


def filled(sheet, path, points):
    """Write a filled sheet; ``points(model, clip)`` returns the cells of the two scales."""
    key = key_of(sheet.parent)
    rows = read_rows(sheet)
    for row in rows:
        item = key["items"][row["item"]]
        row["clue_overlap"], row["label_overlap"] = points(item["model"].rpartition("/")[2], item["name"])
    return write(path, [[*rows[0]], *(row.values() for row in rows)])


def number(clip):
    return int(clip[-2:])


def figures(text, model):
    """Return the two values of a model in the printed table."""
    row = next(line for line in text.splitlines() if line.startswith(f"| {model} "))
    return [float(cell.strip(" *")) for cell in row.split("|")[2:-1]]


# Sheets


def test_a_sheet_contains_every_description_with_its_reference_and_empty_cells(sheet, tmp_path):
    rows, key = read_rows(sheet), key_of(tmp_path)
    assert [*rows[0]] == ["item", "truth", "description", "clue_overlap", "label_overlap", "comment"]
    assert len(rows) == 48 and all(row[column] == "" for row in rows for column in (*SCALES, "comment"))
    texts = Counter((row["truth"], row["description"]) for row in rows)
    assert texts == Counter((TRUTH[n], f"{start} words about {n[-2:]}.") for n in CLIPS for start in ("First", "Other"))
    for row in rows:
        item = key["items"][row["item"]]
        start = "First" if item["model"].endswith("good.csv") else "Other"
        assert row["description"] == f"{start} words about {item['name'][-2:]}."


def test_a_sheet_does_not_reveal_the_model_by_name_id_or_order(rated, files, tmp_path):
    firsts = trend = pairs = 0
    for seed in range(60):
        rated(*files, "--output", tmp_path / f"s{seed}.csv", "--seed", seed)
        rows, key = read_rows(tmp_path / f"s{seed}.csv"), key_of(tmp_path, f"s{seed}")
        is_good = {name: item["model"].endswith("good.csv") for name, item in key["items"].items()}
        by_id = [is_good[name] for name in sorted(is_good)]
        firsts += is_good[rows[0]["item"]] + by_id[0]
        trend += sum(by_id[:24])
        position = {(key["items"][row["item"]]["name"], is_good[row["item"]]): at for at, row in enumerate(rows)}
        pairs += sum(position[name, True] < position[name, False] for name in CLIPS)
    from scipy.stats import binomtest

    text = (tmp_path / "s0.csv").read_text(encoding="utf-8-sig")
    assert "good" not in text and "bad" not in text and "clip_" not in text
    assert binomtest(firsts, 120).pvalue > 1e-3
    assert binomtest(trend, 60 * 24).pvalue > 1e-3
    assert binomtest(pairs, 60 * 24).pvalue > 1e-3


def test_without_a_seed_each_sheet_has_a_random_order_and_the_key_file_stores_its_seed(rated, files, tmp_path):
    for name in ("a", "b"):
        rated(*files, "--output", tmp_path / f"{name}.csv")
    assert key_of(tmp_path, "a")["items"] != key_of(tmp_path, "b")["items"]
    rated(*files, "--output", tmp_path / "again.csv", "--seed", key_of(tmp_path, "a")["seed"])
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "a.csv").read_bytes()


def test_several_raters_get_the_same_items_in_orders_of_their_own(rated, files, tmp_path):
    text = rated(*files, "--output", tmp_path / "sheet.csv", "--raters", 3, "--clips", 5)
    sheets = [read_rows(tmp_path / f"sheet_rater{number}.csv") for number in (1, 2, 3)]
    orders = [[row["item"] for row in rows] for rows in sheets]
    assert len({tuple(order) for order in orders}) == 3 and len({frozenset(order) for order in orders}) == 1
    assert len(orders[0]) == 10 and not (tmp_path / "sheet.csv").exists()
    assert len({item["name"] for item in key_of(tmp_path)["items"].values()}) == 5
    assert text.count("sheet: ") == 3 and "do not show it to the raters" in text


def test_text_that_a_spreadsheet_would_execute_is_escaped(rated, tmp_path):
    dangerous = ['=HYPERLINK("http://x")', "+1+1", "-2+3", "@SUM(A1)", "\t=1", "plain, = 1"]
    names = [f"c{index}" for index in range(6)]
    answers = tmp_path / "a.jsonl"
    rows = [{"name": n, "task": "reason", "prediction": t, "reference": t} for n, t in zip(names, dangerous, strict=True)]
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rated("--predictions", answers, "--output", tmp_path / "sheet.csv", "--seed", 0)
    descriptions = {row["description"] for row in read_rows(tmp_path / "sheet.csv")}
    assert descriptions == {f"'{text}" for text in dangerous[:5]} | {"plain, = 1"}
    path = filled(tmp_path / "sheet.csv", tmp_path / "filled.csv", lambda model, clip: (7, 7))
    assert "unrated of 6 items: clue_overlap 0, label_overlap 0" in rated("--read", path, "--key", tmp_path / "sheet.key.json")


def test_empty_descriptions_are_scored_zero_and_excluded_from_the_sheet(rated, tmp_path, files):
    rows = [[name, "Words." if index else ""] for index, name in enumerate(CLIPS[:20])]  # one empty, four missing
    short = write(tmp_path / "short.csv", [["names", "chi_reasons"], *rows])
    text = rated("--predictions", short, *files[2:], "--output", tmp_path / "sheet.csv")
    assert "19 descriptions of 2 models" not in text and "5 empty descriptions score 0" in text
    sheet = tmp_path / "sheet.csv"
    assert all(row["description"] for row in read_rows(sheet))
    path = filled(sheet, tmp_path / "filled.csv", lambda model, clip: (6, 10))
    text = rated("--read", path, "--key", tmp_path / "sheet.key.json", "--resamples", 100)
    assert figures(text, "short.csv") == pytest.approx([6 * 19 / 24, 10 * 19 / 24], abs=0.005)


def test_an_existing_sheet_is_not_overwritten(rated, refused, files, sheet, tmp_path):
    before = sheet.read_bytes()
    assert "exists and may contain ratings" in refused(*files, "--output", sheet)
    assert sheet.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--output", "sheet.txt"], "must end in .csv"),
        (["--output", "s.csv", "--clips", "25"], "expected a number from 1 to 24"),
        (["--output", "s.csv", "--clips", "0"], "expected a number from 1 to 24"),
        (["--output", "s.csv", "--raters", "0"], "at least 1"),
        (["--output", "s.csv", "--seed", "-1"], "--seed"),
        (["--output", "s.csv", "--key", "k.json"], "--key cannot be combined with --predictions"),
        (["--read", "a.csv"], "either --predictions"),
        ([], "--predictions requires --output"),
    ],
)
def test_invalid_arguments_are_refused(refused, files, tmp_path, monkeypatch, arguments, expected):
    monkeypatch.chdir(tmp_path)
    assert expected in refused(*files, *arguments)
    assert not (tmp_path / "s.csv").exists()


def test_labels_cannot_be_rated_as_descriptions(refused, tmp_path):
    truth = write(tmp_path / "truth.csv", [["name", "label"], ["a", "happy"]])
    answers = write(tmp_path / "a.csv", [["name", "label"], ["a", "happy"]])
    assert "no task has descriptions" in refused("--predictions", answers, "--truth", truth, "--output", tmp_path / "s.csv")


# Reading


def test_completed_sheets_give_the_mean_of_each_model_over_raters_and_their_difference(rated, sheet, tmp_path):
    mild = filled(sheet, tmp_path / "mild.csv", lambda model, clip: (9, 8) if model == "good.csv" else (5, 4.5))
    strict = filled(
        sheet, tmp_path / "strict.csv", lambda model, clip: (7, 6) if model == "good.csv" else (1 + number(clip) % 3, 2)
    )
    text = rated("--read", mild, strict, "--key", tmp_path / "sheet.key.json")
    assert figures(text, "good.csv") == [8, 7]
    assert figures(text.split("Differences")[0], "bad.csv") == [3.5, 3.25]
    apart = text.split("Differences")[1]
    assert "-4.50" in apart and "-3.75" in apart and "(24)" in apart
    low, high = map(float, re.findall(r"\[(-?[\d.]+), (-?[\d.]+)\]", apart)[0])
    assert low < -4.5 < high


def test_agreement_is_one_for_equal_sheets_and_near_zero_for_unrelated_sheets(rated, sheet, tmp_path):
    rng = np.random.default_rng(0)
    one = filled(sheet, tmp_path / "one.csv", lambda model, clip: (number(clip) % 11, 10 - number(clip) % 5))
    same = filled(sheet, tmp_path / "same.csv", lambda model, clip: (number(clip) % 11, 10 - number(clip) % 5))
    other = filled(sheet, tmp_path / "other.csv", lambda model, clip: rng.integers(11, size=2).tolist())
    text = rated("--read", one, same, other, "--key", tmp_path / "sheet.key.json", "--resamples", 0)
    rows = [line.split()[2:] for line in text.splitlines() if " / " in line]
    agreement = {(row[0].rpartition("/")[2], row[1]): [float(cell) for cell in row[3:]] for row in rows}
    assert agreement["same.csv", "clue_overlap"] == agreement["same.csv", "label_overlap"] == [1, 1]
    assert all(abs(figure) < 0.4 for row, pair in agreement.items() if row[0] == "other.csv" for figure in pair)
    assert len(rows) == 6


def test_kappa_is_weighted_by_the_square_of_the_distance(rated, sheet, tmp_path):
    one = filled(sheet, tmp_path / "one.csv", lambda model, clip: (number(clip) % 7, 1))
    two = filled(sheet, tmp_path / "two.csv", lambda model, clip: (number(clip) * 3 % 11, 1))
    text = rated("--read", one, two, "--key", tmp_path / "sheet.key.json", "--resamples", 0)
    kappa = next(float(line.split()[-2]) for line in text.splitlines() if " / " in line)
    first, second = (np.array([give(index) for index in range(24)]) for give in (lambda n: n % 7, lambda n: n * 3 % 11))
    by_chance = np.mean((first[:, None] - second[None, :]) ** 2)
    assert kappa == pytest.approx(1 - np.mean((first - second) ** 2) / by_chance, abs=0.0005)


def test_a_milder_rater_has_full_rank_correlation_but_a_lower_kappa(rated, sheet, tmp_path):
    one = filled(sheet, tmp_path / "one.csv", lambda model, clip: (number(clip) % 6, 5))
    mild = filled(sheet, tmp_path / "mild.csv", lambda model, clip: (number(clip) % 6 + 4, 5))
    text = rated("--read", one, mild, "--key", tmp_path / "sheet.key.json", "--resamples", 0)
    clue, label = (line.split()[-3:] for line in text.splitlines() if " / " in line)
    assert clue[0] == "48" and 0 < float(clue[1]) < 0.5 and float(clue[2]) == 1
    assert label == ["48", "-", "-"]  # the same number in all cells


def test_empty_cells_are_counted_and_excluded(rated, sheet, tmp_path):
    one = filled(sheet, tmp_path / "one.csv", lambda model, clip: ("", 4) if clip == CLIPS[0] else (number(clip) % 9, ""))
    two = filled(sheet, tmp_path / "two.csv", lambda model, clip: (number(clip) % 9, ""))
    text = rated("--read", one, two, "--key", tmp_path / "sheet.key.json", "--resamples", 0)
    assert "one.csv: unrated of 48 items: clue_overlap 2, label_overlap 46" in text
    assert "two.csv: unrated of 48 items: clue_overlap 0, label_overlap 48" in text
    assert figures(text, "good.csv")[1] == 4
    assert [line.split()[-3] for line in text.splitlines() if " / " in line] == ["46", "0"]


def test_the_scores_of_a_judge_are_included_in_the_agreement(rated, capsys, files, sheet, tmp_path):
    caller(score, capsys)(*files, "--judge", "lexical", "--output", tmp_path / "judged", "--resamples", 0)
    one = filled(sheet, tmp_path / "one.csv", lambda model, clip: (number(clip) % 9, 3))
    common = ("--read", one, "--key", tmp_path / "sheet.key.json", "--resamples", 0)
    text = rated(*common, "--scores", tmp_path / "judged/scores.json")
    assert [" ".join(line.split()[1:4]) for line in text.splitlines() if " / " in line] == ["/ judge lexical"] * 2
    with pytest.raises(UserError, match="no scores of a judge for predictions without a task"):
        rated(*common, "--scores", tmp_path / "sheet.key.json")
    record = json.loads((tmp_path / "judged/scores.json").read_text())
    (tmp_path / "other.json").write_text(json.dumps(record).replace("/good.csv", "/x.csv").replace("/bad.csv", "/y.csv"))
    with pytest.raises(UserError, match="with the paths that were used for the sheets"):
        rated(*common, "--scores", tmp_path / "other.json")


def spoiled(sheet, path, change):
    rows = read_rows(sheet)
    change(rows)
    return write(path, [[*rows[0]], *(row.values() for row in rows)])


@pytest.mark.parametrize("cell", ["11", "-1", "7,5", "ten", "nan", "inf", "1e1", "7/10", "'7"])
def test_a_cell_that_is_not_a_rating_is_refused_with_its_line(refused, sheet, tmp_path, cell):
    path = spoiled(sheet, tmp_path / "filled.csv", lambda rows: rows[2].update(clue_overlap=cell))
    message = refused("--read", path, "--key", tmp_path / "sheet.key.json")
    assert (
        "filled.csv, line 4, item 'i" in message
        and f"clue_overlap: expected a number from 0 to 10 (7, or 7.5 with a decimal point), got '{cell}'" in message
    )


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda rows: rows[0].update(item="i99"), ["line 2: the answer key has no item 'i99'", "the sheet lacks 1 row: i"]),
        (lambda rows: rows[1].update(item=rows[0]["item"]), ["line 3: line 2 already has the item 'i", "Remove one of the two"]),
        (lambda rows: rows.pop(), ["the sheet lacks 1 row: i"]),
        (lambda rows: [row.pop("item") for row in rows], ["expected one of the columns item"]),
        (lambda rows: None, ["contains no points. Fill in the columns clue_overlap and label_overlap."]),
    ],
)
def test_a_sheet_whose_rows_differ_from_the_key_file_is_refused(refused, sheet, tmp_path, change, expected):
    message = refused("--read", spoiled(sheet, tmp_path / "filled.csv", change), "--key", tmp_path / "sheet.key.json")
    assert all(word in message for word in expected), message


@pytest.mark.parametrize("column", ["truth", "description"])
def test_a_changed_text_is_refused_with_its_line(refused, sheet, tmp_path, column):
    path = spoiled(
        sheet, tmp_path / "filled.csv", lambda rows: rows[1].update({column: rows[1][column] + " Really.", "clue_overlap": 5})
    )
    message = refused("--read", path, "--key", tmp_path / "sheet.key.json")
    assert "filled.csv, line 3, item 'i" in message and f"{column} was changed" in message and "\n" not in message


def test_changes_by_a_spreadsheet_do_not_count_as_changes(rated, tmp_path):
    texts = ["=1+1", "two\nlines", "two\r\nlines, of old", " space at its ends\n", "'quoted'", "\t=1", "'=1"]
    rows = [{"name": f"c{index}", "task": "reason", "prediction": text, "reference": text} for index, text in enumerate(texts)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rated("--predictions", tmp_path / "a.jsonl", "--output", tmp_path / "sheet.csv")
    for number, change in enumerate([
        lambda text: text, str.strip, lambda text: text.removeprefix("'") if text[1:].startswith(("=", "\t")) else text,
        lambda text: text.replace("\r\n", "\n"), lambda text: text.replace("\r\n", "\n").replace("\n", "\r\n"),
    ]):  # fmt: skip
        path = filled(tmp_path / "sheet.csv", tmp_path / f"filled{number}.csv", lambda model, clip: (7, 7))
        table = [[row["item"], change(row["truth"]), change(row["description"]), 7, 7, ""] for row in read_rows(path)]
        write(path, [[*read_rows(path)[0]], *table])
        assert "clue_overlap 0, label_overlap 0" in rated("--read", path, "--key", tmp_path / "sheet.key.json", "--resamples", 0)


def test_a_sheet_separated_by_semicolons_is_refused_with_one_message(refused, sheet, tmp_path):
    rows = [";".join(row.values()) for row in read_rows(sheet)]
    (tmp_path / "semi.csv").write_text("\n".join([";".join(read_rows(sheet)[0]), *rows]))
    message = refused("--read", tmp_path / "semi.csv", "--key", tmp_path / "sheet.key.json")
    assert "separated by ';'" in message and "\n" not in message


def test_all_errors_in_a_sheet_are_reported_together(refused, sheet, tmp_path):
    def change(rows):
        rows[0]["clue_overlap"] = "x"
        rows[1]["label_overlap"] = "12"
        rows[2]["item"] = "?"

    message = refused("--read", spoiled(sheet, tmp_path / "filled.csv", change), "--key", tmp_path / "sheet.key.json")
    assert [message.count(f"line {line}") for line in (2, 3, 4)] == [1, 1, 1]


@pytest.mark.parametrize("content", ["{}", "[]", '{"items": {"i1": {}}, "empty": [], "models": [], "task": "", "seed": 0}', "no"])
def test_a_file_that_is_not_a_key_is_refused(refused, sheet, tmp_path, content):
    (tmp_path / "k.json").write_text(content)
    assert "k.json" in refused("--read", sheet, "--key", tmp_path / "k.json")


def test_a_repeated_sheet_or_a_missing_key_option_is_refused(refused, sheet, tmp_path):
    assert "--read requires --key" in refused("--read", sheet)
    assert "a sheet occurs twice" in refused("--read", sheet, sheet, "--key", tmp_path / "sheet.key.json")


def test_the_installed_command_writes_and_reads_a_sheet(files, tmp_path, emollama):
    wrote = emollama("rate", *files, "--output", str(tmp_path / "sheet.csv"))
    assert (wrote.returncode, wrote.stderr) == (0, "")
    path = filled(tmp_path / "sheet.csv", tmp_path / "filled.csv", lambda model, clip: (number(clip) % 11, 3))
    read = emollama("rate", "--read", str(path), "--key", str(tmp_path / "sheet.key.json"))
    assert (read.returncode, read.stderr) == (0, "") and "clue_overlap" in read.stdout
