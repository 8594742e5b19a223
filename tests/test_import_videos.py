"""The kind videos: discovery of files, matching of names, labels, links and collisions."""

from __future__ import annotations

import os

import pytest
from importing import listed, refusal, run, sentences, table, tree, write_file


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def videos(folder, *names):
    for name in names:
        write_file(folder / name, b"video")
    return folder


def test_videos_are_matched_with_the_names_of_a_table_with_and_without_extensions(tmp_path, out):
    folder = videos(tmp_path / "v", "a.mp4", "00012.AVI", "sub/c.v2.mkv", "notes.txt", ".hidden.mp4", "._a.mp4")
    rows = "video_name,emotion,sentence,caption\na,anger,Hi,She hits.\n00012.avi,sad,,\nc.v2,joy,x,\n"
    run("videos", folder, write_file(tmp_path / "l.csv", rows), "--output", out)
    assert listed(out) == [("a", "angry"), ("00012", "sad"), ("sub/c.v2", "happy")]
    assert sentences(out) == [["a", "Hi"], ["00012", ""], ["sub/c.v2", "x"]]
    assert table(out / "MERR_coarse_grained.json") == {"a": {"caption": "She hits."}}


def test_the_columns_of_the_table_can_be_selected_by_options(tmp_path, out):
    table_file = write_file(tmp_path / "l.csv", "clip,name,gold,words\na,x,sad,Hi\n")
    columns = ("--name-column", "clip", "--label-column", "gold", "--sentence-column", "words")
    run("videos", videos(tmp_path / "v", "a.mp4"), table_file, "--output", out, *columns)
    assert listed(out) == [("a", "sad")] and sentences(out) == [["a", "Hi"]]


def test_dfew_ids_are_mapped_to_labels_and_disgust_requires_a_decision_of_the_user(tmp_path, out):
    folder = videos(tmp_path / "v", *(f"{i}.mp4" for i in range(1, 8)))
    table_path = write_file(tmp_path / "set_1.csv", "video_name,label\n" + "".join(f"{i},{i}\n" for i in range(1, 8)))
    message = refusal("videos", folder, table_path, "--output", out, "--label-map", "dfew")
    assert "problems: 1." in message and "the label '6' (mapped to 'disgust')" in message
    maps = write_file(tmp_path / "map.yaml", "disgust: skip\n")
    run("videos", folder, table_path, "--output", out, "--label-map", "dfew", maps)
    assert [label for _, label in listed(out)] == ["happy", "sad", "neutral", "angry", "surprise", "fear"]
    seven = ["happy", "sad", "neutral", "angry", "surprise", "disgust", "fear"]
    run("videos", folder, table_path, "--output", tmp_path / "seven", "--label-map", "dfew", "--labels", *seven)
    assert [label for _, label in listed(tmp_path / "seven")] == seven


def test_videos_without_a_table_row_are_noted_and_rows_without_a_video_are_problems(tmp_path, out):
    folder = videos(tmp_path / "v", "a.mp4", "b.mp4")
    table_path = write_file(tmp_path / "l.csv", "name,label\na,sad\nz,sad\n")
    assert f"{table_path}, line 3: no video has the name 'z'" in refusal("videos", folder, table_path, "--output", out)
    run("videos", folder, table_path, "--output", out, "--on-problem", "skip")
    assert listed(out) == [("a", "sad")]
    assert table(out / "import_report.json")["left_out"] == {f"videos without a row of their own in {table_path}": ["b"]}


def test_a_name_that_fits_several_videos_needs_its_folder(tmp_path, out):
    folder = videos(tmp_path / "v", "one/a.mp4", "two/a.mp4", "two/b.mp4")
    vague = write_file(tmp_path / "vague.csv", "name,label\na,sad\n")
    assert "'a' matches several videos: one/a, two/a. Add the folder to the name." in refusal(
        "videos", folder, vague, "--output", out
    )
    exact = write_file(tmp_path / "exact.csv", "name,label\none/a.mp4,sad\nv\\two\\a.mp4,happy\none/b,sad\n")
    message = refusal("videos", folder, exact, "--output", out)
    assert "problems: 1." in message and "line 4: no video has the name 'one/b'" in message
    run("videos", folder, exact, "--output", out, "--on-problem", "skip")
    assert listed(out) == [("one/a", "sad"), ("two/a", "happy")]


