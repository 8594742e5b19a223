"""YAML files of Emotion-LLaMA and MiniGPT-4: they load and run, and one warning lists the keys without effect."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml
from helpers import GOLDEN, INSTRUCTIONS, TRAJECTORY, loaded
from running import read_jsonl

from emollama import config
from emollama.errors import UserError
from emollama.models.checkpoint_names import stored_name
from emollama.optim import trainable
from emollama.registry import DATASETS

# The keys of the run that gave the golden numbers.
REFERENCE = f"""
model:
  arch: minigpt_v2
  model_type: pretrain
  max_txt_len: 1024
  image_size: 112
  vit_precision: "fp32"
  end_sym: "</s>"
  llama_model: "{GOLDEN}/llama"
  ckpt: "{GOLDEN}/checkpoint_slim.pth"
  use_grad_checkpoint: True
  chat_template: True
  lora_r: 4
  lora_alpha: 16
datasets:
  feature_face_caption:
    batch_size: 1
    build_info:
      image_path: {GOLDEN}/data/video
      ann_path: {GOLDEN}/data/MERR_coarse_grained.txt
    vis_processor: {{train: {{name: "blip2_image_train", image_size: 112}}}}
    text_processor: {{train: {{name: "blip_caption"}}}}
    sample_ratio: 30
run:
  task: image_text_pretrain
  lr_sched: "linear_warmup_cosine_lr"
  init_lr: 1e-3
  min_lr: 1e-6
  warmup_lr: 1e-6
  weight_decay: 0.05
  max_epoch: 1
  num_workers: 0
  iters_per_epoch: 8
  warmup_steps: 3
  seed: 64
  output_dir: "OUT"
  amp: False
  resume_ckpt_path: null
  evaluate: False
  train_splits: ["train"]
  device: "cpu"
  distributed: False
  wandb_log: False
  job_name: tiny
"""
OURS = {
    "model": {
        "arch": "minigpt_v2",
        "max_txt_len": 1024,
        "image_size": 112,
        "vit_precision": "fp32",
        "end_sym": "</s>",
        "llama_model": f"{GOLDEN}/llama",
        "ckpt": f"{GOLDEN}/checkpoint_slim.pth",
        "use_grad_checkpoint": True,
        "lora_r": 4,
        "lora_alpha": 16,
    },
    "datasets": {
        "feature_face_caption": {
            "batch_size": 1,
            "image_path": f"{GOLDEN}/data/video",
            "annotation_file": f"{GOLDEN}/data/MERR_coarse_grained.txt",
            "text_processor": "blip_caption",
            "sample_ratio": 30,
        }
    },
    "run": {
        "init_lr": 1e-3,
        "min_lr": 1e-6,
        "warmup_lr": 1e-6,
        "max_epoch": 1,
        "num_workers": 0,
        "iters_per_epoch": 8,
        "warmup_steps": 3,
        "seed": 64,
        "output_dir": "OUT",
        "amp": False,
        "device": "cpu",
    },
}

_MODEL = """
model:
  arch: minigpt_v2
  model_type: pretrain
  end_sym: "</s>"
  llama_model: "LLAMA"
  ckpt: "CKPT"
  lora_r: 64
  lora_alpha: 16
"""
_PROCESSORS = """
    vis_processor:
      train:
        name: "blip2_image_train"
        image_size: 448
      eval:
        name: "blip2_image_eval"
        image_size: 448
    text_processor:
      train:
        name: "blip_caption"
      eval:
        name: "blip_caption"
    sample_ratio: 30
"""
_TRAINED = f"""{_MODEL}
  max_txt_len: 1024
  image_size: 448
  use_grad_checkpoint: True
  chat_template: True
datasets:
  feature_face_caption:
    batch_size: 1
    task_pool: [TASKS]
    evaluation_task: reason_v2
    labels: [neutral, angry, happy, sad, worried, surprise]
    annotation_format: auto
{_PROCESSORS}
    build_info:
      image_path: DATA/video
      ann_path: DATA/LIST.txt
      transcription_path: transcription_en_all.csv
      JSON_json_path: LIST.json
      face_feature_path: mae_340_UTT
      video_feature_path: maeV_399_UTT
      audio_feature_path: HL-UTT
