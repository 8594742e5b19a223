"""The output format, label maps, tables, and the kinds emer, mer2024 and mer2025."""

from __future__ import annotations

import random
import re
import unicodedata

import pytest
from importing import listed, refusal, run, sentences, table, tree, write_file

from emollama import cli
from emollama.data.annotations import read_annotations, read_captions, read_transcripts
from emollama.data.label_map import LABELS, LabelMap
from emollama.data.problems import Problem
from emollama.errors import UserError
from emollama.importers.annotation_files import write
from emollama.importers.collector import Collector, Entry, parse_valence
from emollama.importers.labels import read_label_map, require_vocabulary
from emollama.importers.mer import split_words
from emollama.paths import new_folder


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def mer(tmp_path, text, *arguments, out):
    """Import one table of labels."""
    run("mer2024", write_file(tmp_path / "label.csv", text), "--output", out, *arguments)
    return listed(out)


def mer_refusal(tmp_path, text, *arguments):
    message = refusal("mer2024", write_file(tmp_path / "label.csv", text), "--output", tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()
    return message


# The output format


def test_imported_files_with_arbitrary_names_and_texts_are_readable_by_the_datasets(tmp_path):
    generator = random.Random(3)
    letters = [chr(code) for code in (*range(0x21, 0x250), 0x4E2D, 0x85, 0x2028, 0x3000, 0x1F600)]
    texts = [*letters, " ", "\t", "\n", "\r\n", '"', ","]
    collector = Collector(LabelMap(LABELS))
    for _ in range(400):
        name = "".join(generator.choices(letters, k=generator.randrange(1, 12)))
        if collector.is_usable(name, "here"):
            text = "".join(generator.choices(texts, k=30)) + "x"
            collector.add(Entry(name, generator.choice(LABELS), None, text.strip(), text, {"smp_reason_caption": text}))
    with new_folder(tmp_path / "out") as folder:
        write(folder, collector, {})
    assert 100 < len(collector.entries) < 400
    entries = collector.entries.values()
    assert listed(tmp_path / "out") == [(entry.name, entry.label) for entry in entries]
    coarse = read_captions(str(tmp_path / "out" / "MERR_coarse_grained.json"), "caption", "")
    fine = read_captions(str(tmp_path / "out" / "MERR_fine_grained.json"), "smp_reason_caption", "")
    assert coarse == fine == {entry.name: entry.caption for entry in entries}
    assert read_transcripts(str(tmp_path / "out" / "transcription_en_all.csv")) == {e.name: e.sentence for e in entries}


@pytest.mark.parametrize("name", ["a b", "a\tb", "a\u3000b", "a\x85b", "", " ", "../a", "/a", "a\\b", "a\0"])
def test_a_name_that_cannot_be_written_in_a_list_is_a_problem(name):
    collector = Collector(LabelMap(LABELS))
    assert not collector.is_usable(name, "here, line 3")
    assert collector.problems[0].text.startswith("here, line 3: ") and collector.problems[0].kind == "name"


@pytest.mark.parametrize(
    ("values", "rows"),
    [
        ([("sad", 1.5), ("happy", None)], "a 0 sad 1.5\nb 0 happy -10\n"),
        ([("sad", None), ("happy", None)], "a sad\nb happy\n"),
        ([("0", None), ("0", None)], "a 0 0\nb 0 0\n"),
    ],
)
def test_the_list_has_only_the_columns_that_have_values(tmp_path, values, rows):
    collector = Collector(LabelMap(LABELS))
    for name, (label, valence) in zip("ab", values, strict=True):
        collector.add(Entry(name, label, valence))
    with new_folder(tmp_path / "out") as folder:
        write(folder, collector, {})
    assert (tmp_path / "out" / "clips.txt").read_text() == rows
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["clips.txt", "import_report.json"]


def test_the_report_lists_imported_clips_and_the_reasons_for_omitted_ones(tmp_path, out, capsys):
    transcripts = write_file(tmp_path / "words.csv", "name,sentence\na,hi\n")
    maps = write_file(tmp_path / "map.yaml", "bored: skip\n")
    text = "name,discrete\na,sad\nb,happy\nc,bored\nd e,sad\nf,sad\nf,sad\n"
    mer(tmp_path, text, "--on-problem", "skip", "--label-map", maps, "--transcripts", transcripts, out=out)
    report = table(out / "import_report.json")
    assert report["clips"] == 3 and report["labels"] == {"sad": 2, "happy": 1}
    assert report["files"] == {"clips.txt": 3, "transcription_en_all.csv": 1}
    assert report["taken_without"] == {"transcription_en_all.csv": ["b", "f"]}
    assert report["left_out"] == {
        f"identical rows repeated in {tmp_path}/label.csv": ["f"],
        "the label map skips 'bored'": ["c"],
    }
    assert [(problem["kind"], problem["clips"]) for problem in report["problems"]] == [("name", ["d e"])]
    assert report["settings"]["kind"] == "mer2024" and report["settings"]["on_problem"] == "skip"
    shown = capsys.readouterr().out
    assert "3 clips imported" in shown and "(sad 2, happy 1)" in shown and "the label map skips 'bored': c" in shown
    assert "1 name: d e" in shown


def test_all_problems_are_reported_at_once_and_nothing_is_written(tmp_path):
    message = mer_refusal(tmp_path, "name,discrete\na b,sad\nc,\nd,bored\ne,bored\nf,tired\n")
    assert message.startswith("nothing was written; problems: 4.") and "--on-problem skip" in message
    assert f"{tmp_path}/label.csv, line 2: the name 'a b' contains white space" in message
    assert f"{tmp_path}/label.csv, line 3: 'c' has no label" in message
    assert f"{tmp_path}/label.csv, line 4: the label 'bored' is not one of" in message and "number of clips: 2" in message
    assert f"{tmp_path}/label.csv, line 6: the label 'tired'" in message


def test_hundreds_of_problems_are_counted_and_the_first_shown(tmp_path):
    message = mer_refusal(tmp_path, "name,discrete\n" + "".join(f"a {i},sad\n" for i in range(300)))
    assert "problems: 300." in message and "... and 290 more" in message and message.count("\n") == 11


def test_an_import_without_any_usable_clip_is_refused(tmp_path):
    message = mer_refusal(tmp_path, "name,discrete\na,bored\n", "--on-problem", "skip")
    assert "no clip of the source is left" in message and "'bored'" in message


@pytest.mark.parametrize("blocked", ["file", "filled"])
def test_a_non_empty_output_folder_is_refused_and_not_changed(tmp_path, blocked):
    out = tmp_path / "out"
    write_file(out if blocked == "file" else out / "mine.txt", "mine")
    source = write_file(tmp_path / "label.csv", "name,discrete\na,sad\n")
    assert "not an empty folder" in refusal("mer2024", source, "--output", out)
    assert tree(tmp_path) == {"label.csv": source.read_bytes(), "out" if blocked == "file" else "out/mine.txt": b"mine"}


def test_an_empty_output_folder_is_used_and_no_temporary_folder_remains(tmp_path, out):
    out.mkdir()
    assert mer(tmp_path, "name,discrete\na,sad\n", out=out) == [("a", "sad")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["label.csv", "out"]


def test_an_output_folder_that_is_filled_during_the_import_is_not_changed(tmp_path):
    collector = Collector(LabelMap(LABELS))
    collector.add(Entry("a", "sad"))
    with pytest.raises(UserError, match="cannot write"), new_folder(tmp_path / "out") as folder:
        write(folder, collector, {})
        write_file(tmp_path / "out/theirs.txt", "theirs")
    assert tree(tmp_path) == {"out/theirs.txt": b"theirs"}


def test_an_output_folder_that_cannot_be_created_is_reported_before_the_source_is_read(tmp_path):
    below_a_file = write_file(tmp_path / "file", "") / "out"
    assert "--output: cannot write" in refusal("emer", tmp_path / "absent.csv", "--output", below_a_file)


def test_the_source_is_not_changed(tmp_path, out):
    text = b"\xef\xbb\xbfname,discrete\r\na,sad\r\n"
    mer(tmp_path, text, out=out)
    assert (tmp_path / "label.csv").read_bytes() == text


# Labels


@pytest.mark.parametrize(
    ("raw", "label"),
    [
        ("Happiness", "happy"),
        (" joy ", "happy"),
        ("anger", "angry"),
        ("surprised", "surprise"),
        ("SAD", "sad"),
        ("disgust", None),
        ("unknown", None),
        ("mad", None),
        ("", None),
    ],
)
def test_only_obvious_synonyms_are_mapped_without_a_label_map(raw, label):
    assert LabelMap(LABELS).resolve(raw) == label


def test_a_synonym_maps_to_the_label_of_the_vocabulary_unless_it_is_ambiguous():
    assert LabelMap(["anger", "joy"]).resolve("happy") == "joy"
    assert LabelMap(["happy", "joy"]).resolve("happiness") is None


def test_label_maps_are_applied_in_order_and_take_precedence_over_the_vocabulary():
    labels = LabelMap(LABELS, [{"6": "Disgust", "sad": "worried"}, {"DISGUST": "contempt", "fear": "skip"}])
    assert [labels.resolve(raw) for raw in ("6", "sad", "fear", "happy", "skip")] == [
        "contempt", "worried", "skip", "happy", None,
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["map.yaml", "map.json"])
def test_a_label_map_is_read_as_text_in_yaml_and_json(tmp_path, name):
    text = '{"no": "neutral",\n\t"6": "fear"}' if name == "map.json" else "# ours\nno: neutral\n6: fear\n"
    assert read_label_map(str(write_file(tmp_path / name, "\ufeff" + text))) == {"no": "neutral", "6": "fear"}


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("m.yaml", "a: sad\nb:\n", "line 2: expected a label map of the form"),
        ("m.yaml", "a: sad\na: fear\n", "line 2: 'a' is already mapped to 'sad'"),
        ("m.yaml", "a: sad\n b: [\n", "line 2: not valid YAML"),
        ("m.yaml", "- a\n- b\n", "expected a label map of the form"),
        ("m.yaml", "", "expected a label map of the form"),
        ("m.yaml", "a: {b: c}\n", "line 1: expected a label map of the form"),
        ("m.json", '{"a": "sad",\n// mine\n"b": "sad"}', "line 2: not valid JSON"),
        ("m.json", '{"a": "sad", "A ": "fear"}', "'A ' is already mapped to 'sad'"),
        ("m.json", '{"a": 3}', "'a': expected a label map of the form"),
        ("m.json", '["a"]', "expected a label map of the form"),
    ],
)
def test_an_invalid_label_map_is_refused_with_its_file_and_line_or_key(tmp_path, name, text, says):
    with pytest.raises(UserError) as error:
        read_label_map(str(write_file(tmp_path / name, text)))
    assert str(error.value).startswith(f"{tmp_path}/{name}") and says in str(error.value)


