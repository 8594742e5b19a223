"""Layers, names, types and interpolations of a configuration."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import errno
import json
import math
import os
import re
import typing
import warnings

import pytest
import yaml
from helpers import golden_tree, loaded, write
from omegaconf import OmegaConf

from emollama import config
from emollama.commands import config as show
from emollama.config import key_hints
from emollama.config.layers import leaves
from emollama.config.omegaconf_errors import hints_of
from emollama.config.other_libraries import EQUIVALENTS
from emollama.config.sections import sections
from emollama.errors import UserError

SMALL = {
    "model": {"arch": "minigpt_v2", "llama_model": "some/folder"},
    "datasets": {"feature_face_caption": {"annotation_file": "list.txt"}},
}


def scalar_types(hint):
    """The types of single values that a type contains, without None."""
    return {kind for kind in typing.get_args(hint) or [hint] if kind in (bool, int, float, str)}


def test_a_key_with_several_types_of_single_values_describes_them():
    plain = {key: hint for section in sections() for key, hint in typing.get_type_hints(section.config).items()}
    described = {key: hint for section in sections() for key, hint in hints_of(section.config).items()}
    several = {key for key, hint in plain.items() if len(scalar_types(hint)) > 1}
    assert {"use_grad_checkpoint", "max_tokens", "save_best"} <= several
    assert [key for key in several if typing.get_origin(described[key]) is not typing.Annotated] == []


def test_a_value_of_the_wrong_type_is_rejected_with_the_description_of_the_key():
    with pytest.raises(UserError, match=r"expected True, False, or the name of a metric, got 1\.5\."):
        config.from_dict(small(run={"save_best": 1.5}), "test")
    with pytest.raises(UserError, match=r"expected a text or a mapping, got 7\."):
        config.from_dict(small(model={"fusion": 7}), "test")


def small(**blocks):
    """The smallest configuration, with keys added to its blocks."""
    tree = copy.deepcopy(SMALL)
    for name, keys in blocks.items():
        tree.setdefault(name, {}).update(keys)
    return tree


def refusal(folder, tree, *options):
    with pytest.raises(UserError) as error:
        loaded(folder, tree, *options)
    return str(error.value)


@pytest.fixture
def presets(tmp_path, monkeypatch):
    """Replace the folder of presets and return a function that writes a preset."""
    folder = tmp_path / "presets"
    monkeypatch.setattr("emollama.config.loading.PRESETS", folder)

    def add(kind, name, **keys):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        (folder / kind / f"{name}.yaml").write_text(yaml.safe_dump(keys))

    return add


# Layers


def test_options_override_the_yaml_the_yaml_the_preset_and_the_preset_the_defaults(tmp_path, presets):
    presets("models", "slim", lora_r=8, lora_alpha=8, max_txt_len=88)
    tree = small(model={"preset": "slim", "lora_alpha": 9, "max_txt_len": 99})
    model = loaded(tmp_path, tree, "model.max_txt_len=111").model
    assert (model.lora_dropout, model.lora_r, model.lora_alpha, model.max_txt_len) == (0.05, 8, 9, 111)


def test_a_dataset_block_overrides_its_preset(tmp_path, presets):
    presets("datasets", "quiet", transcription_path=None, batch_size=5)
    tree = small()
    tree["datasets"]["feature_face_caption"] |= {"preset": "quiet", "batch_size": 6}
    block = loaded(tmp_path, tree).datasets["feature_face_caption"]
    assert (block.transcription_path, block.batch_size) == (None, 6)


def test_options_choose_the_preset_and_the_component(tmp_path, presets):
    presets("models", "slim", lora_r=8)
    assert loaded(tmp_path, small(), "model.preset=slim").model.lora_r == 8
    assert "Unknown model 'other'" in refusal(tmp_path, small(), "model.arch=other")


def test_options_alone_can_add_a_block(tmp_path):
    options = ["datasets.more.type=feature_face_caption", "datasets.more.annotation_file=more.txt"]
    assert loaded(tmp_path, small(), *options).datasets["more"].annotation_file == "more.txt"


def test_option_values_are_read_as_yaml(tmp_path):
    options = ["run.init_lr=1e-3", "run.amp=False", "run.max_grad_norm=null", "model.lora_target_modules=[k_proj,o_proj]"]
    cfg = loaded(tmp_path, small(run={"max_grad_norm": 1.0}), *options)
    assert (cfg.run.init_lr, cfg.run.amp, cfg.run.max_grad_norm) == (0.001, False, None)
    assert cfg.model.lora_target_modules == ["k_proj", "o_proj"]


def test_whole_numbers_are_accepted_for_floats_without_a_warning(tmp_path):
    tree = small(run={"init_lr": 1}, datasets={"feature_face_caption": {"annotation_file": "x", "sample_ratio": 2}})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cfg = loaded(tmp_path, tree, "run.max_grad_norm=3")
    values = (cfg.run.init_lr, cfg.run.max_grad_norm, cfg.datasets["feature_face_caption"].sample_ratio)
    assert values == (1.0, 3.0, 2.0) and all(type(value) is float for value in values)


def test_a_list_replaces_the_lower_layers_list(tmp_path):
    tree = small(model={"lora_target_modules": ["q_proj"]})
    assert loaded(tmp_path, tree).model.lora_target_modules == ["q_proj"]


# Errors name the layer and the key


def test_an_unknown_key_in_the_yaml_is_reported_with_the_file_and_the_nearest_key(tmp_path):
    text = refusal(tmp_path, small(model={"lora_rnk": 3}))
    assert text == f"{tmp_path}/config.yaml: unknown key 'model.lora_rnk'. Did you mean 'lora_r'?"


def test_an_unknown_key_in_the_options_is_reported_as_an_option(tmp_path):
    text = refusal(tmp_path, small(), "run.max_epochs=3")
    assert text == "--options: unknown key 'run.max_epochs'. Did you mean 'max_epoch'?"


def test_an_unknown_key_in_a_preset_is_reported_with_the_preset_and_its_file(tmp_path, presets):
    presets("models", "slim", lora_rr=8)
    text = refusal(tmp_path, small(model={"preset": "slim"}))
    assert "preset slim (" in text and "models/slim.yaml" in text and "'model.lora_rr'" in text


def test_an_unknown_key_of_a_labelled_block_is_reported_with_the_label(tmp_path):
    tree = small()
    tree["datasets"]["mine"] = {"type": "feature_face_caption", "annotation_fil": "x"}
    assert "unknown key 'datasets.mine.annotation_fil'. Did you mean 'annotation_file'?" in refusal(tmp_path, tree)


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("model.load_in_8bit=True", "model.low_resource"),
        ("run.learning_rate=1e-4", "run.init_lr"),
        ("learning_rate=1e-4", "run.init_lr"),
        ("run.per_device_train_batch_size=4", "datasets.feature_face_caption.batch_size"),
        ("datasets.feature_face_caption.per_device_train_batch_size=4", "datasets.feature_face_caption.batch_size"),
    ],
)
def test_a_key_of_another_library_is_reported_with_its_name_here(tmp_path, option, name):
    tree = small(datasets={"feature_face_caption": {"annotation_file": "x"}})
    text = refusal(tmp_path, tree, option)
    assert f"unknown key '{option.partition('=')[0]}'. Its name here is '{name}'." in text


def test_the_equivalents_of_keys_of_other_libraries_are_keys():
    keys = {f"{where.path}.{where.name}".replace(".LABEL", "") for where in key_hints._of_registered("")}
    keys |= {f"evaluation_datasets.{key.removeprefix('datasets.')}" for key in keys if key.startswith("datasets.")}
    assert set(EQUIVALENTS.values()) <= keys and not set(EQUIVALENTS) & {key.rpartition(".")[2] for key in keys}


def test_an_unknown_top_level_key_is_reported_with_the_nearest_key_and_all_keys(tmp_path):
    text = refusal(tmp_path, small() | {"dataset": {}})
    assert "unknown key 'dataset'. Did you mean 'datasets'?" in text and "evaluation_datasets, extraction, run" in text


@pytest.mark.parametrize(
    ("block", "key", "value", "message"),
    [
        ("run", "max_epoch", "many", "expected a whole number, got 'many'."),
        ("run", "max_epoch", None, "expected a whole number, got null."),
        ("run", "amp", "perhaps", "expected True or False, got 'perhaps'."),
        ("run", "device", "cud", "expected one of auto, cuda, cpu, got 'cud'. Did you mean 'cuda'?"),
        ("run", "init_lr", [1], "expected a number, got [1]."),
        ("run", "max_grad_norm", "x", "expected a number or null, got 'x'."),
        ("model", "train_llm", "some", "expected one of lora, none, full, got 'some'."),
        ("model", "slot_dims", {"image": "wide"}, "expected a mapping to whole numbers, got {'image': 'wide'}."),
        ("model", "lora_target_modules", {"q": 1}, "expected a text, a list of texts or null, got {'q': 1}."),
        ("model", "ckpt", {"a": 1}, "expected a text, a list of texts or null, got {'a': 1}."),
    ],
)
def test_a_value_of_the_wrong_type_is_reported_with_the_file_the_key_and_the_type(tmp_path, block, key, value, message):
    text = refusal(tmp_path, small(**{block: {key: value}}))
    assert text == f"{tmp_path}/config.yaml: '{block}.{key}': {message}"


def test_a_wrong_type_in_the_options_is_reported_as_an_option(tmp_path):
    assert refusal(tmp_path, small(), "run.max_epoch=many").startswith("--options: 'run.max_epoch'")


def test_a_wrong_type_in_a_preset_is_reported_with_the_preset(tmp_path, presets):
    presets("models", "slim", lora_r="thin")
    text = refusal(tmp_path, small(model={"preset": "slim"}))
    assert text.startswith("preset slim (") and "'model.lora_r'" in text


@pytest.mark.parametrize("pool", [["emotion", {"reason": 1}], 3, "joy", ["emotion", None]])
def test_an_invalid_task_pool_is_refused_with_its_key(tmp_path, pool):
    tree = small(datasets={"feature_face_caption": {"annotation_file": "list.txt", "task_pool": pool}})
    text = refusal(tmp_path, tree)
    assert "datasets.feature_face_caption" in text and "task_pool" in text


def test_a_missing_value_names_its_key(tmp_path):
    tree = small()
    del tree["model"]["llama_model"]
    assert refusal(tmp_path, tree).startswith("'model.llama_model' is missing")
    tree = small(datasets={"feature_face_caption": {}})
    assert refusal(tmp_path, tree).startswith("'datasets.feature_face_caption.annotation_file' is missing")


def test_a_missing_arch_lists_the_models(tmp_path):
    assert "'model.arch' is missing. Registered: minigpt4, minigpt_v2" in refusal(tmp_path, {"model": {"llama_model": "x"}})


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("model.arch=minigptv2", "model.arch: Unknown model 'minigptv2'. Did you mean 'minigpt_v2'?"),
        ("run.runner=runer_base", "run.runner: Unknown runner 'runer_base'. Did you mean 'runner_base'?"),
        ("run.task=image_text", "run.task: Unknown task 'image_text'."),
        ("datasets.a.type=face", "datasets.a.type: Unknown dataset 'face'. Registered:"),
        ("evaluation_datasets.a.type=face", "evaluation_datasets.a.type: Unknown dataset 'face'."),
        ("run.lr_sched=cosine", "Unknown LR schedule 'cosine'."),
    ],
)
def test_an_unknown_component_names_its_key(tmp_path, option, expected):
    assert expected in refusal(tmp_path, small(), option)


def test_a_block_label_that_is_not_a_registered_class_requires_a_type(tmp_path):
    tree = small()
    tree["datasets"]["feature_face_captions"] = {"annotation_file": "x"}
    text = refusal(tmp_path, tree)
    assert text.startswith("datasets.feature_face_captions.type: Unknown dataset 'feature_face_captions'.")
    assert "Did you mean 'feature_face_caption'?" in text


def test_an_unknown_preset_is_reported_with_the_nearest_and_all_presets(tmp_path, presets):
    presets("models", "slim")
    presets("models", "wide")
    text = refusal(tmp_path, small(model={"preset": "slimm"}))
    assert text == "model.preset: unknown preset 'slimm'. Did you mean 'slim'? Presets: slim, wide"


@pytest.mark.parametrize("name", ["a/b", "../a", "a.b", "a[0]", ""])
def test_a_block_name_that_cannot_name_a_file_is_refused(tmp_path, name):
    tree = small(datasets={name: {"type": "feature_face_caption", "annotation_file": "x"}})
    assert f"the block name '{name}'" in refusal(tmp_path, tree)


def test_a_block_name_may_contain_dashes_and_digits(tmp_path):
    tree = small(datasets={"mer2024-noise_1": {"type": "feature_face_caption", "annotation_file": "x"}})
    assert loaded(tmp_path, tree).datasets["mer2024-noise_1"].annotation_file == "x"


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("model.lora_r=0", "model: lora_r is 0"),
        ("model.prompt_template=Hello", "model: prompt_template 'Hello' must contain {} exactly once"),
        ("model.image_size=100", "model: image_size is 100"),
        ("model.lora_dropout=1.0", "model: lora_dropout is 1.0"),
        ("run.job_id=a/b", "run: job_id 'a/b'"),
        ("run.keep_last=0", "run: keep_last is 0"),
        ("run.max_epoch=0", "run: max_epoch is 0"),
        ("datasets.feature_face_caption.batch_size=0", "datasets.feature_face_caption: batch_size is 0"),
        ("datasets.feature_face_caption.sample_ratio=.nan", "datasets.feature_face_caption: sample_ratio is nan"),
        ("datasets.feature_face_caption.label_map={glad: bliss}", "label_map: 'bliss' is neither in labels"),
    ],
)
def test_a_value_out_of_range_names_its_block_and_key(tmp_path, option, expected):
    assert expected in refusal(tmp_path, small(), option)


NUMBERS = [
    pytest.param(section.config, item.name, "list" in str(item.type), id=f"{section.title}, {item.name}")
    for section in sections()
    for item in dataclasses.fields(section.config)
    if re.search(r"\bfloat\b", str(item.type))
]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("config", "key", "is_list"), NUMBERS)
def test_a_number_that_is_not_finite_is_refused_by_its_key(config, key, is_list, value):
    missing = dataclasses.MISSING
    required = {item.name: "x" for item in dataclasses.fields(config) if item.default is item.default_factory is missing}
    with pytest.raises(ValueError, match=key):
        config(**required | {key: [value] * 3 if is_list else value})


def test_top_p_without_a_temperature_is_refused_with_the_remedy(tmp_path):
    block = {"annotation_file": "x", "top_p": 0.5}
    text = refusal(tmp_path, small(evaluation_datasets={"feature_face_caption": block}))
    assert (
        text.startswith(f"{tmp_path}/config.yaml: evaluation_datasets.feature_face_caption: top_p has no effect")
        and "Set a temperature" in text
    )


def test_an_error_of_a_block_names_the_layer_that_set_the_value(tmp_path, presets):
    presets("models", "slim", lora_r=0)
    tree = small(model={"preset": "slim", "lora_dropout": 2})
    text = refusal(tmp_path, tree, "model.lora_dropout=0")
    assert text.startswith(f"preset slim ({tmp_path}/presets/models/slim.yaml): model: lora_r is 0")
    assert refusal(tmp_path, tree, "model.lora_r=4").startswith(f"{tmp_path}/config.yaml: model: lora_dropout is 2")
    assert refusal(tmp_path, tree, "model.lora_r=4", "model.lora_dropout=3").startswith("--options: model: lora_dropout is 3")


# Invalid files and options


def test_malformed_yaml_names_file_and_line(tmp_path):
    text = refusal(tmp_path, "model:\n  arch: [minigpt_v2\nrun: {}\n")
    assert text.startswith(f"{tmp_path}/config.yaml: not valid YAML") and "line 3" in text


def test_a_repeated_yaml_key_is_refused(tmp_path):
    assert "duplicate key" in refusal(tmp_path, "model: {arch: minigpt_v2, lora_r: 1, lora_r: 2, llama_model: x}\n")


@pytest.mark.parametrize("text", ["- model\n- run\n", "just text\n"])
def test_a_file_that_is_not_a_mapping_is_refused(tmp_path, text):
    assert f"{tmp_path}/config.yaml" in refusal(tmp_path, text)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ("mod\xe9l: 1\n".encode("latin-1"), "line 1: not UTF-8 text (byte 0xe9 at position 3). Convert it, "),
        (
            "model: {}\n".encode("utf-16"),
            "line 1: not UTF-8 text (byte 0xff at position 0). The file is UTF-16. Convert it: iconv",
        ),
        (b"", "the file is empty. A configuration is a YAML mapping with the keys "),
        (b"\n# later\n", "the file is empty except for comments. A configuration is "),
        (b"3\n", "the file is not a mapping. A configuration is "),
        (b"- model\n", "the file is not a mapping. A configuration is "),
        (b"run: {seed: !!int many}\n", "not valid YAML: "),
        (b"run: {job_id: '${oc.env:X'}\n", "not valid YAML: the interpolation of 'run.job_id' is invalid"),
        (b"run: " + b"[" * 3000, "not valid YAML: "),
    ],
)
def test_a_file_that_is_not_a_configuration_is_refused_with_the_reason(tmp_path, raw, reason):
    path = tmp_path / "config.yaml"
    path.write_bytes(raw)
    with pytest.raises(UserError) as error:
        config.load(str(path))
    assert str(error.value).startswith((f"{path}: {reason}", f"{path}, {reason}"))


def test_a_byte_order_mark_is_not_part_of_the_first_key(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(json.dumps(small()).encode("utf-8-sig"))
    assert config.load(str(path)).model.llama_model == "some/folder"


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), AttributeError("'NoneType' object has no attribute 'x'")])
def test_an_interrupt_or_a_programming_error_is_not_reported_as_invalid_yaml(tmp_path, monkeypatch, failure):
    def interrupted(*arguments, **keys):
        raise failure

    monkeypatch.setattr("emollama.config.reading.get_yaml_loader", interrupted)
    with pytest.raises(type(failure)) as error:
        loaded(tmp_path, small())
    assert error.value is failure


def test_plain_values_are_loaded_the_same_with_and_without_omegaconf_checks(tmp_path, monkeypatch):
    tree = golden_tree(tmp_path) | {"paths": {"a": 1, "b": [True, None, 1e-3]}}
    tree["datasets"]["golden"]["task_pool"] = {"emotion": 1, "reason": 2}
    options = ("run.amp=True", "run.init_lr=1", "datasets.golden.task_pool={reason: 0.5}", "model.ckpt=null")
    fast = loaded(tmp_path, tree, *options)
    for module in ("reading", "merging", "loading"):
        monkeypatch.setattr(f"emollama.config.{module}.is_plain", lambda node: False)
    slow = loaded(tmp_path, tree, *options)
    assert OmegaConf.to_yaml(fast.tree) == OmegaConf.to_yaml(slow.tree)
    assert (fast.resolved(), fast.sources, fast.run, fast.datasets) == (slow.resolved(), slow.sources, slow.run, slow.datasets)


def test_a_path_that_is_not_a_regular_file_is_named_with_its_kind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    os.symlink("circle", "circle")
    os.symlink("gone.yaml", "link.yaml")
    kinds = {
        ".": "'.' is a folder. Specify a regular file.",
        "pipe": "'pipe' is a device or a pipe. Specify a regular file.",
        "/dev/null": "'/dev/null' is a device or a pipe. Specify a regular file.",
        "circle": f"cannot read 'circle' (a symbolic link to 'circle'): {os.strerror(errno.ELOOP)}. Correct the path.",
        "link.yaml": f"cannot read 'link.yaml' (a symbolic link to 'gone.yaml'): {os.strerror(errno.ENOENT)}. Correct the path.",
        "https://host/c.yaml": "'https://host/c.yaml' is a URL. Download the file and name the local copy.",
        "": f"no file '' (current directory: {tmp_path}). Correct the path.",
    }
    messages = {}
    for path in kinds:
        with pytest.raises(UserError) as error:
            config.load(path)
        messages[path] = str(error.value)
    assert messages == {path: f"--cfg-path: {text}" for path, text in kinds.items()}


def test_a_file_without_read_permission_is_refused_with_the_reason(tmp_path, monkeypatch):
    def forbidden(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr("emollama.config.reading.read_text", forbidden)
    path = write(tmp_path, small())
    with pytest.raises(UserError, match=rf"^--cfg-path: cannot read '{path}': Permission denied\. Correct the permissions\.$"):
        config.load(path)


def test_a_missing_file_is_reported_with_the_nearest_file_in_its_folder(tmp_path):
    (tmp_path / "custom.yaml").write_text("{}")
    (tmp_path / "custm.txt").write_text("")
    with pytest.raises(UserError, match=rf"no file '{tmp_path}/custm.yaml' .* Did you mean '{tmp_path}/custom.yaml'\?$"):
        config.load(f"{tmp_path}/custm.yaml")
    with pytest.raises(UserError, match=r"Correct the path\.$"):
        config.load(f"{tmp_path}/zzz.yaml")


def test_a_missing_file_is_reported_with_the_option_cfg_path(tmp_path):
    with pytest.raises(UserError, match="--cfg-path: no file"):
        config.load(str(tmp_path / "none.yaml"))


@pytest.mark.parametrize("tree", [{"model": 3}, {"run": [1]}, {"datasets": {"x": 4}}, {"imports": "module"}, {"datasets": ["x"]}])
def test_a_block_of_the_wrong_type_is_reported_by_name(tmp_path, tree):
    text = refusal(tmp_path, small() | tree)
    assert f"'{next(iter(tree))}" in text and text.startswith(f"{tmp_path}/config.yaml")


@pytest.mark.parametrize("option", ["run.max_epoch", "=3", "run.max_epoch:3", "--run.max_epoch"])
def test_an_option_that_is_not_an_assignment_is_quoted_in_the_error(tmp_path, option):
    assert refusal(tmp_path, small(), option).startswith(f"--options: '{option}' is not of the form a.b=c. Write ")


@pytest.mark.parametrize("option", ["run=3", "run.max_epoch.deep=3", "run.max_epoch=[1", "run..max_epoch=1"])
def test_an_option_that_does_not_fit_the_tree_is_a_user_error(tmp_path, option):
    assert refusal(tmp_path, small(), option).startswith("--options")


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        (
            "run.max_epoch=[1",
            ": the value is not valid YAML: did not find expected ',' or ']'. Write text with special characters",
        ),
        ("model.end_sym=a: b: c", ": the value is not valid YAML: mapping values are not allowed in this context. Write text"),
        ("run.job_id=${oc.env:X", ": the interpolation of 'run.job_id' is invalid"),
        ("run.seed=!!int many", ": "),
        ("run..max_epoch=1", ": 'run..max_epoch' is not of the form a.b. Write run.max_epoch=1"),
        ("run[max_epoch]=3", ": 'run[max_epoch]' is not of the form a.b. Write run.max_epoch=3"),
        ("model.x[0]=q", ": 'model.x[0]' is not of the form a.b. Write the whole list: model.x=[q,...]"),
        (" run.max_epoch=3", ": ' run.max_epoch' is not of the form a.b. Write run.max_epoch=3"),
        ("run.job_id= ", " has no value. Write run.job_id=null for none, or run.job_id='\"\"' for an empty text."),
        ("run.job_id=", " has no value. Write run.job_id=null for none"),
    ],
)
def test_an_option_that_cannot_be_parsed_is_quoted_with_the_remedy(tmp_path, option, expected):
    text = refusal(tmp_path, small(), "run.seed=1", option)
    assert text.startswith(f"--options: '{option}'{expected}")
    assert "\n" not in text


def test_an_option_accepts_null_and_an_empty_text(tmp_path):
    cfg = loaded(tmp_path, small(model={"ckpt": "x"}), "model.ckpt=null", "paths.root=''")
    assert (cfg.model.ckpt, cfg.unresolved()["paths"]["root"]) == (None, "")


# Weighted pools


def test_a_task_pool_accepts_integer_and_fractional_weights(tmp_path):
    weights = {"reason": 0.3, "emotion": 1}
    tree = small(datasets={"feature_face_caption": {"annotation_file": "x", "task_pool": weights}})
    assert loaded(tmp_path, tree).datasets["feature_face_caption"].task_pool == weights


def test_a_task_pool_list_replaces_the_mapping_of_a_preset(tmp_path, presets):
    presets("datasets", "weighted", task_pool={"reason": 2})
    keys = {"annotation_file": "x", "preset": "weighted"}
    tree = small(datasets={"feature_face_caption": keys})
    assert loaded(tmp_path, tree).datasets["feature_face_caption"].task_pool == {"reason": 2}
    keys["task_pool"] = ["emotion", "emotion"]
    assert loaded(tmp_path, tree).datasets["feature_face_caption"].task_pool == ["emotion", "emotion"]


def test_an_evaluation_block_accepts_keys_of_the_dataset_and_of_the_task(tmp_path):
    block = {"annotation_file": "x", "batch_size": 7, "max_new_tokens": 9}
    blocks = loaded(tmp_path, small(evaluation_datasets={"feature_face_caption": block})).evaluation_datasets
    both = blocks["feature_face_caption"]
    assert (both.dataset.batch_size, both.task.max_new_tokens) == (7, 9)


# Interpolations and the written configuration


def test_environment_variables_are_resolved_only_in_configuration_objects(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_FOLDER", "/sesame-42/models")
    cfg = loaded(tmp_path, small(model={"llama_model": "${oc.env:LLAMA_FOLDER}/7b"}))
    assert cfg.model.llama_model == "/sesame-42/models/7b"
    config.write_yaml(cfg, tmp_path / "written.yaml")
    saved_text = (tmp_path / "written.yaml").read_text()
    for text in (str(cfg.unresolved()), saved_text):
        assert "${oc.env:LLAMA_FOLDER}/7b" in text and "sesame-42" not in text


def test_an_environment_variable_that_is_not_set_names_key_and_variable(tmp_path, monkeypatch):
    monkeypatch.delenv("LLAMA_FOLDER", raising=False)
    text = refusal(tmp_path, small(model={"llama_model": "${oc.env:LLAMA_FOLDER}"}))
    assert (
        text
        == "'model.llama_model': the environment variable 'LLAMA_FOLDER' is not set. Set the variable, or write the value itself."
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("${nope.x}", "'${nope.x}' is not a key of the configuration. Correct it,"),
        ("${path.root}", "'${path.root}' is not a key of the configuration. Did you mean 'paths.root'? Correct it,"),
        ("${run.job_id}", "the value refers to itself, directly or through other keys. Write the value itself."),
        ("${oc.enf:HOME}", "unknown interpolation 'oc.enf:'. Write ${oc.env:NAME} or ${paths.x}."),
        ("${oc.env:}", "the interpolation cannot be resolved: env() missing 1 required positional argument"),
    ],
)
def test_an_unresolvable_interpolation_is_explained_without_mentioning_variables(tmp_path, value, expected):
    text = refusal(tmp_path, small(run={"job_id": value}, paths={"root": "/data"}))
    assert text.startswith(f"'run.job_id': {expected}")
    assert "ariable" not in text and "raised while" not in text


def test_an_interpolation_of_a_key_without_a_value_is_reported_with_that_key(tmp_path):
    tree = small(run={"job_id": "${model.llama_model}"})
    del tree["model"]["llama_model"]
    assert refusal(tmp_path, tree) == "'model.llama_model' is missing. Set it in the YAML file or with --options."
    tree = small(paths={"root": "???"}, run={"job_id": "${paths.root}"})
    assert refusal(tmp_path, tree) == "'run.job_id': it refers to 'paths.root', which has no value. Set that key."


def test_an_environment_variable_of_the_wrong_type_names_the_key(tmp_path, monkeypatch):
    monkeypatch.setenv("EPOCHS", "many")
    assert "'run.max_epoch'" in refusal(tmp_path, small(run={"max_epoch": "${oc.env:EPOCHS}"}))
    monkeypatch.setenv("EPOCHS", "3")
    assert loaded(tmp_path, small(run={"max_epoch": "${oc.env:EPOCHS}"})).run.max_epoch == 3


def test_paths_are_shared_by_interpolation_and_overridden_by_options(tmp_path):
    tree = small(model={"llama_model": "${paths.root}/llama"}, paths={"root": "/data"})
    assert loaded(tmp_path, tree).model.llama_model == "/data/llama"
    assert loaded(tmp_path, tree, "paths.root=/else").model.llama_model == "/else/llama"


def test_an_unused_path_may_refer_to_an_unset_environment_variable(tmp_path, monkeypatch):
    monkeypatch.delenv("NOWHERE", raising=False)
    monkeypatch.setenv("ROOT", "/data")
    paths = {"unused": "${oc.env:NOWHERE}", "root": "${oc.env:ROOT}", "more": {"a": "${paths.root}/a"}}
    cfg = loaded(tmp_path, small(paths=paths, model={"llama_model": "${paths.more.a}"}))
    assert cfg.resolved()["paths"] == {"unused": "${oc.env:NOWHERE}", "root": "/data", "more": {"a": "/data/a"}}
    assert cfg.resolved()["model"]["llama_model"] == "/data/a"


def test_a_written_configuration_loads_to_equal_objects(tmp_path, monkeypatch):
    monkeypatch.setenv("OUT", str(tmp_path))
    tree = golden_tree(tmp_path)
    tree["run"] |= {"output_dir": "${oc.env:OUT}/x", "job_id": "007"}
    tree["model"] |= {"end_sym": "###", "prompt_template": "Human: {} \n\tAssistant: '\"# "}
    tree["datasets"]["golden"] |= {"labels": ["no", "null", "1e3", "~", "true", "0x1f"], "prompt_labels": None}
    tree["datasets"]["golden"]["task_pool"] = {"reason": 0.3, "emotion": 1}
    tree["evaluation_datasets"]["answers"]["eval_file_path"] = tree["evaluation_datasets"]["answers"].pop("annotation_file")
    first = loaded(tmp_path, tree, "model.lora_r=6")
    config.write_yaml(first, tmp_path / "written.yaml")
    second = config.load(str(tmp_path / "written.yaml"))
    assert (second.model, second.datasets, second.run) == (first.model, first.datasets, first.run)
    assert second.evaluation_datasets == first.evaluation_datasets
    assert second.unresolved() == first.unresolved()
    assert second.datasets["golden"].labels == ["no", "null", "1e3", "~", "true", "0x1f"]


def test_a_written_configuration_does_not_depend_on_its_preset(tmp_path, presets):
    presets("models", "slim", lora_r=8)
    first = loaded(tmp_path, small(model={"preset": "slim", "lora_alpha": 3}))
    config.write_yaml(first, tmp_path / "written.yaml")
    presets("models", "slim", lora_r=9)
    assert config.load(str(tmp_path / "written.yaml")).model == first.model


# Stored configurations


def test_a_stored_configuration_is_resolved_in_the_current_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_FOLDER", "/then")
    stored = loaded(tmp_path, small(model={"llama_model": "${oc.env:LLAMA_FOLDER}"}, paths={"root": "/r"})).unresolved()
    monkeypatch.setenv("LLAMA_FOLDER", "/now")
    assert config.from_dict(stored, "stored").resolved()["model"]["llama_model"] == "/now"
    assert stored["model"]["llama_model"] == "${oc.env:LLAMA_FOLDER}"


def test_a_configuration_does_not_depend_on_the_working_folder(tmp_path, monkeypatch):
    path = write(tmp_path, small())
    here = config.load(path)
    monkeypatch.chdir("/")
    assert config.load(path).unresolved() == here.unresolved()


# Sources of values


def shown(folder, tree, *options, form=()):
    """The output of ``emollama config show``."""
    parser = argparse.ArgumentParser()
    show.add_arguments(parser)
    line = ["show", "--cfg-path", write(folder, tree), *form, *(["--options", *options] if options else [])]
    show.run(parser.parse_args(line))


def test_every_value_has_a_source(tmp_path):
    cfg = loaded(tmp_path, golden_tree(tmp_path), "run.seed=3")
    assert set(cfg.sources) == {key for key, _ in leaves(cfg.unresolved())}
    assert set(cfg.sources.values()) == {"default", f"{tmp_path}/config.yaml", "--options"}


def test_the_source_is_the_last_layer_that_gave_the_value(tmp_path, presets):
    presets("models", "slim", lora_r=8, lora_alpha=8, max_txt_len=88)
    tree = small(model={"preset": "slim", "lora_alpha": 9, "max_txt_len": 99}, paths={"a": 1, "b": 2})
    sources = loaded(tmp_path, tree, "model.max_txt_len=111", "paths.b=3").sources
    assert sources["model.lora_dropout"] == "default"
    assert sources["model.lora_r"].startswith("preset slim (")
    assert sources["model.lora_alpha"] == sources["paths.a"] == f"{tmp_path}/config.yaml"
    assert sources["model.max_txt_len"] == sources["paths.b"] == "--options"


def test_each_entry_of_a_mapping_has_its_own_source(tmp_path):
    sources = loaded(tmp_path, small(model={"slot_dims": {"image": 176}})).sources
    assert (sources["model.slots.image.dim"], sources["model.slots.face.dim"]) == (f"{tmp_path}/config.yaml", "default")


def test_the_source_of_a_value_includes_the_old_key(tmp_path):
    tree = small()
    tree["datasets"]["feature_face_caption"] = {"build_info": {"ann_path": "list.txt"}}
    sources = loaded(tmp_path, tree, "run.save_path=there").sources
    assert sources["datasets.feature_face_caption.annotation_file"] == f"{tmp_path}/config.yaml (as build_info.ann_path)"
    assert sources["run.output_dir"] == "--options (as save_path)"


def test_the_output_of_config_show_loads_as_the_same_configuration(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LLAMA_FOLDER", "/somewhere")
    tree = golden_tree(tmp_path) | {"paths": {"my root": "x"}}
    tree["model"] |= {"llama_model": "${oc.env:LLAMA_FOLDER}", "end_sym": "###", "prompt_template": "# {}: '\"\n"}
    tree["datasets"]["golden"] |= {"labels": ["no", "null", "1e3", "~", "# x"], "prompt_labels": None}
    shown(tmp_path, tree, "run.init_lr=1e-7")
    (tmp_path / "shown.yaml").write_text(capsys.readouterr().out)
    assert config.load(str(tmp_path / "shown.yaml")).unresolved() == loaded(tmp_path, tree, "run.init_lr=1e-7").unresolved()


def test_config_show_prints_each_value_with_its_layer(tmp_path, capsys):
    shown(tmp_path, small(), "run.seed=3")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["seed:", "3", "#", "--options"] in lines
    assert ["annotation_file:", '"list.txt"', "#", f"{tmp_path}/config.yaml"] in lines
    assert ["lora_r:", "64", "#", "default"] in lines


def test_config_show_json_contains_the_value_and_layer_of_each_key(tmp_path, capsys):
    shown(tmp_path, small(), "run.seed=3", form=["--json"])
    values = json.loads(capsys.readouterr().out)
    assert values["run.seed"] == {"value": 3, "layer": "--options"}
    assert values["model.prompt_template"] == {"value": "[INST] {} [/INST]", "layer": "default"}


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_config_show_prints_the_name_and_not_the_value_of_an_environment_variable(tmp_path, capsys, monkeypatch, form):
    monkeypatch.setenv("LLAMA_FOLDER", "/sesame-42/models")
    shown(tmp_path, small(model={"llama_model": "${oc.env:LLAMA_FOLDER}/7b"}), form=form)
    captured = capsys.readouterr()
    assert "${oc.env:LLAMA_FOLDER}/7b" in captured.out and "sesame-42" not in captured.out + captured.err


def test_config_show_prints_warnings_to_standard_error(tmp_path, capsys):
    shown(tmp_path, small(run={"job_name": "first"}), form=["--json"])
    captured = capsys.readouterr()
    assert json.loads(captured.out) and captured.err.startswith("warning: ") and "run.job_name" in captured.err


@pytest.mark.parametrize("value", ['"1e-3"', "1", "1e-3"])
@pytest.mark.filterwarnings("error")
def test_a_number_in_another_notation_is_converted_without_a_warning(tmp_path, value):
    assert isinstance(loaded(tmp_path, small(), f"run.init_lr={value}").run.init_lr, float)
