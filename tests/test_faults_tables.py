"""Files as users have them: tar shards with other members, every video format, tables of other projects, spellings of labels."""

from __future__ import annotations

import io
import json
import logging
import shutil
import subprocess
import sys
import tarfile
from collections import Counter

import numpy as np
import pytest
import yaml
from helpers import FOLDERS, GOLDEN, NAMES, golden_tree, loaded, write
from importing import listed, refusal, run, sentences, table, write_file
from media_files import number_of, write_video

from emollama.data.label_map import DATASET_LABELS, LABELS, LabelMap, answer_aliases
from emollama.evaluation.labels import LabelReader
from emollama.importers.labels import read_label_map
from emollama.media.files import EXTENSIONS
from emollama.media.frames import read_frames
from emollama.registry import ENCODERS
from emollama.stores.packing import index_tars
from emollama.stores.tars import TarStore

pytestmark = pytest.mark.faults


# Tar shards


def shard(path, members):
    """Write a tar with these members, name -> bytes or array."""
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            if not isinstance(content, bytes):
                buffer = io.BytesIO()
                np.save(buffer, content)
                content = buffer.getvalue()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def golden_shards(corpus):
    """Replace the audio and face features of the golden corpus by one tar, with five other members for each clip."""
    members = {}
    for name in NAMES:
        for slot in ("audio", "face"):
            members[f"{name}.{slot}.npy"] = np.load(corpus / FOLDERS[slot] / f"{name}.npy")
        members |= {f"{name}.txt": b"text", f"{name}.cls": b"3", f"{name}.meta.json": b'{"fps": ', f"{name}.JSON": b"{}"}
        members[f"{name}.face.NPY"] = b"no array"
    shard(corpus / "features.tar", members)
    return {slot: f"features.tar::{slot}" for slot in ("audio", "face")}


@pytest.fixture
def tar_tree(tmp_path, corpus):
    """A configuration of the golden corpus with features in a tar."""
    tree = golden_tree(tmp_path, corpus)
    del tree["evaluation_datasets"]
    tree["datasets"]["golden"]["features"] = golden_shards(corpus)
    return tree


def test_other_members_of_tar_shards_are_counted_in_one_line_when_they_are_indexed(tar_tree, corpus, emollama):
    done = emollama("pack", "--index", corpus / "features.tar")
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 2
    counts = ", ".join(f".{extension} ({len(NAMES)})" for extension in ("JSON", "NPY", "cls", "json", "txt"))
    assert f"{5 * len(NAMES)} members of the tar shards are not read, because their names do not end with .npy: {counts}\n" in (
        done.stdout
    )


def test_a_dataset_has_one_note_about_other_members_of_tar_shards(tar_tree, corpus, tmp_path, emollama):
    index_tars(str(corpus / "features.tar"), None)
    done = emollama("check-data", "--cfg-path", write(tmp_path, tar_tree), "--json")
    assert done.returncode == 0, done.stdout
    notes = [finding for finding in json.loads(done.stdout)["findings"] if "tar shards" in finding["text"]]
    assert [note["level"] for note in notes] == ["note"]
    assert notes[0]["text"].startswith(f"features: {5 * len(NAMES)} members of the tar shards are not read")


def test_arrays_beside_other_members_of_tar_shards_are_read(tar_tree, corpus, tmp_path):
    index_tars(str(corpus / "features.tar"), None)
    config = loaded(tmp_path, tar_tree)
    shapes = config.model_class.slot_shapes(config.model)
    dataset = config.dataset_class("datasets.golden")(config.datasets["golden"], slot_shapes=shapes, block_path="datasets.golden")
    assert dataset.problems() == []
    for index, name in enumerate(dataset.names()):
        features = dataset.record(index, "emotion", "?").features
        assert (features["face"].numpy() == np.load(corpus / FOLDERS["face"] / f"{name}.npy").reshape(1, -1)).all()


