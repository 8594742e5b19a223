"""Annotation lists, captions, transcripts, and the text processor of answers."""

from __future__ import annotations

import json
import random
import re

import pytest

from emollama.data.annotations import read_annotations, read_captions, read_transcripts
from emollama.data.text_columns import missing_names
from emollama.data.text_processors import TEXT_PROCESSORS, blip_caption
from emollama.errors import UserError


def write_list(folder, text, name="list.txt"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def names_and_labels(folder, text, annotation_format="auto"):
    return [(clip.name, clip.label) for clip in read_annotations(write_list(folder, text), annotation_format)]


def refusal(call, *args):
    with pytest.raises(UserError) as error:
        call(*args)
    return str(error.value)


# Annotation lists


@pytest.mark.parametrize(
    ("text", "annotation_format"),
    [
        ("a happy\nb sad\n", "ne"),
        ("a happy\nb sad\n", "auto"),
        ("a 3 happy\nb 4 sad\n", "ncev"),
        ("a 3 happy\nb 4 sad\n", "auto"),
        ("a 3 happy -1.5\nb 4 sad -10\n", "ncev"),
        ("a 3 happy -1.5\nb 4 sad -10\n", "auto"),
    ],
)
def test_every_published_list_format_is_read_as_names_and_labels(tmp_path, text, annotation_format):
    assert names_and_labels(tmp_path, text, annotation_format) == [("a", "happy"), ("b", "sad")]


def test_the_placeholder_column_of_a_reasoning_list_is_its_label(tmp_path):
    assert names_and_labels(tmp_path, "samplenew_00000019 87 0\n") == [("samplenew_00000019", "0")]


def test_names_stay_strings(tmp_path):
    assert names_and_labels(tmp_path, "00012 happy\n1e3 sad\nNaN angry\n0x1f sad\n") == [
        ("00012", "happy"),
        ("1e3", "sad"),
        ("NaN", "angry"),
        ("0x1f", "sad"),
    ]


def test_a_list_of_names_alone_has_no_labels(tmp_path):
    assert names_and_labels(tmp_path, "a\nb\n") == names_and_labels(tmp_path, "a\nb\n", "n") == [("a", ""), ("b", "")]
    assert "line 2" in refusal(names_and_labels, tmp_path, "a\nb happy\n")


def test_blank_lines_tabs_and_windows_line_ends_are_accepted_and_lines_count_from_one(tmp_path):
    clips = read_annotations(write_list(tmp_path, "\r\na\t3  happy\r\n  \r\n\r\nb 4 sad"))
    assert [(clip.name, clip.label, clip.line) for clip in clips] == [("a", "happy", 2), ("b", "sad", 5)]


def test_a_byte_order_mark_is_not_part_of_the_first_name(tmp_path):
    assert names_and_labels(tmp_path, b"\xef\xbb\xbfa happy\n") == [("a", "happy")]


def test_file_order_is_preserved(tmp_path):
    assert [name for name, _ in names_and_labels(tmp_path, "c x\na x\nb x\n")] == ["c", "a", "b"]


@pytest.mark.parametrize(
    ("text", "annotation_format", "line"),
    [
        ("a happy\nb\n", "auto", 2),
        ("a 3 happy 1 2\n", "auto", 1),
        ("a happy\n\nb 3 happy\n", "ne", 3),
        ("a 3 happy\nb happy\n", "ncev", 2),
    ],
)
def test_a_row_with_the_wrong_number_of_fields_is_refused_with_its_line(tmp_path, text, annotation_format, line):
    message = refusal(names_and_labels, tmp_path, text, annotation_format)
    assert message.startswith(f"{tmp_path}/list.txt, line {line}: ") and "expected" in message


@pytest.mark.parametrize("name", ["../a", "a/../../b", "..", "/etc/passwd", "a\0b", "..\\a", "a\\b", "/"])
def test_a_name_that_could_leave_its_folder_is_refused_with_its_line(tmp_path, name):
    message = refusal(names_and_labels, tmp_path, f"fine happy\n{name} happy\n")
    assert message.startswith(f"{tmp_path}/list.txt, line 2: ") and repr(name) in message


@pytest.mark.parametrize("name", ["clip.7", "a/b", "a..b", "it's_ok-1", "样本_1"])
def test_a_name_with_dots_dashes_or_a_subfolder_is_accepted(tmp_path, name):
    assert names_and_labels(tmp_path, f"{name} happy\n") == [(name, "happy")]


@pytest.mark.parametrize("second", ["a happy", "a sad"])
def test_a_repeated_name_is_refused_with_both_lines(tmp_path, second):
    message = refusal(names_and_labels, tmp_path, f"a happy\nb sad\n{second}\n")
    assert "line 3: clip 'a' is already listed on line 1" in message


@pytest.mark.parametrize("text", ["", "\n \n\t\n", b"\xef\xbb\xbf"])
def test_an_empty_list_is_refused(tmp_path, text):
    assert "the list has no usable line" in refusal(names_and_labels, tmp_path, text)


def test_a_list_that_is_not_utf8_is_refused_with_the_byte_position(tmp_path):
    assert "line 1: not UTF-8 text (byte 0xff at position 2)" in refusal(names_and_labels, tmp_path, b"a \xff\xfe\n")


def test_a_missing_list_is_reported_with_its_key(tmp_path):
    assert refusal(read_annotations, str(tmp_path / "none.txt")).startswith("annotation_file: no file")


def test_a_json_file_instead_of_a_list_is_reported_in_one_line(tmp_path):
    text = refusal(names_and_labels, tmp_path, '{\n "clip_1": {"caption": "happy"}\n}\n')
    assert re.fullmatch(r"annotation_file: \S+ is a JSON file\. Specify the list, .*", text)


# Captions


def captions(folder, table, field="caption"):
    text = table if isinstance(table, str) else json.dumps(table)
    return read_captions(write_list(folder, text, "captions.json"), field, "coarse_grained_json_path")


def test_captions_are_read_from_the_configured_field(tmp_path):
    table = {"a": {"caption": "one", "smp_reason_caption": "two", "peak_index": "3"}, "00012": {"caption": "three"}}
    assert captions(tmp_path, table) == {"a": "one", "00012": "three"}
    assert captions(tmp_path, table, "smp_reason_caption") == {"a": "two"}


@pytest.mark.parametrize("value", ["", "  \n", None, 3, ["text"]])
def test_a_caption_that_is_not_text_counts_as_missing(tmp_path, value):
    assert captions(tmp_path, {"a": {"caption": value}, "b": {"caption": "yes"}}) == {"b": "yes"}


def test_bad_json_names_file_and_line(tmp_path):
    message = refusal(captions, tmp_path, '{"a": {"caption": "x"},\n"b": }\n')
    assert message.startswith(f"{tmp_path}/captions.json, line 2: not valid JSON")


@pytest.mark.parametrize("table", ["[]", '{"a": "text"}', "3", '[{"caption": "x"}]'])
def test_json_of_another_shape_is_rejected_with_the_expected_shape(tmp_path, table):
    assert "one JSON object with clip names as keys" in refusal(captions, tmp_path, table)


def test_a_missing_caption_file_is_reported_with_its_key(tmp_path):
    assert refusal(read_captions, str(tmp_path / "no.json"), "caption", "my_key").startswith("my_key: no file")


# Transcripts


def transcripts(folder, text):
    return read_transcripts(write_list(folder, text, "words.csv"))


@pytest.mark.parametrize("header", ["name,sentence", "name,sentence_en", "name,chinese,english", "english,name"])
def test_transcripts_with_every_published_header_are_read(tmp_path, header):
    row = ",".join({"name": "a", "chinese": "你好"}.get(column, "hello") for column in header.split(","))
    assert transcripts(tmp_path, f"{header}\n{row}\n") == {"a": "hello"}


def test_quoted_commas_line_breaks_and_doubled_quotes_are_read_as_csv(tmp_path):
    text = 'name,sentence\r\na,"Why, Tom?"\r\nb,"two\nlines"\r\nc,"she said ""no"""\r\n'
    assert transcripts(tmp_path, text) == {"a": "Why, Tom?", "b": "two\nlines", "c": 'she said "no"'}


def test_an_empty_cell_is_read_as_a_clip_without_speech(tmp_path):
    assert transcripts(tmp_path, "name,sentence\na,\nb,  \nc,x\n") == {"a": "", "b": "", "c": "x"}


def test_a_csv_with_byte_order_mark_is_read(tmp_path):
    assert transcripts(tmp_path, b"\xef\xbb\xbfname,sentence\n00012,hi\n") == {"00012": "hi"}


def test_blank_csv_lines_are_ignored(tmp_path):
    assert transcripts(tmp_path, "name,sentence\n\na,x\n\n") == {"a": "x"}


def test_an_equal_duplicate_is_accepted_and_a_different_one_refused_with_its_line(tmp_path):
    assert transcripts(tmp_path, "name,sentence\na,x\na,x\n") == {"a": "x"}
    message = refusal(transcripts, tmp_path, "name,sentence\na,x\nb,z\na,y\n")
    assert f"{tmp_path}/words.csv, line 4" in message and "'a'" in message


@pytest.mark.parametrize("text", ["", "names,reasons\na,b\n", "a,hello\n", "name,text\na,b\n"])
def test_a_csv_without_the_columns_shows_its_header(tmp_path, text):
    message = refusal(transcripts, tmp_path, text)
    assert "line 1: the header is" in message and "expected one of the columns" in message


@pytest.mark.parametrize("text", ['name,sentence\na,"open\n', 'name,sentence\na,"x"y\n', '"name"x,sentence\na,b\n'])
def test_broken_quoting_is_refused_as_invalid_csv(tmp_path, text):
    message = refusal(transcripts, tmp_path, text)
    assert f"{tmp_path}/words.csv, line" in message and "not valid CSV" in message


def test_a_sentence_with_unquoted_commas_is_refused_and_not_cut(tmp_path):
    message = refusal(transcripts, tmp_path, "name,sentence\na,fine\nb,Why, Tom?\n")
    assert f"{tmp_path}/words.csv, line 3" in message


def test_a_row_without_a_name_is_refused_with_its_line(tmp_path):
    assert f"{tmp_path}/words.csv, line 3" in refusal(transcripts, tmp_path, "name,sentence\na,x\n,lost\n")


def test_missing_names_keeps_the_requested_order():
    assert missing_names(["c", "a", "b"], {"a": ""}) == ["c", "b"]


# The text processor


@pytest.mark.parametrize(
    ("text", "processed"),
    [
        ("A Young Woman", "a young woman"),
        ("end. of! it", "end of it"),
        ('a.b!c"d(e)f*g#h:i;j~k', "a b c d e f g h i j k"),
        ("keeps, these? - 'and' [this] {that} /", "keeps, these? - 'and' [this] {that} /"),
        ("one\ttab", "one\ttab"),
        ("one\nline", "one\nline"),
        ("two\t\ttabs, \n mixed", "two tabs, mixed"),
        ("dot. space", "dot space"),
        ("  ends \n", "ends"),
        ("...", ""),
        ("", ""),
        ("ÄÖ É", "äö é"),
    ],
)
def test_blip_caption_follows_the_published_rules(text, processed):
    assert blip_caption(text, 200) == processed


def test_blip_caption_cuts_to_max_words_at_single_spaces():
    assert blip_caption("one two three four", 3) == "one two three"
    assert blip_caption("one two three", 3) == "one two three"
    assert blip_caption("one\ttwo three four", 2) == "one\ttwo three"


def random_texts():
    generator = random.Random(5)
    letters = "aBÇß İ \t\n\r  .!\"()*#:;~,?'-Σ1"
    for _ in range(300):
        yield "".join(generator.choices(letters, k=generator.randrange(60))), generator.randrange(1, 12)


def test_blip_caption_is_idempotent():
    for text, max_words in random_texts():
        once = blip_caption(text, max_words)
        assert blip_caption(once, max_words) == once


def test_blip_caption_removes_double_spaces_and_listed_punctuation_and_limits_words():
    for text, max_words in random_texts():
        processed = blip_caption(text, max_words)
        assert processed == processed.strip() and "  " not in processed and not set('.!"()*#:;~') & set(processed)
        assert len(processed.split(" ")) <= max_words


def test_verbatim_changes_nothing():
    for text, max_words in random_texts():
        assert TEXT_PROCESSORS["verbatim"](text, max_words) == text


# Files that were cut or edited by hand


def test_a_row_with_too_few_cells_is_refused_and_not_read_as_a_clip_without_speech(tmp_path):
    message = refusal(transcripts, tmp_path, "name,sentence\na,x\nb\n")
    assert f"{tmp_path}/words.csv, line 3: fewer cells than columns" in message


@pytest.mark.parametrize(("text", "line"), [('name,sentence\na,"x"y\n', 2), ('name,sentence\na,x\nb,z\nc,"x"y\n', 4)])
def test_broken_quoting_names_its_line(tmp_path, text, line):
    assert f"{tmp_path}/words.csv, line {line}: not valid CSV" in refusal(transcripts, tmp_path, text)


def test_every_faulty_row_is_reported_and_the_others_are_read(tmp_path):
    problems = []
    text = "a happy\nb\n../c sad\na sad\nd angry\n"
    clips = read_annotations(write_list(tmp_path, text), report=problems.append)
    assert [clip.name for clip in clips] == ["a", "d"]
    assert [problem.text.partition(": ")[0] for problem in problems] == [
        f"{tmp_path}/list.txt, line {line}" for line in (2, 3, 4)
    ]


def test_a_name_with_a_control_character_is_refused(tmp_path):
    assert "control character" in refusal(names_and_labels, tmp_path, "a\x1b[31m happy\n")


def test_line_numbers_match_those_of_an_editor(tmp_path):
    path = write_list(tmp_path, "a\u2028x happy\nb sad\n")
    assert [clip.line for clip in read_annotations(path, "ne", report=lambda problem: None)] == [2]


def test_deeply_nested_json_is_refused(tmp_path):
    assert "nested too deeply" in refusal(captions, tmp_path, "[" * 100_000)


def test_a_clip_that_is_in_a_json_file_twice_is_rejected(tmp_path):
    assert "the key 'a' appears twice" in refusal(captions, tmp_path, '{"a": {"caption": "x"}, "a": {"caption": "y"}}')