run:
  task: image_text_pretrain
  lr_sched: "linear_warmup_cosine_lr"
  init_lr: 1e-5
  min_lr: 1e-6
  warmup_lr: 1e-6
  weight_decay: 0.05
  max_epoch: 30
  num_workers: 6
  iters_per_epoch: 1000
  warmup_steps: 1000
  seed: 42
  output_dir: "OUT"
  amp: True
  resume_ckpt_path: null
  evaluate: False
  train_splits: ["train"]
  valid_splits: []
  test_splits: []
  metric_for_best_model: macro_f1
  best_model_split: null
  greater_is_better: True
  early_stopping_patience: null
  early_stopping_min_delta: 0.0
  evaluation:
    task: classification
    labels: [neutral, angry, happy, sad, worried, surprise]
    generation:
      max_new_tokens: 20
      num_beams: 1
      do_sample: False
  device: "cuda"
  world_size: 2
  dist_url: "env://"
  distributed: True
  wandb_log: False
  job_name: minigptv2_finetune
"""
STAGE_1 = _TRAINED.replace("TASKS", "emotion, reason").replace("LIST", "MERR_coarse_grained").replace("JSON", "coarse_grained")
STAGE_2 = _TRAINED.replace("TASKS", "reason_v2").replace("LIST", "MERR_fine_grained").replace("JSON", "fine_grained")
EMER = f"""{_MODEL}
  max_txt_len: 500
  low_resource: False
  prompt_template: '[INST] {{}} [/INST]'
datasets:
  feature_face_caption:
    batch_size: 1
{_PROCESSORS}
evaluation_datasets:
  feature_face_caption:
    eval_file_path: DATA/MERR_fine_grained.txt
    img_path: DATA/video
    task_pool: [reason_v2]
    annotation_format: auto
    transcription_path: transcription_en_all.csv
    fine_grained_json_path: MERR_fine_grained.json
    face_feature_path: mae_340_UTT
    video_feature_path: maeV_399_UTT
    audio_feature_path: HL-UTT
    max_new_tokens: 500
    batch_size: 1
run:
  task: image_text_pretrain
  name: minigptv2_evaluation
  save_path: OUT
"""
EMOTION = (
    EMER.replace("[reason_v2]", "[emotion]")
    .replace(
        "    fine_grained_json_path: MERR_fine_grained.json\n", "    labels: [neutral, angry, happy, sad, worried, surprise]\n"
    )
    .replace(
        "run:",
        """
  mer2024_caption:
    eval_file_path: DATA/MER2024-noise_NCE.txt
    img_path: DATA/video
    labels: [neutral, angry, happy, sad, worried, surprise, fear, contempt, doubt]
    transcription_path: transcription_all_new.csv
    face_feature_path: mae_340_23_UTT
    video_feature_path: maeVideo_399_23_UTT
    audio_feature_path: HL_23_UTT
    max_new_tokens: 500
    batch_size: 1