def test_a_label_map_to_an_unknown_label_is_reported_with_the_nearest_label(tmp_path):
    maps = write_file(tmp_path / "map.yaml", "bored: hapy\n")
    message = mer_refusal(tmp_path, "name,discrete\na,bored\n", "--label-map", maps)
    assert "'bored' (mapped to 'hapy')" in message and "Did you mean 'happy'?" in message


@pytest.mark.parametrize("labels", [["very sad"], ["skip"], ["0"], ["sad", "Sad"], [""]])
def test_labels_that_cannot_be_written_in_a_list_are_refused(labels):
    with pytest.raises(UserError, match="--labels"):
        require_vocabulary(labels)


def test_another_vocabulary_replaces_the_nine_default_labels(tmp_path, out):
    assert mer(tmp_path, "name,discrete\na,bored\n", "--labels", "bored", "calm", out=out) == [("a", "bored")]
    assert "the label 'sad' is not one of bored" in mer_refusal_elsewhere(tmp_path)


def mer_refusal_elsewhere(tmp_path):
    source = write_file(tmp_path / "two.csv", "name,discrete\na,sad\n")
    return refusal("mer2024", source, "--output", tmp_path / "out2", "--labels", "bored")


# Tables


def test_imported_mer_labels_preserve_order_names_and_valences(tmp_path, out):
    text = "name,discrete,valence\n00012,sad,-1.25\nb,Happy,\nc,worried,-10\n"
    assert mer(tmp_path, text, out=out) == [("00012", "sad"), ("b", "happy"), ("c", "worried")]
    assert (out / "clips.txt").read_text() == "00012 0 sad -1.25\nb 0 happy -10\nc 0 worried -10\n"


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbfname,discrete\r\na,sad\r\n\r\nb,sad\r\n",
        b'"name", discrete ,more\n a ,sad,"x, y"\nb,\tsad\t,\n',
        b"index,discrete,name\n0,sad,a\n1,sad,b",
    ],
)
def test_byte_order_marks_windows_line_ends_quotes_and_other_columns_are_accepted(tmp_path, out, text):
    assert mer(tmp_path, text, out=out) == [("a", "sad"), ("b", "sad")]


