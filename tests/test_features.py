"""Feature folders, and how a dataset treats clips without a file."""

from __future__ import annotations

import dataclasses
import os
import pickle

import numpy as np
import pytest
import torch
from helpers import FOLDERS, NAMES, golden_tree, loaded

from emollama.data import features
from emollama.data.features import Features
from emollama.data.slots import SlotShape
from emollama.errors import UserError
from emollama.stores.npy import largest_magnitude


def folder(path, slots=("face",), width=1024, num_vectors=1):
    return Features.open(str(path), slots, SlotShape(num_vectors, width), f"block.{slots[0]}_feature_path")


def stored(path, array, name="clip"):
    np.save(path / f"{name}.npy", array)
    return array


def refusal(store, name="clip"):
    with pytest.raises(UserError) as error:
        store.read(name)
    return str(error.value)


def numbers(*shape, dtype=np.float32):
    return np.random.default_rng(1).normal(size=shape).astype(dtype)


# Reading


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1024,), (1, 1024)])
def test_an_utterance_feature_is_read_as_one_vector_of_its_dtype_but_float64_becomes_float32(tmp_path, shape, dtype):
    array = stored(tmp_path, numbers(*shape, dtype=dtype))
    vectors = folder(tmp_path).read("clip")
    assert list(vectors) == ["face"] and vectors["face"].dtype == (torch.float16 if dtype == np.float16 else torch.float32)
    assert np.array_equal(vectors["face"].numpy(), array.reshape(1, 1024).astype(np.float32))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_an_eva_cache_is_split_into_the_class_vector_and_the_image_vectors(tmp_path, dtype):
    array = stored(tmp_path, numbers(65, 176, dtype=dtype)).astype(np.float32)
    vectors = folder(tmp_path, ("image", "cls"), 176, 64).read("clip")
    assert np.array_equal(vectors["cls"].numpy(), array[:1])
    assert np.array_equal(vectors["image"].numpy(), array[1:])


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("signs", ["+-", "+", "-"])
def test_the_largest_magnitude_is_that_of_the_values(dtype, signs):
    values = np.abs(numbers(40, 7, dtype=dtype)) * np.resize([1.0 if sign == "+" else -1.0 for sign in signs], (40, 7)).astype(
        dtype
    )
    assert largest_magnitude(values) == np.abs(values).max()
    assert largest_magnitude(values[:, ::2]) == np.abs(values[:, ::2]).max()
    for special in (np.inf, -np.inf, np.nan, -np.nan):
        spoilt = values.copy()
        spoilt[3, 5] = special
        assert not np.isfinite(largest_magnitude(spoilt))


def test_a_fortran_ordered_array_is_read_correctly(tmp_path):
    array = stored(tmp_path, np.asfortranarray(numbers(65, 176)))
    assert np.array_equal(folder(tmp_path, ("image", "cls"), 176, 64).read("clip")["image"].numpy(), array[1:])


def test_a_folder_contains_its_clips_and_nothing_else(tmp_path):
    for name in ("a", "b.c"):
        stored(tmp_path, numbers(1024), name)
    (tmp_path / "notes.txt").write_text("x")
    assert set(folder(tmp_path).store.names()) == {"a", "b.c"}


def test_a_clip_in_a_subfolder_is_read_by_its_path(tmp_path):
    (tmp_path / "part").mkdir()
    array = stored(tmp_path / "part", numbers(1024))
    store = folder(tmp_path)
    assert "part/clip" in store and "part/other" not in store
    assert np.array_equal(store.read("part/clip")["face"].numpy()[0], array)


def test_a_missing_folder_is_refused_with_its_key_and_the_remedy(tmp_path):
    with pytest.raises(UserError, match=r"block.face_feature_path: no folder .*null"):
        folder(tmp_path / "none")


# Errors name the file and the slot