def test_a_tar_without_arrays_says_what_it_contains(tmp_path, emollama):
    shard(tmp_path / "a.tar", {"x.NPY": np.zeros(2), "y.NPY": np.zeros(2), "x.txt": b""})
    assert (
        "contains no .npy file; its members end with .NPY (2), .txt (1)."
        in emollama("pack", "--index", tmp_path / "a.tar").stderr
    )


def test_indexes_written_before_other_members_were_counted_are_read(tmp_path):
    shard(tmp_path / "a.tar", {"x.npy": np.arange(3.0)})
    (index,) = index_tars(str(tmp_path / "a.tar"), None)
    with np.load(index) as arrays:
        content = dict(arrays)
    about = json.loads(content["about"].tobytes())
    del about["skipped"]
    content["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    with index.open("wb") as file:
        np.savez(file, **content)
    store = TarStore.open(str(tmp_path / "a.tar"))
    assert store.skipped == {} and (store.load("x") == np.arange(3.0)).all()


# Videos

# Extension -> extension that selects the same container in FFmpeg, and a codec. FFmpeg cannot write .rm and .rmvb, and .dv and
# .mxf only with pictures of television.
WRITABLE = {
    ".mp4": (".mp4", "mpeg4"), ".avi": (".avi", "mpeg4"), ".mov": (".mov", "mpeg4"), ".mkv": (".mkv", "mpeg4"),
    ".webm": (".webm", "libvpx"), ".flv": (".flv", "flv1"), ".wmv": (".wmv", "wmv2"), ".mpg": (".mpg", "mpeg2video"),
    ".mpeg": (".mpeg", "mpeg1video"), ".m4v": (".mp4", "mpeg4"), ".ts": (".ts", "mpeg2video"), ".mts": (".mts", "mpeg2video"),
    ".m2ts": (".m2ts", "mpeg2video"), ".m2t": (".m2t", "mpeg2video"), ".3gp": (".3gp", "mpeg4"), ".3g2": (".3g2", "mpeg4"),
    ".ogv": (".ogv", "libvpx"), ".asf": (".asf", "mpeg4"), ".f4v": (".f4v", "libx264"), ".vob": (".vob", "mpeg2video"),
    ".mpe": (".mpg", "mpeg2video"), ".m2v": (".m2v", "mpeg2video"), ".mk3d": (".mkv", "mpeg4"), ".mj2": (".mov", "jpeg2000"),
    ".qt": (".mov", "mpeg4"), ".divx": (".avi", "mpeg4"), ".wtv": (".wtv", "mpeg2video"), ".nut": (".nut", "mpeg4"),
    ".y4m": (".y4m", "rawvideo"),
}  # fmt: skip


@pytest.mark.parametrize("extension", WRITABLE)
def test_the_decoder_reads_a_video_of_each_recognized_extension(tmp_path, extension):
    container, codec = WRITABLE[extension]
    path = write_video(tmp_path / f"written{container}", frames=30, codec=codec, sound=()).rename(tmp_path / f"a{extension}")
    assert number_of(read_frames(path, lambda count: [2])[0]) == 2


def test_only_extensions_that_cannot_be_written_are_not_decoded_above():
    assert {*EXTENSIONS} - {*WRITABLE} == {".rm", ".rmvb", ".dv", ".mxf"} and {*WRITABLE} <= {*EXTENSIONS}


@pytest.fixture
def extraction(tmp_path):
    """A function that writes a configuration which extracts ``videos`` with an encoder of the tests, and returns its path."""

    def configured(**keys):
        (tmp_path / "weights.bin").write_bytes(b"seed")
        tree = {
            "imports": ["tests.workers.byte_encoders"],
            "encoders": {"bytes": {"weights": str(tmp_path / "weights.bin")}},
            "extraction": {"videos": str(tmp_path / "videos"), "output": str(tmp_path / "out"), "device": "cpu", **keys},
        }
        (tmp_path / "extract.yaml").write_text(yaml.safe_dump(tree))
        return tmp_path / "extract.yaml"

    yield configured
    for name in ("bytes", "grid", "meeting", "series"):
        ENCODERS._entries.pop(name, None)
    sys.modules.pop("tests.workers.byte_encoders", None)


def test_extraction_recognizes_every_extension_and_lists_the_other_files(tmp_path, extraction, emollama):
    for number, extension in enumerate(EXTENSIONS):
        write_file(tmp_path / "videos" / f"clip_{number}{extension.upper() if number % 2 else extension}", "video")
    for name in ("notes.txt", "labels.csv", *(f"thumbnail_{number:02}.jpg" for number in range(12))):
        write_file(tmp_path / "videos" / name, "no video")
    done = emollama("extract", "--cfg-path", extraction(), "--dry-run", "--nproc", 1)
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if "not videos" in line)
    assert f"{len(EXTENSIONS)} in " in line and "not videos: 14 files: " in line and "and 4 more" in line
    assert "labels.csv" in line and line.count(".jpg") < 12


