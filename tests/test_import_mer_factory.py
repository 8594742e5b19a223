"""The kind mer-factory: labels from peaks, captions, overrides, bad files."""

from __future__ import annotations

import json

import pytest
from importing import listed, run, sentences, table, tree, write_file

from emollama.errors import UserError
from emollama.importers.mer_factory import raw_label

PEAKS = ["Peak at 0.27s: happy (moderate), angry (slight)", "Peak at 2.88s: angry (slight), contempt (slight)"]


def record(**changes):
    """An invented record in the format of MER-Factory."""
    return {
        "source_path": "clips/somebody.mp4",
        "audio_path": "clips/somebody.wav",
        "chronological_emotion_peaks": PEAKS,
        "overall_peak_frame_info": {
            "frame_number": 86,
            "timestamp": 2.8833,
            "top_aus_intensities": {"AU04_r": 2.1, "AU23_r": 1.0},
        },
        "coarse_descriptions_at_peak": {
            "visual_expression": "Brow lowerer (intensity: 2.10)",
            "visual_objective": "A room.",
            "audio_analysis": "Loud.",
            "video_content": "N/A",
        },
        "final_summary": "The person is **angry**.\n\nThe brow says so.",
    } | changes


def factory(folder, **records):
    """Write a MER-Factory output folder from name -> record (a dict) or the text of its file."""
    for name, one in records.items():
        write_file(folder / name / f"{name}_merr_data.json", one if isinstance(one, str) else json.dumps(one, indent=4))
        write_file(folder / name / f"{name}_au_analysis.json", "{}")
        write_file(folder / name / f"{name}.csv", "frame,timestamp\n1,0.0\n")
    return folder


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def refusal(folder, out, *arguments):
    with pytest.raises(UserError) as error:
        run("mer-factory", folder, "--output", out, *arguments)
    assert not out.exists()
    return str(error.value)


def test_a_folder_is_imported_with_both_captions_and_not_changed(tmp_path, out):
    folder = factory(tmp_path / "f", **{"00012": record(), "b": record(final_summary="", ground_truth_label="sadness")})
    before = tree(folder)
    transcripts = write_file(tmp_path / "words.csv", 'name,sentence\n00012,"No, Tom"\nb,\n')
    run("mer-factory", folder, "--output", out, "--transcripts", transcripts)
    assert listed(out) == [("00012", "angry"), ("b", "sad")]
    assert table(out / "MERR_coarse_grained.json") == {"00012": {"caption": "The person is **angry**.\n\nThe brow says so."}}
    assert table(out / "MERR_fine_grained.json") == {
        "00012": {
            "smp_reason_caption": "The person is **angry**.\n\nThe brow says so.",
            "peak_index": "86",
            "peak_AU_list": ["AU04", "AU23"],
            "visual_prior_list": ["Brow lowerer (intensity: 2.10)", "A room."],
            "audio_prior_list": "Loud.",
            "pseu_emotion": "angry",
        }
    }
    assert sentences(out) == [["00012", "No, Tom"], ["b", ""]]
    assert table(out / "import_report.json")["taken_without"] == {
        "MERR_coarse_grained.json": ["b"], "MERR_fine_grained.json": ["b"],
    }  # fmt: skip
    assert tree(folder) == before


def test_the_coarse_caption_joins_the_selected_texts_that_are_not_empty(tmp_path, out):
    run("mer-factory", factory(tmp_path / "f", a=record()), "--output", out, "--caption", "audio_analysis", "video_content",
        "visual_objective")  # fmt: skip
    assert table(out / "MERR_coarse_grained.json") == {"a": {"caption": "Loud. A room."}}


