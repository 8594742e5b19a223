"""The examples of docs/extending.md and of the pages that it links to: one component of each kind, all in one run."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import math
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from helpers import GOLDEN, golden_tree, write
from media_files import write_video
from running import ROOT, read_jsonl

from emollama import config as configuration
from emollama import registry
from emollama.cli import main
from emollama.data.instructions import user_text
from emollama.registration import Registry
from emollama.stores.manifest import Manifest

PAGE = (ROOT / "docs/extending.md").read_text()
REGISTRIES = {name: value for name, value in vars(registry).items() if isinstance(value, Registry)}
# A registry -> the component of the examples that it selects.
SELECTED = {
    "MODELS": "minigpt_v2_gains",
    "FUSIONS": "temporal",
    "PROMPT_FORMATS": "transcript_dropout",
    "DATASETS": "jsonl",
    "TASKS": "short_answers",
    "RUNNERS": "checked",
    "LR_SCHEDULES": "inverse_sqrt_lr",
    "ENCODERS": "loudness",
    "EXTRACTORS": "recorded",
    "METRICS": "hedged",
    "METRIC_INPUTS": "hedges",
    "JUDGES": "word_overlap",
}
CLIPS = {"train": ["anna", "ben", "carl", "dora"], "test": ["emil", "fay"]}
LABEL = {"anna": "happy", "ben": "sad", "carl": "happy", "dora": "sad", "emil": "happy", "fay": "sad"}
INSTRUCTIONS = {"emotion": ["Which emotion is it?"], "reason": ["Why?"]}
STEPS, WARMUP, INIT_LR = 30, 4, 4e-3
PLAIN = ["run.task=image_text_pretrain", "run.job_id=plain", "run.iters_per_epoch=1", "evaluation_datasets.test=null"]


def examples(page):
    """Module -> text of the examples on a page, which start with ``# module.py``."""
    return dict(re.findall(r"```python\n# (\w+)\.py[^\n]*\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL))


MODULES = examples("extending.md") | examples("evaluation.md") | examples("prompt_formats.md") | examples("modalities.md")


def write_project(folder):
    """Write the modules, videos, lists and the configuration of the page, with settings for a tiny model."""
    (folder / "videos").mkdir()
    (folder / "llama").symlink_to(GOLDEN / "llama")
    for name, text in MODULES.items():
        (folder / f"{name}.py").write_text(text)
    for split, names in CLIPS.items():
        rows = [{"name": name, "said": f"I am {name}.", "emotion": LABEL[name]} for name in names]
        rows = [row | {"reason": f"The person is {row['emotion']} and smiles."} for row in rows]
        (folder / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for number, name in enumerate(LABEL, 1):
        write_video(folder / f"videos/{name}.mp4", frames=4, sound=(number / 10,))
    tree = yaml.safe_load(re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1])
    assert sorted(tree["imports"]) == sorted({*MODULES} - {"my_metrics", "my_datasets"})
    tree["model"] |= {"train_llm": "full", "use_grad_checkpoint": False}
    tree["model"]["prompt_format"] |= {"probability": 0.5}
    tree["extraction"] |= {"device": "cpu", "num_workers": 1}
    tree["datasets"]["clips"] |= {"instructions": INSTRUCTIONS}
    tree["evaluation_datasets"]["test"] |= {"max_new_tokens": 10, "instructions": INSTRUCTIONS}
    tree["run"] |= {"iters_per_epoch": STEPS, "init_lr": INIT_LR, "warmup_lr": 0.0, "warmup_steps": WARMUP, "log_freq": 1}
    tree["run"] |= {"num_workers": 0, "amp": False, "device": "cpu", "output_dir": "out", "job_id": "run"}
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))


