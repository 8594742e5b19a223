"""EW metrics on an invented folder of wheels, and submission files of emotion words."""

from __future__ import annotations

import math
import pickle
import random
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from importing import write_file

from emollama.errors import UserError
from emollama.evaluation.metrics import metric
from emollama.evaluation.submission import read_submission, write_submission
from emollama.evaluation.wheel_files import Wheels
from emollama.evaluation.wheels import WheelSets

RINGS = ("level1", "level2", "level3")
WHEEL = (
    ("Bright ", "Lively", "glee"),
    (None, None, "Romp"),
    (None, "Gentle", "ease"),
    ("Dark", "Heavy", "tears"),
    (None, "Bitter", "guilt"),
)
SYNONYMS = (
    ("word_run1", "synonym_run1", "word_run2", "synonym_run2"),
    ("Glee", "['mirth', 'fun']", "glee", "mirth, 'sunshine'"),
    ("ease", "['rest', 'Mirth']", "ease", "[]"),
    ("tears", None, "guilt", "['shame']"),
    ("romp", "[]", "bright", "[shine]"),
    ("dark", "[]", None, None),
)
FORMS = """name,format
glee,"gleeful,gleefully"
mirth,"mirthful,merry"
ease,"['easy', 'eases']"
shame,ashamed
tears,"tear,tearful"
shine,shiny
dark,
cloud,cloudy
"""


def sheet(path, rows):
    import openpyxl

    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    book.create_sheet("notes").append(["not read"])
    book.save(path)


@pytest.fixture(scope="module")
def five_wheels(tmp_path_factory):
    """Five equal wheels."""
    wheel_folder = tmp_path_factory.mktemp("wheels") / "emotion_wheel"
    write_file(wheel_folder / "format.csv", FORMS)
    sheet(wheel_folder / "synonym.xlsx", SYNONYMS)
    sheet(wheel_folder / "wheel1.xlsx", [RINGS, *WHEEL])
    for number in range(2, 6):
        shutil.copy(wheel_folder / "wheel1.xlsx", wheel_folder / f"wheel{number}.xlsx")
    return wheel_folder


@pytest.fixture
def folder(five_wheels, tmp_path):
    """A copy of the wheels, which tests may damage."""
    return Path(shutil.copytree(five_wheels, tmp_path / "emotion_wheel"))


@pytest.fixture(scope="module")
def levels(five_wheels):
    """The wheels by level."""
    return {level: Wheels.read(str(five_wheels), level) for level in (1, 2)}


def figures(wheels, truth, predicted):
    sets = WheelSets.of([str(i) for i in range(len(truth))], truth, predicted, wheels)
    return [metric(name).compute(sets) for name in ("ew_precision", "ew_recall", "ew")]


@pytest.mark.parametrize(
    ("word", "level_1", "level_2"),
    [
        ("glee", "bright", "lively"),
        ("gleefully", "bright", "lively"),
        (" Gleeful ", "bright", "lively"),
        ("merry", "bright", "gentle"),  # mirth is a synonym of ease and of glee; the alphabetically first one is used
        ("easy", "bright", "gentle"),
        ("shiny", "bright", "gentle"),  # bright itself is a cluster: at level 2 it gives the first cluster below it
        ("dark", "dark", "bitter"),
        ("tearful", "dark", "heavy"),
        ("ashamed", "dark", "bitter"),
        ("romp", None, None),  # on the wheels, but not a form of any word
        ("fun", None, None),
        ("cloudy", None, None),  # a form of a word without synonyms
        ("table", None, None),
        ("", None, None),
    ],
)
def test_a_word_is_mapped_to_a_cluster_by_its_form_and_synonyms(levels, word, level_1, level_2):
    for level, cluster in ((1, level_1), (2, level_2)):
        assert levels[level].of([word]) == (frozenset({cluster} - {None}),) * 5


TRUTH = [["gleeful", "ashamed"], ["tearful"], ["table", "chair"], ["glee"], ["Easy", "tears"]]
PREDICTED = [["easy"], ["merry", "table"], ["shiny"], [], ["rest", "ease", "ashamed", "chair"]]


def test_scores_at_level_1_equal_manually_computed_values(levels):
    # {bright dark}:{bright}, {dark}:{bright}, left out, {bright}:{}, {bright dark}:{bright dark}
    precision, recall = (1 + 0 + 0 + 1) / 4, (1 / 2 + 0 + 0 + 1) / 4
    expected = [precision, recall, 2 * precision * recall / (precision + recall)]
    assert figures(levels[1], TRUTH, PREDICTED) == pytest.approx(expected, abs=1e-12)


def test_scores_at_level_2_equal_manually_computed_values(levels):
    # {lively bitter}:{gentle}, {heavy}:{gentle}, left out, {lively}:{}, {gentle heavy}:{gentle bitter}
    precision, recall = (0 + 0 + 0 + 1 / 2) / 4, (0 + 0 + 0 + 1 / 2) / 4
    assert figures(levels[2], TRUTH, PREDICTED) == pytest.approx([precision, recall, 1 / 8], abs=1e-12)


