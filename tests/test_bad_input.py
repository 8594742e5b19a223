"""Bad input, end to end: the error names the file, line or key and the remedy, and no output is written."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import FOLDERS, GOLDEN, NAMES, golden_tree, loaded

from emollama import checkpoint
from emollama.checkpoint_files import require_weights
from emollama.errors import UserError

LIST = "MERR_coarse_grained.txt"


@pytest.fixture
def tree(tmp_path, corpus):
    """A configuration of the copied corpus; tests damage one or both."""
    return golden_tree(tmp_path, corpus)


@pytest.fixture
def refused(tmp_path, tree):
    """A function that runs the configuration, checks that no output is written and returns the error message."""

    def text(*options, training=True, output="out"):
        with pytest.raises(UserError) as error:
            config = loaded(tmp_path, tree, *options)
            config.runner_class(config, training=training)
        assert not (tmp_path / output).exists()
        return str(error.value)

    return text


def changed(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_the_intact_corpus_can_be_loaded_and_only_the_lock_is_written(tmp_path, tree):
    config = loaded(tmp_path, tree)
    runner = config.runner_class(config)
    assert runner.total_steps == 2
    assert list(runner.folder.iterdir()) == [runner.folder / ".lock"]


# Configuration


def test_an_unknown_key_is_refused_with_the_nearest_key(refused, tree):
    tree["run"]["iters_per_epochs"] = 3
    message = refused()
    assert "config.yaml: unknown key 'run.iters_per_epochs'. Did you mean 'iters_per_epoch'?" in message


def test_an_unknown_model_is_refused_with_the_nearest_name(refused, tree):
    tree["model"]["arch"] = "minigptv2"
    assert "model.arch: Unknown model 'minigptv2'. Did you mean 'minigpt_v2'? Registered: " in refused()


def test_an_unknown_fusion_names_its_key(refused, tree):
    tree["model"]["fusion"] = "lineal"
    message = refused()
    assert "fusion" in message and "Did you mean 'linear'?" in message


def test_a_declared_slot_that_no_dataset_fills_is_refused(refused, tree):
    tree["model"]["slot_dims"]["gait"] = 3
    message = refused()
    assert "model.slots declares 'gait', but no block under 'datasets' has features for it. Set features.gait" in message


def test_features_without_a_slot_are_refused_with_the_declaration_to_add(refused, tree):
    tree["datasets"]["golden"]["features"] = {"gaze": "gaze_npy"}
    message = refused()
    assert "datasets.golden.features: the model has no slot for gaze. Its slots are image, face, video, audio." in message
    assert "slots: {gaze: {dim: D}}" in message


def test_a_slot_that_is_set_under_both_of_its_names_is_refused(refused, tree):
    tree["datasets"]["golden"] |= {"features": {"audio": "a"}, "audio_feature_path": "b"}
    message = refused()
    assert "'datasets.golden.audio_feature_path' and 'datasets.golden.features.audio' set the same slot. Keep one" in message


def test_a_slot_with_the_name_of_a_class_token_is_declared_twice(refused, tree):
    tree["model"]["slots"] = {"cls": {"dim": 3}}
    assert "model: slots.image.class_token: the slot 'cls' is declared twice." in refused()


def test_an_unknown_task_in_the_pool_is_refused_with_the_nearest_name(refused, tree):
    tree["datasets"]["golden"]["task_pool"] = ["emotoin"]
    message = refused()
    assert "datasets.golden: task_pool: unknown task 'emotoin'. Did you mean 'emotion'? Known: " in message


def test_a_prompt_label_that_would_break_the_template_is_refused(refused, tree):
    tree["datasets"]["golden"]["prompt_labels"] = ["happy", "{sad}"]
    assert "datasets.golden: prompt_labels: the label '{sad}' would break the prompt" in refused()


def test_a_configuration_without_a_training_block_is_refused(refused, tree):
    tree["datasets"] = {}
    message = refused()
    assert "'datasets' has no block. Add one" in message
    assert message.endswith(" To evaluate the blocks of 'evaluation_datasets', use emollama eval.")


def test_an_evaluation_without_an_evaluation_block_is_refused(refused, tree):
    del tree["evaluation_datasets"]
    message = refused(training=False)
    assert "'evaluation_datasets' has no block. Add one" in message and "held_out in a block of 'datasets'" in message
    assert message.endswith(" To train on 'datasets' without evaluations, use emollama train with run.evaluate=False.")


def test_blocks_of_different_batch_sizes_are_refused(refused, tree):
    tree["datasets"]["other"] = tree["datasets"]["golden"] | {"batch_size": 3}
    message = refused()
    assert "must have the same batch_size" in message and "'other': 3" in message and "'golden': 1" in message


# The annotation file


def test_an_unknown_label_is_reported_with_every_line(refused, corpus):
    changed(corpus / LIST, "worried", "elated")
    changed(corpus / LIST, "neutral", "calm")
    message = refused()
    assert f"{corpus / LIST}: 2 unknown labels: 'elated' (line 3, {NAMES[2]}), 'calm' (line 5, {NAMES[4]})" in message
    assert "Known: happy" in message


def test_a_row_with_too_many_fields_is_refused_with_its_line(refused, corpus):
    changed(corpus / LIST, "23 angry", "23 angry 1 2")
    message = refused()
    assert f"{corpus / LIST}, line 2: expected 3 or 4 fields" in message and "expected" in message


def test_a_name_that_leaves_its_folder_is_refused_with_its_line(refused, corpus):
    changed(corpus / LIST, NAMES[3], f"../../{NAMES[3]}")
    message = refused()
    assert f"{corpus / LIST}, line 4: the clip name '../../{NAMES[3]}' points outside its folder" in message


def test_an_empty_list_is_refused(refused, corpus):
    (corpus / LIST).write_text("\n")
    assert f"{corpus / LIST}: the list has no usable line" in refused()


def test_a_missing_list_is_refused_with_its_key(refused, corpus):
    (corpus / LIST).unlink()
    message = refused()
    assert "annotation_file" in message and str(corpus / LIST) in message


# All clips with missing data are listed and counted


def test_missing_captions_transcripts_and_features_are_reported_together(refused, corpus, tree):
    tree["datasets"]["golden"]["task_pool"] = ["emotion", "reason", "reason_v2"]
    coarse = json.loads((corpus / "MERR_coarse_grained.json").read_text())
    (corpus / "MERR_coarse_grained.json").write_text(json.dumps({name: coarse[name] for name in NAMES[2:]}))
    fine = json.loads((corpus / "MERR_fine_grained.json").read_text())
    del fine[NAMES[5]]["smp_reason_caption"]
    (corpus / "MERR_fine_grained.json").write_text(json.dumps(fine))
    lines = (corpus / "transcription_en_all.csv").read_text().splitlines()
    (corpus / "transcription_en_all.csv").write_text("\n".join(row for row in lines if NAMES[1] not in row))
    for slot, folder in FOLDERS.items():
        (corpus / folder / f"{NAMES[0 if slot == 'image' else 4]}.npy").unlink()
    message = refused()
    assert f"no caption for task reason for 2 clips: {NAMES[0]}, {NAMES[1]}. Remedy" in message
    assert f"no caption for task reason_v2 for 1 clip: {NAMES[5]}. Remedy" in message
    assert f"no row in transcription_en_all.csv for 1 clip: {NAMES[1]}. Remedy" in message
    assert f"features.image ({corpus}/eva) for 1 clip: {NAMES[0]}. Remedy" in message
    for slot in ("face", "video", "audio"):
        assert f"features.{slot} ({corpus}/{FOLDERS[slot]}) for 1 clip: {NAMES[4]}. Remedy" in message


def test_problems_of_several_blocks_are_reported_together(refused, tree, corpus):
    tree["datasets"]["other"] = tree["datasets"]["golden"] | {"annotation_file": "MERR_fine_grained.txt"}
    (corpus / "HL-UTT" / f"{NAMES[0]}.npy").unlink()
    message = refused()
    assert "datasets.golden: no array in" in message and "datasets.other: no array in" in message


def test_a_missing_feature_folder_is_refused_with_its_key(refused, corpus):
    shutil.rmtree(corpus / "HL-UTT")
    assert f"datasets.golden.features.audio: no folder '{corpus}/HL-UTT'" in refused()


def test_invalid_json_of_captions_is_refused_with_file_and_line(refused, corpus, tree):
    tree["datasets"]["golden"]["task_pool"] = ["reason"]
    (corpus / "MERR_coarse_grained.json").write_text('{\n"a": {"caption": }\n}')
    assert f"{corpus}/MERR_coarse_grained.json, line 2: not valid JSON" in refused()


# Features


def spoil(path, kind):
    array = np.load(path)
    if kind == "width":
        array = array[..., :-1]
    elif kind in ("nan", "inf"):
        array.flat[7] = float(kind)
    elif kind == "object":
        array = array.astype(object)
    np.save(path, array)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize("slot", FOLDERS)
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("width", "expected ("),
        ("nan", "contains NaN or inf"),
        ("inf", "contains NaN or inf"),
        ("object", "cannot be read: it contains Python objects"),
        ("truncated", "cannot be read"),
    ],
)
def test_an_unusable_feature_names_file_slot_and_remedy(refused, corpus, slot, kind, expected):
    path = corpus / FOLDERS[slot] / f"{NAMES[2]}.npy"
    spoil(path, kind)
    text = refused()
    shown = "image + cls" if slot == "image" else slot
    assert f"datasets.golden: {path} (slot {shown}): " in text and expected in text and "Extract this clip again." in text


def test_all_unusable_feature_files_are_reported_together(refused, corpus):
    for name, kind in zip(NAMES[:4], ("width", "nan", "object", "truncated"), strict=True):
        spoil(corpus / "HL-UTT" / f"{name}.npy", kind)
    message = refused()
    assert all(f"{corpus}/HL-UTT/{name}.npy (slot audio)" in message for name in NAMES[:4])


def test_image_vectors_that_do_not_group_by_four_are_refused(refused, corpus):
    path = corpus / "eva" / f"{NAMES[1]}.npy"
    np.save(path, np.load(path)[:-1])
    message = refused()
    assert NAMES[1] in message and "shape (64, 176), expected (65, 176)" in message


def test_an_evaluation_checks_its_feature_files_too(refused, corpus):
    spoil(corpus / "HL-UTT" / f"{NAMES[0]}.npy", "nan")
    assert "evaluation_datasets.answers: " in refused(training=False)


# Checkpoints


@pytest.fixture
def spoiled(tmp_path, tree):
    """A function that configures a changed copy of the golden checkpoint and returns its path."""

    def put(change):
        content = torch.load(GOLDEN / "checkpoint_slim.pth", weights_only=True)
        change(content)
        path = tmp_path / "spoiled.pth"
        torch.save(content, path)
        tree["model"]["ckpt"] = str(path)
        return path

    return put


def test_a_checkpoint_with_a_missing_tensor_is_refused(refused, spoiled):
    path = spoiled(lambda content: content["model"].pop("llama_proj.weight"))
    message = refused()
    assert f"checkpoint {path}: 1 missing tensor: llama_proj.weight" in message and "ckpt_allow_missing" in message


def test_a_checkpoint_with_an_unexpected_tensor_is_refused(refused, spoiled):
    path = spoiled(lambda content: content["model"].update({"lm_head.weight": torch.zeros(1)}))
    assert f"checkpoint {path}: 1 unexpected tensor: lm_head.weight" in refused()


def test_a_checkpoint_of_another_lora_rank_is_refused_with_both_shapes(refused, tree):
    tree["model"]["lora_r"] = 8
    message = refused()
    assert (
        "8 tensors with different shapes: " in message
        and "lora_A.weight has shape (4, 64), expected (8, 64)" in message
        and "lora_r" in message
    )


def test_a_truncated_checkpoint_is_refused(refused, spoiled):
    path = spoiled(lambda content: None)
    path.write_bytes(path.read_bytes()[:-500])
    message = refused()
    assert f"model.ckpt: {path} is truncated" in message and "Copy it again" in message


class Payload:
    """An object whose unpickling creates a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_checkpoint_with_pickled_code_is_refused_and_the_code_not_executed(refused, spoiled, tmp_path):
    proof = tmp_path / "executed"
    path = spoiled(lambda content: content.update(config=Payload(proof)))
    message = refused()
    assert f"model.ckpt: {path} contains an object of type" in message and "Ask its author" in message
    assert not proof.exists()