@pytest.mark.parametrize(
    ("changes", "overall", "or_first"),
    [
        ({}, "angry", "angry"),
        ({"overall_peak_frame_info": {"timestamp": 0.3}}, "happy", "happy"),
        ({"overall_peak_frame_info": {"timestamp": 9.0}}, None, "happy"),
        ({"overall_peak_frame_info": {}}, None, "happy"),
        ({"overall_peak_frame_info": None}, None, "happy"),
        ({"chronological_emotion_peaks": ["neutral"]}, "neutral", "neutral"),
        ({"chronological_emotion_peaks": []}, None, None),
        ({"chronological_emotion_peaks": [""]}, None, None),
        ({"chronological_emotion_peaks": ["Peak at 2.88s: "]}, None, None),
        ({"chronological_emotion_peaks": ["Peak at 2.88s: unknown"]}, "unknown", "unknown"),
        (
            {"chronological_emotion_peaks": ["Peak at 2.88s: mixed feelings (strong), sad (slight)"]},
            "mixed feelings",
            "mixed feelings",
        ),
        ({"chronological_emotion_peaks": ["Peak at 3s: sad"], "overall_peak_frame_info": {"timestamp": 3}}, "sad", "sad"),
    ],
)
def test_the_label_is_the_strongest_emotion_at_the_overall_peak(changes, overall, or_first):
    assert raw_label(record(**changes), "overall") == overall
    assert raw_label(record(**changes), "overall-or-first") == or_first


def test_unknown_labels_are_reported_together_and_resolved_by_a_label_map(tmp_path, out):
    disgust = ["Peak at 2.88s: disgust (strong)"]
    folder = factory(
        tmp_path / "f",
        a=record(),
        b=record(chronological_emotion_peaks=disgust),
        c=record(chronological_emotion_peaks=disgust),
        d=record(chronological_emotion_peaks=[]),
        e=record(chronological_emotion_peaks=["neutral"]),
    )
    message = refusal(folder, out)
    assert "problems: 2." in message
    assert (
        f"{folder}/b/b_merr_data.json: the label 'disgust' is not one of happy, sad" in message
        and "(number of clips: 2)" in message
    )
    assert f"{folder}/d/d_merr_data.json (no peak at the time of the overall peak): the label 'unknown' is not one of" in message
    maps = write_file(tmp_path / "map.yaml", "disgust: contempt\nunknown: skip\n")
    run("mer-factory", folder, "--output", out, "--label-map", maps)
    assert listed(out) == [("a", "angry"), ("b", "contempt"), ("c", "contempt"), ("e", "neutral")]
    assert table(out / "import_report.json")["left_out"] == {"the label map skips 'unknown'": ["d"]}


def test_a_peak_with_the_label_unknown_is_not_reported_as_missing(tmp_path, out):
    folder = factory(tmp_path / "f", a=record(chronological_emotion_peaks=["Peak at 2.88s: unknown"]))
    message = refusal(folder, out)
    assert f"{folder}/a/a_merr_data.json: the label 'unknown' is not one of" in message and "no peak" not in message


@pytest.mark.parametrize("peaks", ["Peak at 2.88s: angry (slight)", None, {"0": "neutral"}, [{"time": 2.88}]])
def test_peaks_that_are_not_a_list_of_texts_are_a_problem_despite_a_label_map(tmp_path, out, peaks):
    folder = factory(tmp_path / "f", a=record(), b=record(chronological_emotion_peaks=peaks))
    maps = write_file(tmp_path / "map.yaml", "unknown: skip\n")
    message = refusal(folder, out, "--label-map", maps)
    assert f"{folder}/b/b_merr_data.json: " in message and "'chronological_emotion_peaks' is not a list of texts" in message