def test_the_log_of_an_extraction_counts_the_files_that_are_not_videos(tmp_path, extraction, emollama, caplog):
    write_file(tmp_path / "videos" / "a.mp4", "clip a")
    write_file(tmp_path / "videos" / "a.wav", "sound")
    caplog.set_level(logging.INFO)
    assert emollama("extract", "--cfg-path", extraction(), "--nproc", 1).returncode == 0
    assert [text for text in caplog.messages if "not videos" in text] == [
        f"extraction.videos: not videos, and not extracted: 1 file: {tmp_path}/videos/a.wav (extensions of videos: "
        f"{' '.join(EXTENSIONS)})"
    ]


def test_listed_clips_of_every_extension_are_found(tmp_path, extraction, emollama):
    names = [f"clip_{number}" for number in range(len(EXTENSIONS))]
    for name, extension in zip(names, EXTENSIONS, strict=True):
        write_file(tmp_path / "videos" / f"{name}{extension}", "video")
    listing = write_file(tmp_path / "list.txt", "".join(f"{name} happy\n" for name in names))
    done = emollama("extract", "--cfg-path", extraction(annotation_file=str(listing)), "--dry-run", "--nproc", 1)
    assert f"{len(names)} in " in done.stdout and "0 listed clips have no video" in done.stdout


def test_an_import_of_videos_recognizes_every_extension_and_counts_the_other_files(tmp_path, capsys):
    folder, out = tmp_path / "videos", tmp_path / "out"
    for number, extension in enumerate(EXTENSIONS):
        write_file(folder / f"clip_{number}{extension}", b"video")
    for name in (".hidden", "notes.txt", "sub/subtitles.srt"):
        write_file(folder / name, b"no video")
    rows = "".join(f"clip_{number}{extension},sad\n" for number, extension in enumerate(EXTENSIONS))
    run("videos", folder, write_file(folder / "labels.csv", f"name,label\n{rows}"), "--output", out)
    assert len(listed(out)) == len(EXTENSIONS)
    others = [f"{folder}/notes.txt", f"{folder}/sub/subtitles.srt"]
    assert table(out / "import_report.json")["left_out"] == {"files that are not videos": others}
    assert f"       2 files that are not videos: {', '.join(others)}\n" in capsys.readouterr().out


def test_a_folder_with_other_files_only_is_refused_with_their_names(tmp_path):
    table_file = write_file(tmp_path / "labels.csv", "name,label\na,sad\n")
    message = refusal("videos", write_file(tmp_path / "v" / "a.mp5", b"").parent, table_file, "--output", tmp_path / "out")
    assert f"contains no video, also in subfolders (it contains 1 file: {tmp_path}/v/a.mp5 (extensions of videos: .mp4" in message


# Names


