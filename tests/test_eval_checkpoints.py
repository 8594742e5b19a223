"""``emollama eval-checkpoints`` evaluates every checkpoint of a run once, as ``emollama eval`` would, and tabulates metrics."""

from __future__ import annotations

import argparse
import csv
import io
import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import ranks
import torch
from flickr_world import make_flickr_world
from helpers import GOLDEN, golden_tree, loaded, write
from PIL import Image
from plots import WHITE_PIXEL

from emollama import checkpoint, file_digests
from emollama.cli import parse_run
from emollama.commands import eval as evaluation
from emollama.commands import eval_checkpoints as command
from emollama.config import load
from emollama.errors import UserError
from emollama.inference.fingerprint import changes, compared, fingerprint_of
from emollama.reporting.checkpoint_table import (
    CheckpointRow,
    CheckpointTable,
    best_rows,
    checkpoint_panels,
    read_checkpoint_table,
    write_checkpoint_table,
)
from emollama.reporting.panels import Line, metric_panels
from emollama.runners.runner_base import RunnerBase

LABELS = ["pretrained", "epoch_0", "epoch_1"]


@pytest.fixture(scope="module", autouse=True)
def no_reports():
    """Commands write no report, because drawing it takes longer than evaluating the tiny model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("emollama.reporting.report.write_report", ranks.no_report)
        yield


def tree(folder, *, model=None, epochs=2):
    """A configuration of a run of two epochs by default and of two evaluation blocks, one of them with two tasks."""
    content = golden_tree(folder)
    content["model"] |= model or {}
    content["run"] |= {"max_epoch": epochs, "iters_per_epoch": 2, "init_lr": 1e-3, "min_lr": 1e-3}
    answers = content["evaluation_datasets"]["answers"] | {"max_new_tokens": 2}
    one = answers | {"task_pool": ["emotion"], "metrics": ["waf", "loss"]}
    content["evaluation_datasets"] = {"words": one, "both": answers | {"task_pool": ["emotion", "reason"], "metrics": ["loss"]}}
    return content


def trained(folder, **parts):
    """A run folder and the YAML file that evaluates it."""
    config = loaded(folder, tree(folder, **parts))
    run_folder = config.runner_class(config).train()
    evaluation = tree(folder, **parts)
    evaluation["model"]["ckpt"] = None
    del evaluation["datasets"]
    (folder / "eval").mkdir()
    return run_folder, Path(write(folder / "eval", evaluation))


def evaluate(capsys, run_folder, cfg, *arguments):
    """Run ``emollama eval-checkpoints`` in this process and return its output."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args(["--cfg-path", str(cfg), "--run-folder", str(run_folder), *arguments]))
    return capsys.readouterr().out


def cells(text):
    """The cells of the first table in the output."""
    head, _, *rows = text.split("\n\n")[1].splitlines()
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in (head, *rows)]


def refused(capsys, run_folder, cfg, *arguments):
    with pytest.raises(UserError) as error:
        evaluate(capsys, run_folder, cfg, *arguments)
    return str(error.value)


def figures(result):
    """``block/task/metric`` -> value in a folder of results."""
    files = [json.loads(path.read_text()) for path in sorted(result.glob("metrics_*.json"))]
    return {
        f"{file['block']}/{task}/{name}": value
        for file in files
        for task, results in file["tasks"].items()
        for name, value in results["metrics"].items()
    }


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, launch):
    """A run whose checkpoints two processes have evaluated."""
    folder = tmp_path_factory.mktemp("sweep")
    run_folder, cfg = trained(folder)
    ended = launch("-m", "emollama", "sweep", "--cfg-path", str(cfg), "--run-folder", str(run_folder), processes=2)
    assert ended.returncode == 0, ended.stderr
    return run_folder, cfg, ended


@pytest.fixture
def copied(evaluated, tmp_path):
    """A copy of the run with its evaluations, which a test may change, and the YAML file."""
    return Path(shutil.copytree(evaluated[0], tmp_path / "run")), evaluated[1]


@pytest.fixture
def again(copied, monkeypatch):
    """The same for evaluations in this process without charts."""
    monkeypatch.setattr("emollama.reporting.checkpoint_table.metric_panels", lambda *_: WHITE_PIXEL)
    return copied