BAD_ARRAYS = {
    "a different width": (numbers(1023), "shape (1023,), expected (1024,) or (1, 1024)"),
    "two rows": (numbers(2, 1024), "shape (2, 1024)"),
    "three axes": (numbers(2, 1, 1024), "shape (2, 1, 1024)"),
    "no axis": (np.float32(1), "shape ()"),
    "no row": (numbers(0, 1024), "shape (0, 1024)"),
    "NaN": (np.where(np.arange(1024) == 7, np.nan, 1.0), "NaN or inf"),
    "inf": (np.where(np.arange(1024) == 7, np.inf, 1.0).astype(np.float16), "NaN or inf"),
    "too large for float32": (np.where(np.arange(1024) == 7, 1e300, 1.0), "NaN or inf"),
    "integers": (np.ones(1024, dtype=np.int64), "dtype int64"),
    "complex numbers": (np.ones(1024, dtype=np.complex64), "dtype complex64"),
    "text": (np.array(["x"] * 1024), "dtype <U1"),
}


@pytest.mark.parametrize("kind", BAD_ARRAYS)
def test_an_unusable_array_is_refused_by_file_and_slot(tmp_path, kind):
    array, message = BAD_ARRAYS[kind]
    stored(tmp_path, array)
    text = refusal(folder(tmp_path))
    assert text.startswith(f"{tmp_path}/clip.npy (slot face): ") and message in text
    assert [problem.text for problem in folder(tmp_path).problems(["clip"])] == [text]


@pytest.mark.parametrize("shape", [(65, 175), (176,), (0, 176), (2, 65, 176), (64, 176), (66, 176)])
def test_an_eva_cache_of_another_shape_is_refused_with_both_slots(tmp_path, shape):
    stored(tmp_path, numbers(*shape))
    text = refusal(folder(tmp_path, ("image", "cls"), 176, 64))
    assert "clip.npy (slot image + cls): shape" in text and "expected (65, 176), which is image_size 112" in text


def test_an_eva_cache_of_another_image_size_names_both_sizes(tmp_path):
    stored(tmp_path, numbers(1 + 256, 16))
    text = refusal(folder(tmp_path, ("image", "cls"), 16, 1024))
    assert "expected (1025, 16), which is image_size 448; it was computed at image_size 224" in text


def whole_file(path):
    stored(path, numbers(1024))
    return (path / "clip.npy").read_bytes()