@pytest.mark.parametrize(
    ("rows", "line", "says"),
    [
        ("a\tb,sad,\n", 3, "contains white space"),
        (",sad,\n", 3, "the row has no name"),
        ("b,,\n", 3, "'b' has no label"),
        ("b\n", 3, "fewer cells than columns"),
        ("b,sad\n", 3, "fewer cells than columns"),
        ("b,sad,1,2\n", 3, "more cells than columns"),
        ("b,sad,high\n", 3, "the valence 'high' is not a finite number"),
        ("b,sad,nan\n", 3, "the valence 'nan' is not a finite number"),
        ("../b,sad,\n", 3, "points outside its folder"),
    ],
)
def test_an_invalid_table_row_is_reported_with_its_line_or_skipped(tmp_path, out, rows, line, says):
    text = "name,discrete,valence\na,sad,\n" + rows
    message = mer_refusal(tmp_path, text)
    assert f"{tmp_path}/label.csv, line {line}: " in message and says in message
    assert mer(tmp_path, text, "--on-problem", "skip", out=out) == [("a", "sad")]
    assert len(table(out / "import_report.json")["problems"]) == 1


def test_a_table_whose_rows_are_all_invalid_is_reported_row_by_row(tmp_path):
    message = mer_refusal(tmp_path, "name,discrete\na\nb\n")
    assert "problems: 2." in message and "line 2: fewer cells" in message and "line 3: fewer cells" in message


