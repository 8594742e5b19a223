"""Messages for users: the lists in them, the keys they point to, and how they spell options."""

from __future__ import annotations

import argparse
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import GOLDEN, golden_block, golden_tree, loaded, write
from torch import nn

from emollama import checkpoint
from emollama.checks.check_data import check
from emollama.checks.report import text_of
from emollama.commands import check_data, score
from emollama.config import load
from emollama.config.reference import describe
from emollama.distributed import process_group
from emollama.errors import UserError
from emollama.evaluation.predictions import Prediction
from emollama.listing import LINES, abbreviated, listing
from emollama.logs.log_files import WriteFailures
from emollama.models.minigpt4 import MiniGPT4
from emollama.paths import require_file, require_folder
from emollama.registry import ENCODERS, MODELS
from emollama.runners.datasets import build_datasets, training_blocks
from emollama.runners.evaluation import Outcome, build_blocks
from emollama.runners.model_ckpt import missing_files
from emollama.runners.run_config import RunnerConfig
from emollama.runners.validation import Validation

NAMES = [f"clip_{number:05}" for number in range(28_618)]


def refusal(call, *args, **kwargs):
    with pytest.raises(UserError) as error:
        call(*args, **kwargs)
    return str(error.value)


def refused(tmp_path, *options, tree=None):
    """Return the message with which the configuration is refused."""
    return refusal(loaded, tmp_path, tree or golden_tree(tmp_path), *options)


def refused_score(*arguments):
    """Return the message with which ``emollama score`` refuses its arguments."""
    parser = argparse.ArgumentParser()
    score.add_arguments(parser)
    return refusal(score.run, parser.parse_args([str(argument) for argument in arguments]))


def file_in(message):
    """Return the lines of the file that a message names."""
    [path] = re.findall(r"all of them: ([^)]*)\)", message)
    return Path(path).read_text(encoding="utf-8").splitlines()


# Lists


def test_a_list_of_ten_is_complete():
    assert listing(NAMES[:10], "clip") == "10 clips: " + ", ".join(NAMES[:10])


def test_a_list_of_one_entry_has_a_singular_noun_and_an_irregular_plural_can_be_set():
    assert listing(["a"], "mismatch", "mismatches") == "1 mismatch: a"
    assert listing(["a", "b"], "mismatch", "mismatches") == "2 mismatches: a, b"


def test_a_long_list_shows_ten_entries_and_the_path_of_a_file_with_all_entries():
    text = listing(NAMES, "clip")
    assert text.startswith("28,618 clips: " + ", ".join(NAMES[:10]) + ", ... and 28,608 more (all of them: ")
    assert len(text) < 400
    assert file_in(text) == NAMES


def test_the_same_list_is_written_to_the_same_file():
    assert listing(NAMES, "clip") == listing(NAMES, "clip") != listing(NAMES[1:], "clip")


def test_a_long_list_of_lines_is_abbreviated_after_ten_lines():
    text = abbreviated(NAMES[:12], LINES, where="--json has all")
    assert text.splitlines()[-2:] == ["- clip_00009", "- ... and 2 more (--json has all)"]
    assert len(text.splitlines()) == 11


