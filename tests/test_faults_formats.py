"""Feature files of other kinds, pooling, lone surrogates in texts, and files given in place of another format."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
import zipfile

import numpy as np
import pytest
import torch
from helpers import GOLDEN, NAMES, golden_tree, loaded, training_tree, write

from emollama.checkpoint import read
from emollama.checks.check_data import check
from emollama.checks.report import text_of
from emollama.data.annotations import read_annotations, read_captions, read_json, safe_name
from emollama.data.captions import read_captioned_images
from emollama.data.csv_files import read_csv
from emollama.data.dataset import ClipsToPredict
from emollama.data.features import Features
from emollama.data.slots import SlotShape
from emollama.errors import UserError
from emollama.evaluation.openset import read_openset
from emollama.extraction.jobs import describe_encoders
from emollama.media.files import find_video
from emollama.paths import PACKAGE
from emollama.runners.runner_base import RunnerBase
from emollama.stores.conversion import reject_other_formats
from emollama.stores.manifest import Manifest
from emollama.stores.store import open_store
from emollama.text_encoding import LONE_SURROGATE

pytestmark = pytest.mark.faults

LIST, CAPTIONS, TRANSCRIPTS, AUDIO = "MERR_coarse_grained.txt", "MERR_coarse_grained.json", "transcription_en_all.csv", "HL-UTT"
WIDTH = 1024
VALUES = np.linspace(-1, 1, WIDTH, dtype=np.float32)


@pytest.fixture
def tree(tmp_path, corpus):
    """A configuration with one training block on the copied corpus."""
    return training_tree(tmp_path, corpus, task_pool=["emotion", "reason"])


@pytest.fixture
def reported(tmp_path, tree):
    """A function that returns the problems that check-data and a training run report, both of which must be printable."""

    def problems(*options):
        report = check(loaded(tmp_path, tree, *options))
        texts = [finding.text for finding in report.of_level("problem")]
        text_of(report).encode("utf-8", "backslashreplace")
        json.dumps(report.plain())
        config = loaded(tmp_path, tree, *options)
        with pytest.raises(UserError) as error:
            config.runner_class(config)
        message = str(error.value)
        message.encode()
        assert all(text in message for text in texts), (texts, message)
        return texts

    return problems


def source(path, *, pooling=None, num_vectors=1, key="datasets.golden.features.audio"):
    return Features.open(str(path), ("audio",), SlotShape(num_vectors, WIDTH), key, pooling)


def refusal(function, *arguments):
    with pytest.raises(UserError) as error:
        function(*arguments)
    return str(error.value)


def run_command_in(message):
    """Run the Python command that a message contains."""
    (line,) = re.findall(r"python -c '.*'", message)
    _, _, code = shlex.split(line)
    exec(compile(code, "command", "exec"), {})


# Feature files


@pytest.mark.parametrize("dtype", [">f2", ">f4", ">f8"])
def test_big_endian_arrays_are_read_with_the_same_values_and_packed_in_native_order(tmp_path, emollama, dtype):
    np.save(tmp_path / "clip.npy", VALUES.astype(dtype))
    features = source(tmp_path)
    assert features.problems(["clip"]) == []
    assert torch.equal(features.read("clip")["audio"][0], torch.from_numpy(VALUES.astype(dtype).astype(np.float32)))
    for kind in ("packed", "tar"):
        assert emollama("pack", "--source", tmp_path, "--output", tmp_path.parent / kind, "--to", kind).returncode == 0
        stored = source(tmp_path.parent / kind)
        assert stored.store.load("clip").dtype == np.dtype(dtype[1:])
        assert torch.equal(stored.read("clip")["audio"], features.read("clip")["audio"])
        shutil.rmtree(tmp_path.parent / kind)


@pytest.mark.parametrize(("shape", "slots"), [((1, 1, WIDTH), ("audio",)), ((1, 5, WIDTH), ("image", "cls"))])
def test_a_leading_dimension_of_size_one_is_ignored(tmp_path, shape, slots):
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    np.save(tmp_path / "clip.npy", array)
    features = Features.open(str(tmp_path), slots, SlotShape(4 if len(slots) == 2 else 1, WIDTH), "key")
    assert features.problems(["clip"]) == []
    assert np.array_equal(torch.cat(list(features.read("clip").values())[::-1]).numpy(), array[0])


def test_integers_are_refused_with_a_command_that_converts_them(tmp_path, tree, corpus, reported):
    for path in (corpus / AUDIO).glob("*.npy"):
        np.save(path, np.arange(WIDTH).astype(np.int8))
    texts = reported()
    assert len(texts) == 6 and "dtype int8, expected float16, float32 or float64. If these integers are quantized" in texts[0]
    run_command_in(texts[0])
    tree["datasets"]["golden"]["features"] = {"audio": f"{AUDIO}_npy"}
    assert check(loaded(tmp_path, tree)).of_level("problem") == []


@pytest.mark.parametrize("extension", ["npz", "pt"])
def test_a_folder_of_other_files_is_refused_with_a_command_that_converts_them(tmp_path, tree, corpus, reported, extension):
    arrays = {path.stem: np.load(path) for path in (corpus / AUDIO).glob("*.npy")}
    for name, array in arrays.items():
        (corpus / AUDIO / f"{name}.npy").unlink()
        path = corpus / AUDIO / f"{name}.{extension}"
        np.savez(path, array) if extension == "npz" else torch.save(torch.from_numpy(array), path)
    (text,) = reported()
    assert f"features.audio: '{corpus / AUDIO}' contains no .npy files, but 6 .{extension} files: " in text
    assert reported("datasets.golden.missing_features=zero") == [text]
    run_command_in(text)
    tree["datasets"]["golden"]["features"] = {"audio": f"{AUDIO}_npy"}
    assert check(loaded(tmp_path, tree)).of_level("problem") == []
    assert np.array_equal(np.load(corpus / f"{AUDIO}_npy/{NAMES[0]}.npy"), arrays[NAMES[0]])


def test_files_of_other_kinds_in_subfolders_and_in_upper_case_are_converted_by_the_command(tmp_path):
    (tmp_path / "in/part").mkdir(parents=True)
    for name in ("a.PT", "part/b.c.pt"):
        torch.save(torch.ones(3), tmp_path / "in" / name)
    text = refusal(reject_other_formats, str(tmp_path / "in"), "key")
    assert "2 .pt files: a.PT, part/b.c.pt" in text and "weights_only=True" in text
    run_command_in(text)
    assert sorted(path.relative_to(tmp_path / "in_npy").as_posix() for path in (tmp_path / "in_npy").rglob("*.npy")) == [
        "a.npy",
        "part/b.c.npy",
    ]


def test_a_video_with_an_extension_in_any_case_is_found_again_after_changes_of_the_folder(tmp_path):
    (tmp_path / "a.Mp4").touch()
    assert find_video(tmp_path, "a") == tmp_path / "a.Mp4" and find_video(tmp_path, "part/b") is None
    (tmp_path / "part").mkdir()
    (tmp_path / "part/b.aVi").touch()
    assert find_video(tmp_path, "part/b") == tmp_path / "part/b.aVi"


def test_a_folder_of_files_that_numpy_and_torch_do_not_read_is_refused(corpus, reported):
    for path in (corpus / AUDIO).glob("*.npy"):
        path.rename(path.with_suffix(".h5"))
    (text,) = reported()
    assert "contains no .npy files, but 6 .h5 files" in text and "Write one .npy file per clip with numpy.save." in text


def test_a_single_file_of_another_kind_is_named_with_the_missing_array(corpus, reported):
    path = corpus / AUDIO / f"{NAMES[2]}.npy"
    np.savez(path.with_suffix(".npz"), np.load(path))
    path.unlink()
    (text,) = reported()
    assert f"for 1 clip: {NAMES[2]}." in text and f"'{path.with_suffix('.npz')}' is not read. If each file contains" in text


def test_a_file_in_place_of_a_folder_is_refused(tree, corpus, reported):
    np.savez(corpus / "all.npz", a=VALUES)
    tree["datasets"]["golden"]["features"] = {"audio": "all.npz"}
    (text,) = reported()
    assert f"features.audio: '{corpus}/all.npz' is a file; expected a folder with one file <name>.npy per clip" in text


@pytest.mark.parametrize(("array", "expected"), [
    (np.zeros((5, WIDTH), np.float32), "shape (5, 1024), expected (1024,) or (1, 1024) (or set datasets.golden.features.audio: "
     "{path: ..., pooling: mean} for the mean of the vectors; or model.slots.audio.length: 5"),
    (np.zeros((1, 5, WIDTH), np.float32), "pooling: mean} for the mean of the vectors; or model.slots.audio.length: 5"),
    (np.zeros(WIDTH, "V2"), "These are probably bfloat16 values, which .npy files cannot store. Save them as float16"),
])  # fmt: skip
def test_other_unsuitable_arrays_are_refused_with_a_remedy(tmp_path, array, expected):
    np.save(tmp_path / "clip.npy", array)
    (problem,) = dataclasses.replace(source(tmp_path), accepts_pooling=True).problems(["clip"])
    assert expected in problem.text
    (problem,) = source(tmp_path).problems(["clip"])
    assert "pooling" not in problem.text


# Pooling


def pooled_corpus(corpus):
    """Replace the audio features by arrays of several vectors; returns their means."""
    means = {}
    for number, name in enumerate(NAMES, 2):
        vectors = np.random.default_rng(number).normal(size=(number, WIDTH)).astype(np.float16 if number % 2 else np.float32)
        np.save(corpus / AUDIO / f"{name}.npy", vectors[None] if number == 3 else vectors)
        means[name] = vectors.astype(np.float64).mean(axis=0).astype(np.float32)
    return means


def pool(tree, path=AUDIO):
    for block in [*tree["datasets"].values(), *tree.get("evaluation_datasets", {}).values()]:
        block["features"] = {"audio": {"path": path, "pooling": "mean"}}


def dataset_of(config, key, *, clips=None):
    shapes, cls = config.model_class.slot_shapes(config.model), config.dataset_class(key)
    group, _, name = key.partition(".")
    block = getattr(config, group)[name]
    cfg = block if group == "datasets" else block.dataset
    if clips is not None:
        return cls.for_clips(cfg, clips, slot_shapes=shapes, block_path=key)
    return cls(cfg, slot_shapes=shapes, block_path=key, training=group == "datasets")


@pytest.mark.parametrize("key", ["datasets.golden", "evaluation_datasets.answers"])
def test_pooling_reads_the_mean_of_any_number_of_vectors(tmp_path, corpus, key):
    tree = golden_tree(tmp_path, corpus)
    means = pooled_corpus(corpus)
    pool(tree)
    dataset = dataset_of(loaded(tmp_path, tree), key)
    assert dataset.problems() == [] and dataset.slot_sources["audio"] == f"{AUDIO}, pooling: mean"
    for index, name in enumerate(dataset.names()):
        assert np.array_equal(dataset.record(index, "emotion", "?").features["audio"].numpy(), means[name][None])


def test_an_array_with_one_vector_is_unchanged_by_pooling(tmp_path):
    np.save(tmp_path / "clip.npy", VALUES)
    assert torch.equal(source(tmp_path, pooling="mean").read("clip")["audio"], source(tmp_path).read("clip")["audio"])


def test_the_mean_of_large_values_does_not_overflow(tmp_path):
    np.save(tmp_path / "clip.npy", np.full((8, WIDTH), 3e38, np.float32))
    assert torch.equal(source(tmp_path, pooling="mean").read("clip")["audio"], torch.full((1, WIDTH), 3e38))


def test_the_mean_rather_than_each_value_must_be_in_the_range_of_the_run(tmp_path):
    array = np.zeros((4, WIDTH), np.float32)
    array[0] = 1e5
    np.save(tmp_path / "clip.npy", array)
    pooled = dataclasses.replace(source(tmp_path, pooling="mean"), shape=SlotShape(1, WIDTH, compute_dtype="fp16"))
    assert pooled.problems(["clip"]) == [] and pooled.read("clip")["audio"].max() == 25000
    np.save(tmp_path / "large.npy", array * 4)
    (problem,) = dataclasses.replace(pooled, store=open_store(str(tmp_path), "key")).problems(["large"])
    assert "contains a value of size 100000, but this run computes in fp16" in problem.text


def test_arrays_that_are_valid_with_pooling_are_checked_again_without_it(tmp_path):
    array = np.zeros((2, WIDTH), np.float32)
    array[0] = 1e5
    np.save(tmp_path / "clip.npy", array)
    shape = SlotShape(None, WIDTH, compute_dtype="fp16")
    pooled, whole = (dataclasses.replace(source(tmp_path, pooling=pooling), shape=shape) for pooling in ("mean", None))
    assert pooled.problems(["clip"]) == [] and len(whole.problems(["clip"])) == 1


def test_predictions_for_other_clips_use_the_pooling_of_the_block(tmp_path, corpus):
    tree = golden_tree(tmp_path, corpus)
    pool(tree)
    (tmp_path / "new").mkdir()
    vectors = np.random.default_rng(1).normal(size=(4, WIDTH)).astype(np.float32)
    np.save(tmp_path / "new/mine.npy", vectors)
    clips = ClipsToPredict(["mine"], "emotion", None, {"audio": str(tmp_path / "new")})
    dataset = dataset_of(loaded(tmp_path, tree), "evaluation_datasets.answers", clips=clips)
    expected = vectors.astype(np.float64).mean(axis=0).astype(np.float32)
    assert np.array_equal(dataset.record(0, "emotion", "?").features["audio"].numpy()[0], expected)


@pytest.mark.parametrize(("entry", "message"), [
    ({"pooling": "mean"}, "features.audio.path is missing. Write both keys, such as {path: HL-UTT, pooling: mean}"),
    ({"path": "HL-UTT", "poling": "mean"}, "features.audio: unknown key 'poling'. Did you mean 'pooling'?"),
    ({"path": "HL-UTT", "pooling": "max"}, "features.audio.pooling is 'max'; expected mean, or null for no pooling"),
    ({"path": " ", "pooling": "mean"}, "features.audio.path is ' '; expected a path"),
    (["HL-UTT"], "features.audio is ['HL-UTT']; expected a path, or null"),
    (True, "features.audio is True; expected a path, or null"),
])  # fmt: skip
def test_an_invalid_entry_of_features_is_refused_with_its_key(tmp_path, tree, entry, message):
    tree["datasets"]["golden"]["features"] = {"audio": entry}
    assert message in refusal(loaded, tmp_path, tree)


def test_null_is_no_pooling_a_number_is_the_name_of_a_folder_and_the_other_key_accepts_pooling(tmp_path, tree):
    block = tree["datasets"]["golden"]
    block["features"] = {"face": {"path": "a", "pooling": None}, "video": 340}
    block["audio_feature_path"] = {"path": "b", "pooling": "mean"}
    configs = loaded(tmp_path, tree).datasets["golden"].feature_configs()
    assert [str(configs[slot]) for slot in ("face", "video", "audio")] == ["a", "340", "b, pooling: mean"]


@pytest.mark.parametrize(("slot", "slots"), [("image", {}), ("audio", {"audio": {"dim": WIDTH, "length": 5}})])
def test_pooling_for_a_slot_of_several_vectors_is_refused(tmp_path, tree, corpus, slot, slots):
    tree["model"]["slots"] = slots
    tree["datasets"]["golden"]["features"] = {slot: {"path": AUDIO, "pooling": "mean"}}
    text = refusal(dataset_of, loaded(tmp_path, tree), "datasets.golden")
    assert f"features.{slot}.pooling: the mean is a single vector, but the slot {slot} of the model has" in text


def test_a_run_with_another_pooling_is_not_resumed_and_one_with_another_path_is(tmp_path, corpus):
    tree = golden_tree(tmp_path, corpus)
    pooled_corpus(corpus)
    pool(tree)
    tree["run"] |= {"evaluate": False, "max_epoch": 2}
    folder = RunnerBase(loaded(tmp_path, tree)).train()
    (folder / "checkpoint_1.pth").unlink()
    resume = "run.resume_ckpt_path=auto"
    shutil.copytree(corpus / AUDIO, corpus / "copied")
    pool(tree, "copied")
    assert RunnerBase(loaded(tmp_path, tree, resume)).first_step == 2
    tree["datasets"]["golden"]["features"] = {"audio": "copied"}
    for path in (corpus / "copied").glob("*.npy"):
        np.save(path, VALUES)
    text = refusal(RunnerBase, loaded(tmp_path, tree, resume))
    assert "datasets.golden.features.audio.pooling: 'mean' in the checkpoint, None in this run" in text


def test_a_checkpoint_of_a_run_without_pooling_is_resumed_with_the_path_as_a_mapping(tmp_path, corpus):
    tree = golden_tree(tmp_path, corpus)
    tree["run"] |= {"evaluate": False, "max_epoch": 2}
    folder = RunnerBase(loaded(tmp_path, tree)).train()
    (folder / "checkpoint_1.pth").unlink()
    tree["datasets"]["golden"]["features"] = {"audio": {"path": AUDIO, "pooling": None}}
    assert RunnerBase(loaded(tmp_path, tree, "run.resume_ckpt_path=auto")).first_step == 2
    tree["datasets"]["golden"]["features"] = {"audio": {"path": AUDIO, "pooling": "mean"}}
    text = refusal(RunnerBase, loaded(tmp_path, tree, "run.resume_ckpt_path=auto"))
    assert "datasets.golden.features.audio.pooling: None in the checkpoint, 'mean' in this run" in text


FRAMES = Manifest(("audio",), None, WIDTH, {"encoder": "hubert", "layers": [-1], "pooling": "none"}, "ab" * 32, "float32")


def test_the_provenance_of_pooled_features_differs_from_that_of_others_and_is_stored_in_checkpoints(tmp_path, corpus):
    tree = golden_tree(tmp_path, corpus)
    pooled_corpus(corpus)
    FRAMES.write(corpus / AUDIO)
    pool(tree)
    tree["run"]["evaluate"] = True
    tree["evaluation_datasets"]["answers"]["task_pool"] = ["emotion"]
    folder = RunnerBase(loaded(tmp_path, tree, "run.evaluate=False")).train()
    fields = read(str(folder / "checkpoint_0.pth"), "k")["features"]["audio"]
    assert (fields["rows"], fields["pooling"]) == (1, "mean of all vectors (stored: none)")
    tree["run"]["job_id"] = "other"
    utterances = corpus / "utterances"
    utterances.mkdir()
    for name in NAMES:
        np.save(utterances / f"{name}.npy", VALUES)
    dataclasses.replace(FRAMES, num_vectors=1).write(utterances)
    tree["evaluation_datasets"]["answers"]["features"] = {"audio": "utterances"}
    text = refusal(RunnerBase, loaded(tmp_path, tree))
    assert "were extracted differently: pooling: 'mean of all vectors (stored: none)' and 'none'" in text
    tree["model"]["ckpt"] = str(folder / "checkpoint_0.pth")
    config = loaded(tmp_path, tree)
    with pytest.raises(UserError, match="was trained on audio features that were extracted differently: .*pooling"):
        RunnerBase(config, training=False)


ENCODER = """
from dataclasses import dataclass