def test_contradicting_table_rows_are_reported_with_both_lines_and_not_imported(tmp_path, out):
    text = "name,discrete\na,sad\nb,sad\na,happy\n"
    message = mer_refusal(tmp_path, text)
    assert f"{tmp_path}/label.csv, line 4: 'a' has other values than in {tmp_path}/label.csv, line 2" in message
    assert mer(tmp_path, text, "--on-problem", "skip", out=out) == [("b", "sad")]


def test_repeated_table_rows_are_imported_once_and_counted(tmp_path, out):
    assert mer(tmp_path, "name,discrete\na,sad\na,sad\n", out=out) == [("a", "sad")]
    assert list(table(out / "import_report.json")["left_out"].values()) == [["a"]]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name,emotion\na,sad\n", "line 1: the header is name,emotion; expected name,discrete[,valence]"),
        ("name\tdiscrete\na\tsad\n", "the columns seem to be separated by tabs. Save the file as CSV with commas."),
        ("a,sad\nb,happy\n", "line 1: the header is a,sad; expected"),
        ("clip,discrete\na,sad\n", "expected one of the columns name"),
        ("name,name,discrete\na,b,sad\n", "contains a column twice"),
        ("name,discrete\n", "contains no rows"),
        ("", "contains no rows"),
        ('name,discrete\na,"sad\n', "not valid CSV"),
        (b"name,discrete\na,\xff\n", "not UTF-8 text"),
        ("name,sentence_en\na,hi\n", "Pass it with --transcripts"),
        ("name,chinese,english\na,x,y\n", "Pass it with --transcripts"),
    ],
)
def test_a_file_that_is_not_a_label_table_is_refused(tmp_path, text, says):
    message = mer_refusal(tmp_path, text, "--on-problem", "skip")
    assert message.startswith(f"{tmp_path}/label.csv") and says in message


def test_a_missing_file_is_reported(tmp_path, out):
    assert "FILE: no file" in refusal("mer2025", tmp_path / "none.csv", "--output", out)


@pytest.mark.parametrize("value", ["", None, -10, "-10", -10.0])
def test_an_empty_valence_and_minus_ten_are_read_as_none(value):
    assert parse_valence(value) is None


# mer2024 and mer2025: words, reasons, candidates