def mtimes(folder, block="words"):
    return {path.parent.parent.name: path.stat().st_mtime_ns for path in folder.glob(f"*/result/metrics_{block}.json")}


def answered(folder, before):
    """The (row, block) pairs that were evaluated since then."""
    return {
        (label, block) for block, old in before.items() for label, at in mtimes(folder, block).items() if old.get(label) != at
    }


def since(folder):
    return {block: mtimes(folder, block) for block in ("words", "both")}


# Output files


def test_each_checkpoint_has_the_same_metrics_as_a_separate_evaluation(evaluated, tmp_path):
    run_folder, cfg, _ = evaluated
    files = {"pretrained": GOLDEN / "checkpoint_slim.pth", "epoch_1": run_folder / "checkpoint_1.pth"}
    for label, file in files.items():
        options = [f"model.ckpt={file}", f"run.output_dir={tmp_path}", f"run.job_id={label}"]
        evaluation.run(parse_run("", ["--cfg-path", str(cfg), "--options", *options]))
        metrics, expected = (figures(parent / label / "result") for parent in (run_folder / "sweep_config", tmp_path))
        assert metrics == pytest.approx(expected, abs=1e-6) and len(expected) == 4
    assert figures(run_folder / "sweep_config/epoch_0/result") != figures(run_folder / "sweep_config/epoch_1/result")


def test_the_table_has_one_row_per_checkpoint_and_one_column_per_metric(evaluated):
    folder = evaluated[0] / "sweep_config"
    head, *rows = csv.reader(io.StringIO((folder / "sweep.csv").read_text()))
    assert head == ["checkpoint", "epoch", "file", "words.waf", "words.loss", "both.emotion.loss", "both.reason.loss"]
    assert [row[:2] for row in rows] == [["pretrained", ""], ["epoch_0", "0"], ["epoch_1", "1"]]
    for label, *_, waf, loss, _, reason in rows:
        metrics = figures(folder / label / "result")
        expected = [metrics["words/emotion/waf"], metrics["words/emotion/loss"], metrics["both/reason/loss"]]
        assert [float(value) for value in (waf, loss, reason)] == expected
    assert [row["label"] for row in json.loads((folder / "sweep.json").read_text())["rows"]] == LABELS


def test_the_best_value_of_a_column_is_bold_and_the_table_is_printed_once(evaluated):
    folder, printed = evaluated[0] / "sweep_config", evaluated[2].stdout
    text = (folder / "sweep.md").read_text()
    losses = {label: figures(folder / label / "result")["words/emotion/loss"] for label in LABELS}
    best = min(losses, key=losses.get)
    assert [f"**{losses[label]:.4f}**" in text for label in LABELS] == [label == best for label in LABELS], text
    assert printed == text and "pretrained: start of the training, " in text


def table_of(epochs):
    """A table with the start of the training, epochs and a file."""
    rows = [CheckpointRow("untrained", -1, ()), *(CheckpointRow(f"epoch_{at}", at, ("a.pth",)) for at in range(epochs))]
    rows.append(CheckpointRow("published", None, ("b.pth",)))
    metrics = {row.label: {"a.bleu_4": 0.1 * (at % 7), "a.loss": None} for at, row in enumerate(rows)}
    return CheckpointTable(Path(), {}, rows, metrics, {"a.bleu_4": "a/caption/bleu_4", "a.loss": "a/caption/loss"})


def test_the_chart_has_a_line_over_the_epochs_from_the_start_and_a_level_for_each_file(evaluated):
    Image.open(evaluated[0] / "sweep_config/sweep.png").verify()
    bleu, loss = checkpoint_panels(table_of(2))
    assert (bleu.title, bleu.block, bleu.higher_is_better) == ("BLEU-4", "a · caption", True)
    assert bleu.lines == [Line("", [(-1, 0.0), (0, 0.1), (1, 0.2)]), Line("published", level=pytest.approx(0.3))]
    assert loss.lines == [Line("")]


@pytest.mark.parametrize("epochs", [0, 1, 60])
def test_a_chart_can_show_few_or_many_checkpoints(epochs, rendered_plots):
    assert Image.open(io.BytesIO(metric_panels(checkpoint_panels(table_of(epochs))))).width > 800


# Work that is not repeated


