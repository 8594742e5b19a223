"""``emollama prepare flickr30k``: the three published forms to one, and what is refused."""

from __future__ import annotations

import argparse
import json
import os

import pytest
from captioned import COLUMNS, SPLITS, captions_of, drawn, images, karpathy, rows, table, tokens

from emollama.commands import prepare
from emollama.errors import UserError


@pytest.fixture
def place(tmp_path):
    images(tmp_path / "images")
    return tmp_path


def run(place, source, *arguments):
    parser = argparse.ArgumentParser()
    prepare.add_arguments(parser)
    given = ["flickr30k", "--annotations", source, "--images", place / "images", "--output", place / "out", *arguments]
    prepare.run(parser.parse_args([str(argument) for argument in given]))


def refusal(place, source, *arguments):
    with pytest.raises(UserError) as error:
        run(place, source, *arguments)
    assert not (place / "out").exists()
    return str(error.value)


def refusal_without_output(place, source, *arguments):
    """A refusal where an output is there from before."""
    os.rename(place / "out", place / "before") if (place / "out").exists() else None
    try:
        return refusal(place, source, *arguments)
    finally:
        os.rename(place / "before", place / "out") if (place / "before").exists() else None


def written(place):
    """split -> its entries."""
    files = sorted((place / "out").glob("flickr30k_*.json"))
    return {path.stem.removeprefix("flickr30k_"): json.loads(path.read_text("utf-8"))["annotations"] for path in files}


EXPECTED = {
    split: [
        {"image_id": name, "caption": " ".join(captions_of(name)), "captions": captions_of(name)}
        for name, own in SPLITS.items()
        if own == split
    ]
    for split in ("train", "val", "test")
}


def lists(place):
    folder = place / "lists"
    folder.mkdir()
    for split in ("train", "val", "test"):
        names = [name for name, own in SPLITS.items() if own == split]
        (folder / f"{split}.txt").write_text("\n".join(f"{name}.jpg" if split == "val" else name for name in names) + "\n")
    return folder


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_table_is_converted_to_one_file_per_split_with_single_and_joined_captions(place, encoding):
    run(place, table(place / "flickr.csv", encoding=encoding))
    assert written(place) == EXPECTED


def test_the_karpathy_file_and_the_token_file_give_the_same_output(place):
    run(place, karpathy(place / "any_name"))
    assert written(place) == EXPECTED
    for path in (place / "out").iterdir():
        path.unlink()
    run(place, tokens(place / "any_name"), "--splits", lists(place))
    assert written(place) == EXPECTED


def test_split_lists_can_be_single_files_and_unlisted_images_are_excluded_and_reported(place, capsys):
    folder = lists(place)
    run(place, tokens(place / "t"), "--splits", folder / "test.txt", folder / "val.txt")
    assert {split: len(entries) for split, entries in written(place).items()} == {"test": 1, "val": 1}
    assert "2 in no list of --splits: 11, 12" in capsys.readouterr().out


def test_a_token_file_without_split_lists_is_written_to_the_selected_split(place):
    assert "--splits train.txt" in refusal(place, tokens(place / "t"))
    run(place, tokens(place / "t"), "--split", "test")
    assert [entry["image_id"] for entry in written(place)["test"]] == list(SPLITS)


def test_splits_can_be_selected_and_a_missing_split_is_refused_with_the_existing_splits(place):
    told = refusal(place, table(place / "t.csv"), "--split", "test", "dev")
    assert "no split 'dev'" in told and "train, val, test" in told
    run(place, table(place / "t.csv"), "--split", "test", "val")
    assert written(place) == {split: EXPECTED[split] for split in ("test", "val")}


def test_the_summary_counts_images_captions_and_images_without_five_captions(place, capsys):
    given = rows()
    given[0][0] = json.dumps(captions_of("11", 4))
    run(place, table(place / "t.csv", given))
    told = capsys.readouterr().out
    assert "4 images -> " in told and "2 flickr30k_train.json (9 captions)" in told
    assert "1 do not have 5 captions: 11 (4)" in told and "left out" not in told
    report = json.loads((place / "out/prepare_report.json").read_text())
    assert report["other_number_of_captions"] == {"11": 4} and report["settings"]["check_images"] == "headers"


def test_files_are_written_to_the_folder_of_the_annotations_by_default(place):
    parser = argparse.ArgumentParser()
    prepare.add_arguments(parser)
    source = table(place / "t.csv")
    before = sorted(os.listdir(place))
    prepare.run(parser.parse_args(["flickr30k", "--annotations", str(source), "--images", str(place / "images")]))
    made = {*os.listdir(place)} - {*before}
    assert made == {"prepare_report.json", *(f"flickr30k_{split}.json" for split in EXPECTED)}