def test_videos_with_the_same_name_are_reported_with_both_paths(tmp_path, out):
    folder = videos(tmp_path / "v", "a.mp4", "a.avi", "b.mp4", "c d.mp4")
    table_path = write_file(tmp_path / "l.csv", "name,label\nb,sad\nc d,sad\n")
    message = refusal("videos", folder, table_path, "--output", out)
    assert f"{folder}/a.avi, {folder}/a.mp4" in message and "the name 'c d' contains white space" in message
    run("videos", folder, table_path, "--output", out, "--on-problem", "skip")
    assert listed(out) == [("b", "sad")]


def test_a_video_with_a_faulty_table_row_is_not_also_reported_as_having_none(tmp_path, out):
    folder = videos(tmp_path / "v", "a.mp4", "b.mp4", "c d.mp4", "e.mp4")
    table_path = write_file(tmp_path / "l.csv", "name,label\na,sad\na,happy\nb,sad\nc d,sad\n")
    run("videos", folder, table_path, "--output", out, "--on-problem", "skip")
    report = table(out / "import_report.json")
    assert [problem["clips"] for problem in report["problems"]] == [["a"], ["c d"]]
    assert report["left_out"] == {f"videos without a row of their own in {table_path}": ["e"]}


def test_a_folder_that_cannot_be_read_is_a_problem(tmp_path, out, monkeypatch):
    folder = videos(tmp_path / "v", "a.mp4")
    deep = folder.resolve()
    monkeypatch.chdir(deep)
    for _ in range(20):  # a path that is too long for the system, also for root
        os.mkdir("d" * 250)
        os.chdir("d" * 250)
    monkeypatch.chdir(tmp_path)
    table_path = write_file(tmp_path / "l.csv", "name,label\na,sad\n")
    message = refusal("videos", folder, table_path, "--output", out)
    assert "problems: 1." in message and "the folder cannot be read (File name too long)" in message
    run("videos", folder, table_path, "--output", out, "--on-problem", "skip")
    assert listed(out) == [("a", "sad")] and len(table(out / "import_report.json")["problems"]) == 1


def test_linked_videos_are_imported_linked_folders_noted_and_broken_links_problems(tmp_path, out):
    folder = videos(tmp_path / "v", "a.mp4")
    videos(tmp_path / "elsewhere", "b.mp4", "c.mp4")
    (folder / "b.mp4").symlink_to(tmp_path / "elsewhere" / "b.mp4")
    (folder / "more").symlink_to(tmp_path / "elsewhere")
    (folder / "loop").symlink_to(folder)
    (folder / "gone.mp4").symlink_to(tmp_path / "nothing.mp4")
    table_path = write_file(tmp_path / "l.csv", "name,label\na,sad\nb,happy\n")
    assert f"{folder}/gone.mp4: the target of this link does not exist" in refusal("videos", folder, table_path, "--output", out)
    run("videos", folder, table_path, "--output", out, "--on-problem", "skip")
    assert listed(out) == [("a", "sad"), ("b", "happy")]
    links = table(out / "import_report.json")["left_out"]["links to folders, which are not followed"]
    assert links == [f"{folder}/loop", f"{folder}/more"]


def test_a_file_name_that_is_not_utf8_is_a_problem_and_not_a_traceback(tmp_path, out):
    folder = videos(tmp_path / "v", "a.mp4")
    try:
        write_file(folder / os.fsdecode(b"b\xff.mp4"), b"video")
    except OSError:
        pytest.skip("this file system refuses such names")
    table_path = write_file(tmp_path / "l.csv", "name,label\na,sad\n")
    assert "b\\udcff.mp4': the name is not UTF-8" in refusal("videos", folder, table_path, "--output", out)


@pytest.mark.parametrize("inside", ["v", "v/out"])
def test_an_output_in_the_source_folder_is_refused(tmp_path, inside):
    folder = videos(tmp_path / "v", "a.mp4")
    table_path = write_file(tmp_path / "l.csv", "name,label\na,sad\n")
    assert "--output" in refusal("videos", folder, table_path, "--output", tmp_path / inside)
    assert tree(folder) == {"a.mp4": b"video"}


@pytest.mark.parametrize(("files", "says"), [((), "no folder"), (("notes.txt",), "contains no video, also in subfolders")])
def test_a_folder_without_videos_is_refused(tmp_path, out, files, says):
    folder = videos(tmp_path / "v", *files)
    assert says in refusal("videos", folder, write_file(tmp_path / "l.csv", "name,label\na,sad\n"), "--output", out)