@pytest.mark.slow
def test_a_second_call_evaluates_only_with_the_option_again(again, capsys):
    run_folder, cfg = again
    before = mtimes(run_folder / "sweep_config")
    evaluate(capsys, run_folder, cfg)
    assert mtimes(run_folder / "sweep_config") == before and before.keys() == set(LABELS)
    evaluate(capsys, run_folder, cfg, "--again")
    assert all(mtimes(run_folder / "sweep_config")[label] > before[label] for label in LABELS)


def test_new_and_replaced_checkpoints_are_evaluated(again, capsys):
    run_folder, cfg = again
    folder, before = run_folder / "sweep_config", mtimes(run_folder / "sweep_config")
    checkpoint.copy(run_folder / "checkpoint_1.pth", run_folder / "checkpoint_2.pth")
    checkpoint.copy(run_folder / "checkpoint_1.pth", run_folder / "checkpoint_0.pth")
    text = evaluate(capsys, run_folder, cfg)
    changed = {label for label, stamp in mtimes(folder).items() if before.get(label) != stamp}
    assert changed == {"epoch_0", "epoch_2"} and "| epoch_2 " in text
    assert figures(folder / "epoch_0/result") == pytest.approx(figures(folder / "epoch_1/result"), abs=1e-6)


@pytest.mark.slow
def test_another_configuration_is_evaluated_again_and_never_shown_with_the_old_one(again, capsys):
    run_folder, cfg = again
    file_digests.digest_path(run_folder / "checkpoint_0.pth").unlink()
    (run_folder / "checkpoint_0.pth").unlink()
    before = mtimes(run_folder / "sweep_config")
    text = evaluate(capsys, run_folder, cfg, "--options", "evaluation_datasets.words.metrics=[war]")
    after = mtimes(run_folder / "sweep_config")
    assert {label for label in LABELS if after[label] != before[label]} == {"pretrained", "epoch_1"}
    assert "war" in cells(text)[0] and "| epoch_0 " not in text and "other data: epoch_0" in text


@pytest.mark.slow
def test_changed_captions_cause_a_new_evaluation_of_their_block_only(again, corpus, capsys, caplog):
    run_folder, cfg = again
    folder, before = run_folder / "sweep_config", since(run_folder / "sweep_config")
    moved = ["--options", *(f"evaluation_datasets.{block}.data_root={corpus}" for block in before)]
    evaluate(capsys, run_folder, cfg, *moved)
    assert answered(folder, before) == {(label, block) for label in LABELS for block in before}  # by path
    losses = {label: figures(folder / label / "result") for label in LABELS}
    before = since(folder)
    captions = corpus / "MERR_coarse_grained.json"
    captions.write_text(captions.read_text().replace("A young woman", "An old man"))
    with caplog.at_level(logging.INFO, "emollama"):
        text = evaluate(capsys, run_folder, cfg, *moved)
    assert answered(folder, before) == {(label, "both") for label in LABELS}
    message = "evaluating again because the captions or lists of block both changed: pretrained, epoch_0, epoch_1"
    assert message in caplog.messages and sum("captions or lists" in line for line in caplog.messages) == 1
    now = {label: figures(folder / label / "result") for label in LABELS}
    changed = {key for label in LABELS for key in now[label] if now[label][key] != losses[label][key]}
    assert changed == {"both/reason/loss"} and all(f"| {label} " in text for label in LABELS)
    before = since(folder)
    evaluate(capsys, run_folder, cfg, *moved)
    assert answered(folder, before) == set()


@pytest.mark.slow
def test_removing_a_block_evaluates_nothing_and_restoring_it_evaluates_only_that_block(again, capsys):
    run_folder, cfg = again
    folder, before = run_folder / "sweep_config", since(run_folder / "sweep_config")
    text = evaluate(capsys, run_folder, cfg, "--options", "evaluation_datasets.both=null")
    assert answered(folder, before) == set() and cells(text)[0] == ["checkpoint", "waf", "loss"] and "both/" not in text
    evaluate(capsys, run_folder, cfg)
    assert answered(folder, before) == {(label, "both") for label in LABELS}