BAD_FILES = {
    "empty": lambda raw: b"",
    "a truncated header": lambda raw: raw[:40],
    "truncated values": lambda raw: raw[:-100],
    "another kind of file": lambda raw: b"name,sentence\n" * 50,
    "zero bytes": lambda raw: bytes(len(raw)),
    "a pickle": lambda raw: pickle.dumps([1.0] * 1024),
    "an archive cut short": lambda raw: b"PK\x03\x04" + raw[:200],
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_an_unreadable_file_is_refused_by_file_and_slot(tmp_path, kind):
    (tmp_path / "clip.npy").write_bytes(BAD_FILES[kind](whole_file(tmp_path)))
    text = refusal(folder(tmp_path))
    assert text.startswith(f"{tmp_path}/clip.npy (slot face): cannot be read") and "Extract this clip again" in text
    assert len(folder(tmp_path).problems(["clip"])) == 1


def test_an_npz_archive_under_the_name_of_an_array_is_refused(tmp_path):
    with (tmp_path / "clip.npy").open("wb") as file:
        np.savez(file, face=numbers(1024))
    assert refusal(folder(tmp_path)).startswith(f"{tmp_path}/clip.npy (slot face): ")


def test_a_broken_symbolic_link_is_reported_as_a_problem(tmp_path):
    (tmp_path / "clip.npy").symlink_to(tmp_path / "gone.npy")
    store = folder(tmp_path)
    problems = store.problems(["clip"])
    assert len(problems) == 1 and "clip.npy" in problems[0].text


class Payload:
    """An object whose unpickling creates a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_an_object_array_is_refused_and_never_unpickled(tmp_path):
    proof = tmp_path / "executed"
    pickle.loads(pickle.dumps(Payload(proof))).close()
    assert proof.exists()
    proof.unlink()
    stored(tmp_path, np.array([Payload(proof)] * 1024, dtype=object))
    assert "clip.npy (slot face): cannot be read: it contains Python objects" in refusal(folder(tmp_path))
    assert folder(tmp_path).problems(["clip"]) != []
    assert not proof.exists()


def test_a_bare_pickle_under_the_name_of_an_array_is_never_unpickled(tmp_path):
    proof = tmp_path / "executed"
    (tmp_path / "clip.npy").write_bytes(pickle.dumps(Payload(proof)))
    refusal(folder(tmp_path))
    assert not proof.exists()


def test_problems_lists_every_invalid_file_but_no_missing_file(tmp_path):
    for name, array in {"a": numbers(3), "b": numbers(1024), "c": numbers(4)}.items():
        stored(tmp_path, array, name)
    problems = folder(tmp_path).problems(["a", "b", "c", "absent"])
    assert [problem.text.split(" (slot")[0] for problem in problems] == [f"{tmp_path}/a.npy", f"{tmp_path}/c.npy"]


def test_large_files_are_checked_for_header_and_size_first_and_for_values_when_read(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "VALUES_CHECKED_UP_TO", 100)
    stored(tmp_path, numbers(1023), "narrow")
    stored(tmp_path, np.full(1024, np.nan, dtype=np.float32), "nan")
    stored(tmp_path, numbers(1024), "short")
    (tmp_path / "short.npy").write_bytes((tmp_path / "short.npy").read_bytes()[:-4])
    store = folder(tmp_path)
    assert [problem.text.split(" (slot")[0] for problem in store.problems(["narrow", "nan", "short"])] == [
        f"{tmp_path}/narrow.npy",
        f"{tmp_path}/short.npy",
    ]
    assert "NaN or inf" in refusal(store, "nan")


# A dataset with missing files


@pytest.fixture
def build(tmp_path, corpus):
    """A function that builds the training dataset over the copied corpus."""

    def build_dataset(**keys):
        tree = golden_tree(tmp_path, corpus)
        tree["datasets"]["golden"] |= keys
        config = loaded(tmp_path, tree)
        shapes = config.model_class.slot_shapes(config.model)
        return config.dataset_class("datasets.golden")(
            config.datasets["golden"], slot_shapes=shapes, block_path="datasets.golden"
        )

    return build_dataset


def remove(corpus, slot, *names):
    for name in names:
        (corpus / FOLDERS[slot] / f"{name}.npy").unlink()


def test_the_golden_corpus_has_no_problem(build):
    dataset = build()
    assert dataset.problems() == [] and dataset.notes == [] and len(dataset) == 6


def test_missing_features_are_reported_with_clip_names_count_and_key(build, corpus):
    remove(corpus, "audio", NAMES[0], NAMES[4])
    remove(corpus, "face", NAMES[2])
    problems = build().problems()
    assert len(problems) == 2
    face, audio = (problem.text for problem in problems)
    assert "datasets.golden.features.face" in face and f"for 1 clip: {NAMES[2]}." in face
    assert "datasets.golden.features.audio" in audio and f"for 2 clips: {NAMES[0]}, {NAMES[4]}." in audio
    assert "missing_features: zero or skip" in audio


def test_the_policy_zero_fills_every_slot_of_a_missing_file_and_notes_the_count(build, corpus):
    remove(corpus, "video", NAMES[0])
    remove(corpus, "image", NAMES[1])
    dataset = build(missing_features="zero")
    assert dataset.problems() == [] and len(dataset) == 6
    first, second = (dataset.record(index, "emotion", "?").features for index in (0, 1))
    assert first["video"].shape == (1, 1024) and not first["video"].any() and first["face"].all()
    assert second["image"].shape == (64, 176) and second["cls"].shape == (1, 176)
    assert not second["image"].any() and not second["cls"].any()
    assert sorted(dataset.notes) == [
        "datasets.golden.features.image: 1 of 6 clips have no array (missing_features: zero)",
        "datasets.golden.features.video: 1 of 6 clips have no array (missing_features: zero)",
    ]


def test_the_policy_skip_removes_clips_with_missing_files_and_notes_the_count(build, corpus):
    remove(corpus, "video", NAMES[0])
    remove(corpus, "audio", NAMES[3])
    dataset = build(missing_features="skip")
    assert [clip.name for clip in dataset.clips] == [NAMES[1], NAMES[2], NAMES[4], NAMES[5]]
    assert dataset.problems() == [] and len(dataset.notes) == 2
    assert all("1 of 6 clips have no array (missing_features: skip)" in note for note in dataset.notes)


def test_skip_that_leaves_no_clip_is_refused(build, corpus):
    remove(corpus, "video", *NAMES)
    with pytest.raises(UserError, match="skip leaves no clips"):
        build(missing_features="skip")


@pytest.mark.parametrize("policy", ["zero", "skip"])
def test_an_unusable_file_is_a_problem_under_every_policy_for_missing_files(build, corpus, policy):
    np.save(corpus / "HL-UTT" / f"{NAMES[1]}.npy", numbers(7))
    problems = build(missing_features=policy).problems()
    assert len(problems) == 1 and f"{NAMES[1]}.npy (slot audio): shape (7,)" in problems[0].text


def test_a_slot_without_a_folder_is_present_but_empty(build):
    dataset = build(image_feature_path=None, audio_feature_path=None)
    record = dataset.record(0, "emotion", "?")
    shapes = {slot: tuple(vectors.shape) for slot, vectors in record.features.items()}
    assert shapes == {"image": (0, 176), "cls": (0, 176), "face": (1, 1024), "video": (1, 1024), "audio": (0, 1024)}


def test_image_features_that_do_not_group_by_four_are_reported_at_the_start(build, corpus):
    np.save(corpus / "eva" / f"{NAMES[1]}.npy", numbers(1 + 63, 176))
    problems = build().problems()
    assert len(problems) == 1 and NAMES[1] in problems[0].text and "shape (64, 176)" in problems[0].text


# Answers, texts and annotation files of the same dataset


def test_answers_are_the_label_and_the_processed_coarse_and_fine_captions(build):
    dataset = build(task_pool=["emotion", "reason", "reason_v2"])
    answers = {task: dataset.record(1, task, "?").turns[0][1] for task in ("emotion", "reason", "reason_v2")}
    assert answers["emotion"] == "angry"
    assert answers["reason"].startswith("the man lowers his brows and shouts his jaw is tight")
    assert answers["reason_v2"].startswith("the brows are drawn together au04 and the lips")


def test_the_verbatim_processor_leaves_the_answer_as_written(build):
    record = build(task_pool=["reason"], text_processor="verbatim").record(1, "reason", "?")
    assert record.turns[0][1].endswith("The emotion is angry!")


def test_the_user_text_is_sentence_tag_and_instruction_in_the_published_spacing(build):
    record = build().record(1, "emotion", "Which?")
    assert record.turns[0][0] == "The person in video says: Why did you throw away my letters, Tom?.  [emotion] Which? "
    without = build(transcription_path=None).record(1, "emotion", "Which?")
    assert without.turns[0][0] == "[emotion] Which? "


def test_clips_without_a_caption_are_reported_with_count_key_and_task(build, corpus):
    path = corpus / "MERR_coarse_grained.json"
    path.write_text('{"' + NAMES[0] + '": {"caption": "x"}, "' + NAMES[1] + '": {"other": "x"}}')
    problems = build(task_pool=["emotion", "reason"]).problems()
    assert len(problems) == 1
    assert f"no caption for task reason for 5 clips: {', '.join(NAMES[1:])}." in problems[0].text
    assert "coarse_grained_json_path" in problems[0].text


def test_only_files_of_enabled_tasks_are_opened(build, corpus):
    (corpus / "MERR_coarse_grained.json").write_text("broken")
    (corpus / "MERR_fine_grained.json").unlink()
    assert build(task_pool=["emotion"]).problems() == []


def test_evaluation_needs_no_captions(tmp_path, corpus):
    (corpus / "MERR_coarse_grained.json").unlink()
    tree = golden_tree(tmp_path, corpus)
    config = loaded(tmp_path, tree)
    shapes = config.model_class.slot_shapes(config.model)
    block = config.evaluation_datasets["answers"].dataset
    dataset = config.dataset_class("evaluation_datasets.answers")(block, slot_shapes=shapes, block_path="answers", training=False)
    assert dataset.problems() == []
    assert dataset.record(0, "reason", "?").turns[0][1] is None
    assert dataset.record(0, "reason_v2", "?").turns[0][1] is not None


def test_clips_with_excluded_labels_are_removed(build):
    assert [clip.label for clip in build(exclude_labels=["happy", "sad"]).clips] == ["angry", "worried", "surprise", "neutral"]


def test_excluding_every_label_is_refused(build, corpus):
    (corpus / "MERR_coarse_grained.txt").write_text(f"{NAMES[0]} 3 happy\n")
    with pytest.raises(UserError, match=r"exclude_labels remove all clips \(1 in total\)"):
        build(exclude_labels=["happy"])


def test_an_unknown_label_names_file_line_and_clip_unless_the_only_task_is_reasoning(build, corpus):
    path = corpus / "MERR_coarse_grained.txt"
    path.write_text(path.read_text().replace("19 worried", "19 joyous"))
    (problem,) = build().problems()
    assert f"{path}: 1 unknown label: 'joyous' (line 3, {NAMES[2]})" in problem.text
    assert problem.kind == "label" and problem.clips == (NAMES[2],)
    assert len(build(task_pool=["reason"])) == 6


def test_other_paths_are_relative_to_the_list_and_the_list_to_data_root(build, corpus):
    inner = corpus / "lists"
    inner.mkdir()
    for path in list(corpus.iterdir()):
        if path != inner:
            path.rename(inner / path.name)
    dataset = build(annotation_file="lists/MERR_coarse_grained.txt", task_pool=["reason"])
    assert dataset.problems() == [] and dataclasses.asdict(dataset.clips[0])["name"] == NAMES[0]


# Cached checks


def test_a_changed_array_with_the_same_modification_time_is_checked_again(tmp_path):
    stored(tmp_path, numbers(1024))
    store = folder(tmp_path)
    assert store.problems(["clip"]) == []
    path = tmp_path / "clip.npy"
    before = path.stat()
    np.save(path, np.full(1024, np.nan, np.float32))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert "NaN" in store.problems(["clip"])[0].text


def test_an_unchanged_array_is_not_opened_again(tmp_path, monkeypatch):
    stored(tmp_path, numbers(1024))
    assert folder(tmp_path).problems(["clip"]) == []
    opened = []
    monkeypatch.setattr("emollama.stores.store.NpyFolder.load", lambda self, name: opened.append(name))
    assert folder(tmp_path).problems(["clip"]) == [] and opened == []


def test_arrays_are_checked_without_a_home_folder(tmp_path, monkeypatch):
    stored(tmp_path, numbers(3))
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("pathlib.Path.home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert len(folder(tmp_path).problems(["clip"])) == 1


def test_an_array_that_vanishes_during_a_run_is_an_error(build, corpus):
    dataset = build()
    remove(corpus, "face", NAMES[0])
    with pytest.raises(UserError, match="sample_00000104"):
        dataset.record(0, "emotion", "?")
    with pytest.raises(UserError, match=r"features.face: no array of 'sample_00000104'"):
        build().record(0, "emotion", "?")