def test_names_of_dfew_are_padded_to_the_names_of_its_files(tmp_path):
    folder = tmp_path / "v"
    for name in ("00001.mp4", "part/00150.mp4", "7.mp4"):
        write_file(folder / name, b"video")
    rows = write_file(tmp_path / "set_1.csv", "video_name,label\n1,1\n150,4\n7,7\n")
    run("videos", folder, rows, "--output", tmp_path / "out", "--label-map", "dfew")
    assert listed(tmp_path / "out") == [("00001", "happy"), ("part/00150", "angry"), ("7", "fear")]


def test_a_name_of_dfew_without_a_video_is_reported_in_both_forms(tmp_path):
    folder = write_file(tmp_path / "v" / "00001.mp4", b"video").parent
    rows = write_file(tmp_path / "set_1.csv", "video_name,label\n1,1\n2,1\n")
    message = refusal("videos", folder, rows, "--output", tmp_path / "out", "--label-map", "dfew")
    assert "set_1.csv, line 3: no video has the name '2' or '00002'" in message


def test_names_of_other_tables_are_not_padded(tmp_path):
    folder = write_file(tmp_path / "v" / "00001.mp4", b"video").parent
    rows = write_file(tmp_path / "l.csv", "name,label\n1,happy\n")
    assert refusal("videos", folder, rows, "--output", tmp_path / "out").endswith("l.csv, line 2: no video has the name '1'")


MELD = (
    "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID\n"
    '1,"Oh, come on!",Ann,anger,negative,0,0\n2,Really?,Bob,surprise,positive,0,1\n3,Great.,Ann,joy,positive,12,0\n'
)
MELD_NAME = "dia{Dialogue_ID}_utt{Utterance_ID}"


def meld(tmp_path, *names):
    folder = tmp_path / "meld"
    for name in names or ("dia0_utt0", "dia0_utt1", "dia12_utt0"):
        write_file(folder / f"{name}.mp4", b"video")
    columns = ("--label-column", "Emotion", "--sentence-column", "Utterance")
    return ("videos", folder, write_file(tmp_path / "train.csv", MELD), *columns, "--label-map", "meld")


def test_names_are_composed_of_two_columns(tmp_path):
    run(*meld(tmp_path), "--output", tmp_path / "out", "--name", MELD_NAME)
    assert listed(tmp_path / "out") == [("dia0_utt0", "angry"), ("dia0_utt1", "surprise"), ("dia12_utt0", "happy")]
    assert sentences(tmp_path / "out")[0] == ["dia0_utt0", "Oh, come on!"]


def test_a_format_specification_pads_numbers(tmp_path):
    arguments = meld(tmp_path, "00_000", "00_001", "12_000")
    run(*arguments, "--output", tmp_path / "out", "--name", "{Dialogue_ID:02}_{Utterance_ID:03d}")
    assert [name for name, _ in listed(tmp_path / "out")] == ["00_000", "00_001", "12_000"]


def test_an_unknown_column_of_a_name_is_refused_with_the_nearest_column(tmp_path):
    message = refusal(*meld(tmp_path), "--output", tmp_path / "out", "--name", "dia{Dialog_ID}_utt{Utterance_ID}")
    assert message.startswith(f"{tmp_path}/train.csv, line 1: no column 'Dialog_ID', which --name 'dia{{Dialog_ID}}_utt")
    assert "Did you mean 'Dialogue_ID'?" in message and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("dia{Dialogue_ID", "is not a format string"),
        ("dia_utt", "expected a format string with columns in braces"),
        ("{}_{}", "expected a format string with columns in braces"),
        ("{Dialogue_ID!r}", "expected a format string with columns in braces"),
        ("{Emotion:d}", "cannot format 'anger' of the column 'Emotion' as 'd'"),
        ("{Dialogue_ID.__class__}", "no column 'Dialogue_ID.__class__'"),
    ],
)
def test_an_unusable_name_format_is_refused(tmp_path, template, expected):
    assert expected in refusal(*meld(tmp_path), "--output", tmp_path / "out", "--name", template)