def test_each_metric_is_averaged_over_wheels_and_f_is_computed_on_each(folder):
    # wheel 5 contains only tears and guilt, in one cluster: {w}:{}, {w}:{}, left out, left out, {w}:{w}
    sheet(folder / "wheel5.xlsx", [RINGS, ("wet", "drop", "tears"), (None, None, "guilt")])
    precision, recall = 1 / 2, 3 / 8
    both = 2 * precision * recall / (precision + recall)
    expected = [(4 * precision + 1 / 3) / 5, (4 * recall + 1 / 3) / 5, (4 * both + 1 / 3) / 5]
    assert figures(Wheels.read(str(folder), 1), TRUTH, PREDICTED) == pytest.approx(expected, abs=1e-12)


def test_a_wheel_without_any_true_word_is_excluded_from_the_mean(folder):
    sheet(folder / "wheel2.xlsx", [RINGS, ("odd", "odd", "odd")])
    assert figures(Wheels.read(str(folder), 1), [["glee"]], [["ease"]]) == [1, 1, 1]


@pytest.mark.parametrize("level", [1, 2])
def test_f_is_zero_if_precision_and_recall_are_zero(levels, level):
    assert figures(levels[level], [["glee"], ["ease"]], [["tears"], []]) == [0, 0, 0]


@pytest.mark.parametrize(("truth", "predicted"), [([], []), ([[], ["table"]], [["glee"], []])])
def test_without_a_reference_on_the_wheels_there_is_no_value(levels, truth, predicted):
    assert figures(levels[1], truth, predicted) == [None] * 3


@pytest.mark.parametrize("level", [1, 2])
def test_random_words_score_between_zero_and_one_and_the_true_words_score_one(levels, level):
    wheels, rng = levels[level], random.Random(level)
    words = ["gleeful", "merry", "easy", "tear", "ashamed", "shiny", "dark", "table"]
    for _ in range(100):
        truth, predicted = ([rng.sample(words, rng.randrange(4)) for _ in range(3)] for _ in range(2))
        result = figures(wheels, truth, predicted)
        assert result == [None] * 3 or all(math.isfinite(figure) and 0 <= figure <= 1 for figure in result)
        assert figures(wheels, truth, truth) in ([1, 1, 1], [None] * 3)


def test_the_later_entry_of_a_word_that_a_wheel_contains_twice_is_used(folder):
    sheet(folder / "wheel1.xlsx", [RINGS, *WHEEL, (None, "Sticky", "glee")])
    assert [Wheels.read(str(folder), level).of(["gleeful"])[0] for level in (1, 2)] == [{"dark"}, {"sticky"}]


def test_take_selects_clips_with_their_words_and_may_repeat_them(folder):
    sets = WheelSets.of(["a", "b"], [["glee"], ["tears"]], [["ease"], ["ease"]], Wheels.read(str(folder), 1)).take([1, 0, 0])
    assert sets.names == ("b", "a", "a")
    assert metric("ew_recall").compute(sets) == pytest.approx(2 / 3)


# Invalid folders


def refusal(folder):
    with pytest.raises(UserError) as error:
        Wheels.read(str(folder), 1)
    return str(error.value)


def test_all_missing_files_are_listed_at_once(folder):
    for file in ("format.csv", "wheel2.xlsx", "wheel5.xlsx"):
        (folder / file).unlink()
    assert refusal(folder).startswith(f"wheel_folder: '{folder}' lacks format.csv, wheel2.xlsx, wheel5.xlsx.")


def test_all_files_of_a_missing_folder_are_listed(tmp_path):
    text = refusal(tmp_path / "none")
    assert all(file in text for file in ("format.csv", "synonym.xlsx", *(f"wheel{number}.xlsx" for number in range(1, 6))))


@pytest.mark.parametrize(
    ("file", "rows", "fault"),
    [
        ("wheel3.xlsx", [("level1", "level2"), ("a", "b")], "lacks the columns level3; it has level1, level2"),
        ("wheel3.xlsx", [], "lacks the columns level1, level2, level3; it has none"),
        ("synonym.xlsx", [("word_run1", "synonym_run1", "word_run2"), ("glee", "", "")], "lacks the columns synonym_run2"),
        ("synonym.xlsx", [("word", "synonym"), ("glee", "")], "lacks the columns synonym_run1, word_run1"),
        ("synonym.xlsx", [("word_run1", "synonym_run1"), ("glee", ""), ("glea", "")], "row 3: 'glea' is not on any wheel"),
    ],
)
def test_a_sheet_with_missing_columns_or_unknown_words_is_refused_with_its_path(folder, file, rows, fault):
    sheet(folder / file, rows)
    assert str(folder / file) in refusal(folder) and fault in refusal(folder)