def test_open_set_words_descriptions_and_transcripts_are_joined_by_name(tmp_path, out):
    openset = write_file(tmp_path / "ov.csv", "name,openset\nb,\"['angry', 'mad']\"\na,['sad']\n")
    reasons = write_file(tmp_path / "reason.csv", "name,reason\na,He weeps.\nc,\n")
    spoken = write_file(tmp_path / "words.csv", "name,chinese,english\na,x,No.\nb,y,\nother,z,Hm\n")
    run("mer2025", openset, reasons, "--transcripts", spoken, "--output", out)
    assert (out / "clips.txt").read_text() == "b 0 0\na 0 0\nc 0 0\n"
    assert table(out / "openset.json") == {"b": ["angry", "mad"], "a": ["sad"]}
    assert table(out / "MERR_fine_grained.json") == {"a": {"smp_reason_caption": "He weeps."}}
    assert sentences(out) == [["b", ""], ["a", "No."]]
    assert table(out / "import_report.json")["taken_without"]["transcription_en_all.csv"] == ["c"]


def test_a_table_of_labels_decides_which_clips_are_imported(tmp_path, out):
    labels = write_file(tmp_path / "label.csv", "name,discrete\na,sad\nb,bored\n")
    openset = write_file(tmp_path / "ov.csv", "name,openset\na,[low]\nz,[high]\n")
    run("mer2025", openset, labels, "--output", out, "--on-problem", "skip")
    assert listed(out) == [("a", "sad")] and table(out / "openset.json") == {"a": ["low"]}
    assert table(out / "import_report.json")["left_out"] == {"clips without a usable row in the table of labels": ["z"]}


def test_a_label_table_without_a_usable_row_excludes_the_clips_of_other_tables(tmp_path, out):
    labels = write_file(tmp_path / "label.csv", "name,discrete\n,sad\n")
    openset = write_file(tmp_path / "ov.csv", "name,openset\na,[low]\n")
    assert "no clip of the source is left" in refusal("mer2025", openset, labels, "--output", out, "--on-problem", "skip")


def test_a_table_of_names_alone_is_imported_without_labels(tmp_path, out):
    run("mer2025", write_file(tmp_path / "all.csv", "name\n007\n008\n"), "--output", out)
    assert (out / "clips.txt").read_text() == "007 0 0\n008 0 0\n"


def test_two_tables_of_one_kind_are_refused(tmp_path, out):
    one, two = (write_file(tmp_path / name, "name,openset\na,[x]\n") for name in ("one.csv", "two.csv"))
    assert f"{two}: this is the second table with the column 'openset'" in refusal("mer2025", one, two, "--output", out)


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("['a', 'b c']", ["a", "b c"]),
        ("[\"can't cope\", 'b']", ["can't cope", "b"]),
        ("[a, b,]", ["a", "b"]),
        ("a, b, a", ["a", "b"]),
        ("[]", []),
        ("", []),
    ],
)
def test_open_set_words_are_read_with_and_without_quotes_and_brackets(cell, words):
    assert split_words(cell) == words


# Transcripts in addition to a source


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name,sentence\nx1,hi\n", "no row matches any of the clips. Its names look like 'x1', the clip names like 'a'"),
        ("name,words\na,hi\n", "expected one of the columns sentence"),
        ("name,sentence\na,hi\na,ho\n", "line 3: 'a' already has a different sentence"),
        ("name,sentence\na,hi, ho\n", "line 2: more cells"),
    ],
)
def test_bad_transcripts_are_refused(tmp_path, text, says):
    transcripts = write_file(tmp_path / "words.csv", text)
    message = mer_refusal(tmp_path, "name,discrete\na,sad\n", "--transcripts", transcripts)
    assert f"{transcripts}" in message and says in message


def test_a_clip_with_two_sentences_is_imported_without_any_if_problems_are_skipped(tmp_path, out):
    transcripts = write_file(tmp_path / "words.csv", "name,sentence\na,hi\na,ho\nb,x\n")
    mer(tmp_path, "name,discrete\na,sad\nb,sad\n", "--transcripts", transcripts, "--on-problem", "skip", out=out)
    assert sentences(out) == [["b", "x"]] and len(listed(out)) == 2


# emer


