"""emollama init: starter configurations, filled in from the contents of a folder."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import GOLDEN
from omegaconf import OmegaConf

from emollama.commands import init, pack
from emollama.config import load
from emollama.demo.folder import WHAT
from emollama.errors import UserError
from emollama.paths import packaged_copy
from emollama.starter.kinds import KINDS
from emollama.starter.yaml_text import YamlText
from emollama.stores.manifest import Manifest


@pytest.fixture
def data(tmp_path, monkeypatch):
    """An empty data folder below the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EMOLLAMA_DATA", raising=False)
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def run(kind, data=None, output=None):
    init.run(SimpleNamespace(kind=kind, data=data and str(data), output=output and str(output)))


def loaded(kind, data=None):
    """Write the configuration of a kind and load it."""
    run(kind, data)
    return load(f"{kind}.yaml", needs_model=True)


def missing(kind):
    """Keys that the new file marks as missing."""
    lines = Path(f"{kind}.yaml").read_text().splitlines()
    return [line.partition(":")[0].strip() for line in lines if "# MISSING" in line]


def write_arrays(folder, names, shape):
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{name}.npy", np.zeros(shape, np.float32))


def write_features(folder, names, width=8, num_vectors=5):
    write_arrays(folder / "eva", names, (num_vectors, width))
    for name in ("mae_340_UTT", "maeV_399_UTT", "HL-UTT"):
        write_arrays(folder / name, names, (width,))


def write_list(path, labels):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"clip_{i} 10 {label}\n" for i, label in enumerate(labels)))
    return [f"clip_{i}" for i in range(len(labels))]