run:""",
    )
)
WITHOUT_EFFECT_IN_TRAINING = [
    *(f"datasets.feature_face_caption.{key}" for key in ("vis_processor", "evaluation_task")),
    "model.model_type",
    *(f"run.{key}" for key in ("evaluate", "train_splits", "valid_splits", "test_splits", "evaluation")),
    *(f"run.{key}" for key in ("metric_for_best_model", "best_model_split", "greater_is_better")),
    *(f"run.{key}" for key in ("early_stopping_patience", "early_stopping_min_delta")),
    *(f"run.{key}" for key in ("world_size", "dist_url", "distributed", "job_name")),
]
HEADLINE = "keys of Emotion-LLaMA or MiniGPT-4 that have no effect or another meaning here"


def filled(text, folder, **replacements):
    """Replace the placeholders of paths in the text, and further words."""
    for word, value in {"LLAMA": GOLDEN / "llama", "DATA": folder / "data", "OUT": folder / "out", **replacements}.items():
        text = text.replace(word, str(value))
    return text


def small(**blocks):
    """A small configuration with the old keys."""
    tree = {
        "model": {"arch": "minigpt_v2", "llama_model": "some/folder"},
        "datasets": {"feature_face_caption": {"build_info": {"ann_path": "lists/a.txt"}}},
    }
    for name, keys in blocks.items():
        tree.setdefault(name, {}).update(keys)
    return tree


def train_block(**keys):
    """A small configuration whose dataset block has these keys besides the annotation file."""
    return small(datasets={"feature_face_caption": {"build_info": {"ann_path": "lists/a.txt"}} | keys})


def eval_block(**keys):
    """A small configuration of an evaluation whose block has these keys besides the annotation file."""
    tree = small(evaluation_datasets={"feature_face_caption": {"eval_file_path": "lists/b.txt", **keys}})
    tree["datasets"] = {}
    return tree


def refusal(folder, tree, *options):
    with pytest.raises(UserError) as error:
        loaded(folder, tree, *options)
    return str(error.value)


def noted(cfg):
    """key -> explanation in the only warning."""
    (text,) = cfg.warnings
    lines = [line.removeprefix("- ").partition(": ") for line in text.splitlines()[1:]]
    return {key: explanation for keys, _, explanation in lines for key in keys.split(", ")}


# The keys of the reference


def test_emotion_llama_keys_give_the_same_configuration_as_our_keys(tmp_path):
    theirs, ours = loaded(tmp_path, REFERENCE), loaded(tmp_path, OURS)
    assert (theirs.model, theirs.datasets, theirs.run) == (ours.model, ours.datasets, ours.run)
    assert theirs.unresolved() == ours.unresolved()
    assert theirs.warnings and not ours.warnings


SCRIPTS = """
import json, runpy, sys
for line in json.loads(sys.argv[1]):
    sys.argv = line
    print("=====", file=sys.stderr, flush=True)
    runpy.run_path(line[0], run_name="__main__")
"""


def scripts_in_one_process(launch, folder, lines):
    """Run command lines of the entry scripts one after another; return the standard error of each."""
    (folder / "scripts.py").write_text(SCRIPTS)
    completed = launch(str(folder / "scripts.py"), json.dumps(lines))
    assert completed.returncode == 0, completed.stderr
    return completed.stderr.split("=====\n")[1:]


def real_shapes(folder):
    """Write a corpus of three clips with features of the real sizes; return the names."""
    names = [f"clip_{number}" for number in range(3)]
    random = np.random.default_rng(0)
    for sub, shape, dtype in [
        ("eva", (1025, 1408), np.float16),
        ("mae_340_UTT", (1024,), np.float32),
        ("maeV_399_UTT", (1, 1024), np.float32),
        ("HL-UTT", (1024,), np.float32),
    ]:
        (folder / sub).mkdir(parents=True)
        for name in names:
            np.save(folder / sub / f"{name}.npy", random.standard_normal(shape, dtype=np.float32).astype(dtype))
    for grain, key in [("coarse", "caption"), ("fine", "smp_reason_caption")]:
        lines = [f"{name} 9 {label}\n" for name, label in zip(names, ("happy", "sad", "angry"), strict=True)]
        (folder / f"MERR_{grain}_grained.txt").write_text("".join(lines))
        captions = {name: {key: f"A {grain} account of {name}."} for name in names}
        (folder / f"MERR_{grain}_grained.json").write_text(json.dumps(captions))
    (folder / "transcription_en_all.csv").write_text("name,sentence\n" + "".join(f"{name},Well\n" for name in names))
    return names


def minigpt_v2_checkpoint(cfg_path, path):
    """A checkpoint like the one that stage 1 starts from: adapters and the image projection, without those of other slots."""
    cfg = config.load(cfg_path)
    model = cfg.model_class(cfg.model, device=torch.device("cpu"), frozen_dtype=torch.float32)
    named = {stored_name(name): parameter.detach() for name, parameter in trainable(model).items()}
    torch.save(
        {"model": {name: value for name, value in named.items() if "lora_" in name or name.startswith("llama_proj")}}, path
    )


@pytest.fixture(scope="module")
def ran(tmp_path_factory, launch):
    """The reference's run and the released files of stage 1, stage 2 and EMER, through the entry scripts."""
    folder = tmp_path_factory.mktemp("predecessors")
    names = real_shapes(folder / "data")
    texts = {
        "reference": filled(REFERENCE, folder),
        "stage_1": filled(STAGE_1, folder, CKPT=folder / "minigptv2_checkpoint.pth"),
        "stage_2": filled(STAGE_2, folder, CKPT=folder / "out/stage_1/checkpoint_0.pth"),
        "EMER": filled(EMER, folder, CKPT=folder / "out/stage_2/checkpoint_0.pth"),
    }
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)
    minigpt_v2_checkpoint(str(folder / "stage_1.yaml"), folder / "minigptv2_checkpoint.pth")
    block = "datasets.feature_face_caption"
    as_then = ["model.slot_dims={image: 176}", "model.lora_dropout=0", f"{block}.shuffle=False", "run.log_freq=1"]
    as_then.append(f"{block}.instructions={json.dumps(INSTRUCTIONS)}")
    on_cpu = [
        "run.device=cpu",
        "run.amp=False",
        "run.max_epoch=1",
        "run.iters_per_epoch=2",
        "run.num_workers=0",
        "run.log_freq=1",
    ]
    short = ["run.device=cpu", "run.amp=False", "evaluation_datasets.feature_face_caption.max_new_tokens=4"]
    lines = []
    for name, options in [("reference", as_then), ("stage_1", on_cpu), ("stage_2", on_cpu), ("EMER", short)]:
        script = "eval_emotion_EMER.py" if name == "EMER" else "train.py"
        lines.append([script, "--cfg-path", str(folder / f"{name}.yaml"), "--options", f"run.job_id={name}", *options])
    return folder / "out", names, dict(zip(texts, scripts_in_one_process(launch, folder, lines), strict=True))