def command(*arguments):
    """Exit status and output of a command in this process."""
    output, status = io.StringIO(), 0
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            main(list(arguments))
        except SystemExit as ended:
            status = ended.code
    return SimpleNamespace(status=status, output=output.getvalue())


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder outside the package, in which every command has run with the same configuration."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", [path for path in sys.path if path])
        patch.setattr(sys, "dont_write_bytecode", True)
        for each in REGISTRIES.values():
            patch.setattr(each, "_entries", dict(each._entries))
            patch.setattr(each, "_locations", dict(each._locations))
        write_project(folder)
        importlib.invalidate_caches()
        runs = {
            name: command(name.split()[0], "--cfg-path", "config.yaml", *options)
            for name, options in {
                "extract": [],
                "check-data": ["--json"],
                "plan": ["--json"],
                "train": [],
                "train plain": ["--options", *PLAIN],
                "train few": ["--dry-run", "--options", "run.min_samples=5"],
                "eval": ["--options", "model.ckpt=out/run/checkpoint_0.pth"],
            }.items()
        }
        yield SimpleNamespace(folder=folder, runs=runs, result=folder / "out/run/result")
    for name in MODULES:
        sys.modules.pop(name, None)


def test_every_registry_has_a_component_in_the_examples(project):
    assert SELECTED.keys() == REGISTRIES.keys()
    for name, component in SELECTED.items():
        assert component in REGISTRIES[name]._entries, name


def test_every_command_succeeds(project):
    failed = {name: run.output for name, run in project.runs.items() if run.status and name != "train few"}
    assert failed == {}


def test_the_encoder_extracts_arrays_of_its_shape_that_show_the_loudness(project):
    manifest = Manifest.read(str(project.folder / "features/loudness"))
    assert (manifest.slots, manifest.num_vectors, manifest.dim, manifest.weights) == (("loudness",), 4, 1, "none")
    assert manifest.settings == {"encoder": "loudness", "parts": 4}
    for number, name in enumerate(LABEL, 1):
        array = np.load(project.folder / f"features/loudness/{name}.npy")
        assert array.shape == (4, 1) and array[1, 0] == pytest.approx(number / 10 / math.sqrt(2), rel=0.2)


def test_the_extractor_stores_its_configuration(project):
    stored = yaml.safe_load((project.folder / "features/extraction.yaml").read_text())
    assert stored["extraction"]["config_file"] == "extraction.yaml" and stored["encoders"]["loudness"]["parts"] == 4


def test_check_data_reports_the_texts_and_arrays_of_the_dataset(project):
    report = json.loads(project.runs["check-data"].output)
    train, test = report["blocks"]
    assert (train["type"], train["clips"], test["clips"], report["problems"]) == ("jsonl", 4, 2, 0)
    assert train["answers"] == {"emotion": 4, "reason": 4}
    assert [(arrays["present"], arrays["missing"]) for arrays in train["arrays"]] == [(4, 0)]


def test_the_plan_counts_the_parameters_and_feature_tokens_of_fusion_and_model(project):
    plan = json.loads(project.runs["plan"].output)
    hidden_size = json.loads((GOLDEN / "llama/config.json").read_text())["hidden_size"]
    convolution, projection = 32 * (1 * 3) + 32, 32 * hidden_size + hidden_size
    assert plan["parameters"]["projection"] == convolution + projection
    assert plan["parameters"]["other modules, trained"] == 1
    assert plan["tokens"]["rows: loudness"] == 2


def test_the_checkpoint_has_the_trained_tensors_of_fusion_and_model(project):
    tensors = torch.load(project.folder / "out/run/checkpoint_0.pth", weights_only=True)["model"]
    fusion = {f"{layer}.loudness.{kind}" for layer in ("convolutions", "projections") for kind in ("weight", "bias")}
    assert {name for name in tensors if not name.startswith("llama_model.")} == fusion | {"gains.loudness"}
    assert tensors["gains.loudness"].item() != 1.0


def test_the_learning_rates_of_the_log_are_those_of_the_schedule(project):
    rates = [row["lr"] for row in read_jsonl(project.folder / "out/run/log.jsonl")]
    warmup = [INIT_LR * step / WARMUP for step in range(WARMUP)]
    assert rates == pytest.approx(warmup + [INIT_LR * math.sqrt(WARMUP / step) for step in range(WARMUP, STEPS)])


def test_the_task_weights_the_loss_of_the_emotion_samples(project):
    weighted, plain = (read_jsonl(project.folder / f"out/{name}/log.jsonl")[0]["loss"] for name in ("run", "plain"))
    assert 1.0 < weighted / plain <= 2.0