def test_existing_files_in_the_output_folder_are_neither_replaced_nor_changed(place):
    (place / "out").mkdir()
    (place / "out/notes.txt").write_text("mine")
    run(place, table(place / "t.csv"), "--split", "test")
    before = {path.name: path.read_bytes() for path in (place / "out").iterdir()}
    with pytest.raises(UserError, match=r"already contains flickr30k_test.json, prepare_report.json"):
        run(place, table(place / "t.csv"))
    assert {path.name: path.read_bytes() for path in (place / "out").iterdir()} == before


def test_an_output_inside_the_image_folder_or_below_a_file_is_refused(place):
    with pytest.raises(UserError, match="is inside --images"):
        run(place, table(place / "t.csv"), "--output", place / "images")
    with pytest.raises(UserError, match="cannot write under"):
        run(place, table(place / "t.csv"), "--output", place / "t.csv" / "new")
    assert len(os.listdir(place / "images")) == len(SPLITS)


# What is wrong with rows

BROKEN = {
    "[A square.": "not a JSON list",
    '"A square."': "must be a list of texts",
    "[]": "is empty",
    '["a", 5]': "a caption must be text",
    '["a", " "]': "a caption is empty",
    r'["a \ud83d"]': "half of a character",
}


def test_all_invalid_cells_are_reported_together_with_their_lines_and_can_be_skipped(place, capsys):
    names = [str(number) for number in range(20, 20 + len(BROKEN))]
    images(place / "images", names)
    given = rows([*SPLITS, *names])
    for row, cell in zip(given[len(SPLITS) :], BROKEN, strict=True):
        row[0] = cell
    path = table(place / "t.csv", given)
    told = refusal(place, path)
    assert f"problems: {len(BROKEN)}" in told and "--on-problem skip" in told
    for line, says in enumerate(BROKEN.values(), len(SPLITS) + 2):
        (one,) = [row for row in told.splitlines() if f"t.csv, line {line}:" in row]
        assert says in one
    run(place, path, "--on-problem", "skip")
    assert written(place) == EXPECTED
    assert f"{len(BROKEN)} problem: row" in capsys.readouterr().out


def test_a_missing_cell_and_an_unclosed_quote_are_reported_with_their_lines(place):
    path = table(place / "t.csv")
    path.write_text(path.read_text() + "x,y\n")
    assert "line 6: fewer cells" in refusal(place, path)
    text = path.read_text().splitlines()
    text[2] = '"' + text[2]
    path.write_text("\n".join(text))
    assert "line 3" in refusal(place, path)
    text = table(path).read_text().splitlines()
    text[2] = "".join(text[2].rsplit('"', 1))
    path.write_text("\n".join(text))
    told = refusal(place, path)
    assert "not valid CSV" in told and "the row that begins on line 3" in told


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("../11.jpg", "outside its folder"),
        ("/etc/x.jpg", "outside its folder"),
        ("11.txt", "has none of the extensions .jpg .jpeg .png"),
        ("", "has no file name"),
        ("12.jpg", "'12' is already in"),
        ("12.png", "'12' is already in"),
    ],
)
def test_file_names_that_leave_the_folder_are_not_images_or_are_repeated_are_reported(place, file, says):
    given = rows()
    given[3][3] = file
    told = refusal(place, table(place / "t.csv", given))
    assert "line 5" in told and says in told


def test_the_first_row_of_a_repeated_image_is_used_if_problems_are_skipped(place):
    given = [*rows(), [json.dumps(["Another."]), "[]", "test", "11.jpg", "9"]]
    path = table(place / "t.csv", given)
    assert "line 6: the image '11' is already in" in refusal(place, path)
    run(place, path, "--on-problem", "skip")
    assert written(place) == EXPECTED


def test_a_repeated_img_id_is_reported_with_both_rows(place):
    given = rows()
    given[3][4] = given[1][4]
    path = table(place / "t.csv", given)
    assert f"line 5: the img_id '1' is already in {path}, line 3" in refusal(place, path)


@pytest.mark.parametrize("columns", [COLUMNS, COLUMNS[:4]])
def test_a_table_without_img_ids_is_accepted(place, columns):
    given = [[*row[:4], ""][: len(columns)] for row in rows()]
    run(place, table(place / "t.csv", given, columns))
    assert written(place) == EXPECTED


@pytest.mark.parametrize("split", ["", "../x", "a b"])
def test_a_split_without_a_usable_name_is_reported(place, split):
    given = rows()
    given[1][2] = split
    assert "line 3: the split of '12.jpg'" in refusal(place, table(place / "t.csv", given))