def write_table(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def add_demo(folder, checkpoints=()):
    """Write a demo folder with a corpus, a language model and checkpoints."""
    shutil.copytree(GOLDEN / "data", folder / "corpus/train")
    shutil.copytree(GOLDEN / "data", folder / "corpus/test")
    shutil.copy(folder / "corpus/test/MERR_fine_grained.txt", folder / "corpus/test/EMER_NCE.txt")
    shutil.copytree(GOLDEN / "llama", folder / "llm")
    mark_demo(folder)
    for path in checkpoints:
        write_checkpoint(folder / path)


def mark_demo(folder):
    """Mark a folder as an output of ``emollama demo``."""
    (folder / "demo.json").write_text(json.dumps({"what": WHAT}))


def write_checkpoint(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def next_commands(capsys):
    return [line.strip() for line in capsys.readouterr().out.rpartition("Next:\n")[2].splitlines()]


def write_llm(folder):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.model").touch()


def add_golden(data):
    """Write the golden corpus as a complete folder for stages 1 and 2."""
    shutil.copytree(GOLDEN / "data", data / "MERR")
    shutil.copytree(GOLDEN / "llama", data / "checkpoints/Llama-2-7b-chat-hf")
    shutil.copy(GOLDEN / "checkpoint_slim.pth", data / "checkpoints/minigptv2_checkpoint.pth")
    shutil.copy(GOLDEN / "checkpoint_slim.pth", data / "checkpoints/stage_1.pth")


# Names of files


@pytest.mark.parametrize("name", ["d${x}", "${oc.env", "two\nlines: x", "d\u2028e", "q\"uo'te #", "- a: [b", "naïve 東"])
def test_a_data_folder_with_any_name_gives_a_configuration_with_correct_paths(tmp_path, data, name):
    data = data.rename(tmp_path / name)
    (data / name).mkdir()
    shutil.copytree(GOLDEN / "data", data / name / "MERR")
    write_llm(data / name / "llama")
    write_checkpoint(data / name / "minigptv2_checkpoint.pth")
    config = loaded("stage1", data)
    resolved = config.resolved()
    assert resolved["paths"]["root"] == str(data)
    assert resolved["datasets"]["feature_face_caption"]["data_root"] == str(data / name / "MERR")
    assert config.model.llama_model == str(data / name / "llama")
    write_checkpoint(Path(config.run.output_dir) / "stage_1/checkpoint_29.pth")
    run("stage2", data)
    assert load("stage2.yaml").model.ckpt == f"{config.run.output_dir}/stage_1/checkpoint_29.pth"


@pytest.mark.parametrize("below", [False, True], ids=["the folder", "in the folder"])
def test_a_name_that_is_not_utf_8_is_an_error_and_nothing_is_written(data, emollama, below):
    bad = data / "a\udcff"
    shutil.copytree(GOLDEN / "data", bad)
    completed = emollama("init", "stage1", "--data", data if below else bad)
    assert completed.returncode == 1
    name = "datasets.feature_face_caption.data_root: the name '${paths.root}" if below else f"--data: the name '{data}"
    assert completed.stderr == f"error: {name}/a\\udcff' is not UTF-8. Rename it, or use another path.\n"
    assert not Path("stage1.yaml").exists()


# Complete folders


@pytest.mark.parametrize("kind", ["stage1", "stage2"])
def test_a_complete_folder_gives_a_configuration_that_passes_check_data(data, kind, capsys):
    from emollama.checks.check_data import check

    add_golden(data)
    config = loaded(kind)
    assert missing(kind) == []
    assert {slot: keys["dim"] for slot, keys in config.model.slots.items()} == {
        "image": 176,
        "face": 1024,
        "video": 1024,
        "audio": 1024,
    }
    assert config.model.image_size == 112
    assert [str(finding) for finding in check(config).of_level("problem")] == []
    out = capsys.readouterr().out
    assert f"emollama train --cfg-path {kind}.yaml" in out
    assert "Missing" not in out


def test_comments_and_settings_of_the_shipped_configuration_are_preserved(data):
    add_golden(data)
    config = loaded("stage2")
    text = Path("stage2.yaml").read_text()
    assert text.startswith("# Train stage 2: full descriptions, from a checkpoint of stage 1.\n")
    assert "Written by `emollama init stage2` from train_configs/minigptv2_tuning_stage_2.yaml" in text
    assert "# {reason: 0.3, reason_v2: 0.7} mixes by weight" in text
    shipped = load("train_configs/minigptv2_tuning_stage_2.yaml")
    assert config.run == dataclasses.replace(shipped.run, job_id="stage_2")
    assert config.datasets["feature_face_caption"].annotation_file == "MERR_fine_grained.txt"
    assert config.model.ckpt == str(data / "checkpoints/stage_1.pth")


def test_a_demo_folder_gives_the_demos_settings(data, tmp_path, monkeypatch):
    demo = tmp_path / "demo_run"
    shutil.copytree(GOLDEN / "data", demo / "corpus/train")
    shutil.copytree(GOLDEN / "llama", demo / "llm")
    mark_demo(demo)
    data.rmdir()
    config = loaded("stage1")  # demo_run is in the current directory
    assert config.tree.model.preset == "tiny"
    assert config.datasets["feature_face_caption"].data_root == str(demo / "corpus/train")
    assert config.run.output_dir == str(demo)
    assert missing("stage1") == []
    run("stage1", demo / "corpus/train", "inside.yaml")  # a folder inside the demo
    assert load("inside.yaml").unresolved() == config.unresolved()


def test_the_video_demo_gives_its_encoders_and_starts_with_the_import(data, tmp_path, capsys):
    demo = tmp_path / "demo_videos"
    (demo / "videos").mkdir(parents=True)
    (demo / "encoders").mkdir()
    (demo / "videos/clip_000.mp4").touch()
    mark_demo(demo)
    write_table(demo / "labels.csv", ["name", "emotion", "sentence"], [["clip_000", "happy", "Hello"]])
    config = loaded("videos", demo)
    assert config.tree.model.preset == "tiny"
    assert config.encoders["eva"].image_size == 56
    assert config.extraction.output == str(demo / "clips")
    commands = [line.split() for line in capsys.readouterr().out.rpartition("Next:\n")[2].splitlines()]
    assert commands[0][1:3] == ["import", "videos"]
    assert commands[0][-1] == str(demo / "clips")
    assert commands[-1][-2:] == ["--nproc", "2"]


def test_the_caption_demo_gives_its_models(data, tmp_path):
    demo = tmp_path / "demo_flickr"
    for path in ("flickr30k/images/1.jpg", "projection.pth", "encoders/eva_vit.pth", "encoders/q_former.pth"):
        (demo / path).parent.mkdir(parents=True, exist_ok=True)
        (demo / path).touch()
    mark_demo(demo)
    (demo / "flickr30k/flickr30k_train.json").write_text(json.dumps([{"image_id": "1", "caption": "A disc"}]))
    write_llm(demo / "llm")
    config = loaded("flickr30k", demo)
    assert config.model.ckpt == str(demo / "projection.pth")
    assert config.model.image_size == 56
    assert missing("flickr30k") == []


def test_user_data_takes_precedence_over_a_demo_in_the_same_folder(data, tmp_path):
    add_golden(data)
    shutil.copytree(GOLDEN / "data", data / "demo_run/corpus/train")
    mark_demo(data / "demo_run")
    assert loaded("stage1").datasets["feature_face_caption"].data_root == str(data / "MERR")


def test_a_demo_json_of_another_origin_does_not_mark_a_demo(data):
    add_golden(data)
    for folder in (data, data / "MERR"):
        (folder / "demo.json").write_text('{"clips": ["clip_0"]}')
    config = loaded("stage1")
    assert config.tree.model.preset != "tiny"
    assert config.datasets["feature_face_caption"].data_root == str(data / "MERR")


# Partial folders


def test_missing_files_are_marked_in_the_configuration_and_printed_with_a_remedy(data, capsys):
    names = write_list(data / "mine.txt", ["happy", "sad"])
    write_arrays(data / "HL-UTT", names, (16,))
    config = loaded("stage1")
    block = config.datasets["feature_face_caption"]
    assert block.task_pool == ["emotion"]
    assert (block.annotation_file, block.features["audio"]) == ("mine.txt", "HL-UTT")
    assert config.model.slots["audio"]["dim"] == 16
    assert set(missing("stage1")) == {
        "llama_model", "ckpt", "transcription_path", "image", "face", "video"
    }  # fmt: skip
    out = capsys.readouterr().out
    assert "model.ckpt: no such file; download the MiniGPT-v2 checkpoint" in out
    assert "no captions or labels were found for reason" in out


def test_a_checkpoint_selected_only_by_its_name_is_marked(data):
    add_golden(data)
    run("stage2", output="usual.yaml")
    (data / "run").mkdir()
    (data / "checkpoints/stage_1.pth").rename(data / "run/checkpoint_best.pth")
    run("stage2", output="guessed.yaml")
    texts = [Path(name).read_text().splitlines() for name in ("usual.yaml", "guessed.yaml")]
    usual, guessed = (next(line for line in lines if "ckpt:" in line) for lines in texts)
    assert "stage_1.pth" in usual and "chosen" not in usual
    assert "/run/checkpoint_best.pth" in guessed
    assert "chosen by its name: check that it is the right file" in guessed


def test_labels_outside_the_nine_defaults_are_written_into_the_dataset_block(data):
    write_features(data, write_list(data / "mine.txt", ["happiness", "sadness", "happiness"]))
    assert loaded("stage1").datasets["feature_face_caption"].labels == ["happiness", "sadness"]


def test_features_in_another_folder_are_used_and_clips_without_them_counted(data):
    names = write_list(data / "lists/train.txt", ["happy", "sad", "angry"])
    write_features(data / "features", names[:2])
    config = loaded("stage1")
    assert config.datasets["feature_face_caption"].features["image"] == str(data / "features/eva")
    assert "for 2 clips; 1 clips have no array" in Path("stage1.yaml").read_text()


def test_a_training_list_is_preferred_for_training_and_a_test_list_for_evaluation(data):
    names = write_list(data / "test.txt", ["happy", "sad"])
    write_list(data / "train.txt", ["happy", "sad"])
    write_features(data, names)
    assert loaded("stage1").datasets["feature_face_caption"].annotation_file == "train.txt"
    config = loaded("recognition")
    assert config.evaluation_datasets.keys() == {"clips"}
    assert config.evaluation_datasets["clips"].dataset.annotation_file == "test.txt"


def test_an_eva_cache_with_another_number_of_vectors_is_marked(data):
    write_features(data, write_list(data / "mine.txt", ["happy", "sad"]), num_vectors=7)
    run("stage1")
    assert "image_size" in missing("stage1")


def test_names_with_subfolders_are_matched_with_feature_folders(data):
    (data / "mine.txt").write_text("a/clip happy\nb/clip sad\n")
    write_features(data, ["a/clip", "b/clip"])
    assert loaded("stage1").datasets["feature_face_caption"].features["face"] == "mae_340_UTT"


def test_a_slot_of_a_manifest_is_declared_in_the_model_and_filled_by_the_dataset(data):
    names = write_list(data / "mine.txt", ["happy", "sad"])
    write_features(data, names)
    write_arrays(data / "looks", names, (3, 7))
    Manifest(("gaze",), None, 7, {}, "", "float32").write(data / "looks")
    config = loaded("stage1")
    assert config.datasets["feature_face_caption"].features["gaze"] == "looks"
    assert config.model.slots["gaze"] == {"dim": 7, "length": None}
    assert config.model.slots["image"] == {"dim": 8, "class_token": "cls"}


@pytest.mark.parametrize("form", ["packed", "tar"])
def test_packed_and_tar_features_are_detected(data, form, capsys):
    source = data.parent / "source"
    write_arrays(source, write_list(data / "mine.txt", ["happy", "sad"]), (16,))
    parser = argparse.ArgumentParser()
    pack.add_arguments(parser)
    pack.run(parser.parse_args(["--source", str(source), "--output", str(data / "hubert_shards"), "--to", form]))
    config = loaded("stage1")
    assert config.datasets["feature_face_caption"].features["audio"] == "hubert_shards"
    assert config.model.slots["audio"]["dim"] == 16


# The other kinds


def test_recognition_contains_only_blocks_whose_data_exists(data):
    write_features(data / "MER2024", write_list(data / "MER2024/MER2024-noise_NCE.txt", ["happy", "sad"]))
    write_table(data / "DFEW/test(single-labeled)/set_1.csv", ["video_name", "label"], [["1", "1"], ["2", "3"]])
    write_features(data / "DFEW", ["00001", "00002"])
    config = loaded("recognition")
    assert config.evaluation_datasets.keys() == {"mer2024", "dfew"}
    assert config.evaluation_datasets["mer2024"].dataset.features["face"] == "mae_340_UTT"  # the existing file, not the default
    assert config.evaluation_datasets["dfew"].dataset.data_root == str(data / "DFEW")


def test_emer_uses_the_published_table(data):
    write_table(
        data / "EMER/emer.csv", ["names", "emotions", "subtitles", "reasons"], [["clip_0", "sad, tired", "Oh", "It is sad"]]
    )
    write_features(data / "EMER", ["clip_0"])
    config = loaded("emer")
    assert config.evaluation_datasets["emer"].dataset.annotation_file == "emer.csv"
    assert config.evaluation_datasets["emer"].dataset.transcription_path is None
    assert "tired" not in Path("emer.yaml").read_text()  # only the task emotion needs labels


def test_custom_uses_a_table_and_maps_its_columns(data):
    write_table(data / "mine/clips.csv", ["name", "label", "sentence"], [["clip_0", "happy", "Hello"], ["clip_1", "sad", ""]])
    write_features(data / "mine", ["clip_0", "clip_1"])
    config = loaded("custom")
    assert config.datasets.keys() == {"custom"}
    assert config.datasets["custom"].columns == {"emotion": "label"}
    assert config.datasets["custom"].task_pool == ["emotion"]


def test_a_table_without_answers_is_marked(data):
    write_table(data / "custom/clips.csv", ["name", "sentence"], [["clip_0", "Hello"]])
    write_features(data / "custom", ["clip_0"])
    run("custom")
    assert "task_pool" in missing("custom")


def test_custom_is_mixed_with_merr_if_merr_exists(data):
    add_golden(data)
    write_table(data / "custom/clips.csv", ["name", "emotion", "reason"], [["clip_0", "happy", "A smile"]])
    write_features(data / "custom", ["clip_0"], width=1024)
    config = loaded("custom")
    assert config.datasets.keys() == {"custom", "feature_face_caption"}
    assert config.datasets["custom"].task_pool == ["emotion", "reason"]


def test_user_videos_give_encoders_of_published_sizes_and_start_with_the_import(data, capsys):
    (data / "films").mkdir()
    (data / "films/a.mp4").touch()
    write_table(data / "labels.csv", ["name", "emotion"], [["a", "joy"]])
    (data / "checkpoints").mkdir()
    (data / "checkpoints/eva_vit_g.pth").touch()
    config = loaded("videos")
    assert config.extraction.videos == str(data / "films")
    assert config.encoders["eva"].image_size == 448
    assert config.encoders["eva"].weights == str(data / "checkpoints/eva_vit_g.pth")
    assert config.tree.model.get("preset") is None
    assert config.run.init_lr == 1e-5
    assert config.run.evaluate
    assert config.datasets["feature_face_caption"].labels == ["joy"]
    assert {"mae", "videomae", "hubert"} <= set(missing("videos"))
    commands = capsys.readouterr().out.rpartition("Next:\n")[2].splitlines()
    assert commands[0].strip().startswith(f"emollama import videos {data}/films {data}/labels.csv --output ")
    assert [line.split()[1] for line in commands] == ["import", "extract", "check-data", "train"]


def test_flickr30k_uses_a_prepared_caption_file(data):
    (data / "pictures").mkdir()
    (data / "pictures/1.jpg").touch()
    (data / "flickr30k_train.json").write_text(json.dumps([{"image_id": "1", "caption": "A dog"}]))
    write_llm(data / "checkpoints/vicuna-7b")
    write_llm(data / "checkpoints/another")
    config = loaded("flickr30k")
    assert config.datasets["flickr30k_caption"].image_path == "pictures"
    assert config.model.llama_model == str(data / "checkpoints/vicuna-7b")


def test_flickr30k_as_published_is_prepared_first(data, capsys):
    (data / "flickr30k/images").mkdir(parents=True)
    (data / "flickr30k/images/1.jpg").touch()
    (data / "flickr30k/flickr_annotations_30k.csv").write_text("raw,filename\n")
    run("flickr30k")
    command = capsys.readouterr().out.rpartition("Next:\n")[2].splitlines()[0].split()
    assert command[:3] == ["emollama", "prepare", "flickr30k"]
    assert command[4] == str(data / "flickr30k/flickr_annotations_30k.csv")


# Configurations of one folder are consistent


def test_the_stages_of_an_untrained_demo_refer_to_each_others_runs(data, tmp_path, capsys):
    add_demo(tmp_path / "X")
    chain = {"stage1": None, "stage2": "stage_1/checkpoint_3.pth", "emer": "stage_2/checkpoint_best.pth"}
    for kind, start in {**chain, "recognition": "stage_2/checkpoint_best.pth"}.items():
        config = loaded(kind, "X")
        assert config.model.ckpt == (start and str(tmp_path / "X" / start))
        assert missing(kind) == (["ckpt"] if start else [])
        assert config.run.job_id == {"stage1": "stage_1", "stage2": "stage_2"}.get(kind)
    train = [f"emollama train --cfg-path stage{stage}.yaml --nproc 2" for stage in (1, 2)]
    evaluate = ["emollama check-data --cfg-path recognition.yaml", "emollama eval --cfg-path recognition.yaml --nproc 2"]
    out = capsys.readouterr().out
    assert [line.strip() for line in out.rpartition("Next:\n")[2].splitlines()] == [*train, *evaluate]
    line = next(line for line in out.splitlines() if line.startswith("  model.ckpt: no such file yet"))
    assert "'emollama train --cfg-path stage1.yaml' writes it" in line
    assert "with --options model.ckpt=FILE" in line


def test_the_next_commands_first_write_the_configurations_of_missing_stages(data, tmp_path, capsys):
    add_demo(tmp_path / "a demo")
    run("emer", "a demo")
    commands, init = next_commands(capsys), f"--data '{tmp_path}/a demo'"
    assert [line.removeprefix("emollama ").partition(" --nproc")[0] for line in commands] == [
        f"init stage2 {init}", f"init stage1 {init}",
        "check-data --cfg-path stage1.yaml", "train --cfg-path stage1.yaml",
        "check-data --cfg-path stage2.yaml", "train --cfg-path stage2.yaml",
        "check-data --cfg-path emer.yaml", "eval --cfg-path emer.yaml",
    ]  # fmt: skip
    run("stage2", "a demo")
    run("stage1", "a demo")
    starts = [load(f"{kind}.yaml", needs_model=True).model.ckpt for kind in ("stage2", "emer")]
    assert starts == [str(tmp_path / "a demo" / path) for path in ("stage_1/checkpoint_3.pth", "stage_2/checkpoint_best.pth")]


def test_the_stages_of_user_data_refer_to_each_others_runs(data, capsys):
    add_golden(data)
    (data / "checkpoints/stage_1.pth").unlink()
    assert loaded("stage1").run.job_id == "stage_1"
    assert loaded("stage2").model.ckpt == "checkpoints/save_checkpoint/stage_1/checkpoint_29.pth"
    assert missing("stage2") == ["ckpt"]
    assert next_commands(capsys)[0] == "emollama train --cfg-path stage1.yaml"
    text = Path("stage1.yaml").read_text()
    Path("stage1.yaml").write_text(text.replace("max_epoch: 30", "max_epoch: 2"))
    Path("stage2.yaml").unlink()
    assert loaded("stage2").model.ckpt == "checkpoints/save_checkpoint/stage_1/checkpoint_1.pth"


def test_the_checkpoint_of_the_newest_epoch_of_an_unfinished_run_is_used(data, tmp_path, capsys):
    add_demo(tmp_path / "X", [f"stage_1/checkpoint_{name}.pth" for name in (0, 1, "last")])
    assert loaded("recognition", "X").model.ckpt == str(tmp_path / "X/stage_1/checkpoint_1.pth")  # stage 2 has no checkpoint
    assert loaded("stage2", "X").model.ckpt == str(tmp_path / "X/stage_1/checkpoint_1.pth")
    assert missing("stage2") == missing("recognition") == []
    run("emer", "X")
    assert missing("emer") == ["ckpt"]  # stage 1 does not replace stage 2
    assert next_commands(capsys)[0] == "emollama train --cfg-path stage2.yaml --nproc 2"


def test_a_stage_trained_before_gets_a_new_run_folder_used_by_the_next_stage(data, tmp_path):
    add_demo(tmp_path / "X", ["stage_1/checkpoint_3.pth"])
    assert loaded("stage2", "X").model.ckpt == str(tmp_path / "X/stage_1/checkpoint_3.pth")
    assert loaded("stage1", "X").run.job_id == "stage_1_2"
    Path("stage2.yaml").unlink()
    assert loaded("stage2", "X").model.ckpt == str(tmp_path / "X/stage_1_2/checkpoint_3.pth")
    assert missing("stage2") == ["ckpt"]


def test_checkpoints_and_configurations_of_other_data_are_not_used(data, tmp_path, capsys):
    add_golden(data)
    (data / "checkpoints/stage_1.pth").unlink()
    run("stage1")
    write_checkpoint(Path("checkpoints/save_checkpoint/stage_1/checkpoint_29.pth"))
    Path("checkpoints/save_checkpoint/stage_1/config.yaml").write_text(f"paths: {{root: {data}}}")
    assert loaded("stage2").model.ckpt == "checkpoints/save_checkpoint/stage_1/checkpoint_29.pth"
    shutil.copytree(data, tmp_path / "other")
    Path("stage2.yaml").unlink()
    capsys.readouterr()
    assert loaded("stage2", "other").model.ckpt == "checkpoints/save_checkpoint/stage_1_2/checkpoint_29.pth"
    assert "stage1.yaml is for other data or has no run.job_id" in capsys.readouterr().out


def test_the_feature_dimension_is_printed_without_the_shape_of_a_single_array(data, capsys):
    names = write_list(data / "mine.txt", ["happy", "sad"])
    write_arrays(data / "mae_340_UTT", names[:1], (1, 16))
    np.save(data / "mae_340_UTT" / f"{names[1]}.npy", np.zeros(16, np.float32))
    run("stage1")
    assert "features.face: mae_340_UTT (dimension 16, for 2 clips)" in capsys.readouterr().out


# Refusals


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_without_usable_data_is_refused_with_the_required_data(data, kind):
    (data / "README.txt").write_text("Nothing of use in here, really.\n")
    (data / "notes.json").write_text("{}")
    with pytest.raises(UserError) as caught:
        run(kind)
    message = str(caught.value)
    assert message.startswith(f"--data: 'data' contains no data for '{kind}'. Searched for: ")
    assert KINDS[kind].required_data[0] in message
    assert not Path(f"{kind}.yaml").exists()


def test_the_contents_are_listed_if_only_the_table_or_list_is_missing(data):
    write_features(data / "mine", ["clip_0"])
    for kind, needed in (
        ("custom", "a .csv table with the columns name and emotion or reason"),
        ("stage1", "an annotation file"),
    ):
        with pytest.raises(UserError) as caught:
            run(kind)
        assert "'data' contains the feature folders mine/HL-UTT, mine/eva, mine/maeV_399_UTT, mine/mae_340_UTT." in str(
            caught.value
        )
        assert needed in str(caught.value).partition("this is missing:")[2]
    write_table(data / "mine/table.csv", ["name", "sentence"], [["clip_0", "Hello"]])
    with pytest.raises(UserError, match=re.escape("the tables mine/table.csv (columns name, sentence)")):
        run("custom")


def test_a_missing_folder_is_reported_before_an_existing_file(data):
    Path("stage1.yaml").touch()
    with pytest.raises(UserError, match="--data: the folder 'nowhere' does not exist"):
        run("stage1", "nowhere")


@pytest.mark.parametrize("kind", ["stage1", "stage2", "emer", "recognition"])
def test_the_first_comment_of_a_demos_configuration_is_a_whole_sentence(data, tmp_path, kind):
    add_demo(tmp_path / "X")
    shutil.copy(tmp_path / "X/corpus/test/EMER_NCE.txt", tmp_path / "X/corpus/test/test_NCEV.txt")
    run(kind, "X")
    first, second = Path(f"{kind}.yaml").read_text().splitlines()[:2]
    assert first.endswith(".")
    assert second.startswith("# Written by")


def test_an_existing_file_is_not_replaced(data):
    add_golden(data)
    Path("stage1.yaml").write_text("mine")
    with pytest.raises(UserError, match="--output: 'stage1.yaml' already exists"):
        run("stage1")
    assert Path("stage1.yaml").read_text() == "mine"


def test_a_folder_that_does_not_exist_is_refused(data):
    with pytest.raises(UserError, match="--data: the folder '.*nowhere' does not exist"):
        run("stage1", data / "nowhere")


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_read(data):
    Path("taken").touch()
    with pytest.raises(UserError, match="--output: cannot write under"):
        run("stage1", data, "taken/stage1.yaml")


# Choices


def test_the_environment_variable_of_the_data_folder_is_the_default(data, tmp_path, monkeypatch):
    other = tmp_path / "other"
    add_golden(other)
    monkeypatch.setenv("EMOLLAMA_DATA", str(other))
    assert loaded("stage1").datasets["feature_face_caption"].data_root == str(other / "MERR")


def test_an_invalid_environment_variable_is_named_in_the_error(data, monkeypatch):
    monkeypatch.setenv("EMOLLAMA_DATA", "nowhere")
    with pytest.raises(UserError, match="EMOLLAMA_DATA: the folder 'nowhere' does not exist"):
        run("stage1")
    with pytest.raises(UserError, match="--data: '.*' contains no data for 'stage1'"):
        run("stage1", data)


def test_without_a_kind_the_kinds_are_listed(data, capsys):
    run(None)
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in KINDS)


def test_each_kind_has_a_shipped_template():
    for kind in KINDS.values():
        assert packaged_copy(kind.template).is_file()
        assert packaged_copy(kind.demo).is_file()


def test_the_starter_uses_the_default_names_and_widths_of_the_components():
    from emollama.models.configs import MiniGPTv2Config
    from emollama.registry import DATASETS, MODELS
    from emollama.starter.defaults import defaults, feature_folders

    assert defaults(MODELS, "minigpt_v2")["slots"] == MiniGPTv2Config(llama_model="x").slots
    assert "llama_model" not in defaults(MODELS, "minigpt_v2")
    for name in DATASETS.names():
        required = {"storage": "x"} if name == "image_text_tars" else {"annotation_file": "x", "image_path": "y"}
        config = DATASETS.config(name)(**required)
        assert defaults(DATASETS, name) | required == dataclasses.asdict(config)
    assert feature_folders() == ["eva", "mae_340_UTT", "maeV_399_UTT", "HL-UTT"]


def test_a_mer2024_list_uses_the_feature_folders_of_its_dataset(data):
    names = write_list(data / "MER2024/MER2024-noise_NCE.txt", ["happy", "sad"])
    write_features(data / "MER2024", names)
    write_arrays(data / "MER2024/HL_23_UTT", names, (8,))
    config = loaded("recognition")
    assert config.evaluation_datasets["mer2024"].dataset.features["audio"] == "HL_23_UTT"


# Edits of YAML text

TEXT = """# first

model:
  arch: x                                # the model
  end_sym: "###"
  prompt: "a # b"    # ask

data:
  one:
    a: True
    b: [1, 2]
  two:
    a: 2e-3
"""


def test_a_yaml_text_without_edits_is_unchanged():
    assert str(YamlText(TEXT)) == TEXT
    shipped = [packaged_copy(path) for kind in KINDS.values() for path in (kind.template, kind.demo)]
    changed = [path.name for path in shipped if str(YamlText(path.read_text())) != path.read_text()]
    assert changed == []


def test_comments_and_blank_lines_between_keys_are_removed():
    text = TEXT.replace("data:", "# between\ndata:").replace("    b:", "    # inside\n    b:").replace("  two:", "\n  two:")
    assert str(YamlText(text)) == TEXT


def test_a_value_is_replaced_and_its_comment_stays():
    text = YamlText(TEXT)
    text.set("model.arch", "z")
    text.set("model.prompt", "c")
    text.set("data.two.a", {"x": "{y}"}, "two")
    lines = str(text).splitlines()
    edited = [lines[index].split("  #") for index in (3, 5, -1)]
    assert [value.rstrip() for value, _ in edited] == ["  arch: z", '  prompt: "c"', """    a: {x: "{y}"}"""]
    assert [comment for _, comment in edited] == [" the model", " ask", " two"]
    assert lines[-1].index("#") == 43


def test_values_are_read_without_their_comments():
    text = YamlText(TEXT)
    assert text.get("model.end_sym") == "###"
    assert text.get("model.prompt") == "a # b"
    assert text.get("data.one.c") is None
    assert text.get("data.three.c") is None
    assert list(text.get("data")) == ["one", "two"]


def test_new_keys_are_added_at_the_end_of_their_block_and_dropped_blocks_removed():
    text = YamlText(TEXT)
    text.set("model.new", 1)
    text.set("data.one.c", True)
    text.drop("data.two")
    text.drop("data.three")
    text.rename("data.one", "first")
    expected = TEXT.replace("# ask\n", "# ask\n  new: 1\n").replace("  one:", "  first:")
    assert str(text) == expected.replace("  two:\n    a: 2e-3\n", "    c: True\n")


@pytest.mark.parametrize(
    "value",
    ["yes", "1e5", "a: b", "#x", "-", "", "x#y", "a, b", "{a}", "007", "~", "null", "on", "1:30", "2020-01-01", "plain/path 2"],
)
def test_a_text_value_is_read_back_unchanged(value):
    import yaml

    text = YamlText("a:")
    values = {"text": value, "list": [value, 1], "map": {"k": value}, "new": {"maps": {"k": [value]}}}
    for name, item in values.items():
        text.set(f"b.{name}", item)
    assert yaml.safe_load(str(text)) == {"a": None, "b": values}
    assert OmegaConf.to_container(OmegaConf.create(str(text)))["b"] == values