def test_the_task_shortens_predictions(project):
    rows = read_jsonl(project.result / "predictions_test.jsonl")
    assert len(rows) == 4 and max(len(row["prediction"].split()) for row in rows) == 4


def test_the_prompt_format_defines_the_text_of_a_prompt_and_drops_transcripts_in_training(project):
    rows = {(row["name"], row["task"]): row for row in read_jsonl(project.result / "predictions_test.jsonl")}
    expected = "<sound><FeatureHere></sound> The person in video says: I am emil..  [emotion] Which emotion is it? "
    assert rows["emil", "emotion"]["instruction"] == expected
    config = configuration.load("config.yaml")
    prompt = config.model_class.prompt_format(config.model)
    questions = [user_text(task, text, f"I am {name}.") for task, [text] in INSTRUCTIONS.items() for name in CLIPS["train"]]
    shortest = min(prompt.prompt_lengths(questions)) + min(prompt.answer_lengths(["happy", "sad"])) + 1
    assert min(row["tokens"] for row in read_jsonl(project.folder / "out/run/log.jsonl")) < 4 * shortest


def test_the_metric_and_the_judge_score_the_predictions(project):
    rows = [row for row in read_jsonl(project.result / "predictions_test.jsonl") if row["task"] == "reason"]
    scores = json.loads((project.result / "metrics_test.json").read_text())["tasks"]["reason"]
    hedged = [bool({"happy", "sad"} & {*row["prediction"].lower().split()}) for row in rows]
    assert scores["metrics"]["hedged"] == np.mean(hedged) > 0
    overlaps = []
    for row in rows:
        one, two = ({*text.lower().split()} - {"the", "a", "is", "and"} for text in (row["reference"], row["prediction"]))
        overlaps.append(20 * len(one & two) / (len(one) + len(two)))
    assert scores["metrics"]["clue_overlap"] == pytest.approx(np.mean(overlaps)) and np.mean(overlaps) > 0
    assert scores["judge"]["name"] == "word_overlap"


def test_the_check_of_the_runner_stops_a_run_before_weights_are_loaded(project):
    run = project.runs["train few"]
    assert run.status == 1 and "datasets.clips has 4 samples, but run.min_samples is 5. Add samples" in run.output


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ("labels=[happy,said]", "train.jsonl, line 2: unknown label 'sad'. Did you mean 'said'? Correct it, or add it to labels"),
        (
            "features.lodness=features/loudness",
            "datasets.clips.features: the model has no slot lodness. Did you mean 'loudness'?",
        ),
        ("task_pool=[emotoin]", "datasets.clips: task_pool: unknown task 'emotoin'. Did you mean 'emotion'?"),
        ("held_out=0.1", "datasets.clips: held_out must be 0. Put the samples of an evaluation into a file of their own."),
    ],
    ids=["label", "slot", "task", "held out"],
)
def test_the_dataset_reports_mistakes_in_its_keys_and_labels_before_weights_are_loaded(project, keys, problem):
    run = command("train", "--cfg-path", "config.yaml", "--dry-run", "--options", f"datasets.clips.{keys}")
    assert run.status == 1 and problem in run.output and "Traceback" not in run.output


# Components that cannot be used

BARE = """
from dataclasses import dataclass
from emollama import registry
from emollama.evaluation.metrics import Metric, MetricInput

class Bare:
    @dataclass
    class Config:
        pass

registry.{name}.register("mine")({entry})
"""
METRIC = "registry.METRICS.register('mine')(Metric('mine', 'mine', len))"
# Registry -> the registered object, the keys that select it, the members that it lacks.
UNUSABLE = {
    "MODELS": ("Bare", {"model": {"arch": "mine"}}, "slot_shapes"),
    "FUSIONS": ("Bare", {"model": {"fusion": "mine"}}, "layout"),
    "PROMPT_FORMATS": ("Bare", {"model": {"prompt_format": "mine"}}, "tokenize"),
    "DATASETS": ("Bare", {"datasets": {"golden": {"type": "mine"}}}, "__len__, names"),
    "TASKS": ("Bare", {"run": {"task": "mine"}}, "scoring"),
    "RUNNERS": ("Bare", {"run": {"runner": "mine"}}, "prepare, train, evaluate"),
    "LR_SCHEDULES": ("3", {"run": {"lr_sched": "mine"}}, "__call__"),
    "ENCODERS": ("Bare", {"encoders": {"mine": {}}, "extraction": {}}, "SLOTS, describe, load, encode"),
    "EXTRACTORS": ("Bare", {"extraction": {"type": "mine"}}, "run, dry_run"),
    "METRICS": ("3", {"evaluation_datasets": {"answers": {"metrics": ["mine"]}}}, "title, metric_input, compute"),
    "JUDGES": ("Bare", {"evaluation_datasets": {"answers": {"judge": {"type": "mine"}}}}, "clue_overlap"),
}