def test_without_a_cache_folder_the_message_names_no_file(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert abbreviated(NAMES).endswith("clip_00009, ... and 28,608 more")


@pytest.fixture
def twelve(corpus):
    """The golden corpus with each of its six clips twice."""
    path = corpus / "MERR_coarse_grained.txt"
    rows = path.read_text().splitlines()
    path.write_text("".join(f"{row}\nagain_{row}\n" for row in rows))
    for array in list(corpus.rglob("*.npy")):
        shutil.copyfile(array, array.with_name(f"again_{array.name}"))
    return corpus


@pytest.fixture
def spoiled(tmp_path, twelve):
    """A configuration with 12 clips, each of which lacks one array and has an unusable one."""
    for path in (twelve / "HL-UTT").glob("*.npy"):
        path.unlink()
    for path in (twelve / "mae_340_UTT").glob("*.npy"):
        np.save(path, np.full(1024, np.nan, np.float32))
    return golden_tree(tmp_path, twelve)


def test_a_refused_run_lists_ten_problems_and_writes_only_the_file_with_all_problems(tmp_path, spoiled):
    config = loaded(tmp_path, spoiled)
    text = refusal(build_datasets, config, training_blocks(config), training=True, check=True)
    first, *lines = text.split(LINES)
    everything = file_in(lines[-1])
    assert first == "the data cannot be used:" and len(lines) == 11 < len(everything)
    assert everything[:10] == lines[:10]
    assert not (tmp_path / "out").exists()


def test_check_data_abbreviates_lists_in_its_text_but_not_with_json(tmp_path, spoiled):
    del spoiled["evaluation_datasets"]
    report = check(loaded(tmp_path, spoiled))
    [missing] = [finding for finding in report.plain()["findings"] if finding["kind"] == "missing features"]
    assert len(missing["clips"]) == 12
    line = next(line for line in text_of(report).splitlines() if "no array in" in line)
    assert "12 clips: " in line and "... and 2 more (all of them: " in line and missing["clips"][11] not in line
    assert file_in(line) == list(missing["clips"])


def test_unknown_labels_are_abbreviated_in_the_text_but_not_with_json(tmp_path, twelve):
    path = twelve / "MERR_coarse_grained.txt"
    rows = [row.split() for row in path.read_text().splitlines()]
    path.write_text("".join(" ".join([row[0], row[1], "glad", *row[3:]]) + "\n" for row in rows))
    tree = golden_tree(tmp_path, twelve)
    del tree["evaluation_datasets"]
    [finding] = [entry for entry in check(loaded(tmp_path, tree)).plain()["findings"] if entry["kind"] == "label"]
    assert len(finding["details"]) == len(rows) == 12 and "... and 2 more" in finding["text"]


# Keys


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("run.dropout=0.1", "model.dropout"),
        ("run.lora_r=8", "model.lora_r"),
        ("model.max_epoch=3", "run.max_epoch"),
        ("run.task_pool=reason", "datasets.golden.task_pool"),
        ("model.batch_size=2", "datasets.golden.batch_size"),
        ("datasets.golden.max_new_tokens=5", "evaluation_datasets.answers.max_new_tokens"),
        ("evaluation_datasets.answers.init_lr=1", "run.init_lr"),
        ("run.videos=x", "extraction.videos"),
        ("run.img_size=448", "model.image_size"),
        ("run.ann_path=x", "datasets.golden.annotation_file"),  # the name of the key in released code
        ("model.save_path=x", "run.output_dir"),
        ("max_epoch=3", "run.max_epoch"),
        ("lora_rr=3", "model.lora_r"),
        ("save_path=x", "run.output_dir"),
        ("modell.arch=minigpt_v2", "model"),
        ("run.random_weights=True", "encoders.LABEL.random_weights"),
        ("run.base_url=x", "evaluation_datasets.LABEL.judge.base_url' (type: openai)?"),
        ("run.missing_images=skip", "datasets.LABEL.missing_images' (type: flickr30k_caption or image_text_tars)?"),
        ("missing_images=skip", "datasets.LABEL.missing_images' (type: flickr30k_caption or image_text_tars)?"),
        ("run.sampling=pairs", "encoders.LABEL.sampling' (type: videomae)?"),
        ("run.num_query_token=1", "model.num_query_token' (arch: minigpt4)?"),
    ],
)
def test_a_key_in_the_wrong_block_points_to_the_right_one(tmp_path, option, meant):
    key = option.partition("=")[0]
    text = refused(tmp_path, option)
    unknown_key = key if key.partition(".")[0] in ("run", "model", "datasets", "evaluation_datasets") else key.partition(".")[0]
    end = "" if meant.endswith("?") else "'?"
    assert text.startswith(f"--options: unknown key '{unknown_key}'. Did you mean '{meant}{end}")