@pytest.mark.slow
def test_an_interrupted_evaluation_is_repeated_and_not_counted_as_complete(again, capsys, monkeypatch):
    run_folder, cfg = again

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunnerBase, "evaluate", stop)
        with pytest.raises(KeyboardInterrupt):
            evaluate(capsys, run_folder, cfg, "--options", "evaluation_datasets.both.max_new_tokens=1")
    folder, before = run_folder / "sweep_config", since(run_folder / "sweep_config")
    evaluate(capsys, run_folder, cfg)
    assert answered(folder, before) == {("pretrained", "words"), ("pretrained", "both")}


@pytest.fixture
def captioning(tmp_path):
    """A small captioning setup and a function that returns the reasons to repeat its evaluation."""
    world = make_flickr_world(tmp_path / "world")
    block = {"type": "flickr30k_caption", "annotation_file": str(world.test), "image_path": str(world.images)}

    def reasons(changes_of=None, data=None, **model):
        content = {"model": world.model(**model), "evaluation_datasets": {"a": block | (data or {}), "b": block}}
        basis = fingerprint_of(loaded(tmp_path, content | {"run": {"device": "cpu", "amp": False}}), 1)
        row = CheckpointRow("epoch_0", 0, (), basis=basis)
        return row, changes(changes_of, row) if changes_of else None

    return world, reasons


def test_files_changed_in_place_are_detected_by_their_content(captioning, tmp_path):
    world, reasons = captioning
    shutil.copytree(world.llama, tmp_path / "llama")
    model_keys = {"llama_model": str(tmp_path / "llama")}
    row, _ = reasons(**model_keys)
    assert reasons(row, **model_keys)[1] == {}

    world.prompts.write_text("<Img><ImageHere></Img> What is it?\n")
    content = torch.load(world.q_former)
    content["model"]["query_tokens"] += 1
    torch.save(content, world.q_former)
    with (tmp_path / "llama/config.json").open("a") as file:
        file.write("\n")
    listed = json.loads(world.test.read_text())
    listed["annotations"][0]["captions"][0] += " indeed"
    (tmp_path / "list.json").write_text(json.dumps(listed))

    changed = reasons(row, data={"annotation_file": str(tmp_path / "list.json")}, **model_keys)[1]
    shared = ["the language model changed", "the model's prompts changed", "the way image features are made changed"]
    assert changed == {"": shared, "a": ["the captions or lists of block a changed"]}


def test_moved_model_and_annotation_files_with_the_same_content_count_as_unchanged(captioning, tmp_path, monkeypatch):
    world, reasons = captioning
    row, _ = reasons()
    moved = Path(shutil.copytree(world.prompts.parent, tmp_path / "moved"))
    monkeypatch.chdir(moved)
    files = {key: world.model()[key] for key in ("prompt_path", "vit_weights", "q_former_model")}
    data = {"annotation_file": world.test.name, "image_path": os.path.relpath(world.images)}
    assert reasons(row, data=data, **{key: Path(path).name for key, path in files.items()})[1] == {}
    pictures = {"annotation_file": world.test.name, "image_path": world.images.name}
    assert reasons(row, data=pictures)[1] == {"a": ["the place of images or features of block a changed"]}


def test_a_changed_synonyms_file_is_detected_by_its_content(captioning, tmp_path):
    _, reasons = captioning
    groups, data = tmp_path / "groups.json", {"synonyms_path": str(tmp_path / "groups.json")}
    groups.write_text('[["glad", "happy"]]')
    row, _ = reasons(data=data)
    other = tmp_path / "other" / groups.name
    other.parent.mkdir()
    shutil.copy(groups, other)
    assert reasons(row, data={"synonyms_path": str(other)})[1] == {}
    groups.write_text('[["glad", "sad"]]')
    assert reasons(row, data=data)[1] == {"a": ["what answers of block a are compared with changed"]}


def test_moved_weight_files_are_not_a_difference_between_training_and_evaluation(captioning):
    world, _ = captioning
    moved = {"q_former_model": "elsewhere.pth", "vit_weights": "x.pth", "prompt_path": None, "lora_dropout": 0.5}
    assert compared(world.model()) == compared(world.model(**moved)) != compared(world.model(image_size=224))


def test_a_deleted_checkpoint_remains_in_the_table(again, capsys):
    run_folder, cfg = again
    (run_folder / "checkpoint_0.pth").unlink()
    assert "| epoch_0 " in evaluate(capsys, run_folder, cfg)