def test_a_missing_checkpoint_is_refused_with_its_key(refused, tree):
    tree["model"]["ckpt"] = "nowhere.pth"
    assert "model.ckpt: no file 'nowhere.pth'" in refused()


def test_a_missing_language_model_folder_is_refused_with_its_key(refused, tree):
    tree["model"]["llama_model"] = "nowhere/llama"
    message = refused()
    assert "model.llama_model: no folder 'nowhere/llama'" in message and "Download" in message


# Existing runs


@pytest.fixture(scope="module")
def stored_content(tmp_path_factory):
    """The checkpoint of a run on the golden corpus after a step, without the configuration, which contains paths."""
    folder = tmp_path_factory.mktemp("stored")
    config = loaded(folder, golden_tree(folder))
    runner = config.runner_class(config)
    return {
        "model": torch.load(GOLDEN / "checkpoint_slim.pth", weights_only=True)["model"],
        "optimizer": runner.optimizer.state_dict(),
        "scaler": {},
        "step": 1,
        "epoch": 0,
        "skipped": [0, 0],
        "facts": runner._resume_fields,
    }


@pytest.fixture
def stored_run(tmp_path, tree, stored_content):
    """A function that writes the checkpoint of a run of this configuration after a step to the run folder."""

    def store(**keys):
        path = tmp_path / "out" / "run" / "checkpoint_last.pth"
        checkpoint.save(path, stored_content | {"config": loaded(tmp_path, tree).unresolved()} | keys)
        return path

    return store