@pytest.mark.parametrize(
    ("option", "components"),
    [
        ("datasets.golden.missing_images=skip", "type: flickr30k_caption or image_text_tars"),
        ("evaluation_datasets.answers.missing_images=skip", "type: flickr30k_caption or image_text_tars"),
        ("model.query_width=1", "arch: minigpt4"),
    ],
)
def test_a_key_of_another_component_is_reported_with_that_component(tmp_path, option, components):
    assert refused(tmp_path, option).endswith(f"unknown key '{option.partition('=')[0]}'. It is a key of {components}.")


def test_a_key_of_a_user_defined_component_is_suggested(tmp_path, monkeypatch):
    monkeypatch.setattr(ENCODERS, "_entries", {})

    @ENCODERS.register("mine")
    class Mine:
        @dataclass
        class Config:
            whiskers: int = 0

    assert refused(tmp_path, "run.whiskers=2").endswith("Did you mean 'encoders.LABEL.whiskers' (type: mine)?")
    assert refused(tmp_path, "run.whisker=2").endswith("Did you mean 'encoders.LABEL.whiskers' (type: mine)?")


def test_a_similar_key_of_the_same_block_is_suggested_first(tmp_path):
    assert refused(tmp_path, "run.max_epochs=3").endswith("Did you mean 'max_epoch'?")


def test_a_key_without_effect_of_emotion_llama_is_reported_with_its_block(tmp_path):
    text = refused(tmp_path, "model.use_dist_eval_sampler=True")
    assert "It is a key of 'run' in Emotion-LLaMA or MiniGPT-4, but has no effect here: " in text


def test_a_key_similar_to_no_other_key_gets_no_suggestion(tmp_path):
    assert refused(tmp_path, "run.zzzz=1").endswith("unknown key 'run.zzzz'.")


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("run.dropout", "'run.dropout'. Did you mean 'model.dropout'?"),
        ("run.metrc", "'run.metrc'. Did you mean 'run.metric'?"),
        ("run.iters", "'run.iters'. Did you mean 'run.iters_per_epoch'?"),
        ("metrc", "'metrc'. Did you mean 'run.metric'?"),
        ("run.bogus", "'run.bogus'. 'emollama reference'"),  # every key of run contains the letters of run
    ],
)
def test_emollama_reference_suggests_the_nearest_name_for_an_unknown_key(key, hint):
    assert refusal(describe, key).startswith(f"no configuration key {hint}")


# --options


@pytest.mark.parametrize(
    ("options", "meant"),
    [
        (["run.max_epoch", "3"], "run.max_epoch=3"),
        (["run.seed=1", "run.max_epoch", "=", "3"], "run.max_epoch=3"),
        (["run.max_epoch=", "3"], "run.max_epoch=3"),
        (["run.max_epoch", "=3"], "run.max_epoch=3"),
        (["run.max_epoch:3"], "run.max_epoch=3"),
        (["--run.max_epoch", "3"], "run.max_epoch=3"),
        (["run.max_epoch", "run.seed=1"], "run.max_epoch=VALUE"),
        (["run.max_epoch"], "run.max_epoch=VALUE"),
        (["=3"], "a.b=3"),
    ],
)
def test_an_option_without_an_equals_sign_is_refused_with_the_correct_form(tmp_path, options, meant):
    assert refused(tmp_path, *options).endswith(f" is not of the form a.b=c. Write {meant}, without spaces around '='.")