def test_training_with_emotion_llama_keys_reproduces_the_reference_losses(ran):
    logged = read_jsonl(ran[0] / "reference" / "log.jsonl")
    assert len(logged) == 8
    for row, step in zip(logged, TRAJECTORY["steps"], strict=True):
        assert row["loss"] == pytest.approx(step["loss"], rel=1e-4)
        assert row["lr"] == pytest.approx(step["lr"], rel=1e-12)


@pytest.mark.parametrize("stage", ["stage_1", "stage_2"])
def test_the_released_configurations_of_both_stages_train_with_real_feature_widths(ran, stage):
    folder = ran[0] / stage
    assert len(read_jsonl(folder / "log.jsonl")) == 2
    stored = torch.load(folder / "checkpoint_0.pth", weights_only=True)["model"]
    assert stored["llama_proj.weight"].shape == (64, 5632)
    assert stored["cls_tk_llama_proj.weight"].shape == (64, 1408)


def test_stage_1_loads_a_minigpt_v2_checkpoint_and_stage_2_that_of_stage_1(ran):
    assert "feats_llama_proj1" in ran[2]["stage_1"] and "feats_llama_proj1" not in ran[2]["stage_2"]


def test_the_released_emer_configuration_answers_every_clip_in_its_save_path(ran):
    answers = read_jsonl(ran[0] / "EMER" / "result" / "predictions_feature_face_caption.jsonl")
    assert [row["name"] for row in answers] == ran[1]
    assert {row["task"] for row in answers} == {"reason_v2"}


def test_each_run_prints_the_compatibility_warning_once(ran):
    assert {name: output.count(HEADLINE) for name, output in ran[2].items()} == dict.fromkeys(ran[2], 1)


@pytest.mark.parametrize("stage", ["stage_1", "stage_2"])
def test_the_warning_of_a_training_run_names_every_key_without_effect(ran, stage):
    assert [key for key in WITHOUT_EFFECT_IN_TRAINING if key not in ran[2][stage]] == []


def test_the_saved_configuration_of_a_run_uses_our_keys_and_loads_without_warnings(ran):
    for path in [ran[0] / "reference" / "config.yaml", ran[0] / "EMER" / "result" / "config.yaml"]:
        assert config.load(str(path)).warnings == []
        assert not {"build_info", "vis_processor", "eval_file_path", "save_path"} & set(
            path.read_text().replace(":", " ").split()
        )