def refusal(tmp_path, tree, *options):
    with pytest.raises(UserError) as error:
        config = loaded(tmp_path, tree, *options)
        config.runner_class(config)
    return str(error.value)


def listed(folder):
    return sorted(str(path) for path in folder.rglob("*"))


def test_a_new_run_is_refused_in_a_folder_with_checkpoints(tmp_path, tree, stored_run):
    path = stored_run()
    before = listed(tmp_path / "out")
    message = refusal(tmp_path, tree)
    assert f"{path.parent} contains another run" in message
    assert "run.resume_ckpt_path=auto" in message and "run.job_id" in message
    assert listed(tmp_path / "out") == before


def test_resuming_with_a_changed_configuration_is_refused_with_both_values(tmp_path, tree, stored_run):
    path = stored_run()
    before = listed(tmp_path / "out")
    message = refusal(tmp_path, tree, "run.resume_ckpt_path=auto", "run.init_lr=3e-4", "run.seed=7", "model.lora_alpha=4")
    assert f"run.resume_ckpt_path: {path}" in message and "Restore these values" in message and "model.ckpt" in message
    for line in (
        "run.init_lr: 1e-05 in the checkpoint, 0.0003 in this run",
        "run.seed: 42 in the checkpoint, 7 in this run",
        "model.lora_alpha: 16 in the checkpoint, 4 in this run",
    ):
        assert line in message
    assert listed(tmp_path / "out") == before