def test_files_that_are_not_workbooks_or_tables_are_refused_with_their_path(folder):
    write_file(folder / "format.csv", "word,forms\nglee,gleeful\n")
    assert "format.csv, line 1" in refusal(folder)
    for content in (b"level1,level2,level3\n", b"", b"PK\x03\x04 and no more"):
        write_file(folder / "wheel4.xlsx", content)
        assert f"{folder / 'wheel4.xlsx'}: cannot read an Excel workbook" in refusal(folder)


def test_a_workbook_with_a_damaged_part_is_refused_with_its_path(folder):
    spoiled = folder / "spoiled.xlsx"
    with zipfile.ZipFile(folder / "wheel1.xlsx") as source, zipfile.ZipFile(spoiled, "w") as target:
        for part in source.namelist():
            target.writestr(part, b"<not xml" if part.endswith(("sheet1.xml", "workbook.xml")) else source.read(part))
    spoiled.replace(folder / "wheel1.xlsx")
    assert f"{folder / 'wheel1.xlsx'}: cannot read an Excel workbook" in refusal(folder)


# Submissions

WORDS = {"00012": ("happy", "don't care"), "b": (), "c": ("难过",)}


def test_a_submission_contains_texts_and_is_read_back(tmp_path):
    path = str(tmp_path / "new" / "words.npz")
    write_submission(path, [*WORDS], [*WORDS.values()])
    with np.load(path, allow_pickle=False) as archive:
        assert sorted(archive) == ["fileitems", "filenames"]
        assert archive["filenames"].tolist() == [*WORDS]
        assert archive["fileitems"].tolist() == ["['happy', \"don't care\"]", "[]", "['难过']"]
    assert read_submission(path) == WORDS


def test_a_submission_without_clips_is_valid(tmp_path):
    write_submission(str(tmp_path / "words.npz"), [], [])
    assert read_submission(str(tmp_path / "words.npz")) == {}


def test_submissions_of_others_are_read_even_if_an_item_is_not_a_list(tmp_path):
    items = ["['Happy','sad']", "[happy, sad]", "happy", "['don't', 'sad'", ""]
    np.savez_compressed(tmp_path / "words.npz", filenames=[*"abcde"], fileitems=items)
    assert read_submission(str(tmp_path / "words.npz")) == {
        "a": ("happy", "sad"), "b": ("happy", "sad"), "c": ("happy",), "d": ("don", "t", "sad"), "e": (),
    }  # fmt: skip


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickled_objects_in_a_submission_are_refused_without_unpickling(tmp_path):
    trap = np.empty(1, dtype=object)
    trap[0] = Trap(tmp_path / "sprung")
    np.savez(tmp_path / "words.npz", filenames=["a"], fileitems=trap)
    write_file(tmp_path / "bare.npz", pickle.dumps(trap[0]))
    for file in ("words.npz", "bare.npz"):
        with pytest.raises(UserError) as error:
            read_submission(str(tmp_path / file))
        assert f"{tmp_path / file}: cannot read an .npz of texts" in str(error.value) and "pickles" in str(error.value)
    assert not (tmp_path / "sprung").exists()
    np.load(tmp_path / "words.npz", allow_pickle=True)["fileitems"][0].close()
    assert (tmp_path / "sprung").exists()  # the trap would have worked


@pytest.mark.parametrize(
    ("arrays", "fault"),
    [
        ({"filenames": ["a"]}, "missing arrays: fileitems"),
        ({"names": ["a"]}, "missing arrays: filenames, fileitems"),
        ({"filenames": ["a", "b"], "fileitems": ["[sad]"]}, "2 filenames and 1 fileitems"),
        ({"filenames": ["a", "a"], "fileitems": ["[sad]", "[]"]}, "filenames contains 'a' twice"),
        ({"filenames": ["a"], "fileitems": [["sad"]]}, "one-dimensional arrays of texts"),
        ({"filenames": [1], "fileitems": ["sad"]}, "one-dimensional arrays of texts"),
    ],
)
def test_a_submission_with_invalid_arrays_is_refused(tmp_path, arrays, fault):
    np.savez(tmp_path / "words.npz", **arrays)
    with pytest.raises(UserError) as error:
        read_submission(str(tmp_path / "words.npz"))
    assert str(error.value).startswith(f"{tmp_path / 'words.npz'}: ") and fault in str(error.value)


@pytest.mark.slow
def test_a_truncated_or_other_file_is_refused(tmp_path):
    path = tmp_path / "words.npz"
    with pytest.raises(UserError, match="no file"):
        read_submission(str(path))
    write_submission(str(path), [*WORDS], [*WORDS.values()])
    whole = path.read_bytes()
    for content in (whole[:-30], whole[:40], b"", b"text", whole[:60] + b"\0\0\0\0\0\0" + whole[66:]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="cannot read an .npz of texts"):
            read_submission(str(path))