@pytest.mark.slow
def test_table_and_chart_are_recreated_from_stored_results(copied, capsys):
    run_folder, cfg = copied
    folder = run_folder / "sweep_config"
    text = (folder / "sweep.md").read_text()
    for name in ("sweep.md", "sweep.csv", "sweep.png"):
        (folder / name).unlink()
    assert evaluate(capsys, run_folder, cfg, "--table-only") == text == (folder / "sweep.md").read_text()
    Image.open(folder / "sweep.png").verify()
    (folder / "epoch_0/result/metrics_both.json").unlink()
    assert "1 missing or damaged metrics file: " in refused(capsys, run_folder, cfg, "--table-only")
    before = since(folder)
    evaluate(capsys, run_folder, cfg)
    assert answered(folder, before) == {("epoch_0", "both")}


def test_missing_metrics_of_a_checkpoint_do_not_prevent_other_evaluations(again, capsys):
    run_folder, cfg = again
    (run_folder / "sweep_config/epoch_1/result/metrics_both.json").unlink()
    assert "| epoch_1 " in evaluate(capsys, run_folder, cfg, "--again")
    (run_folder / "sweep_config/epoch_1/result/metrics_both.json").unlink()
    (run_folder / "checkpoint_1.pth").unlink()
    assert "| epoch_1 " not in evaluate(capsys, run_folder, cfg)


def test_equal_values_have_no_best_value(again):
    folder = again[0] / "sweep_config"
    for label in LABELS:
        path = folder / label / "result/metrics_words.json"
        content = json.loads(path.read_text())
        content["tasks"]["emotion"]["metrics"]["waf"] = 0.25
        path.write_text(json.dumps(content))
    assert "words.waf" not in best_rows(read_checkpoint_table(folder))


def test_values_that_round_to_zero_or_to_the_same_number_have_no_best_value(again):
    folder = again[0] / "sweep_config"
    for number, label in enumerate(LABELS):
        path = folder / label / "result/metrics_words.json"
        content = json.loads(path.read_text())
        metrics = content["tasks"]["emotion"]["metrics"]
        metrics |= {"waf": 5.18e-10 / 10 ** (3 * number), "war": 0.2 + 1e-6 * number, "uar": 0.2 * number}
        path.write_text(json.dumps(content))
    sweep = read_checkpoint_table(folder)
    text = write_checkpoint_table(sweep)
    head, _, _, last = cells(text)
    figures_of = dict(zip(head, last, strict=True))
    shown = {name: figures_of[name] for name in ("waf", "war", "uar")}
    assert shown == {"waf": "0.0000", "war": "0.2000", "uar": "**0.4000**"}
    assert not {"words.waf", "words.war"} & best_rows(sweep).keys()
    assert "5.18e-10" in (folder / "sweep.csv").read_text() and "5.18e-10" in (folder / "sweep.json").read_text()


# Start of the training


@pytest.mark.slow
def test_the_table_of_a_run_from_random_weights_begins_with_an_untrained_row(tmp_path, capsys):
    run_folder, cfg = trained(tmp_path, model={"ckpt": None}, epochs=1)
    text = evaluate(capsys, run_folder, cfg, "--checkpoints", f"golden={GOLDEN / 'checkpoint_slim.pth'}")
    assert [row[0] for row in cells(text)] == ["checkpoint", "untrained", "epoch_0", "golden"]
    assert "untrained: start of the training, with random projections and adapters" in text
    config = load(str(cfg), ["model.ckpt_allow_missing=['*']"])
    runner = config.runner_class(config, training=False)
    runner.folder = tmp_path / "alone"
    runner.evaluate()
    assert figures(tmp_path / "alone/result") == pytest.approx(figures(run_folder / "sweep_config/untrained/result"), abs=1e-6)


def test_a_dry_run_lists_the_checkpoints_and_writes_nothing(copied, capsys):
    run_folder, cfg = copied
    shutil.rmtree(run_folder / "sweep_config")
    before = sorted(run_folder.rglob("*"))
    printed = evaluate(capsys, run_folder, cfg, "--dry-run")
    assert str(run_folder / "checkpoint_0.pth") in printed and "no problem was found; nothing was written" in printed
    assert sorted(run_folder.rglob("*")) == before