def test_no_message_spells_an_option_with_underscores():
    package = Path(checkpoint.__file__).parent
    texts = {path.name: path.read_text(encoding="utf-8") for path in package.rglob("*.py")}
    assert {name: options for name, text in texts.items() if (options := re.findall(r"--[a-z]+_[a-z_]+", text))} == {}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            ["--metrics", "clue_overlap"],
            "--metrics: 'clue_overlap' cannot be computed here: it needs a judge; set --judge lexical, or another judge",
        ),
        (["--metrics", "waff"], "--metrics: Unknown metric 'waff'"),
        (["--synonyms", "nowhere.json"], "--synonyms: no file 'nowhere.json'"),
        (["--wheels", "nowhere"], "--wheels: 'nowhere' lacks "),
        (["--labels", "happy", "happy!"], "--labels: "),
        (["--aliases", "joy=hap"], "--aliases: 'joy' stands for 'hap'"),
        (["--metrics", "ov"], "--metrics: 'ov' cannot be computed here: it needs --truth, the true emotion words of the samples"),
        (["--judge", "lexica"], "--judge: Unknown judge 'lexica'. Did you mean 'lexical'?"),
        (["--judge", "lexical", "model=m"], "--judge: unknown key 'model'."),
        (["--judge", "openai", "base_url=x"], "--judge: 'model' is missing"),
        (["--judge", "openai", "model=m", "base_url=x"], "--judge: base_url: expected an address"),
        (["--caption-tokenizer", "ptb"], "--caption-tokenizer: ptb needs a Java runtime"),
    ],
)
def test_errors_of_score_name_its_options_and_not_configuration_keys(tmp_path, monkeypatch, options, expected):
    monkeypatch.setattr("emollama.evaluation.captions.java.java", lambda: None)
    row = {"name": "a", "task": "emotion", "prediction": "happy", "reference": "happy"}
    rows = [row, {"name": "a", "task": "reason", "prediction": "She smiles.", "reference": "She smiles."}]
    rows.append({"name": "a", "task": "caption", "prediction": "A smile.", "reference": ["A smile."]})
    (tmp_path / "predictions_a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = refused_score("--predictions", tmp_path / "predictions_a.jsonl", *options)
    assert text.startswith(expected)
    assert not re.search(r"(synonyms|openset)_path|wheel_folder|caption_tokenizer|judge: \{|score[.:]", text)
    assert "ptb" not in options or text.endswith("Or set --caption-tokenizer treebank.")


@pytest.mark.parametrize(
    "name", ["labels.csv", "metrics.csv", "aliases.csv", "judge.csv", "openset_path.csv", "wheel_folder.csv"]
)
def test_a_file_named_like_a_key_is_reported_under_its_own_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path("truth.csv").write_text("name,label\na,happy\n")
    Path(name).write_text("name,prediction\na,happy\na,sad\n")
    assert refused_score("--predictions", name, "--truth", "truth.csv").startswith(f"{name}, line 3: ")
    Path(name).write_text('name,openset\na,"[1"\n')
    Path("answers.csv").write_text("name,prediction\na,happy\n")
    assert refused_score("--predictions", "answers.csv", "--truth", name).startswith(f"{name}, line 2: ")


def test_an_unusable_synonym_file_is_reported_with_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("words.csv").write_text("name,openset\na,['happy']\n")
    Path("metrics.json").write_text("[1]")
    text = refused_score("--predictions", "words.csv", "--truth", "words.csv", "--synonyms", "metrics.json")
    assert text.startswith("metrics.json: expected groups of words")


# Files that do not exist


def test_a_missing_file_in_the_data_folder_is_reported_with_emollama_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EMOLLAMA_DATA", str(tmp_path / "mine"))
    text = refusal(require_file, str(tmp_path / "mine/list.txt"), "datasets.x.annotation_file")
    assert f"sets the folder of your data to '{tmp_path}/mine', which does not exist" in text and "EMOLLAMA_DATA" in text
    (tmp_path / "mine").mkdir()
    text = refusal(require_folder, str(tmp_path / "mine/eva"), "datasets.x.image_feature_path")
    assert f"EMOLLAMA_DATA sets the folder of your data to '{tmp_path}/mine'." in text and "does not exist" not in text
    assert "EMOLLAMA_DATA" not in refusal(require_file, str(tmp_path / "other/list.txt"), "key")
    monkeypatch.delenv("EMOLLAMA_DATA")
    text = refusal(require_file, "data/list.txt", "datasets.x.annotation_file")
    assert "is not set, so 'data' in the current directory is used. To set it: export EMOLLAMA_DATA=FOLDER." in text
    assert "EMOLLAMA_DATA" not in refusal(require_file, "list.txt", "key")


@pytest.mark.parametrize("key", ["annotation_file", "transcription_path", "face_feature_path"])
def test_each_missing_file_of_a_dataset_is_reported_with_emollama_data(tmp_path, monkeypatch, corpus, key):
    monkeypatch.setenv("EMOLLAMA_DATA", str(corpus))
    tree = golden_tree(tmp_path, corpus)
    tree["datasets"]["golden"][key] = "nowhere"
    config = loaded(tmp_path, tree)
    text = refusal(build_datasets, config, training_blocks(config), training=True, check=True)
    assert "nowhere" in text and f"sets the folder of your data to '{corpus}'" in text


@pytest.mark.parametrize(
    ("config", "stage"),
    [
        ("train_configs/minigptv2_tuning_stage_2.yaml", "Stage 1 of training produces this checkpoint"),
        ("eval_configs/eval_emotion_EMER.yaml", "Stage 2 of training produces this checkpoint"),
    ],
)
def test_a_missing_checkpoint_names_the_stage_that_produces_it(tmp_path, monkeypatch, config, stage):
    monkeypatch.setenv("EMOLLAMA_DATA", str(tmp_path))
    llama, ckpt = missing_files(load(config).model)
    assert llama.startswith("model.llama_model: no folder ") and ckpt.startswith("model.ckpt: no file ")
    assert stage in ckpt and f"sets the folder of your data to '{tmp_path}'" in ckpt
    assert "Stage" not in refusal(checkpoint.read, str(tmp_path / "mine.pth"), "model.ckpt")


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("adapter_config.json", "It contains PEFT adapters. Convert them with 'emollama checkpoint convert "),
        ("config.json", "It contains a Hugging Face language model, which belongs in model.llama_model."),
        ("checkpoint_best.pth", "It is the folder of a run. Set one of its checkpoints, such as "),
        ("checkpoint_4.pth", "checkpoint_4.pth'."),
        ("other.txt", "Set the path of a file."),
    ],
)
def test_a_folder_passed_as_a_checkpoint_is_refused_with_a_description_of_its_content(tmp_path, file, expected):
    (tmp_path / file).write_text("{}")
    text = refusal(checkpoint.read, str(tmp_path), "model.ckpt")
    assert text.startswith(f"model.ckpt: '{tmp_path}' is a folder, but a checkpoint is a file. ") and expected in text