@pytest.fixture
def refusal(tmp_path, monkeypatch):
    """A function that runs a command with a module ``mine`` and returns its error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for each in REGISTRIES.values():
        monkeypatch.setattr(each, "_entries", dict(each._entries))

    def run(name, text, keys):
        (tmp_path / "mine.py").write_text(text)
        importlib.invalidate_caches()
        tree = golden_tree(tmp_path) | {"imports": ["mine"]}
        for group, values in keys.items():
            tree[group] = merged(tree.get(group, {}), values)
        run = command(name, "--cfg-path", write(tmp_path, tree))
        assert run.status == 1 and "loading the language model" not in run.output and not (tmp_path / "out").exists()
        return run.output.replace(f"{tmp_path}/", "")

    yield run
    sys.modules.pop("mine", None)


def merged(tree, changes):
    """The tree with the changes; a block whose type changes loses its other keys."""
    if not isinstance(tree, dict) or not isinstance(changes, dict) or "type" in changes or "arch" in changes:
        return changes
    return tree | {key: merged(tree.get(key), value) for key, value in changes.items()}


def command_of(name):
    return "extract" if name in ("ENCODERS", "EXTRACTORS") else "train"


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_component_without_the_members_of_its_interface_stops_the_command_before_weights_are_loaded(refusal, name):
    entry, keys, members = UNUSABLE[name]
    text = BARE.format(name=name, entry=entry)
    line = 1 + text.splitlines().index(f'registry.{name}.register("mine")({entry})')
    output = refusal(command_of(name), text, keys)
    assert f"{REGISTRIES[name].kind} 'mine' ({entry}, mine.py, line {line}) has no {members}" in output


# Registry -> the keys that the Config of a component lacks.
MISSING_KEYS = {
    "MODELS": "llama_model, Config.ckpt",
    "PROMPT_FORMATS": "layout_names",
    "DATASETS": "batch_size, Config.held_out",
    "TASKS": "prompt_layout, Config.instruction",
    "RUNNERS": "output_dir, Config.job_id",
    "ENCODERS": "weights, Config.folder",
    "EXTRACTORS": "videos, Config.output, Config.device",
}


@pytest.mark.parametrize("name", MISSING_KEYS)
def test_a_config_without_the_keys_that_other_modules_read_stops_the_command(refusal, name):
    built_in = {"MODELS": "minigpt_v2", "ENCODERS": "mae"}.get(name) or REGISTRIES[name].in_order()[0]
    entry = f"type('Bare', (registry.{name}.get('{built_in}'),), {{'Config': Bare.Config}})"
    output = refusal(command_of(name), BARE.format(name=name, entry=entry), UNUSABLE[name][1])
    assert re.search(rf"'mine' \(Bare, mine\.py, line \d+\) has no Config\.{re.escape(MISSING_KEYS[name])}", output)


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("Bare", "<class 'mine.Bare'> must be a subclass of emollama.evaluation.metrics.MetricInput"),
        ("type('Empty', (MetricInput,), {'__module__': 'mine'})", "Empty does not define compute(predictions, resources)"),
    ],
)
def test_a_metric_input_without_compute_stops_the_command_before_weights_are_loaded(refusal, entry, problem):
    keys = {"evaluation_datasets": {"answers": {"metrics": ["mine"]}}, "run": {"evaluate": True}}
    output = refusal("train", BARE.format(name="METRIC_INPUTS", entry=entry) + METRIC, keys)
    assert "metric input 'mine' (mine.py" in output and problem in output