def test_a_resumed_run_may_replace_an_environment_variable_with_its_value(tmp_path, tree, monkeypatch, stored_run):
    monkeypatch.setenv("RANK_OF_LORA", "4")
    tree["model"]["lora_r"] = "${oc.env:RANK_OF_LORA}"
    stored_run()
    for rank in ("${oc.env:RANK_OF_LORA}", 4):
        tree["model"]["lora_r"] = rank
        config = loaded(tmp_path, tree, "run.resume_ckpt_path=auto")
        assert config.runner_class(config).first_step == 1


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has no weights (*.safetensors or *.bin)"),
        ({"model-1.safetensors": "", "model.safetensors.index.json": "[]"}, "model.safetensors.index.json' is damaged"),
        (
            {"model-1.safetensors": "", "model.safetensors.index.json": '{"weight_map": {"a": "model-1.safetensors", "b": "z"}}'},
            "lacks 1 file: z with weights",
        ),
    ],
    ids=["none", "damaged index", "missing file"],
)
def test_a_language_model_without_all_its_weights_is_refused(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match="model.llama_model: .*" + re.escape(message)):
        require_weights(str(tmp_path))


def test_a_run_is_refused_at_the_start_if_the_language_model_has_no_weights(tmp_path, tree):
    shutil.copytree(GOLDEN / "llama", tmp_path / "llama", ignore=shutil.ignore_patterns("*.safetensors"))
    tree["model"]["llama_model"] = str(tmp_path / "llama")
    assert "has no weights" in refusal(tmp_path, tree)