class Projection(nn.Module):
    """The trained part of MiniGPT-4."""

    ignored_tensors, optional_tensor_group, shape_keys = (
        MiniGPT4.ignored_tensors,
        MiniGPT4.optional_tensor_group,
        MiniGPT4.shape_keys,
    )
    stored_name, architecture, optional_tensors = staticmethod(MiniGPT4.stored_name), MiniGPT4.architecture, ()

    def __init__(self):
        super().__init__()
        self.llama_proj = nn.Linear(3, 2)


def test_loading_a_minigpt4_checkpoint_into_minigpt_v2_is_refused_with_its_origin(golden_config):
    model = golden_config.model_class(golden_config.model, device=torch.device("meta"), frozen_dtype=torch.float32)
    stored = {"llama_proj.weight": torch.ones(2, 3), "llama_proj.bias": torch.ones(2)}
    text = refusal(checkpoint.load_trainable, model, stored, path="a.pth", allow_missing=[])
    assert text.startswith("checkpoint a.pth: this is a checkpoint of MiniGPT-4 ") and "model.arch is minigpt_v2" in text


def test_loading_a_minigpt_v2_checkpoint_into_minigpt4_is_refused_with_its_origin():
    stored = checkpoint.read(str(GOLDEN / "checkpoint_slim.pth"), "model.ckpt")["model"]
    text = refusal(checkpoint.load_trainable, Projection(), stored, path="a.pth", allow_missing=[])
    assert text.startswith("checkpoint a.pth: this is a checkpoint of MiniGPT-v2 or Emotion-LLaMA, ")
    assert "model.arch is minigpt4" in text


def test_a_minigpt4_checkpoint_of_another_shape_is_not_called_one_of_another_model():
    stored = {"llama_proj.weight": torch.ones(2, 4), "llama_proj.bias": torch.ones(2)}
    text = refusal(checkpoint.load_trainable, Projection(), stored, path="a.pth", allow_missing=[])
    assert "1 tensor with a different shape: " in text and "this is a checkpoint of" not in text