def test_an_empty_cell_of_a_name_is_reported_with_its_line(tmp_path):
    arguments = meld(tmp_path)
    (tmp_path / "train.csv").write_text(MELD.replace("negative,0,0", "negative,,0"))
    message = refusal(*arguments, "--output", tmp_path / "out", "--name", MELD_NAME)
    assert "train.csv, line 2: the column 'Dialogue_ID' is empty, which --name needs" in message


def test_tables_of_challenges_and_their_transcripts_may_have_composed_names(tmp_path):
    labels = write_file(tmp_path / "labels.csv", "part,number,discrete\na,1,happy\nb,2,sad\n")
    words = write_file(tmp_path / "words.csv", "number,part,sentence\n1,a,Hi\n2,b,No\n")
    run("mer2025", labels, "--transcripts", words, "--output", tmp_path / "out", "--name", "{part}_{number}")
    assert listed(tmp_path / "out") == [("a_1", "happy"), ("b_2", "sad")]
    assert sentences(tmp_path / "out") == [["a_1", "Hi"], ["b_2", "No"]]


def test_tables_of_descriptions_may_have_composed_names(tmp_path):
    source = write_file(tmp_path / "emer.csv", "part,number,chinese,english\na,1,-,She smiles.\n")
    run("emer", source, "--output", tmp_path / "out", "--name", "{part}_{number}")
    assert table(tmp_path / "out/MERR_fine_grained.json") == {"a_1": {"smp_reason_caption": "She smiles.", "chinese": "-"}}


# Encodings


def test_a_table_in_another_encoding_is_refused_with_line_byte_and_a_command_that_works(tmp_path):
    folder = write_file(tmp_path / "v" / "b.mp4", b"video").parent
    source = write_file(
        tmp_path / "words of 2024.csv", "name,label,sentence\r\na,sad,ok\r\nb,sad,it\u2019s me\r\n".encode("cp1252")
    )
    message = refusal("videos", folder, source, "--output", tmp_path / "out", "--on-problem", "skip")
    assert message.startswith(f"{source}, line 3: not UTF-8 text (byte 0x92 at position 39)")
    command = message[message.index("iconv ") : message.index(" (or, ")]
    if shutil.which("iconv") is None:
        pytest.skip("there is no iconv")
    subprocess.run(command, shell=True, check=True)
    run("videos", folder, tmp_path / "words of 2024.utf8.csv", "--output", tmp_path / "out", "--on-problem", "skip")
    assert sentences(tmp_path / "out") == [["b", "it\u2019s me"]]


def test_a_table_in_utf_16_is_refused_with_its_encoding(tmp_path):
    source = write_file(tmp_path / "l.csv", "name,discrete\na,sad\n".encode("utf-16"))
    message = refusal("mer2025", source, "--output", tmp_path / "out")
    assert (
        f"{source}, line 1: not UTF-8 text" in message and "The file is UTF-16. Convert it: iconv -f UTF-16 -t UTF-8" in message
    )


# Labels


DISTINCT = {  # dataset -> its labels, in the words of this package
    "crema-d": "angry disgust fear happy neutral sad",
    "dfew": "angry disgust fear happy neutral sad surprise",
    "iemocap": "angry disgust excited fear frustrated happy neutral other sad surprise undecided",
    "mafw": "angry anxiety contempt disappointment disgust fear happy helplessness neutral sad surprise",
    "meld": "angry disgust fear happy neutral sad surprise",
    "mer": "angry contempt doubt fear happy neutral sad surprise worried",
    "ravdess": "angry calm disgust fear happy neutral sad surprise",
}
CODES = [
    ("ravdess", "01 02 03 04 05 06 07 08", "neutral calm happy sad angry fear disgust surprise"),
    ("dfew", "1 2 3 4 5 6 7", "happy sad neutral angry surprise disgust fear"),
    ("crema-d", "ANG DIS FEA HAP NEU SAD", "angry disgust fear happy neutral sad"),
    ("iemocap", "ang hap exc sad neu fru fea sur dis", "angry happy excited sad neutral frustrated fear surprise disgust"),
    ("meld", "anger disgust fear joy neutral sadness surprise", "angry disgust fear happy neutral sad surprise"),
    ("mer", "0 1 2 3 4 5", "neutral angry happy sad worried surprise"),
    ("mafw", "1 4 9 10 11", "angry happy anxiety helplessness disappointment"),
]