def test_unknown_or_missing_columns_are_refused_with_the_expected_columns(place):
    told = refusal(place, table(place / "t.csv", header=("raw", "sentids", "splits", "filename", "img_id")))
    assert "lacks split" in told and "Did you mean 'split'?" in told
    given = [[*row, "x"] for row in rows()]
    told = refusal(place, table(place / "t.csv", given, header=(*COLUMNS, "url")))
    assert "unknown columns: 'url'" in told and "raw,sentids,split,filename,img_id" in told


def test_invalid_entries_of_a_karpathy_file_and_lines_of_a_token_file_are_reported(place):
    tree = json.loads(karpathy(place / "k").read_text())
    del tree["images"][1]["sentences"]
    tree["images"][2]["sentences"][0] = {"tokens": []}
    (place / "k").write_text(json.dumps(tree))
    told = refusal(place, place / "k")
    assert """images[1]: "sentences" is missing; expected a list of {"raw": "a caption"} (image '12.jpg')""" in told
    assert """images[2]: sentences[0] is {'tokens': []}; expected {"raw": "a caption"} (image '13.jpg')""" in told
    path = tokens(place / "t")
    path.write_text(path.read_text("utf-8") + "11.jpg a square\n11.jpg#0\tAgain.\n", "utf-8")
    told = refusal(place, path, "--split", "test")
    assert (
        "line 21: expected 'name.jpg#0', a tab and a caption, got '11.jpg a square'" in told
        and "line 22: caption 0 of '11.jpg' is repeated" in told
    )


def test_karpathy_images_with_a_missing_null_or_empty_split_are_reported_alike(place):
    tree = json.loads(karpathy(place / "k").read_text())
    del tree["images"][1]["split"]
    tree["images"][2]["split"] = ""
    tree["images"][3]["split"] = None
    (place / "k").write_text(json.dumps(tree))
    told = refusal(place, place / "k")
    for number, name in ((1, "12"), (2, "13"), (3, "14")):
        assert f"images[{number}]: the split of '{name}.jpg' is ''; expected a name" in told
    del tree["images"][0]["split"]
    (place / "k").write_text(json.dumps(tree))
    assert "problems: 4" in refusal(place, place / "k", "--split", "test")


@pytest.mark.parametrize(("split", "usual"), [("trian", "train"), ("Train", "train"), ("tes", "test"), ("restvla", "restval")])
def test_a_misspelled_usual_split_is_reported_for_every_kind_of_annotations(place, capsys, split, usual):
    given = rows()
    given[1][2] = split
    path = table(place / "t.csv", given)
    says = f"a split is named '{split}' (images 1: 12.jpg). Did you mean '{usual}'?"
    assert f"{path}: {says}" in refusal(place, path)
    run(place, path, "--on-problem", "skip")
    assert split not in written(place) and "1 problem: split: 12.jpg" in capsys.readouterr().out
    report = json.loads((place / "out/prepare_report.json").read_text())
    assert report["left_out"] == {"problem: split": ["12.jpg"]}
    told = refusal_without_output(place, tokens(place / "t"), "--split", split)
    assert f"a split is named '{split}' (images 4: 11.jpg" in told and f"Did you mean '{usual}'?" in told
    (place / f"{split}.txt").write_text("12\n")
    assert says in refusal_without_output(place, tokens(place / "t"), "--splits", place / f"{split}.txt")


@pytest.mark.parametrize("split", ["dev", "all", "validation", "trainval", "test2017", "minival", "rest", "restval"])
def test_splits_with_unusual_names_are_accepted(place, split):
    given = rows()
    given[1][2] = split
    run(place, table(place / "t.csv", given))
    assert [entry["image_id"] for entry in written(place)[split]] == ["12"]


def test_no_file_is_written_for_a_split_without_images(place, capsys):
    (place / "images/13.jpg").unlink()
    run(place, table(place / "t.csv"), "--on-problem", "skip")
    assert written(place) == {split: EXPECTED[split] for split in ("train", "test")}
    assert "0 flickr30k_val.json was not written: no image is left" in capsys.readouterr().out


def test_excluded_rows_are_printed_one_per_line_and_listed_in_the_report(place, capsys):
    names = [str(number) for number in range(20, 32)]
    images(place / "images", names)
    given = rows([*SPLITS, *names])
    for row in given[len(SPLITS) :]:
        row[0] = "[]"
    given.append([*given[0][:4], "99"])  # 11.jpg once more, which is not left out
    run(place, table(place / "t.csv", given), "--on-problem", "skip")
    told = capsys.readouterr().out.splitlines()
    begin = told.index("      13 problem: row")
    assert [f"line {line}: the list of captions is empty" in told[begin + 1 + line - 6] for line in range(6, 16)] == [True] * 10
    assert told[begin + 11].strip() == "... and 3 more (prepare_report.json)" and max(map(len, told)) < 200
    report = json.loads((place / "out/prepare_report.json").read_text())
    assert report["left_out"] == {"problem: row": [f"{name}.jpg" for name in names]}
    assert [problem["clips"] for problem in report["problems"]] == [[f"{name}.jpg"] for name in [*names, "11"]]