def test_a_checkpoint_of_a_user_defined_model_is_identified(monkeypatch):
    monkeypatch.setattr(MODELS, "_entries", {})

    @MODELS.register("owl")
    class Owl:
        @dataclass
        class Config:
            checkpoint_description = "an owl"

            @classmethod
            def recognizes(cls, stored, expected):
                return "beak.weight" in stored

    @MODELS.register("mute")
    class Mute:
        @dataclass
        class Config:
            size: int = 1

    text = refusal(checkpoint.load_trainable, Projection(), {"beak.weight": torch.ones(1)}, path="a.pth", allow_missing=[])
    assert text.startswith("checkpoint a.pth: this is a checkpoint of an owl, for model.arch: owl, but model.arch is minigpt4.")


@pytest.mark.parametrize("key", ["ckpt", "llama_model"])
def test_check_data_fails_if_a_file_of_the_model_does_not_exist(tmp_path, capsys, key):
    tree = golden_tree(tmp_path)
    del tree["evaluation_datasets"]
    tree["model"][key] = str(tmp_path / "nowhere")
    arguments = argparse.Namespace(cfg_path=write(tmp_path, tree), options=[], json=True, deep=False)
    with pytest.raises(SystemExit) as ended:
        check_data.run(arguments)
    problems = [finding for finding in json.loads(capsys.readouterr().out)["findings"] if finding["level"] == "problem"]
    assert ended.value.code == 1 and [finding["kind"] for finding in problems] == ["model"]
    assert problems[0]["text"].startswith(f"model.{key}: no f")


# Evaluation


def test_messages_of_evaluation_name_the_block(tmp_path):
    tree = golden_tree(tmp_path)
    tree["evaluation_datasets"]["answers"]["labels"] = ["happy", "sad"]
    blocks = build_blocks(loaded(tmp_path, tree), check=False)
    scoring = blocks["answers"].scoring
    text = refusal(scoring.score, [Prediction("a", "emotion", "happy", "joyful", None)])
    assert text.startswith("evaluation_datasets.answers: labels: the true label of 'a' is 'joyful'")
    for key, value in (("synonyms_path", "nowhere.json"), ("wheel_folder", "nowhere"), ("openset_path", "nowhere.csv")):
        tree["evaluation_datasets"]["answers"] |= {key: value}
        assert refusal(build_blocks, loaded(tmp_path, tree), check=False).startswith(f"evaluation_datasets.answers: {key}: ")
        del tree["evaluation_datasets"]["answers"][key]
    tree["evaluation_datasets"]["answers"]["judge"] = {"type": "openai", "model": "m", "base_url": "no address"}
    text = refusal(build_blocks, loaded(tmp_path, tree), check=False)
    assert text.startswith("evaluation_datasets.answers.judge: base_url: expected an address")


@pytest.fixture
def two_blocks(tmp_path):
    """Two evaluation blocks that both compute a loss."""
    tree = golden_tree(tmp_path)
    tree["evaluation_datasets"]["more"] = tree["evaluation_datasets"]["answers"]
    blocks = build_blocks(loaded(tmp_path, tree), check=False)
    outcome = Outcome({"answers/emotion/loss": 1.0}, {}, [], {})
    prediction_runner = SimpleNamespace(world=process_group.start("cpu"), generator=SimpleNamespace(members=[nn.Linear(1, 1)]))
    return SimpleNamespace(blocks=blocks, prediction_runner=prediction_runner, run=lambda *_: outcome)


def test_evaluation_without_best_checkpoint_or_early_stopping_needs_no_metric(tmp_path, two_blocks):
    validation = Validation(RunnerConfig(evaluate=True, iters_per_epoch=1), two_blocks, tmp_path, 0)
    saved = []
    validation.run(1, SimpleNamespace(evaluation=lambda *_: None, failures=WriteFailures()), lambda: saved.append(1))
    [entry] = map(json.loads, (tmp_path / "eval.jsonl").read_text().splitlines())
    assert entry["metrics"] == {"answers/emotion/loss": 1.0} and entry["best"] is False
    assert not saved and not validation.should_stop_early and validation.best() is None