@pytest.mark.parametrize("value", ["sometimes", "0", "2.5", "null", "[1]"])
def test_recomputation_is_auto_true_false_or_a_whole_number(tmp_path, tree, value):
    message = refusal(tmp_path, tree, f"model.use_grad_checkpoint={value}")
    assert (
        "use_grad_checkpoint" in message and "auto, True, False, or a whole number of at least 1" in message and value in message
    )


@pytest.mark.parametrize("value", ["many", 0, -1, 2.5])
def test_the_maximum_of_tokens_is_auto_null_or_a_whole_number(tmp_path, tree, value):
    message = refusal(tmp_path, tree, f"run.max_tokens={value}")
    assert "max_tokens" in message and "auto, null, or a whole number of at least 1" in message and str(value) in message


@pytest.mark.parametrize(("text", "expected"), [("4096", 4096), ("auto", "auto")])
def test_the_maximum_of_tokens_can_come_from_an_environment_variable(tmp_path, tree, monkeypatch, text, expected):
    monkeypatch.setenv("MAX_TOKENS", text)
    assert loaded(tmp_path, tree, "run.max_tokens=${oc.env:MAX_TOKENS}").run.max_tokens == expected


def test_a_maximum_of_tokens_below_the_longest_sample_is_refused(tmp_path, tree):
    assert "run.max_tokens is 60, but the sample '" in refusal(tmp_path, tree, "run.max_tokens=60")
    assert not (tmp_path / "out").exists()


def test_resuming_with_another_global_batch_size_is_refused(tmp_path, tree, stored_run):
    stored_run(facts={"samples of a step (processes x batch_size x accum_grad_iters)": 6})
    message = refusal(tmp_path, tree, "run.resume_ckpt_path=auto")
    assert "samples of a step" in message and "6 in the checkpoint, 1 in this run" in message


def test_resuming_with_an_annotation_list_of_another_length_is_refused(tmp_path, tree, stored_run):
    path = stored_run()
    content = checkpoint.read(str(path), "x")
    label = next(name for name in content["facts"] if name.startswith("clips of"))
    checkpoint.save(path, content | {"facts": content["facts"] | {label: 5}})
    assert f"{label}: 5 in the checkpoint, 6 in this run" in refusal(tmp_path, tree, "run.resume_ckpt_path=auto")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["datasets.golden.transcription_path=null"], ["datasets.golden.transcription_path", "None in this run"]),
        (["datasets.golden.audio_feature_path=null"], ["datasets.golden.features.audio", "None in this run"]),
        (
            ["run.amp=True"],
            [
                "run.amp: False in the checkpoint, True in this run",
                "dtype: 'torch.float32' in the checkpoint, 'torch.bfloat16' in this run",
            ],
        ),
        (["datasets.golden.task_pool=[reason,emotion]"], ["task_pool"]),
    ],
)
def test_resuming_with_other_inputs_precision_or_tasks_is_refused(tmp_path, tree, options, expected, stored_run):
    stored_run()
    message = refusal(tmp_path, tree, "run.resume_ckpt_path=auto", *options)
    assert all(word in message for word in expected), message


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [("MERR_coarse_grained.txt", " happy", " sad"), ("transcription_en_all.csv", "letters, Tom", "papers, Tom")],
)
def test_resuming_with_changed_labels_or_transcripts_is_refused(tmp_path, tree, corpus, name, old, new, stored_run):
    stored_run()
    path = corpus / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    assert "annotation file and texts of golden" in refusal(tmp_path, tree, "run.resume_ckpt_path=auto")