def test_the_built_in_maps_have_the_labels_of_their_datasets():
    assert {name: " ".join(sorted(set(table.values()))) for name, table in DATASET_LABELS.items()} == DISTINCT


@pytest.mark.parametrize(("name", "codes", "labels"), CODES)
def test_codes_and_words_of_public_datasets_are_mapped(name, codes, labels):
    vocabulary = LabelMap(DISTINCT[name].split(), [read_label_map(name)])
    assert [vocabulary.resolve(code) for code in codes.split()] == labels.split()
    assert [vocabulary.resolve(code.swapcase()) for code in codes.split()] == labels.split()


SPELLINGS = ["Happy", "happiness", "JOY", "Joyful", " Sadness ", "ANGER", "fearful", "Surprised", "neutral", "bliss"]
MEANINGS = ["happy", "happy", "happy", "happy", "sad", "angry", "fear", "surprise", "neutral", None]


def test_lists_imports_references_and_answers_treat_spellings_of_labels_alike(tmp_path, corpus, emollama):
    """The four places, each with the same words: a list of the golden corpus, an import, references and answers."""
    words = [*zip(SPELLINGS, MEANINGS, strict=True)][: len(NAMES)]
    readable = [(word, label) for word, label in zip(SPELLINGS, MEANINGS, strict=True) if label]
    tree = golden_tree(tmp_path, corpus)
    (corpus / "list.txt").write_text("".join(f"{n} {w.strip()}\n" for n, (w, _) in zip(NAMES, words, strict=True)))
    tree["datasets"]["golden"] |= {"annotation_file": "list.txt", "labels": list(LABELS)}
    config = loaded(tmp_path, tree)
    shapes = config.model_class.slot_shapes(config.model)
    dataset = config.dataset_class("datasets.golden")(config.datasets["golden"], slot_shapes=shapes, block_path="datasets.golden")
    assert [clip.label for clip in dataset.clips] == [label for _, label in words]

    rows = "".join(f"clip_{number},{word}\n" for number, (word, _) in enumerate(readable))
    source = write_file(tmp_path / "l.csv", f"name,discrete\n{rows}")
    run("mer2025", source, "--output", tmp_path / "imported")
    assert [label for _, label in listed(tmp_path / "imported")] == [label for _, label in readable]

    answers = write_file(
        tmp_path / "a.csv", "name,prediction\n" + "".join(f"clip_{n},{label}\n" for n, (_, label) in enumerate(readable))
    )
    for predictions, truth in ((answers, source), (source, answers.with_name("t.csv"))):
        if not truth.exists():
            truth.write_text(answers.read_text().replace("prediction", "label"))
        done = emollama("score", "--predictions", predictions, "--truth", truth, "--labels", *LABELS, "--output",
                        tmp_path / predictions.stem, "--resamples", 0)  # fmt: skip
        assert done.returncode == 0, done.stderr
        record = json.loads((tmp_path / predictions.stem / "scores.json").read_text())
        assert record["tasks"]["emotion"]["files"][str(predictions)]["estimates"]["war"]["value"] == 1


def test_an_unknown_spelling_is_reported_in_the_words_of_the_file(tmp_path):
    assert "the label 'bliss' is not one of happy" in refusal(
        "mer2025", write_file(tmp_path / "l.csv", "name,discrete\na,bliss\n"), "--output", tmp_path / "out"
    )