def test_the_released_emotion_recognition_configuration_has_two_evaluation_datasets(tmp_path):
    cfg = loaded(tmp_path, filled(EMOTION, tmp_path))
    mer2023, mer2024 = cfg.evaluation_datasets.values()
    assert cfg.datasets == {}
    assert mer2023.dataset.labels == ["neutral", "angry", "happy", "sad", "worried", "surprise"]
    assert mer2024.dataset.annotation_file == f"{tmp_path}/data/MER2024-noise_NCE.txt"
    assert (mer2024.dataset.features["face"], mer2024.task.max_new_tokens) == ("mae_340_23_UTT", 500)


# Names


def test_the_keys_of_build_info_are_read_as_keys_of_the_block(tmp_path):
    info = {"ann_path": "a.txt", "image_path": "v", "transcription_path": "t.csv", "face_feature_path": "f"}
    block = loaded(tmp_path, train_block(build_info=info)).datasets["feature_face_caption"]
    assert (block.annotation_file, block.image_path) == ("a.txt", "v")
    assert (block.transcription_path, block.features["face"]) == ("t.csv", "f")


def test_the_old_keys_of_an_evaluation_are_accepted(tmp_path):
    cfg = loaded(tmp_path, eval_block(img_path="v") | {"run": {"save_path": "there"}})
    block = cfg.evaluation_datasets["feature_face_caption"].dataset
    assert (block.annotation_file, block.image_path, cfg.run.output_dir) == ("lists/b.txt", "v", "there")


PROCESSOR = {"train": {"name": "blip_caption", "max_words": 7}, "eval": {"name": "verbatim", "max_words": 9}}


def test_the_text_processor_of_the_split_of_a_block_is_used(tmp_path):
    trained = loaded(tmp_path, train_block(text_processor=PROCESSOR)).datasets["feature_face_caption"]
    dataset = loaded(tmp_path, eval_block(text_processor=PROCESSOR)).evaluation_datasets["feature_face_caption"].dataset
    assert (trained.text_processor, trained.max_words) == ("blip_caption", 7)
    assert (dataset.text_processor, dataset.max_words) == ("verbatim", 9)


def test_an_evaluation_without_its_own_text_processor_uses_that_of_training(tmp_path):
    cfg = loaded(tmp_path, eval_block(text_processor={"train": PROCESSOR["train"]}))
    assert cfg.evaluation_datasets["feature_face_caption"].dataset.max_words == 7


def test_our_text_processor_keys_can_be_combined_with_build_info(tmp_path):
    cfg = loaded(tmp_path, train_block(text_processor="verbatim", max_words=3))
    block = cfg.datasets["feature_face_caption"]
    assert (block.text_processor, block.max_words) == ("verbatim", 3)
    assert cfg.warnings == loaded(tmp_path, small()).warnings


def test_an_old_evaluation_block_accepts_a_task_pool_as_a_list(tmp_path):
    cfg = loaded(tmp_path, eval_block(task_pool=["reason", "reason", "emotion"]))
    assert cfg.evaluation_datasets["feature_face_caption"].dataset.pool().tasks == ("reason", "emotion")


def test_numbers_in_exponent_notation_without_a_decimal_point_are_read_as_numbers(tmp_path):
    cfg = loaded(tmp_path, filled(STAGE_1, tmp_path), "run.min_lr=1e-7")
    assert (cfg.run.init_lr, cfg.run.min_lr, cfg.run.warmup_lr) == (0.00001, 0.0000001, 0.000001)


@pytest.mark.parametrize(
    ("option", "key", "value"),
    [
        ("build_info.ann_path=other.txt", "annotation_file", "other.txt"),
        ("annotation_file=other.txt", "annotation_file", "other.txt"),
        ("build_info.transcription_path=null", "transcription_path", None),
        ("text_processor.train.max_words=50", "max_words", 50),
    ],
)
def test_options_override_the_file_by_the_old_or_the_new_key(tmp_path, option, key, value):
    tree = train_block(build_info={"ann_path": "a.txt", "transcription_path": "t.csv"}, text_processor=PROCESSOR)
    cfg = loaded(tmp_path, tree, f"datasets.feature_face_caption.{option}")
    assert getattr(cfg.datasets["feature_face_caption"], key) == value