def test_resuming_with_a_reordered_annotation_list_is_refused(tmp_path, tree, stored_run):
    stored_run()
    path = Path(loaded(tmp_path, tree).datasets["golden"].data_root) / LIST
    path.write_text("\n".join(reversed(path.read_text().splitlines())))
    assert "annotation file and texts of golden" in refusal(tmp_path, tree, "run.resume_ckpt_path=auto")


def test_resuming_beyond_the_last_epoch_is_refused(tmp_path, tree, stored_run):
    stored_run(step=10**9)
    assert "run.max_epoch" in refusal(tmp_path, tree, "run.resume_ckpt_path=auto")


def test_resuming_does_not_import_the_modules_that_a_checkpoint_names(tmp_path, tree, monkeypatch, stored_run):
    (tmp_path / "smuggled.py").write_text("raise SystemExit('executed')")
    monkeypatch.chdir(tmp_path)
    path = stored_run()
    content = checkpoint.read(str(path), "x")
    checkpoint.save(path, content | {"config": content["config"] | {"imports": ["smuggled"]}})
    config = loaded(tmp_path, tree, "run.resume_ckpt_path=auto")
    assert config.runner_class(config).first_step == 1


@pytest.mark.parametrize(
    "option", ["init_lr=-1", "init_lr=nan", "beta2=2", "weight_decay=-3", "max_grad_norm=-1", "max_grad_norm=0"]
)
def test_a_run_value_out_of_range_is_refused_by_its_key(tmp_path, tree, option):
    with pytest.raises(UserError, match=option.partition("=")[0]):
        loaded(tmp_path, tree, f"run.{option}")


def test_every_lora_target_must_exist(refused, tree):
    tree["model"]["lora_target_modules"] = ["q_proj", "v_projj"]
    message = refused()
    assert "model.lora_target_modules: the language model has no layer 'v_projj'. Did you mean 'v_proj'?" in message


def test_resuming_from_a_file_with_weights_alone_is_refused(tmp_path, tree):
    message = refusal(tmp_path, tree, f"run.resume_ckpt_path={GOLDEN / 'checkpoint_slim.pth'}")
    assert "missing entries: optimizer, scaler, step, skipped, facts" in message and "set model.ckpt instead" in message


def test_a_resumed_run_may_change_paths_intervals_workers_and_epochs(tmp_path, tree, stored_run):
    stored_run()
    options = ["run.resume_ckpt_path=auto", "run.max_epoch=3", "run.num_workers=1", "run.log_freq=3", "run.keep_last=2"]
    moved = shutil.copytree(tree["datasets"]["golden"]["data_root"], tmp_path / "moved")
    config = loaded(tmp_path, tree, *options, f"datasets.golden.data_root={moved}")
    runner = config.runner_class(config)
    assert (runner.first_step, runner.total_steps) == (1, 6)


def test_automatic_resuming_requires_a_job_id(refused, tree):
    tree["run"] |= {"resume_ckpt_path": "auto", "job_id": None}
    assert "run.resume_ckpt_path: auto needs run.job_id" in refused()


def test_an_evaluation_without_a_checkpoint_is_refused(tmp_path, tree):
    tree["model"]["ckpt"] = None
    config = loaded(tmp_path, tree)
    with pytest.raises(UserError, match="model.ckpt is null, so no trained weights are loaded"):
        config.runner_class(config, training=False)