def test_overrides_take_precedence_over_label_map_ground_truth_and_peaks(tmp_path, out):
    folder = factory(tmp_path / "f", a=record(), b=record(ground_truth_label="sad"), c=record(chronological_emotion_peaks=[]),
                     d=record())  # fmt: skip
    over = write_file(tmp_path / "over.csv", "\ufeffname,label\r\na,happy\r\nb,fearful\r\nc,doubt\r\nd,skip\r\n")
    maps = write_file(tmp_path / "map.yaml", "happy: skip\n")
    run("mer-factory", folder, "--output", out, "--overrides", over, "--label-map", maps)
    assert listed(out) == [("a", "happy"), ("b", "fear"), ("c", "doubt")]
    assert table(out / "import_report.json")["left_out"] == {"skipped by --overrides": ["d"]}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name,label\na,hapy\n", "line 2: the column 'label' contains 'hapy'; expected one of happy"),
        ("name,emotion\na,happy\n", "line 2: the column 'label' contains ''"),
        ("name,label\nz,happy\n", "line 2: no clip has the name 'z'"),
        ("name,label\na,happy\na,sad\n", "line 3: 'a' has other values than in"),
    ],
)
def test_bad_overrides_are_refused_with_their_line(tmp_path, out, text, says):
    over = write_file(tmp_path / "over.csv", text)
    message = refusal(factory(tmp_path / "f", a=record()), out, "--overrides", over)
    assert f"{over}, " in message and says in message


def test_clips_with_the_same_name_are_reported_with_both_paths(tmp_path, out):
    folder = factory(tmp_path / "f" / "one", a=record()).parent
    factory(folder / "two", a=record(), b=record())
    message = refusal(folder, out)
    assert f"2 clips have the name 'a': {folder}/one/a/a_merr_data.json, {folder}/two/a/a_merr_data.json" in message
    run("mer-factory", folder, "--output", out, "--on-problem", "skip")
    assert listed(out) == [("b", "angry")]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{\n "final_summary": "x",\n', "line 3: not valid JSON"),
        ('{\n // mine\n "chronological_emotion_peaks": []}', "line 2: not valid JSON"),
        ("", "line 1: not valid JSON"),
        ("[]", "not an output of MER-Factory's MER pipeline"),
        ('{"final_summary": "x"}', "'chronological_emotion_peaks' is not a list of texts"),
        ("[" * 100_000, "nested too deeply"),
        ('{"chronological_emotion_peaks": ["neutral"], "final_summary": "\\ud83d"}', "final_summary: a lone surrogate"),
    ],
)
def test_an_invalid_file_is_reported_or_skipped(tmp_path, out, text, says):
    folder = factory(tmp_path / "f", a=record(), b=text)
    message = refusal(folder, out)
    assert f"{folder}/b/b_merr_data.json" in message and says in message and "problems: 1." in message
    run("mer-factory", folder, "--output", out, "--on-problem", "skip")
    assert listed(out) == [("a", "angry")]
    assert table(out / "import_report.json")["problems"][0]["clips"] == ["b"]


def test_a_file_that_is_not_utf8_is_a_problem(tmp_path, out):
    folder = factory(tmp_path / "f", a=record())
    write_file(folder / "b" / "b_merr_data.json", b'{"final_summary": "\xff"}')
    assert f"{folder}/b/b_merr_data.json, line 1: not UTF-8 text" in refusal(folder, out)


def test_names_with_spaces_are_problems(tmp_path, out):
    folder = factory(tmp_path / "f", **{"my clip": record(), "a": record()})
    assert "the name 'my clip' contains white space" in refusal(folder, out)
    run("mer-factory", folder, "--output", out, "--on-problem", "skip")
    assert listed(out) == [("a", "angry")]


def test_texts_of_the_wrong_type_count_as_missing(tmp_path, out):
    odd = record(coarse_descriptions_at_peak=["x"], final_summary={"a": 1}, overall_peak_frame_info={"timestamp": 2.88})
    run("mer-factory", factory(tmp_path / "f", a=odd), "--output", out)
    assert sorted(path.name for path in out.iterdir()) == ["clips.txt", "import_report.json"]


def test_a_folder_without_records_is_refused(tmp_path, out):
    write_file(tmp_path / "f" / "a.json", "{}")
    assert "no file <clip>_merr_data.json, also in subfolders" in refusal(tmp_path / "f", out)
    assert "no folder" in refusal(tmp_path / "nowhere", out)