# Errors before the first evaluation


def test_a_folder_that_is_not_a_run_is_refused(evaluated, tmp_path, capsys):
    cfg = evaluated[1]
    assert "no folder" in refused(capsys, tmp_path / "nowhere", cfg)
    assert "is not the folder of a run: it has no config.yaml" in refused(capsys, tmp_path, cfg)
    shutil.copy(evaluated[0] / "config.yaml", tmp_path)
    assert "no checkpoint_<epoch>.pth" in refused(capsys, tmp_path, cfg)
    assert "contains no evaluated checkpoints" in refused(capsys, tmp_path, cfg, "--table-only")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("epoch_0=x.pth", "is already the name of a row of the run"),
        ("a/b=x.pth", "becomes the name of a folder. Use letters"),
        ("mine=nowhere.pth", "no file 'nowhere.pth'"),
    ],
)
def test_an_invalid_label_or_a_missing_file_of_a_checkpoint_is_refused(again, capsys, value, expected):
    assert expected in refused(capsys, *again, "--checkpoints", value, "--output", str(again[0] / "new"))
    assert not (again[0] / "new").exists()


def test_a_damaged_checkpoint_is_refused_before_the_evaluation(again, capsys):
    run_folder, cfg = again
    raw = bytearray((run_folder / "checkpoint_1.pth").read_bytes())
    raw[-100] ^= 1
    (run_folder / "checkpoint_1.pth").write_bytes(raw)
    assert "epoch_1: " in refused(capsys, run_folder, cfg, "--dry-run", "--output", str(run_folder / "new"))
    assert (
        "epoch_1: " in (message := refused(capsys, run_folder, cfg, "--output", str(run_folder / "new"))) and "SHA-256" in message
    )
    assert not (run_folder / "new").exists()


@pytest.mark.slow
def test_a_checkpoint_of_another_model_is_refused_with_its_tensors(again, tmp_path, capsys):
    run_folder, cfg = again
    content = torch.load(run_folder / "checkpoint_1.pth", weights_only=True)
    content["model"]["stranger.weight"] = torch.zeros(2)
    torch.save(content, tmp_path / "other.pth")
    options = ["--checkpoints", f"other={tmp_path / 'other.pth'}"]
    assert "other.pth: 1 unexpected tensor: " in refused(capsys, run_folder, cfg, *options, "--dry-run")
    message = refused(capsys, run_folder, cfg, *options, "--again")
    assert "other.pth: 1 unexpected tensor: " in message and "stranger.weight" in message
    assert (run_folder / "sweep_config/epoch_0/evaluated.json").exists()
    assert not list((run_folder / "sweep_config").glob("other/result"))


def test_an_evaluation_of_another_architecture_is_refused_once_by_two_processes(again, launch):
    run_folder, cfg = again
    text = (run_folder / "config.yaml").read_text().replace("arch: minigpt_v2", "arch: minigpt4", 1)
    (run_folder / "config.yaml").write_text(text)
    ended = launch("-m", "emollama", "sweep", "--cfg-path", str(cfg), "--run-folder", str(run_folder), processes=2)
    assert ended.returncode == 1 and ended.stderr.count("error: ") == 1


def test_the_evaluation_of_another_run_is_not_overwritten(again, tmp_path, capsys):
    run_folder, cfg = again
    other = Path(shutil.copytree(run_folder, tmp_path / "other"))
    message = refused(capsys, other, cfg, "--output", str(run_folder / "sweep_config"))
    assert "contains the evaluation of another run, run" in message


# The evaluation script


def test_the_evaluation_script_gives_the_same_metrics_as_the_command(evaluated, tmp_path, launch):
    run_folder, cfg, _ = evaluated
    expected = figures(run_folder / "sweep_config/epoch_1/result")
    file = run_folder / "checkpoint_1.pth"
    arguments = ["--cfg-path", str(cfg), "--options", f"model.ckpt={file}", f"run.output_dir={tmp_path}", "run.job_id=script"]
    ended = launch("eval_emotion_EMER.py", *arguments)
    assert ended.returncode == 0 and "wrote " in ended.stderr, ended.stderr
    assert figures(tmp_path / "script/result") == pytest.approx(expected, abs=1e-6)