def test_the_loss_of_a_single_block_is_the_default_metric(tmp_path, two_blocks):
    two_blocks.blocks = {"answers": SimpleNamespace(scoring=SimpleNamespace(metrics={"emotion": ["loss", "waf"]}))}
    validation = Validation(RunnerConfig(evaluate=True, iters_per_epoch=1), two_blocks, tmp_path, 0)
    validation.run(1, SimpleNamespace(evaluation=lambda *_: None, failures=WriteFailures()), lambda: None)
    assert validation.best() == ("answers/emotion/loss", 1.0, 0)


@pytest.mark.parametrize("keys", [{"save_best": True}, {"early_stop_patience": 2}, {"metric": "loss"}])
def test_a_metric_computed_by_several_blocks_must_be_specified(tmp_path, two_blocks, keys):
    text = refusal(Validation, RunnerConfig(evaluate=True, **keys), two_blocks, tmp_path, 0)
    assert text.startswith("run.metric: 'loss' is computed more than once. Possible values: ")


# Labels and names of blocks


def block_of(tmp_path, **keys):
    tree = golden_tree(tmp_path)
    tree["datasets"]["golden"] |= keys
    config = loaded(tmp_path, tree)
    shapes = config.model_class.slot_shapes(config.model)
    return config.dataset_class("datasets.golden")(config.datasets["golden"], slot_shapes=shapes, block_path="datasets.golden")


def test_labels_missing_from_the_configured_labels_can_be_excluded(tmp_path):
    labels = ["happy", "sad", "neutral", "angry", "worried"]
    dataset = block_of(tmp_path, labels=labels, prompt_labels=labels, exclude_labels=["surprise"])
    assert dataset.problems() == [] and "surprise" not in {clip.label for clip in dataset.clips}


def test_a_misspelled_excluded_label_is_reported_with_the_nearest_label(tmp_path):
    [problem] = block_of(tmp_path, exclude_labels=["suprise"]).problems()
    assert problem.kind == "label"
    assert "exclude_labels: no clip of " in problem.text and "has the label 'suprise'. Did you mean 'surprise'?" in problem.text


def test_an_excluded_label_that_does_not_occur_is_only_noted(tmp_path):
    dataset = block_of(tmp_path, exclude_labels=["xyz"])
    assert dataset.problems() == [] and any("has the label 'xyz'" in note for note in dataset.notes)


def test_a_block_name_may_contain_a_plus_sign(tmp_path):
    tree = golden_tree(tmp_path)
    tree["datasets"] = {"refcoco+": tree["datasets"]["golden"]}
    tree["evaluation_datasets"] = {"refcoco+": golden_block() | {"task_pool": "emotion"}}
    tree["run"] |= {"evaluate": True, "metric": "refcoco+.waf", "save_best": True}
    config = loaded(tmp_path, tree, "datasets.refcoco+.batch_size=2", "evaluation_datasets.refcoco+.batch_size=3")
    assert config.datasets["refcoco+"].batch_size == 2
    blocks = build_blocks(config, check=False)
    prediction_runner = SimpleNamespace(world=process_group.start("cpu"), generator=SimpleNamespace(members=[nn.Linear(1, 1)]))
    outcome = Outcome({"refcoco+/emotion/waf": 0.5}, {}, [], {})
    evaluation = SimpleNamespace(blocks=blocks, prediction_runner=prediction_runner, run=lambda *_: outcome)
    saved = []
    Validation(config.run, evaluation, tmp_path, 0).run(
        2, SimpleNamespace(evaluation=lambda *_: None, failures=WriteFailures()), lambda: saved.append(1)
    )
    assert saved == [1] and blocks["refcoco+"].scoring.key == "evaluation_datasets.refcoco+"


@pytest.mark.parametrize("label", ["a/b", "a b", "../a", "a:b", "a*", ""])
def test_block_names_that_cannot_name_files_are_refused(tmp_path, label):
    tree = golden_tree(tmp_path)
    tree["datasets"][label] = tree["datasets"]["golden"]
    assert "letters, digits, _, + and - only" in refused(tmp_path, tree=tree)