def test_the_first_emer_table_is_imported_as_descriptions_and_sentences_without_labels(tmp_path, out):
    text = 'names,emotions,subtitles,reasons\n00012,angry,"No, Tom",He shouts.\nb,happy,,"She\nlaughs."\nc,sad,x,\n'
    run("emer", write_file(tmp_path / "gt.csv", "\ufeff" + text), "--output", out)
    assert (out / "clips.txt").read_text() == "00012 0 0\nb 0 0\nc 0 0\n"
    assert table(out / "MERR_fine_grained.json") == {
        "00012": {"smp_reason_caption": "He shouts.", "pseu_emotion": "angry", "text": "No, Tom"},
        "b": {"smp_reason_caption": "She\nlaughs.", "pseu_emotion": "happy"},
    }
    assert sentences(out) == [["00012", "No, Tom"], ["b", ""], ["c", "x"]]
    assert table(out / "import_report.json")["taken_without"] == {"MERR_fine_grained.json": ["c"]}


def test_the_second_emer_table_is_imported_as_english_descriptions(tmp_path, out):
    run("emer", write_file(tmp_path / "gt.csv", "name,chinese,english\na,他笑。,He laughs.\n"), "--output", out)
    assert table(out / "MERR_fine_grained.json") == {"a": {"smp_reason_caption": "He laughs.", "chinese": "他笑。"}}
    assert not (out / "transcription_en_all.csv").exists()


def test_emer_predictions_are_imported_as_descriptions(tmp_path, out):
    run("emer", write_file(tmp_path / "pred.csv", 'names,chi_reasons\n00012,"He shouts, so he is angry."\nb,\n'), "--output", out)
    assert (out / "clips.txt").read_text() == "00012 0 0\nb 0 0\n"
    assert table(out / "MERR_fine_grained.json") == {"00012": {"smp_reason_caption": "He shouts, so he is angry."}}


@pytest.mark.parametrize("header", ["names,reasons", "name,english", "a,b,c"])
def test_a_table_that_is_not_from_emer_is_refused_with_all_expected_headers(tmp_path, out, header):
    message = refusal("emer", write_file(tmp_path / "gt.csv", f"{header}\na,b\n"), "--output", out)
    assert (
        f"the header is {header};" in message
        and "names,emotions,subtitles,reasons or name,chinese,english or names,chi_reasons" in message
    )


def test_contradicting_rows_of_an_emer_table_are_problems(tmp_path, out):
    source = write_file(tmp_path / "gt.csv", "name,chinese,english\na,x,One.\na,x,Two.\nb c,x,y\nd,x,y\n")
    message = refusal("emer", source, "--output", out)
    assert "line 3: 'a' has other values" in message and "line 4: the name 'b c'" in message
    run("emer", source, "--output", out, "--on-problem", "skip")
    assert listed(out) == [("d", "0")]


def test_a_problem_from_a_reader_is_raised_at_the_end():
    collector = Collector(LabelMap(LABELS))
    collector.report(Problem("list", "file, line 2: odd"))
    with pytest.raises(UserError, match="file, line 2: odd"):
        collector.finish("error")


def test_composed_and_decomposed_unicode_names_remain_distinct(tmp_path, out):
    names = [unicodedata.normalize(form, "é") for form in ("NFC", "NFD")]
    text = "name,discrete\n" + "".join(f"{name},sad\n" for name in names)
    mer(tmp_path, text, out=out)
    assert [clip.name for clip in read_annotations(str(out / "clips.txt"))] == names


# The command


def test_the_command_prints_an_error_without_a_traceback_and_exits_with_1(tmp_path, out, capsys):
    source = write_file(tmp_path / "label.csv", "name,discrete\na b,sad\n")
    with pytest.raises(SystemExit) as ended:
        cli.main(["import", "mer2024", str(source), "--output", str(out)])
    error = capsys.readouterr().err
    assert ended.value.code == 1 and not out.exists()
    assert error.startswith("error: nothing was written; problems: 1.") and "Traceback" not in error


@pytest.mark.parametrize("kind", ["mer-factory", "mertools", "emer", "mer2024", "mer2025", "videos"])
def test_the_usage_of_every_importer_shows_the_source_first(kind, capsys):
    with pytest.raises(SystemExit) as ended:
        run(kind, "--help")
    assert ended.value.code == 0
    assert re.match(rf"usage: \S+( \S+)* {kind} (FILE|FOLDER)", capsys.readouterr().out)