from emollama.data.slots import SlotShape
from emollama.encoders.encoder import EncoderDescription
from emollama.registry import ENCODERS


@ENCODERS.register("sequence")
class Sequence:
    SLOTS = ("audio",)

    @dataclass
    class Config:
        weights: str = "w"
        folder: str = "sequence"
        random_weights: bool = True
        batch_size: int = 1
        precision: str = "fp32"
        dtype: str = "float32"

    @staticmethod
    def describe(cfg, key):
        return EncoderDescription(SlotShape(None, 1024), {"encoder": "sequence"})

    def __init__(self, cfg, *, device, key): ...
    def load(self, source): ...
    def encode(self, clips): ...
"""


def test_an_encoder_of_any_number_of_vectors_fits_a_slot_whose_features_are_pooled(tmp_path, tree, monkeypatch):
    (tmp_path / "sequence_encoder.py").write_text(ENCODER)
    monkeypatch.syspath_prepend(str(tmp_path))
    tree |= {"imports": ["sequence_encoder"], "encoders": {"sequence": {}}}
    assert "any number of feature vectors" in refusal(describe_encoders, loaded(tmp_path, tree))
    tree["datasets"]["golden"]["features"] = {"audio": {"path": AUDIO, "pooling": "mean"}}
    assert describe_encoders(loaded(tmp_path, tree))["sequence"].shape.num_vectors is None


# Lone surrogates


def change(path, function):
    content = json.loads(path.read_text(encoding="utf-8"))
    function(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_a_lone_surrogate_in_a_caption_is_reported_with_file_and_clip(corpus, reported):
    change(corpus / CAPTIONS, lambda content: content[NAMES[0]].update(caption="sad \ud83d face"))
    change(corpus / CAPTIONS, lambda content: content[NAMES[3]].update(caption="\ude00"))
    (text,) = reported()
    assert text == f"{corpus / CAPTIONS}, 2 clips: {NAMES[0]}, {NAMES[3]}: the name or 'caption' contains {LONE_SURROGATE}."


def test_a_lone_surrogate_in_a_name_is_reported_with_its_escape(corpus, reported):
    change(corpus / CAPTIONS, lambda content: content.update({"n\ud83d": {"caption": "x"}}))
    (text,) = reported()
    assert f"{corpus / CAPTIONS}, 1 clip: n\\ud83d: the name or 'caption' contains a lone surrogate" in text


def test_a_lone_surrogate_in_a_field_that_is_not_read_is_accepted(tmp_path, tree, corpus):
    change(corpus / CAPTIONS, lambda content: content[NAMES[0]].update(note="x\ud83d"))
    report = check(loaded(tmp_path, tree))
    assert report.of_level("problem") == []
    config = loaded(tmp_path, tree)
    config.runner_class(config)


def test_two_halves_that_are_one_character_are_accepted(tmp_path):
    (tmp_path / "a.json").write_text(r'{"clip": {"caption": "\ud83d\ude00"}}')
    assert read_captions(str(tmp_path / "a.json"), "caption", "key") == {"clip": "😀"}


def test_the_command_prints_a_caption_with_a_lone_surrogate_in_both_formats(tmp_path, tree, corpus, emollama):
    change(corpus / CAPTIONS, lambda content: content.update({"n\ud83d": {"caption": "x \ud83d"}}))
    path = write(tmp_path, tree)
    for options in ([], ["--json"], ["--deep"]):
        completed = emollama("check-data", "--cfg-path", path, *options)
        assert completed.returncode == 1 and "a lone surrogate" in completed.stdout + completed.stderr
        assert "Traceback" not in completed.stderr


def test_a_lone_surrogate_in_a_transcript_is_reported_with_file_and_line(corpus, reported):
    path = corpus / TRANSCRIPTS
    path.write_bytes(path.read_bytes().replace(b"Why", b"W\xed\xa0\xbdhy", 1))
    (text,) = reported()
    assert re.search(rf"{path}, line 7: not UTF-8 text \(byte 0xed at position \d+\): a lone surrogate", text)


def test_a_null_character_in_a_table_is_reported_with_file_and_line(corpus, reported):
    path = corpus / TRANSCRIPTS
    path.write_bytes(path.read_bytes().replace(b"Why", b"W\0hy", 1))
    (text,) = reported()
    assert f"{path}, line 7: the line contains a null character" in text


@pytest.mark.parametrize(("raw", "place"), [
    (r'["\ud83d"]', "[0]"),
    (r'{"clip": {"words": ["a", "\udc00"]}}', "clip.words[1]"),
    (r'{"c\ud83d": 1}', "the key c\\ud83d"),
    (r'"\uD83D"', "the text"),
])  # fmt: skip
def test_a_lone_surrogate_in_any_json_file_is_refused_with_its_place(tmp_path, raw, place):
    (tmp_path / "a.json").write_text(raw)
    assert refusal(read_json, str(tmp_path / "a.json")) == f"{tmp_path}/a.json: {place}: {LONE_SURROGATE}."


def test_a_lone_surrogate_in_a_list_of_words_is_refused(tmp_path):
    (tmp_path / "words.json").write_text(r'{"clip": ["sad", "\ud83d"]}')
    assert "clip[1]: a lone surrogate" in refusal(read_openset, str(tmp_path / "words.json"), "--truth")


def test_names_with_a_lone_surrogate_are_refused():
    with pytest.raises(ValueError, match=r"the clip name 'a\\ud83d' contains a lone surrogate"):
        safe_name("a\ud83d")


def test_a_text_with_a_lone_surrogate_of_a_users_dataset_class_is_refused_when_it_is_tokenized(golden_prompt):
    for function, argument in (
        (golden_prompt.answer_lengths, ["good", "half \ud83d"]),
        (golden_prompt.answer_ids, "half \ud83d"),
    ):
        text = refusal(function, argument)
        assert text.startswith("the text 'half \\ud83d") and LONE_SURROGATE in text


def test_a_caption_file_of_images_with_a_lone_surrogate_reports_each_entry(tmp_path):
    rows = r'[{"image_id": "a", "caption": "x"}, {"image_id": "b", "caption": "\ud83d"}, {"image_id": "c\ud83d", "caption": "y"}]'
    (tmp_path / "a.json").write_text(rows)
    problems = []
    images = read_captioned_images(str(tmp_path / "a.json"), problems.append)
    assert [image.name for image in images] == ["a"] and len(problems) == 2
    assert all("a lone surrogate" in problem.text for problem in problems)
    "".join(problem.text for problem in problems).encode()


def test_an_import_that_leaves_out_a_name_with_a_lone_surrogate_writes_its_report(tmp_path, emollama):
    table = {"good": {"emo": "sad", "val": 1.0}, "b\ud83d": {"emo": "sad", "val": 1.0}}
    np.savez(tmp_path / "labels.npz", train_corpus=np.array(table, dtype=object))
    line = ["import", "mertools", tmp_path / "labels.npz", "--split", "train", "--output", tmp_path / "out"]
    completed = emollama(*line, "--on-problem", "skip")
    assert completed.returncode == 0, completed.stderr
    assert "good" in (tmp_path / "out/clips.txt").read_text()
    report = json.loads((tmp_path / "out/import_report.json").read_text(encoding="utf-8"))
    assert [problem["clips"] for problem in report["problems"]] == [["b\ud83d"]]


def test_a_sentence_that_is_not_utf8_is_refused_before_anything_is_loaded(tmp_path, emollama):
    completed = emollama("predict", "--cfg-path", "absent.yaml", "--video", "a.mp4", "--text", "W\udcff")
    assert completed.returncode == 1 and completed.stderr.startswith("error: --text: the sentence is not UTF-8 text.")


def test_lone_surrogates_are_replaced_by_one_module_only():
    texts = {str(path.relative_to(PACKAGE)): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
    assert [path for path, text in texts.items() if '.encode("utf-8", "replace")' in text] == ["text_encoding.py"]


@pytest.mark.parametrize("module", ["data/annotations.py", "data/text_checks.py", "evaluation/predictions.py"])
def test_json_of_users_is_parsed_by_one_function(module):
    assert "json.loads" not in (PACKAGE / module).read_text(encoding="utf-8")


# Other formats than expected


def json_lines(path):
    table = json.loads((GOLDEN / "data" / CAPTIONS).read_text(encoding="utf-8"))
    path.write_text("".join(json.dumps({"name": name} | entry) + "\n" for name, entry in table.items()), encoding="utf-8")


@pytest.mark.parametrize("key", ["transcription_path", "annotation_file"])
@pytest.mark.parametrize("kind", ["JSON", "JSON Lines"])
def test_json_in_place_of_a_table_or_list_is_identified(tree, corpus, reported, key, kind):
    path = corpus / CAPTIONS
    if kind == "JSON Lines":
        path = corpus / "texts.csv"
        json_lines(path)
    tree["datasets"]["golden"][key] = path.name
    (text,) = reported()
    expected = "expected a CSV table, whose first line names the columns" if key == "transcription_path" else "Specify the list"
    assert f"{key}: {path} is a {kind} file" in text and expected in text


@pytest.mark.parametrize("kind", ["JSON", "JSON Lines"])
def test_json_in_place_of_a_table_of_clips_is_identified(tree, corpus, reported, kind):
    rows = [{"name": name, "emotion": "happy"} for name in NAMES]
    lines = "\n".join(map(json.dumps, rows))
    (corpus / "mine.csv").write_text(lines if kind == "JSON Lines" else json.dumps(rows))
    block = tree["datasets"]["golden"]
    tree["datasets"]["golden"] = block | {"type": "custom", "annotation_file": "mine.csv", "task_pool": "emotion"}
    (text,) = reported()
    assert f"annotation_file: {corpus}/mine.csv is a {kind} file; expected a CSV table" in text


def test_a_table_in_place_of_a_list_is_identified(tree, corpus, reported):
    tree["datasets"]["golden"]["annotation_file"] = TRANSCRIPTS
    (text,) = reported()
    assert f"annotation_file: {corpus / TRANSCRIPTS} is a CSV table. Specify the list" in text and "'custom'" in text


@pytest.mark.parametrize(
    ("name", "kind"), [("texts.jsonl", "a JSON Lines file, with one value per line"), (TRANSCRIPTS, "a CSV table")]
)
def test_other_files_in_place_of_captions_are_identified(tree, corpus, reported, name, kind):
    json_lines(corpus / "texts.jsonl")
    tree["datasets"]["golden"]["coarse_grained_json_path"] = name
    (text,) = reported()
    assert f"{corpus}/{name} is {kind}; expected a JSON file with a single object or list" in text


def test_a_workbook_in_place_of_a_table_is_identified(tmp_path):
    with zipfile.ZipFile(tmp_path / "table.csv", "w") as archive:
        archive.writestr("xl/workbook.xml", bytes(range(256)))
    assert "The file is a zip archive or a workbook. Save it as text" in refusal(read_csv, str(tmp_path / "table.csv"), "key")


def test_lists_and_tables_that_only_resemble_other_formats_are_read(tmp_path):
    (tmp_path / "list.txt").write_text("[a]_1 happy\n{b}_2 sad\n")
    assert [clip.name for clip in read_annotations(str(tmp_path / "list.txt"))] == ["[a]_1", "{b}_2"]
    (tmp_path / "table.csv").write_text("[name],sentence\na,hello\n")
    assert read_csv(str(tmp_path / "table.csv"), "key")[0] == ["[name]", "sentence"]
    (tmp_path / "list.txt").write_text("a,1 3 happy\nb 4 sad\n")
    assert [clip.name for clip in read_annotations(str(tmp_path / "list.txt"))] == ["a,1", "b"]
    (tmp_path / "table.csv").write_text('name,sentence\na,"{""b"": 1}"\n')
    assert read_csv(str(tmp_path / "table.csv"), "key")[1] == [(2, {"name": "a", "sentence": '{"b": 1}'})]
