"""The registered datasets: the files that each reads and its error messages. Files and features are invented."""

from __future__ import annotations

import json
import re
import shutil
from itertools import chain, combinations
from pathlib import Path

import numpy as np
import pytest
from helpers import GOLDEN, NINE, golden_tree, loaded

from emollama.errors import UserError

SIX = ["neutral", "angry", "happy", "sad", "worried", "surprise"]
NO_FEATURES = dict.fromkeys(("image_feature_path", "face_feature_path", "video_feature_path", "audio_feature_path"))
FEATURE_FOLDERS = {"image": "eva", "face": "mae_340_UTT", "video": "maeV_399_UTT", "audio": "HL-UTT"}


def put(folder, files):
    """Write text or bytes under a folder."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def put_features(folder, names, folders=FEATURE_FOLDERS, patches=64, width=176):
    """Write an .npy of each slot for each clip; its values are the index of the clip plus 1."""
    for slot, subfolder in folders.items():
        (folder / subfolder).mkdir(parents=True, exist_ok=True)
        for number, name in enumerate(names, 1):
            shape = (1 + patches, width) if slot == "image" else (1024,)
            np.save(folder / subfolder / f"{name}.npy", np.full(shape, number, dtype=np.float32))


@pytest.fixture
def build(tmp_path):
    """A function that writes files and builds a block of this type on them, without features by default."""

    def build_dataset(kind, files, *options, training=True, features=False, **keys):
        put(tmp_path, files)
        tree = golden_tree(tmp_path)
        group, other = ("datasets", "evaluation_datasets")[:: 1 if training else -1]
        tree[group] = {kind: {"data_root": str(tmp_path), **({} if features else NO_FEATURES), **keys}}
        tree[other] = {}
        config = loaded(tmp_path, tree, *options)
        shapes = config.model_class.slot_shapes(config.model)
        block = config.datasets[kind] if training else config.evaluation_datasets[kind].dataset
        return config.dataset_class(f"{group}.{kind}")(block, slot_shapes=shapes, block_path=f"{group}.{kind}", training=training)

    return build_dataset


def refusal(build, *arguments, **keys):
    with pytest.raises(UserError) as error:
        build(*arguments, **keys)
    return str(error.value)


def problem_texts(dataset):
    return [problem.text for problem in dataset.problems()]


def answers(dataset, task):
    return [dataset.answer(clip, task) for clip in dataset.clips]


def user_text(dataset, index=0):
    """The user text of a clip."""
    return dataset.record(index, dataset.pool.tasks[0], "Which?").turns[0][0]


both = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])


# mer2024_caption

MER24 = {
    "list.txt": "samplenew_1 12 sad\nsamplenew_2 9 neutral\n",
    "transcription_all_new.csv": 'name,sentence_en\nsamplenew_1,"No, Ada, not today"\nsamplenew_2,\n',
}
MER24_FOLDERS = {"image": "eva", "face": "mae_340_23_UTT", "video": "maeVideo_399_23_UTT", "audio": "HL_23_UTT"}


@both
def test_mer2024_reads_its_own_transcript_and_feature_folders(build, tmp_path, training):
    put_features(tmp_path, ["samplenew_1", "samplenew_2"], MER24_FOLDERS)
    dataset = build("mer2024_caption", MER24, training=training, features=True, annotation_file="list.txt")
    assert problem_texts(dataset) == [] and answers(dataset, "emotion") == ["sad", "neutral"]
    assert user_text(dataset) == "The person in video says: No, Ada, not today.  [emotion] Which? "
    assert user_text(dataset, 1) == "The person in video says: .  [emotion] Which? "
    assert {slot: float(vectors[0, 0]) for slot, vectors in dataset.record(1, "emotion", "?").features.items()} == dict.fromkeys(
        ("image", "cls", "face", "video", "audio"), 2.0
    )
    shutil.rmtree(tmp_path / "HL_23_UTT")
    text = refusal(build, "mer2024_caption", {}, training=training, features=True, annotation_file="list.txt")
    assert "mer2024_caption.features.audio: no folder" in text and "HL_23_UTT" in text


def test_mer2024_scores_six_labels_and_shows_nine_in_the_prompt(build):
    dataset = build("mer2024_caption", MER24, annotation_file="list.txt")
    assert dataset.cfg.labels == SIX
    shown = ", ".join(NINE)
    assert all(shown in instruction for instruction in dataset.pool.instructions["emotion"])
    files = MER24 | {"list.txt": MER24["list.txt"].replace("9 neutral", "9 fear")}
    (text,) = problem_texts(build("mer2024_caption", files, annotation_file="list.txt"))
    assert "list.txt: 1 unknown label: 'fear' (line 2, samplenew_2). Known: neutral, angry" in text


def test_mer2024_reads_captions_like_merr(build):
    captions = {name: {"caption": f"Face of {name}."} for name in ("samplenew_1", "samplenew_2")}
    files = MER24 | {"MERR_coarse_grained.json": json.dumps(captions)}
    dataset = build("mer2024_caption", files, annotation_file="list.txt", task_pool=["reason"])
    assert problem_texts(dataset) == [] and answers(dataset, "reason")[1] == "face of samplenew_2"


# dfew


def folds(rows="1,1\n2,2\n16372,6\n"):
    """The ten tables of five folds; the clips of fold n are numbered from n x 100, and each split differs."""
    tables = {"train(single-labeled)/set_1.csv": "video_name,label\n" + rows}
    for fold in range(1, 6):
        tables.setdefault(f"train(single-labeled)/set_{fold}.csv", f"video_name,label\n{fold}01,1\n")
        tables[f"test(single-labeled)/set_{fold}.csv"] = f"video_name,label\n{fold}50,7\n"
    return tables


@pytest.mark.parametrize("fold", range(1, 6))
@both
def test_dfew_reads_the_training_table_of_its_fold_and_the_test_table_for_evaluation(build, training, fold):
    group = "datasets" if training else "evaluation_datasets"
    dataset = build("dfew", folds("101,1\n"), f"{group}.dfew.fold={fold}", training=training)
    assert dataset.names() == [f"00{fold}01" if training else f"00{fold}50"] and problem_texts(dataset) == []


def test_dfew_reads_the_split_that_is_configured(build):
    assert build("dfew", folds(), split="test", fold=3).names() == ["00350"]
    assert build("dfew", folds(), split="train", fold=2, training=False).names() == ["00201"]


def test_dfew_maps_the_ids_one_to_seven_and_pads_names_with_zeros(build):
    rows = "".join(f"{10**exponent},{exponent}\n" for exponent in range(1, 5)) + "5,5\n6,6\n7,7\n"
    dataset = build("dfew", folds(rows))
    labels = ["happy", "sad", "neutral", "angry", "surprise", "disgust", "fear"]
    assert answers(dataset, "emotion") == labels and problem_texts(dataset) == []
    assert dataset.names() == ["00010", "00100", "01000", "10000", "00005", "00006", "00007"]
    assert ", ".join(labels) in dataset.pool.first_instruction("emotion")
    assert build("dfew", folds(), zero_pad=0).names() == ["1", "2", "16372"]


def test_dfew_folds_share_the_features_at_data_root(build, tmp_path):
    put_features(tmp_path, ["00001", "00150", "00201"])
    for training, keys, value in ((True, {}, 1.0), (False, {}, 2.0), (True, {"fold": 2}, 3.0)):
        dataset = build("dfew", folds("1,1\n"), training=training, features=True, **keys)
        assert problem_texts(dataset) == []
        assert float(dataset.record(0, "emotion", "?").features["face"][0, 0]) == value
    transcript = {"transcript.csv": "name,sentence\n00001,Good morning\n"}
    assert "Good morning" in user_text(build("dfew", folds("1,1\n") | transcript, transcription_path="transcript.csv"))


def test_dfew_reports_an_id_without_a_label_with_its_file_and_line(build, tmp_path):
    (text,) = problem_texts(build("dfew", folds("1,1\n2,8\n3,0\n")))
    assert f"{tmp_path}/train(single-labeled)/set_1.csv: 2 unknown labels: '8' (line 3, 00002), '0' (line 4, 00003)" in text
    assert "label_map" in text


def test_dfew_combines_a_configured_label_map_with_its_own(build):
    labels = ["happy", "sad", "neutral", "angry", "surprise", "fear", "contempt"]
    dataset = build("dfew", folds(), label_map={"6": "contempt"}, labels=labels)
    assert answers(dataset, "emotion") == ["happy", "sad", "contempt"] and problem_texts(dataset) == []
    assert "datasets.dfew: label_map: 'disgust' is neither in labels" in refusal(build, "dfew", folds(), labels=NINE)
    left = build("dfew", folds(), exclude_labels=["disgust"])
    assert left.names() == ["00001", "00002"]


def test_dfew_label_map_accepts_numbers_only_in_quotes(tmp_path):
    text = "model: {arch: minigpt_v2, llama_model: x}\ndatasets: {dfew: {data_root: x, label_map: {%s: sad}}}\n"
    for config in (loaded(tmp_path, text % "'6'"), loaded(tmp_path, text % "'1'", "datasets.dfew.label_map.6=sad")):
        assert config.datasets["dfew"].label_map["6"] == "sad"
    with pytest.raises(UserError, match=r"'datasets\.dfew\.label_map\.6': Key 6 .* Write the key in quotes\."):
        loaded(tmp_path, text % "6")


@pytest.mark.parametrize("fold", [0, 6, -1])
def test_dfew_refuses_a_fold_outside_1_to_5(build, tmp_path, fold):
    text = refusal(build, "dfew", folds(), fold=fold)
    assert text == f"{tmp_path}/config.yaml: datasets.dfew: fold is {fold}; it must be from 1 to 5"


def test_dfew_refuses_a_fold_that_is_not_a_number_or_has_no_table(build):
    assert "'datasets.dfew.fold'" in refusal(build, "dfew", folds(), fold="two")
    text = refusal(build, "dfew", folds(), fold=2, annotation_file="{split}/set_{fold}.csv")
    assert text.startswith("datasets.dfew.annotation_file: no file") and "train/set_2.csv" in text


def test_dfew_reports_clips_that_have_the_same_padded_name(build, tmp_path):
    dataset = build("dfew", folds("1,1\n2,2\n001,3\n2,4\n"))
    assert dataset.names() == ["00001", "00002"]
    again, padded = problem_texts(dataset)
    assert "set_1.csv, line 5: clip '2' is already listed on line 3" in again
    assert (
        f"{tmp_path}/train(single-labeled)/set_1.csv, line 4: clip '001' is '00001', which is already listed on line 2" in padded
    )


def test_dfew_has_no_answers_to_other_tasks(build):
    (text,) = problem_texts(build("dfew", folds(), task_pool=["emotion", "reason"]))
    assert "no caption for task reason for 3 clips: 00001, 00002, 16372." in text


# emer

V1 = 'names,emotions,subtitles,reasons\nclip_1,"joy, pride",We won!,She smiles broadly.\nclip_2,doubt,,"He frowns, then sighs"\n'
V2 = 'name,chinese,english\nclip_1,笑,She smiles broadly.\nclip_2,皱眉,"He frowns, then sighs"\n'
PLAIN = "clip_1 30 0\nclip_2 41 0\n"
REASONS = ["she smiles broadly", "he frowns, then sighs"]


@both
def test_emer_reads_the_first_table_with_subtitles_and_reasons(build, training):
    dataset = build("emer", {"truth.csv": V1}, training=training, annotation_file="truth.csv")
    assert dataset.pool.tasks == ("reason_v2",) and problem_texts(dataset) == []
    assert answers(dataset, "reason_v2") == REASONS and dataset.names() == ["clip_1", "clip_2"]
    assert user_text(dataset) == "The person in video says: We won!.  [reason_v2] Which? "
    assert user_text(dataset, 1) == "The person in video says: .  [reason_v2] Which? "


@both
def test_emer_reads_the_second_table_without_sentences(build, training):
    dataset = build("emer", {"truth.csv": V2}, training=training, annotation_file="truth.csv")
    assert answers(dataset, "reason_v2") == REASONS and problem_texts(dataset) == []
    assert user_text(dataset) == "[reason_v2] Which? "


@both
def test_emer_reads_a_list_with_a_separate_caption_file(build, training):
    captions = {
        "clip_1": {"smp_reason_caption": "She smiles broadly."},
        "clip_2": {"smp_reason_caption": "He frowns, then sighs"},
    }
    files = {"EMER_NCE.txt": PLAIN, "MERR_fine_grained.json": json.dumps(captions)}
    dataset = build("emer", files, training=training)
    assert answers(dataset, "reason_v2") == REASONS and problem_texts(dataset) == []


@pytest.mark.parametrize("keys", [{}, {"captions_path": None}])
def test_emer_evaluates_a_list_without_captions_and_does_not_train_on_it(build, tmp_path, keys):
    dataset = build("emer", {"EMER_NCE.txt": PLAIN}, training=False, **keys)
    assert answers(dataset, "reason_v2") == [None, None] and problem_texts(dataset) == []
    if keys:
        (text,) = problem_texts(build("emer", {}, **keys))
        assert (
            "no caption for task reason_v2 for 2 clips: clip_1, clip_2" in text
            and "set datasets.emer.captions_path to their file" in text
        )
    else:
        assert "datasets.emer.captions_path: no file" in refusal(build, "emer", {}, **keys)


@both
def test_emer_names_a_configured_caption_file_that_does_not_exist(build, training):
    text = refusal(build, "emer", {"EMER_NCE.txt": PLAIN}, training=training, captions_path="captoins.json")
    assert "datasets.emer.captions_path: no file" in text and "captoins.json" in text


@pytest.mark.parametrize("table", [V1.replace('"He frowns, then sighs"', " "), V2.replace('"He frowns, then sighs"', "")])
def test_an_empty_description_is_reported_in_training_and_is_no_target_in_evaluation(build, tmp_path, table):
    (text,) = problem_texts(build("emer", {"truth.csv": table}, annotation_file="truth.csv"))
    assert f"no caption for task reason_v2 for 1 clip: clip_2. Remedy: add them ({tmp_path}/truth.csv)" in text
    assert answers(build("emer", {}, training=False, annotation_file="truth.csv"), "reason_v2") == [REASONS[0], None]
    assert problem_texts(build("emer", {}, annotation_file="truth.csv", exclude=["clip_2"])) == []


@both
def test_emer_gives_both_reasoning_tasks_the_same_answers(build, training):
    keys = {"annotation_file": "truth.csv", "task_pool": {"reason": 1, "reason_v2": 2}}
    dataset = build("emer", {"truth.csv": V1}, training=training, **keys)
    assert answers(dataset, "reason") == answers(dataset, "reason_v2") == REASONS


def test_emer_prefers_a_configured_transcript_to_the_subtitles(build):
    files = {"truth.csv": V1, "transcript.csv": "name,chinese,english\nclip_1,x,Hooray\nclip_2,y,Oh dear\n"}
    dataset = build("emer", files, annotation_file="truth.csv", transcription_path="transcript.csv")
    assert "says: Oh dear." in user_text(dataset, 1)


def test_emer_reports_the_header_of_a_table_without_descriptions(build, tmp_path):
    text = refusal(build, "emer", {"truth.csv": "name,openset\nclip_1,[happy]\n"}, annotation_file="truth.csv")
    assert f"{tmp_path}/truth.csv, line 1: the header is" in text and "openset" in text and "reasons, english" in text


# custom

CELLS = {"emotion": ["happy", "sad"], "sentence": ["Well done", ""], "reason": ["She smiles.", "He cries."]}
SUBSETS = list(chain.from_iterable(combinations(CELLS, size) for size in range(4)))
NEEDS = {"emotion": "emotion", "reason": "reason", "reason_v2": "reason"}


def table(columns, names=("007", "a b")):
    rows = [",".join([name, *(CELLS[column][index] for column in columns)]) for index, name in enumerate(names)]
    return "\n".join([",".join(["name", *columns]), *rows]) + "\n"


@pytest.mark.parametrize("columns", SUBSETS, ids=lambda columns: "+".join(columns) or "name alone")
@pytest.mark.parametrize("task", NEEDS)
def test_custom_trains_on_any_columns_that_include_the_one_needed_by_the_task(build, tmp_path, columns, task):
    files = {"clips.csv": table(columns)}
    keys = {"annotation_file": "clips.csv", "task_pool": [task]}
    if NEEDS[task] not in columns:
        text = refusal(build, "custom", files, **keys)
        assert text.startswith(f"{tmp_path}/clips.csv, line 1: the task '{task}' of datasets.custom.task_pool needs the column")
        assert f"'{NEEDS[task]}'; besides the name, the header has {', '.join(columns) or 'nothing'}." in text
        assert "datasets.custom.columns" in text and "remove the task" in text
        return
    dataset = build("custom", files, **keys)
    assert problem_texts(dataset) == [] and dataset.names() == ["007", "a b"]
    expected = ["happy", "sad"] if task == "emotion" else ["she smiles", "he cries"]
    assert answers(dataset, task) == expected
    assert user_text(dataset, 0).startswith("The person in video says: Well done.  [" if "sentence" in columns else f"[{task}] ")


@pytest.mark.parametrize("columns", SUBSETS, ids=lambda columns: "+".join(columns) or "name alone")
def test_custom_evaluates_any_columns_and_has_no_target_for_a_missing_column(build, columns):
    files = {"clips.csv": table(columns)}
    dataset = build("custom", files, training=False, annotation_file="clips.csv", task_pool=list(NEEDS))
    assert problem_texts(dataset) == []
    assert answers(dataset, "emotion") == (["happy", "sad"] if "emotion" in columns else [None, None])
    for task in ("reason", "reason_v2"):
        assert answers(dataset, task) == (["she smiles", "he cries"] if "reason" in columns else [None, None])


def test_custom_answers_questions_about_clips_without_labels(build, golden_model, golden_prompt, golden_config):
    dataset = build("custom", {"clips.csv": "name\na\nb\n"}, training=False, annotation_file="clips.csv")
    from emollama.decoding.answer_generator import AnswerGenerator

    task = golden_config.task_class()
    options = task.Config(max_new_tokens=2)
    questions = task.evaluation_items(dataset, options)
    predictions = task.predict(AnswerGenerator([golden_model], golden_prompt), dataset, options, questions, 1)
    assert [(row.name, row.target, row.reference, row.loss) for row in predictions] == [(name, None, None, None) for name in "ab"]


def test_columns_of_a_custom_table_can_be_renamed(build, tmp_path):
    text = "video_name,Label,text,why\n1,happy,Hello,She smiles.\n"
    keys = {"annotation_file": "clips.csv", "columns": {"emotion": "Label", "sentence": "text", "reason": "why"}}
    dataset = build("custom", {"clips.csv": text}, task_pool=["emotion", "reason"], **keys)
    assert (
        problem_texts(dataset) == [] and answers(dataset, "emotion") == ["happy"] and answers(dataset, "reason") == ["she smiles"]
    )
    assert "says: Hello." in user_text(dataset)
    said_of_typo = refusal(build, "custom", {}, annotation_file="clips.csv", columns={"emotion": "label"})
    assert f"{tmp_path}/clips.csv, line 1: the header is" in said_of_typo and "Label" in said_of_typo
    assert "one of the columns label" in said_of_typo
    wrong = refusal(build, "custom", {}, annotation_file="clips.csv", columns={"emotions": "Label"})
    assert wrong == f"{tmp_path}/config.yaml: datasets.custom: columns: unknown key 'emotions'. Known: emotion, sentence, reason"


def test_custom_reports_every_row_with_an_empty_or_unknown_emotion(build, tmp_path):
    text = "name,emotion\na,Happy\nb,\nc,gloomy\nd,  \n"
    (problem,) = build("custom", {"clips.csv": text}, annotation_file="clips.csv").problems()
    assert f"{tmp_path}/clips.csv: 3 unknown labels: " in problem.text and problem.clips == ("b", "c", "d")
    assert "'' (line 3, b), 'gloomy' (line 4, c), '' (line 5, d)" in problem.text
    evaluated = build("custom", {}, training=False, annotation_file="clips.csv")
    assert len(problem_texts(evaluated)) == 1 and "1 unknown label: 'gloomy' (line 4, c)" in problem_texts(evaluated)[0]
    assert problem_texts(build("custom", {}, annotation_file="clips.csv", exclude=["b", "c", "d"])) == []


def test_custom_reports_every_row_with_an_empty_reason(build):
    text = "name,reason\na,She smiles.\nb,\n"
    (problem,) = build("custom", {"clips.csv": text}, annotation_file="clips.csv", task_pool="reason").problems()
    assert "no caption for task reason for 1 clip: b." in problem.text


def test_custom_preserves_leading_zeros_and_spaces_in_names_of_clips_and_features(build, tmp_path):
    names = ["00012", "12", "a b", "part/c"]
    put_features(tmp_path, names[:3])
    for folder in FEATURE_FOLDERS.values():
        (tmp_path / folder / "part").mkdir()
        shutil.copy(tmp_path / folder / "12.npy", tmp_path / folder / "part" / "c.npy")
    text = "name,emotion\n" + "".join(f"{name},happy\n" for name in names)
    dataset = build("custom", {"clips.csv": text}, features=True, annotation_file="clips.csv")
    assert problem_texts(dataset) == [] and dataset.names() == names
    values = [float(dataset.record(index, "emotion", "?").features["audio"][0, 0]) for index in range(4)]
    assert values == [1.0, 2.0, 3.0, 2.0]


def test_further_columns_of_a_custom_table_are_read_and_not_shown(build):
    text = "name,emotion,hardness,note\na,happy,3,x\n"
    dataset = build("custom", {"clips.csv": text}, annotation_file="clips.csv")
    assert dataset.clips[0].columns["hardness"] == "3" and user_text(dataset) == "[emotion] Which? "


# Common behaviour


def test_a_label_map_renames_before_labels_are_checked_and_excluded(build, tmp_path):
    text = "name,emotion\na,HAPPY\nb,blue\nc,fear\n"
    keys = {"label_map": {"HAPPY": "happy", "blue": "sad"}, "exclude_labels": ["sad"]}
    dataset = build("custom", {"clips.csv": text}, annotation_file="clips.csv", **keys)
    assert problem_texts(dataset) == [] and [(clip.name, clip.label) for clip in dataset.clips] == [("a", "happy"), ("c", "fear")]
    wrong = refusal(build, "custom", {}, annotation_file="clips.csv", label_map={"blue": "bluish"})
    assert wrong.startswith(f"{tmp_path}/config.yaml: datasets.custom: label_map: 'bluish' is neither in labels (happy, sad")


@pytest.mark.parametrize("training", [True, False])
def test_exclude_removes_clips_and_refuses_names_that_are_not_listed(build, tmp_path, training):
    keys = {"annotation_file": "clips.csv", "training": training}
    text = "name,emotion\na,happy\nb,joy\nc,sad\n"
    dataset = build("custom", {"clips.csv": text}, exclude=["b"], **keys)
    assert dataset.names() == ["a", "c"] and problem_texts(dataset) == []
    wrong = refusal(build, "custom", {}, exclude=["a", "aa", "cc"], **keys)
    assert f"datasets.custom.exclude contains 2 clips: aa, cc. {tmp_path}/clips.csv does not list them" in wrong
    assert "exclude and exclude_labels remove all clips (3 in total)" in refusal(
        build, "custom", {}, exclude=["a", "b", "c"], **keys
    )


@pytest.mark.parametrize("kind", ["custom", "emer", "dfew"])
def test_a_byte_order_mark_and_windows_line_ends_are_ignored(build, kind):
    texts = {
        "custom": ("clips.csv", "name,emotion\r\n1,happy\r\n\r\n2,sad\r\n"),
        "emer": ("clips.csv", "name,chinese,english\r\n1,x,Glad.\r\n2,y,Sad.\r\n"),
        "dfew": ("train(single-labeled)/set_1.csv", "video_name,label\r\n1,1\r\n2,2\r\n"),
    }
    path, text = texts[kind]
    keys = {} if kind == "dfew" else {"annotation_file": path}
    dataset = build(kind, {path: b"\xef\xbb\xbf" + text.encode()}, **keys)
    assert problem_texts(dataset) == [] and [name.lstrip("0") for name in dataset.names()] == ["1", "2"]


def test_a_table_with_tabs_is_refused_with_the_remedy(build, tmp_path):
    text = refusal(build, "custom", {"clips.csv": "name\temotion\na\thappy\n"}, annotation_file="clips.csv")
    assert f"{tmp_path}/clips.csv, line 1: the columns seem to be separated by tabs. Save the file as CSV with commas." in text


def test_caption_files_with_comments_or_repeated_clips_are_refused(build, tmp_path):
    keys = {"annotation_file": "list.txt", "task_pool": ["reason"]}
    path = tmp_path / "MERR_coarse_grained.json"
    comment = '{\n// checked by hand\n"samplenew_1": {"caption": "x"}}'
    text = refusal(build, "mer2024_caption", MER24 | {path.name: comment}, **keys)
    assert f"{path}, line 2: not valid JSON" in text and "JSON does not allow comments" in text
    twice = '{"samplenew_1": {"caption": "x"}, "samplenew_1": {"caption": "y"}}'
    text = refusal(build, "mer2024_caption", {path.name: twice}, **keys)
    assert text == f"{path}: the key 'samplenew_1' appears twice. Remove one of the two."


def test_a_run_reports_all_problems_of_all_blocks_at_once(tmp_path):
    custom = b"\xef\xbb\xbfname,emotion,hardness\r\na,happy,1\r\na,sad,2\r\n../b,sad,1\r\n,sad,1\r\nc,blue,x\r\nd,sad,1,2\r\n"
    put(
        tmp_path,
        {
            "clips.csv": custom,
            **folds("1,1\n2,8\n0001,2\n"),
            "EMER_NCE.txt": "clip_1\t30\t0\nclip_2 0\nclip_3 many 0\n",
            "MERR_fine_grained.json": '{"clip_9": {"smp_reason_caption": "x"}}',
            "transcript.csv": "name,sentence\nclip_7,x\n,y\n",
        },
    )
    put_features(tmp_path, ["00001", "00002"])
    np.save(tmp_path / "HL-UTT" / "00002.npy", np.full(1024, np.nan, dtype=np.float32))
    (tmp_path / "eva" / "00001.npy").unlink()
    tree = golden_tree(tmp_path)
    shared = {"data_root": str(tmp_path), **NO_FEATURES}
    tree["datasets"] = {
        "custom": shared | {"annotation_file": "clips.csv", "curriculum": {"by": "hardness", "epochs": 2}},
        "dfew": {"data_root": str(tmp_path)},
        "emer": shared | {"transcription_path": "transcript.csv"},
    }
    tree["model"]["ckpt"] = str(tmp_path / "nowhere.pth")  # would be reported next: files of the model are read later
    config = loaded(tmp_path, tree)
    with pytest.raises(UserError) as error:
        config.runner_class(config)
    text = str(error.value)
    first, *lines = text.split("\n- ")
    assert first == "the data cannot be used:" and not (tmp_path / "out").exists()
    expected = [
        f"datasets.custom: {tmp_path}/clips.csv, line 3: clip 'a' is already listed on line 2",
        f"datasets.custom: {tmp_path}/clips.csv, line 4: the clip name '../b' points outside its folder",
        f"datasets.custom: {tmp_path}/clips.csv, line 5: the row has no name",
        f"datasets.custom: {tmp_path}/clips.csv, line 7: more cells than columns",
        f"datasets.custom: {tmp_path}/clips.csv: 1 unknown label: ",
        "datasets.custom: curriculum.by 'hardness': ",
        f"datasets.dfew: {tmp_path}/train(single-labeled)/set_1.csv, line 4: clip '0001' is '00001'",
        f"datasets.dfew: {tmp_path}/train(single-labeled)/set_1.csv: 1 unknown label: ",
        "datasets.dfew: no array in datasets.dfew.features.image",
        f"datasets.dfew: {tmp_path}/HL-UTT/00002.npy (slot audio): contains NaN or inf",
        f"datasets.emer: {tmp_path}/EMER_NCE.txt, line 2: expected 3 or 4 fields",
        f"datasets.emer: {tmp_path}/EMER_NCE.txt, line 3: the second field of",
        "datasets.emer: no caption for task reason_v2 for 1 clip: clip_1.",
        "datasets.emer: no row in transcript.csv for 1 clip: clip_1.",
        f"datasets.emer: {tmp_path}/transcript.csv, line 3: the row has no name",
    ]
    [path] = re.findall(r"^\.\.\. and 5 more \(all of them: (.*)\)$", lines[-1])
    everything = Path(path).read_text().splitlines()
    assert [start for start in expected if not any(line.startswith(start) for line in everything)] == []
    assert lines[:-1] == everything[:10] and len(everything) == len(expected)


# image_size


@pytest.mark.parametrize(("image_size", "patches", "image_tokens"), [(448, 1024, 256), (224, 256, 64)])
def test_image_size_determines_the_number_of_image_tokens_and_four_more_tokens_are_added(
    tmp_path, image_size, patches, image_tokens
):
    put(tmp_path, {"clips.csv": "name,emotion\na,happy\n"})
    put_features(tmp_path, ["a"], patches=patches, width=16)
    tree = golden_tree(tmp_path)
    tree["model"] |= {"image_size": image_size, "slot_dims": {"image": 16}}
    tree["datasets"] = {"custom": {"data_root": str(tmp_path), "annotation_file": "clips.csv"}}
    config = loaded(tmp_path, tree)
    shapes = config.model_class.slot_shapes(config.model)
    dataset = config.dataset_class("datasets.custom")(config.datasets["custom"], slot_shapes=shapes, block_path="custom")
    prompt = config.model_class.prompt_format(config.model)
    assert problem_texts(dataset) == []
    for layout in ("train", "upstream_eval"):
        ids = prompt.tokenize(dataset.record(0, "emotion", "Which?"), layout=layout).input_ids
        counts = [int((ids == prompt.feature_tokens.id_of(name)).sum()) for name in ("image", "face", "video", "audio", "cls")]
        assert counts == [image_tokens, 1, 1, 1, 1]
        assert int((ids < 0).sum()) == image_tokens + 4


@pytest.mark.parametrize(("made_at", "patches", "image_size"), [(448, 1024, 224), (224, 256, 448)])
def test_a_cache_of_another_image_size_names_both_sizes_before_any_weight_is_read(tmp_path, made_at, patches, image_size):
    put(tmp_path, {"clips.csv": "name,emotion\na,happy\n"})
    put_features(tmp_path, ["a"], patches=patches, width=16)
    llama = shutil.copytree(GOLDEN / "llama", tmp_path / "llama", ignore=shutil.ignore_patterns("*.safetensors"))
    (llama / "model.safetensors").touch()
    tree = golden_tree(tmp_path)
    tree["model"] |= {"image_size": image_size, "slot_dims": {"image": 16}, "llama_model": str(llama), "ckpt": "nowhere.pth"}
    block = {"type": "custom", "data_root": str(tmp_path), "annotation_file": "clips.csv"}
    tree["datasets"], tree["evaluation_datasets"] = {"clips": block}, {"questions": block}
    config = loaded(tmp_path, tree)
    for training, label in ((True, "datasets.clips"), (False, "evaluation_datasets.questions")):
        with pytest.raises(UserError) as error:
            config.runner_class(config, training=training)
        text = str(error.value)
        assert f"{label}: {tmp_path}/eva/a.npy (slot image + cls): shape ({1 + patches}, 16)" in text
        assert f"which is image_size {image_size}; it was computed at image_size {made_at}" in text
    assert not (tmp_path / "out").exists()