def test_a_dataset_reads_a_list_with_the_codes_of_a_public_dataset(tmp_path, corpus):
    tree = golden_tree(tmp_path, corpus)
    codes = dict(zip(NAMES, ["01", "03", "04", "05", "06", "07"], strict=True))
    (corpus / "list.txt").write_text("".join(f"{name} {code}\n" for name, code in codes.items()))
    tree["datasets"]["golden"] |= {
        "annotation_file": "list.txt", "label_source": "ravdess", "label_map": {"disgust": "contempt"}, "labels": list(LABELS),
    }  # fmt: skip
    config = loaded(tmp_path, tree)
    shapes = config.model_class.slot_shapes(config.model)
    dataset = config.dataset_class("datasets.golden")(config.datasets["golden"], slot_shapes=shapes, block_path="datasets.golden")
    assert [clip.label for clip in dataset.clips] == ["neutral", "happy", "sad", "angry", "fear", "contempt"]
    assert dataset.problems() == []


def test_an_unknown_label_source_is_refused_with_the_known_ones(tmp_path, emollama):
    tree = golden_tree(tmp_path)
    tree["datasets"]["golden"]["label_source"] = "melt"
    done = emollama("check-data", "--cfg-path", write(tmp_path, tree))
    assert done.returncode == 1 and "label_source" in done.stderr and "meld" in done.stderr


def test_a_label_map_with_two_meanings_of_one_word_is_refused(tmp_path, emollama):
    tree = golden_tree(tmp_path)
    tree["datasets"]["golden"]["label_map"] = {"Blue": "sad", "blue ": "neutral"}
    done = emollama("check-data", "--cfg-path", write(tmp_path, tree))
    assert "label_map: 'Blue' and 'blue ' stand for different labels, but case is ignored" in done.stderr


@pytest.mark.parametrize(("name", "codes", "labels"), CODES)
def test_scores_map_the_codes_of_public_datasets_in_references_and_answers(tmp_path, emollama, name, codes, labels):
    rows = "".join(f"clip_{number},{code}\n" for number, code in enumerate(codes.split()))
    truth = write_file(tmp_path / "truth.csv", f"name,label\n{rows}")
    coded = write_file(tmp_path / "coded.csv", f"name,label\n{rows}")
    worded = "".join(f"clip_{number},it is {label}\n" for number, label in enumerate(labels.split()))
    spoken = write_file(tmp_path / "spoken.csv", f"name,prediction\n{worded}")
    done = emollama("score", "--predictions", coded, spoken, "--truth", truth, "--aliases", name, "--task", "emotion",
                    "--output", tmp_path / "out", "--resamples", 0)  # fmt: skip
    assert done.returncode == 0, done.stderr
    files = json.loads((tmp_path / "out/scores.json").read_text())["tasks"]["emotion"]["files"]
    assert {path: file["estimates"]["war"]["value"] for path, file in files.items()} == {str(coded): 1, str(spoken): 1}


def test_numbers_in_a_sentence_are_not_codes():
    labels = ["happy", "sad"]
    reader = LabelReader(labels, answer_aliases(DATASET_LABELS["dfew"], labels))
    assert reader.read("2 people, both happy").label == "happy"


def test_codes_without_a_map_are_refused_with_the_option(tmp_path, emollama):
    truth = write_file(tmp_path / "truth.csv", "name,label\na,03\n")
    done = emollama("score", "--predictions", truth, "--truth", truth, "--task", "emotion")
    assert done.returncode == 1 and "--aliases ravdess" in done.stderr


def test_labels_of_the_vocabulary_that_differ_only_in_case_stay_apart():
    assert [LabelMap(["Happy", "happy"]).resolve(raw) for raw in ("happy", "Happy", "HAPPY")] == ["happy", "Happy", "Happy"]


def test_every_synonym_belongs_to_one_group():
    from emollama.data.label_map import SYNONYMS

    assert [word for word, count in Counter(word for group in SYNONYMS for word in group).items() if count > 1] == []


def test_the_docs_list_every_extension_of_videos():
    text = (GOLDEN.parent.parent / "docs/extraction.md").read_text(encoding="utf-8")
    listed_extensions = text.partition("\n## Videos\n")[2].partition("\n## ")[0].split("`")[1::2]
    assert tuple(listed_extensions) == EXTENSIONS