def test_an_old_key_in_the_options_overrides_our_key_in_the_file(tmp_path):
    assert loaded(tmp_path, small(run={"output_dir": "here"}), "run.save_path=there").run.output_dir == "there"


def test_values_in_a_file_with_old_keys_override_the_preset(tmp_path):
    info = {"ann_path": "a.txt", "transcription_path": "t.csv"}
    tree = train_block(preset="mer_six_labels", build_info=info, labels=["sad"], prompt_labels=None)
    cfg = loaded(tmp_path, tree)
    assert cfg.datasets["feature_face_caption"].labels == ["sad"]
    assert "datasets.feature_face_caption.task_pool" not in str(cfg.warnings)


def test_use_grad_checkpoint_llm_sets_use_grad_checkpoint(tmp_path):
    cfg = loaded(tmp_path, small(model={"use_grad_checkpoint_llm": False}))
    assert cfg.model.use_grad_checkpoint is False and cfg.warnings == loaded(tmp_path, small()).warnings


# Bad input


@pytest.mark.parametrize(
    ("keys", "ours"),
    [
        ({"build_info": {"ann_path": "a"}, "annotation_file": "b"}, "annotation_file"),
        ({"annotation_file": "b", "build_info": {"ann_path": "a"}}, "annotation_file"),
        ({"build_info": {"ann_path": "a", "annotation_file": "b"}}, "annotation_file"),
        ({"ann_path": "a"}, "annotation_file"),
        ({"build_info": {"ann_path": "a", "image_path": "b"}, "image_path": "b"}, "image_path"),
        ({"text_processor": PROCESSOR, "max_words": 7}, "max_words"),
    ],
)
def test_two_keys_with_the_same_meaning_are_refused(tmp_path, keys, ours):
    text = refusal(tmp_path, train_block(**keys))
    assert text.startswith(f"{tmp_path}/config.yaml: 'datasets.feature_face_caption.")
    assert f"both set '{ours}'. Keep one of them." in text


@pytest.mark.parametrize("order", [("eval_file_path", "annotation_file"), ("annotation_file", "eval_file_path")])
def test_two_keys_for_an_evaluation_list_are_both_named_in_either_order(tmp_path, order):
    tree = small(evaluation_datasets={"feature_face_caption": dict.fromkeys(order, "list.txt")})
    text = refusal(tmp_path, tree)
    assert f"'evaluation_datasets.feature_face_caption.{order[0]}' and" in text and "both set 'annotation_file'" in text


def test_two_keys_with_the_same_meaning_in_the_options_are_refused(tmp_path):
    block = "datasets.feature_face_caption"
    text = refusal(tmp_path, small(), f"{block}.annotation_file=a", f"{block}.build_info.ann_path=b")
    assert text.startswith("--options: ") and "both set 'annotation_file'" in text


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (
            {"build_info": {"ann_pth": "a"}},
            "unknown key 'datasets.feature_face_caption.build_info.ann_pth'. Did you mean 'ann_path'?",
        ),
        ({"build_infos": {}}, "unknown key 'datasets.feature_face_caption.build_infos'. Did you mean 'build_info'?"),
        ({"build_info": 3}, "'datasets.feature_face_caption.build_info' must be a block of keys, not 3"),
        ({"eval_file_path": "a"}, "unknown key 'datasets.feature_face_caption.eval_file_path'."),
        ({"vis_procesor": {}}, "unknown key 'datasets.feature_face_caption.vis_procesor'. Did you mean 'vis_processor'?"),
        (
            {"text_processor": {"train": {"prompt": "x"}}},
            "unknown key 'datasets.feature_face_caption.text_processor.train.prompt'.",
        ),
        ({"text_processor": {"train": {"max_word": 3}}}, "text_processor.train.max_word'. Did you mean 'max_words'?"),
        ({"text_processor": {"trian": {"name": "x"}}}, "unknown key 'datasets.feature_face_caption.text_processor.trian'."),
        ({"text_processor": {"train": {"name": "t5"}}}, "'datasets.feature_face_caption.text_processor.train.name': "),
        ({"build_info": {"ann_path": "a", "image_path": [1]}}, "'datasets.feature_face_caption.build_info.image_path': "),
    ],
)
def test_an_unknown_old_key_is_reported_as_written_in_the_file(tmp_path, keys, expected):
    assert refusal(tmp_path, train_block(**keys)).startswith(f"{tmp_path}/config.yaml: ")
    assert expected in refusal(tmp_path, train_block(**keys))