def test_a_table_of_tokens_is_read_like_the_token_file(place):
    lines = ["image_name| comment_number| comment"]
    lines += [f"{name}.jpg| {number}| {text}" for name in SPLITS for number, text in enumerate(captions_of(name))]
    lines[3] = lines[3].replace("| 2|", "| 2  ")  # as in one row of the published one
    path = place / "results.csv"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    assert "contains no splits" in refusal(place, path)
    run(place, path, "--splits", lists(place))
    assert written(place) == EXPECTED
    path.write_text("\n".join([*lines, "15.jpg, 0, A square."]), "utf-8")
    assert "line 22: expected 'name.jpg| 0| a caption', got '15.jpg, 0, A square.'" in refusal_without_output(
        place, path, "--split", "test"
    )


def test_images_with_the_other_extensions_of_the_dataset_are_accepted(place):
    os.rename(place / "images/12.jpg", place / "images/12.JPG")
    os.rename(place / "images/13.jpg", place / "images/13.jpeg")
    run(place, table(place / "t.csv"), "--check-images", "all")
    assert written(place) == EXPECTED


def test_split_lists_with_repeated_or_unknown_images_are_refused(place):
    folder = lists(place)
    (folder / "val.txt").write_text("13\n11\n")
    told = refusal(place, tokens(place / "t"), "--splits", folder)
    assert "'11' is already in" in told and "val.txt, line 2" in told
    (folder / "val.txt").write_text("13\n99\n")
    assert "val.txt, line 2: the annotations have no valid row for these images of the list val (1: 99)" in refusal(
        place, tokens(place / "t"), "--splits", folder
    )
    assert "has its own splits: train, val, test" in refusal(place, table(place / "t.csv"), "--splits", folder)


# Images


def test_missing_and_unreadable_images_are_reported_or_excluded(place, capsys):
    images(place / "images", ["21", "22", "23", "24"])
    (place / "images/21.jpg").unlink()
    (place / "images/22.jpg").write_text("no image")
    (place / "images/23.jpg").write_bytes(b"")
    whole = (place / "images/24.jpg").read_bytes()
    (place / "images/24.jpg").write_bytes(whole[: len(whole) // 2])
    path = table(place / "t.csv", rows([*SPLITS, "21", "22", "23", "24"]))
    told = refusal(place, path)
    assert (
        "does not contain these images (1: 21.jpg" in told
        and "22.jpg: it is not an image" in told
        and "23.jpg: the file is empty" in told
    )
    assert "24.jpg: it is cut off or damaged (" in told
    run(place, path, "--on-problem", "skip")
    assert written(place) == EXPECTED
    told = capsys.readouterr().out
    assert "1 problem: missing image: 21.jpg" in told and "3 problem: unreadable image: 22.jpg, 23.jpg, 24.jpg" in told


def test_check_images_all_detects_damage_inside_a_file_and_none_skips_the_check(place):
    path = drawn(place / "images/11.png", size=(300, 200))
    (place / "images/11.jpg").unlink()
    broken = bytearray(path.read_bytes())
    broken[len(broken) // 2] ^= 255
    path.write_bytes(broken)
    given = rows()
    given[0][3] = "11.png"
    source = table(place / "t.csv", given)
    assert "11.png: it is cut off or damaged" in refusal(place, source, "--check-images", "all")
    run(place, source, "--check-images", "none")
    assert written(place) == EXPECTED


def test_a_folder_without_any_of_the_images_is_reported_once(place):
    (place / "empty").mkdir()
    told = refusal(place, table(place / "t.csv"), "--images", place / "empty")
    assert "none of the 4 images, such as 11.jpg" in told and told.count("jpg") == 1
    assert "no folder" in refusal(place, table(place / "t.csv"), "--images", place / "absent")


def test_an_empty_and_a_missing_annotation_file_are_refused(place):
    (place / "empty").write_text(" \n")
    assert "is empty" in refusal(place, place / "empty")
    assert "--annotations: no file" in refusal(place, place / "absent")


@pytest.mark.slow
def test_a_table_of_the_size_of_flickr30k_is_converted_in_linear_time(place):
    """Quadratic work would take hours, and the test would be stopped."""
    names = [str(number) for number in range(100_000, 131_014)]
    for name in names:
        os.link(place / "images/11.jpg", place / f"images/{name}.jpg")
    path = table(place / "t.csv", rows(names))
    run(place, path)
    assert len(written(place)["train"]) == 31_014