@pytest.mark.parametrize(
    ("block", "key", "hint"),
    [
        ("run", "train_split", " Did you mean 'train_splits'?"),
        ("run", "iter_per_epoch", " Did you mean 'iters_per_epoch'?"),
        ("run", "img_path", " Did you mean 'evaluation_datasets.LABEL.image_path'?"),
        ("model", "vit_precison", " Did you mean 'vit_precision'?"),
        (
            "model",
            "dist_url",
            " It is a key of 'run' in Emotion-LLaMA or MiniGPT-4, but has no effect here: the launcher (emollama train, torchrun)"
            " sets the number of processes.",
        ),
    ],
)
def test_a_key_similar_to_an_old_key_is_refused_with_a_hint(tmp_path, block, key, hint):
    assert refusal(tmp_path, small(), f"{block}.{key}=1") == f"--options: unknown key '{block}.{key}'.{hint}"


def test_a_block_that_is_not_a_mapping_is_an_error(tmp_path):
    tree = small() | {"datasets": {"feature_face_caption": [1]}}
    assert "'datasets.feature_face_caption' must be a block of keys" in refusal(tmp_path, tree)


def test_a_missing_list_in_build_info_is_reported_as_a_missing_annotation_file(tmp_path):
    tree = small() | {"datasets": {"feature_face_caption": {"vis_processor": {}, "build_info": {"image_path": "v"}}}}
    assert refusal(tmp_path, tree).startswith("'datasets.feature_face_caption.annotation_file' is missing")


def test_keys_of_the_minigpt4_model_are_used_without_a_warning(tmp_path):
    keys = {"arch": "minigpt4", "q_former_model": "q.pth", "num_query_token": 8, "has_qformer": True, "prompt_path": "p.txt"}
    cfg = loaded(tmp_path, small(model=keys | {"model_type": "pretrain_vicuna0", "freeze_qformer": True}))
    notes = noted(cfg)
    assert {"model.model_type", "model.freeze_qformer"} <= notes.keys()
    assert not {f"model.{key}" for key in keys} & notes.keys() and cfg.model.q_former_model == "q.pth"


# The warning


def test_a_file_with_our_keys_gives_no_warning(tmp_path):
    assert loaded(tmp_path, OURS, "run.accum_grad_iters=4").warnings == []


@pytest.mark.parametrize("text", [STAGE_1, STAGE_2, EMER, EMOTION])
def test_a_file_gives_one_warning_with_an_explanation_for_each_key(tmp_path, text):
    cfg = loaded(tmp_path, filled(text, tmp_path))
    assert len(cfg.warnings) == 1 and cfg.warnings[0].startswith(f"{tmp_path}/config.yaml: {HEADLINE}")
    assert all(len(explanation) > 10 for explanation in noted(cfg).values())


def test_old_keys_in_the_options_are_included_in_the_warning(tmp_path):
    tree = small() | {"datasets": {"feature_face_caption": {"annotation_file": "a"}}}
    assert noted(loaded(tmp_path, tree, "run.job_name=x")).keys() == {"run.job_name"}


def test_a_dataset_block_with_processors_alone_is_ignored_in_an_evaluation(tmp_path):
    cfg = loaded(tmp_path, filled(EMER, tmp_path))
    assert cfg.datasets == {} and "datasets" not in cfg.unresolved()
    assert "datasets.feature_face_caption.annotation_file" in noted(cfg)["datasets.feature_face_caption"]
    assert "datasets.feature_face_caption.vis_processor" not in noted(cfg)


def test_a_block_with_processors_alone_is_ignored_for_an_unregistered_dataset(tmp_path):
    tree = small(model={"ckpt": ""}) | {"datasets": {"cc_sbu_align": {"vis_processor": {"train": {"name": "blip2_image_eval"}}}}}
    assert loaded(tmp_path, tree).datasets == {}


def test_a_block_with_more_keys_than_processors_is_a_training_set(tmp_path):
    blocks = {"dfew": {"data_root": "x", "vis_processor": {"train": {"name": "blip2_image_train"}}}}
    assert list(loaded(tmp_path, small() | {"datasets": blocks}).datasets) == ["dfew"]


@pytest.mark.parametrize("name", ["annotation_file", "build_info.ann_path"])
def test_a_block_with_processors_is_a_training_set_if_the_options_add_a_list(tmp_path, name):
    cfg = loaded(tmp_path, filled(EMER, tmp_path), f"datasets.feature_face_caption.{name}=list.txt")
    assert cfg.datasets["feature_face_caption"].annotation_file == "list.txt"


def test_an_image_size_that_differs_from_the_model_is_explained_in_the_warning(tmp_path):
    key = "datasets.feature_face_caption.vis_processor.train.image_size"
    tree = train_block(vis_processor={"train": {"image_size": 224}, "eval": {"image_size": 448}})
    notes = noted(loaded(tmp_path, tree))
    assert notes[key].startswith("is 224, but") and key.replace("train", "eval") not in notes
    notes = noted(loaded(tmp_path, tree, "model.image_size=224"))
    assert notes[key.replace("train", "eval")].startswith("is 448, but") and key not in notes


def test_the_warning_explains_step_counts_only_with_gradient_accumulation(tmp_path):
    assert "run.iters_per_epoch" not in noted(loaded(tmp_path, small(run={"job_name": "x", "accum_grad_iters": 1})))
    notes = noted(loaded(tmp_path, small(run={"job_name": "x", "accum_grad_iters": 2})))
    assert "not micro-batches" in notes["run.warmup_steps"] and "not micro-batches" in notes["run.iters_per_epoch"]


def test_the_warning_names_differing_defaults_that_the_file_does_not_set(tmp_path):
    notes = noted(loaded(tmp_path, eval_block()))
    block = "evaluation_datasets.feature_face_caption"
    assert "emotion" in notes[f"{block}.task_pool"] and "upstream_eval" in notes[f"{block}.prompt_layout"]
    assert loaded(tmp_path, eval_block(task_pool=["reason"], prompt_layout="train")).warnings == []


def test_the_warning_names_the_preprocess_block(tmp_path):
    assert "preprocess" in noted(loaded(tmp_path, small(preprocess={"vis_processor": {}})))


def test_a_key_that_a_component_defines_is_used_without_a_warning(tmp_path, monkeypatch):
    module = tmp_path / "own_dataset_of_a_test.py"
    module.write_text(
        "from dataclasses import dataclass\n"
        "from emollama.datasets.feature_face_caption import FeatureFaceCaption\n"
        "class Own(FeatureFaceCaption):\n"
        "    @dataclass\n"
        "    class Config(FeatureFaceCaption.Config):\n"
        "        data_type: str = 'clips'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import own_dataset_of_a_test

    DATASETS.names()
    monkeypatch.setitem(DATASETS._entries, "own", own_dataset_of_a_test.Own)
    cfg = loaded(tmp_path, small() | {"datasets": {"own": {"annotation_file": "a", "data_type": "images"}}})
    assert cfg.datasets["own"].data_type == "images" and cfg.warnings == []


# Evaluation during training


def test_the_warning_explains_the_meaning_of_run_evaluate(tmp_path):
    tree = yaml.safe_load(REFERENCE)
    tree["run"] |= {"evaluate": True}
    assert "run.evaluate_only" in noted(loaded(tmp_path, tree))["run.evaluate"]
    tree["run"] |= {"evaluate": False}
    assert "run.evaluate" not in noted(loaded(tmp_path, tree))


def test_a_value_of_run_evaluate_that_is_not_boolean_is_refused(tmp_path):
    assert "run.evaluate" in refusal(tmp_path, small(run={"evaluate": "perhaps"}))
