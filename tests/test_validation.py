"""Evaluation during training and alone: answers, the best checkpoint, early stopping, and unchanged training."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from helpers import GOLDEN, NAMES, NINE, golden_block, golden_tree, loaded, write
from running import ROOT

from emollama.errors import UserError
from emollama.evaluation.metrics import Metric
from emollama.registry import METRICS
from emollama.reporting.report import write_report
from emollama.runners.runner import no_report

TRAINING = {"max_epoch": 3, "iters_per_epoch": 2, "init_lr": 1e-3, "min_lr": 1e-3, "log_freq": 1}
EVALUATED = {"evaluate": True, "metric": "answers.emotion.loss"}
WATCHED = {"run": EVALUATED | {"save_best": True}, "block": {"judge": {"type": "lexical"}}}
SMALL_BLOCK = {"task_pool": ["emotion", "reason_v2"], "max_new_tokens": 2, "batch_size": 12}
EMOTION = {"task_pool": ["emotion"]}


def tree(folder, *, run=None, block=None, data=None, model=None):
    config_tree = golden_tree(folder)
    config_tree["run"] |= TRAINING | (run or {})
    config_tree["model"] |= {"lora_dropout": 0.1} | (model or {})
    config_tree["datasets"]["golden"] |= {"shuffle": True, "task_pool": ["emotion", "reason"]} | (data or {})
    config_tree["evaluation_datasets"]["answers"] |= SMALL_BLOCK | (block or {})
    return config_tree


def trained(folder, *options, write_report=no_report, **parts):
    folder.mkdir(exist_ok=True)
    config = loaded(folder, tree(folder, **parts), *options)
    return config.runner_class(config).train(write_report)


def answered(folder, *options, **parts):
    folder.mkdir(exist_ok=True)
    config = loaded(folder, tree(folder, **parts), *options)
    config.runner_class(config, training=False).evaluate()
    return folder / "out/run/result"


def refused(folder, *, training=True, **parts):
    config = loaded(folder, tree(folder, **parts))
    with pytest.raises(UserError) as error:
        config.runner_class(config, training=training)
    assert not (folder / "out").exists()
    return str(error.value)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def by_clip(result, task="emotion"):
    return {row["name"]: row for row in lines(result / "predictions_answers.jsonl") if row["task"] == task}


@pytest.fixture(scope="module")
def reported():
    """The number of evaluations that the run ``evaluated`` had completed each time it wrote its report."""
    return []


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, reported):
    """The folder of a run of three epochs that evaluates after each one and saves the best checkpoint."""

    def count(folder):
        reported.append(len(lines(folder / "eval.jsonl")))

    return trained(tmp_path_factory.mktemp("evaluated"), write_report=count, **WATCHED)


def copied(evaluated, folder, epochs):
    """Copy the run ``evaluated`` as it was after this many epochs; its last checkpoint is also checkpoint_best.pth."""
    run = shutil.copytree(evaluated, folder / "out/run")
    for epoch in range(epochs, 3):
        (run / f"checkpoint_{epoch}.pth").unlink()
    shutil.copy(run / f"checkpoint_{epochs - 1}.pth", run / "checkpoint_best.pth")
    for name, count in (("eval", epochs), ("log", 2 * epochs)):
        (run / f"{name}.jsonl").write_text("".join((run / f"{name}.jsonl").read_text().splitlines(keepends=True)[:count]))
    return run


# Training is unchanged


def test_evaluation_during_training_does_not_change_the_training_losses(evaluated, tmp_path):
    keys = ("step", "loss", "grad_norm", "lr", "tokens")
    plain = trained(tmp_path / "plain")
    one, other = ([{key: row[key] for key in keys} for row in lines(run / "log.jsonl")] for run in (evaluated, plain))
    assert one == other and len(one) == 6


# Files of an evaluation


def test_each_evaluation_writes_a_line_and_its_own_files(evaluated):
    past = lines(evaluated / "eval.jsonl")
    assert [(entry["epoch"], entry["step"]) for entry in past] == [(0, 1), (1, 3), (2, 5)]
    for entry in past:
        files = json.loads((evaluated / f"result/epoch_{entry['epoch']}/metrics_answers.json").read_text())
        flat = {f"answers/{task}/{name}": v for task, scores in files["tasks"].items() for name, v in scores["metrics"].items()}
        assert flat == entry["metrics"] and {"answers/emotion/waf", "answers/reason_v2/clue_overlap"} <= flat.keys()


def test_the_validation_loss_is_the_mean_of_the_clips_losses(evaluated):
    rows = by_clip(evaluated / "result/epoch_1").values()
    mean = sum(row["loss"] for row in rows) / len(rows)
    assert lines(evaluated / "eval.jsonl")[1]["metrics"]["answers/emotion/loss"] == pytest.approx(mean, abs=1e-9)


def test_the_best_checkpoint_is_that_of_the_epoch_with_the_lowest_loss(evaluated):
    past = lines(evaluated / "eval.jsonl")
    losses = [entry["metrics"]["answers/emotion/loss"] for entry in past]
    epoch = losses.index(min(losses))
    assert [i for i, entry in enumerate(past) if entry["best"]][-1] == epoch
    best, same = (torch.load(evaluated / f"checkpoint_{name}.pth", weights_only=True) for name in ("best", epoch))
    assert best["step"] == same["step"] and all(best["model"][key].equal(same["model"][key]) for key in same["model"])


def test_shown_answers_and_metrics_are_in_tensorboard(evaluated):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(evaluated)).Reload()
    assert [event.step for event in board.Scalars("eval/answers/emotion/loss")] == [1, 3, 5]
    texts = [tag.split("/")[2:4] for tag in board.Tags()["tensors"] if tag.startswith("eval/answers/")]
    assert sorted(task for task, _ in texts) == ["emotion"] * 3 + ["reason_v2"] * 3 and len({name for _, name in texts}) == 3


def test_a_report_is_written_after_each_evaluation_and_at_the_end(evaluated, reported, tmp_path):
    assert reported == [1, 2, 3, 3]
    page = write_report(shutil.copytree(evaluated, tmp_path / "run"))
    assert page == tmp_path / "run/result/report.html" and "clue overlap" in page.read_text(encoding="utf-8")


# Early stopping and resuming


@pytest.mark.slow
def test_early_stopping_ends_a_run_after_its_patience_also_when_resumed(tmp_path):
    still = EVALUATED | {"init_lr": 0.0, "min_lr": 0.0, "max_epoch": 8, "iters_per_epoch": 1, "early_stop_patience": 2}
    folder = trained(tmp_path / "still", run=still, block=EMOTION)
    assert [entry["best"] for entry in lines(folder / "eval.jsonl")] == [True, False, False]
    assert lines(folder / "log.jsonl")[-1]["epoch"] == 2
    resumed = trained(tmp_path / "still", run=still | {"resume_ckpt_path": "auto"}, block=EMOTION)
    assert len(lines(resumed / "eval.jsonl")) == 3 and lines(resumed / "log.jsonl")[-1]["epoch"] == 2


def test_a_resumed_run_evaluates_missed_epochs_and_restores_the_best_checkpoint(evaluated, tmp_path):
    folder = copied(evaluated, tmp_path, 2)
    (folder / "checkpoint_best.pth").unlink()
    (folder / "eval.jsonl").write_text("".join((folder / "eval.jsonl").read_text().splitlines(keepends=True)[:1]))
    trained(tmp_path, "run.resume_ckpt_path=auto", **WATCHED)
    assert lines(folder / "eval.jsonl") == lines(evaluated / "eval.jsonl")
    best = [torch.load(run / "checkpoint_best.pth", weights_only=True)["model"] for run in (folder, evaluated)]
    assert all(best[0][key].equal(best[1][key]) for key in best[1])


@pytest.mark.slow
def test_evaluations_without_a_reachable_judge_do_not_count_for_early_stopping(tmp_path):
    run = EVALUATED | {"metric": "clue_overlap", "save_best": True, "early_stop_patience": 1, "iters_per_epoch": 1}
    folder = trained(tmp_path / "run", run=run, block={"task_pool": ["reason_v2"], "judge": nobody(tmp_path)})
    assert [entry["metrics"]["answers/reason_v2/clue_overlap"] for entry in lines(folder / "eval.jsonl")] == [None] * 3
    assert lines(folder / "log.jsonl")[-1]["epoch"] == 2 and not (folder / "checkpoint_best.pth").exists()


def test_resuming_with_another_metric_restores_the_best_checkpoint_by_that_metric(evaluated, tmp_path):
    folder = copied(evaluated, tmp_path, 2)
    past = lines(folder / "eval.jsonl")
    for entry, value in zip(past, (0.9, 0.1), strict=True):
        entry["metrics"]["answers/emotion/war"] = value
    (folder / "eval.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in past))
    assert torch.load(folder / "checkpoint_best.pth", weights_only=True)["epoch"] == 1
    trained(tmp_path, "run.metric=war", "run.resume_ckpt_path=auto", **WATCHED)
    best = torch.load(folder / "checkpoint_best.pth", weights_only=True)
    assert best["epoch"] == 0 and [entry["best"] for entry in lines(folder / "eval.jsonl")][2] is False


def test_a_resumed_run_without_its_best_checkpoint_saves_the_next_one_as_best(evaluated, tmp_path):
    folder = copied(evaluated, tmp_path, 1)
    (folder / "checkpoint_best.pth").unlink()
    content = torch.load(folder / "checkpoint_0.pth", weights_only=True)
    torch.save(content | {"step": 1, "epoch": 0}, folder / "checkpoint_last.pth")
    past = lines(folder / "eval.jsonl")[0] | {"step": 0}
    (folder / "eval.jsonl").write_text(json.dumps(past) + "\n")
    (folder / "checkpoint_0.pth").unlink()
    trained(tmp_path, "run.max_epoch=1", f"run.resume_ckpt_path={folder}/checkpoint_last.pth", **WATCHED)
    assert torch.load(folder / "checkpoint_best.pth", weights_only=True)["step"] == 2


def test_evaluation_falls_on_every_nth_epoch_and_the_last(tmp_path):
    folder = trained(tmp_path / "run", run=EVALUATED | {"eval_epoch_interval": 2, "iters_per_epoch": 1}, block=EMOTION)
    assert [entry["epoch"] for entry in lines(folder / "eval.jsonl")] == [1, 2]


def nobody(folder):
    """A judge at an address without a server."""
    address = {"base_url": "http://127.0.0.1:9/v1", "key_env": None, "retries": 0, "cache_path": str(folder / "cache.sqlite")}
    return {"type": "openai", "model": "m", **address}


def test_an_unreachable_judge_gives_null_metrics_and_does_not_end_training(tmp_path):
    reports = []
    judge = nobody(tmp_path)
    folder = trained(tmp_path / "run", run=EVALUATED | {"max_epoch": 1, "iters_per_epoch": 1}, block={"judge": judge})
    metrics = lines(folder / "eval.jsonl")[0]["metrics"]
    assert metrics["answers/reason_v2/clue_overlap"] is None and metrics["answers/reason_v2/loss"] > 0
    config = loaded(tmp_path / "run", tree(tmp_path / "run", run={"job_id": "alone"}, block={"judge": judge}))
    with pytest.raises(UserError, match="127.0.0.1:9.*'emollama score'"):
        config.runner_class(config, training=False).evaluate(reports.append)
    result = tmp_path / "run/out/alone/result"
    assert len(lines(result / "predictions_answers.jsonl")) == 12 and reports == [result.parent]
    tasks = json.loads((result / "metrics_answers.json").read_text())["tasks"]
    assert tasks["emotion"]["metrics"]["waf"] is not None and "127.0.0.1:9" in tasks["reason_v2"]["judge"]["unreachable"]


# Errors


def test_a_metric_that_no_block_computes_is_refused_with_the_remedy(tmp_path):
    assert "Did you mean 'waf'?" in refused(tmp_path, run=EVALUATED | {"metric": "waff"})
    text = refused(tmp_path, run=EVALUATED | {"metric": "clue_overlap"})
    assert "no block computes 'clue_overlap': evaluation_datasets.answers: it needs " in text
    assert "a judge; set judge: {type: lexical}" in text
    text = refused(tmp_path, run=EVALUATED | {"metric": "war"}, block={"metrics": ["waf"]})
    assert "no block computes 'war': evaluation_datasets.answers: it is not listed in evaluation_datasets.answers.metrics" in text
    text = refused(tmp_path, run=EVALUATED | {"metric": "nowhere.waf"})
    assert "does not name a block or task that computes it. Possible values: answers.emotion.waf" in text


def test_a_metric_computed_for_two_tasks_is_refused_with_the_full_names(tmp_path):
    text = refused(tmp_path, run=EVALUATED | {"metric": "loss"})
    assert "answers.emotion.loss, answers.reason_v2.loss" in text


def test_a_metric_that_needs_a_judge_is_refused_in_a_block_without_one(tmp_path):
    text = refused(tmp_path, training=False, block={"metrics": ["clue_overlap"]})
    assert "evaluation_datasets.answers.metrics" in text and "judge: {type: lexical}" in text


def test_a_metric_without_references_is_refused(tmp_path):
    no_captions = {"fine_grained_json_path": None, "task_pool": ["reason_v2"], "judge": {"type": "lexical"}}
    text = refused(tmp_path, training=False, block=no_captions | {"metrics": ["clue_overlap"]})
    assert "'clue_overlap' cannot be computed here: it needs samples with a reference" in text
    assert "no block computes 'clue_overlap'" in refused(tmp_path, run=EVALUATED | {"metric": "clue_overlap"}, block=no_captions)
    upstream = {"prompt_layout": "upstream_eval", "metrics": ["loss"]}
    assert "prompt_layout: train" in refused(tmp_path, training=False, block=upstream)


def test_a_judge_without_reference_descriptions_causes_a_warning(tmp_path, caplog):
    no_captions = {"fine_grained_json_path": None, "task_pool": ["reason_v2"], "judge": {"type": "lexical"}}
    answered(tmp_path / "run", block=no_captions)
    assert "evaluation_datasets.answers.judge: the judge is not used, because the data has no descriptions" in caplog.text


def test_an_unknown_metric_of_a_block_is_refused_with_a_suggestion(tmp_path):
    with pytest.raises(UserError, match="Did you mean 'waf'"):
        loaded(tmp_path, tree(tmp_path, block={"metrics": ["wafs"]}))


def test_save_best_without_evaluation_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"save_best and early_stop_patience: this requires evaluations.*Set run\.evaluate: True"):
        loaded(tmp_path, tree(tmp_path, run={"save_best": True, "early_stop_patience": 2}))


def test_save_best_and_metric_with_different_names_are_refused(tmp_path):
    with pytest.raises(UserError, match="save_best is 'waf', but metric is 'loss'. Set save_best: True, or the same metric"):
        loaded(tmp_path, tree(tmp_path, run={"evaluate": True, "save_best": "waf", "metric": "loss"}))


def test_save_best_accepts_the_name_of_a_metric(tmp_path):
    config = loaded(tmp_path, tree(tmp_path, run={"evaluate": True, "save_best": "waf"}))
    assert config.run.metric == "waf" and config.run.save_best is True


def test_a_user_defined_metric_is_computed_and_can_select_the_best_checkpoint(tmp_path):
    METRICS.register("first_label")(Metric("answers that are the first label", "labels", lambda labels: 0.25))
    try:
        folder = trained(tmp_path / "run", run={"evaluate": True, "max_epoch": 1, "save_best": "first_label"}, block=EMOTION)
    finally:
        del METRICS._entries["first_label"]
    assert lines(folder / "eval.jsonl")[0]["metrics"]["answers/emotion/first_label"] == 0.25


# Held-out clips


def test_held_out_samples_are_evaluated_and_not_trained_on(tmp_path):
    config = loaded(tmp_path, tree(tmp_path, data={"held_out": 0.5}, block={"held_out": 0.5}))
    shapes = config.model_class.slot_shapes(config.model)
    both = []
    for key, block, training in (
        ("datasets.golden", config.datasets["golden"], True),
        ("evaluation_datasets.answers", config.evaluation_datasets["answers"].dataset, False),
    ):
        both.append(set(config.dataset_class(key)(block, slot_shapes=shapes, block_path=key, training=training).names()))
    assert both[0] and both[1] and not both[0] & both[1] and len(both[0] | both[1]) == 6


def test_samples_used_for_both_training_and_evaluation_cause_a_warning(tmp_path, caplog):
    for held_out, warned in ((0.0, True), (0.5, False)):
        caplog.clear()
        keys = {"held_out": held_out}
        config = loaded(tmp_path, tree(tmp_path, run=EVALUATED, data=keys, block={"held_out": 0.5}))
        config.runner_class(config)
        assert ("are also training samples of datasets.golden: set held_out in both blocks" in caplog.text) is warned


@pytest.mark.slow
def test_without_evaluation_blocks_the_held_out_samples_are_evaluated(tmp_path):
    config_tree = tree(tmp_path, data={"held_out": 0.5}, run={"evaluate": True, "max_epoch": 1, "metric": "golden.emotion.loss"})
    config_tree["evaluation_datasets"] = {}
    config = loaded(tmp_path, config_tree)
    folder = config.runner_class(config).train()
    answered = {row["name"] for row in lines(folder / "result/epoch_0/predictions_golden.jsonl")}
    assert 0 < len(answered) < 6


def test_a_held_out_share_without_samples_is_refused(tmp_path):
    assert "held_out: 0.001 leaves no clips for evaluation (6 in total); use a larger value" in refused(
        tmp_path, training=False, block={"held_out": 0.001}
    )


# Generation and likelihoods


def test_answering_by_likelihood_gives_the_most_probable_label_and_all_probabilities(tmp_path):
    rows = by_clip(answered(tmp_path / "run", block={"answer_by": "likelihood"}))
    for row in rows.values():
        shares = row["label_probabilities"]
        assert sum(shares.values()) == pytest.approx(1.0) and row["prediction"] == max(shares, key=shares.get)
    described = by_clip(tmp_path / "run/out/run/result", "reason_v2")
    assert all(row["label_probabilities"] is None for row in described.values())


BY_LIKELIHOOD = EMOTION | {"answer_by": "likelihood", "labels": NINE, "prompt_labels": NINE}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Answers by likelihood, without a label map or aliases."""
    return by_clip(answered(tmp_path_factory.mktemp("plain"), block=BY_LIKELIHOOD))


def test_likelihoods_are_computed_for_the_label_texts_used_in_training(tmp_path, plain):
    loud = {label: label.upper() + "!" for label in NINE}
    answers = by_clip(answered(tmp_path / "loud", block=BY_LIKELIHOOD | {"labels": list(loud.values()), "label_map": loud}))
    for name, row in answers.items():
        assert row["prediction"] == loud[plain[name]["prediction"]] and row["target"] == plain[name]["target"]
        assert list(row["label_probabilities"].values()) == list(plain[name]["label_probabilities"].values())


def test_the_likelihoods_of_a_label_and_its_aliases_are_added(tmp_path, plain):
    coarse = {"glad": ["happy", "surprise"], "low": [label for label in NINE if label not in ("happy", "surprise")]}
    keys = {"labels": list(coarse), "aliases": {word: label for label, words in coarse.items() for word in words}}
    keys["label_map"] = keys["aliases"]
    answers = by_clip(answered(tmp_path / "coarse", block=BY_LIKELIHOOD | keys))
    for name, row in answers.items():
        before, after = plain[name]["label_probabilities"], row["label_probabilities"]
        assert sum(after.values()) == pytest.approx(1.0)
        odds = sum(before[word] for word in coarse["glad"]) / sum(before[word] for word in coarse["low"])
        assert after["glad"] / after["low"] == pytest.approx(odds, rel=0.2)  # "glad" and "low" themselves are hardly likely


def test_label_map_aliases_and_prompt_labels_score_other_labels_without_changing_answers(tmp_path):
    others = {label: f"rather {label}" for label in NINE}
    keys = {"labels": list(others.values()), "label_map": others, "aliases": others, "prompt_labels": NINE}
    plain, carried = (
        answered(tmp_path / name, block={"task_pool": ["emotion"], "labels": NINE} | keys)
        for name, keys in (("plain", {}), ("carried", keys))
    )
    assert [row["prediction"] for row in lines(plain / "predictions_answers.jsonl")] == [
        row["prediction"] for row in lines(carried / "predictions_answers.jsonl")
    ]
    scores = [json.loads((result / "metrics_answers.json").read_text())["tasks"]["emotion"] for result in (plain, carried)]
    for metric in ("waf", "uar", "hit_rate", "invalid_rate"):
        assert scores[0]["metrics"][metric] == scores[1]["metrics"][metric]
    assert scores[1]["recognition"]["labels"] == list(others.values())


def test_prompts_are_answered_once_each_from_the_longest_to_the_shortest(tmp_path):
    config = loaded(tmp_path, tree(tmp_path))
    runner = config.runner_class(config, training=False)
    block, lengths = runner.blocks["answers"], []

    class Recorded(type(runner.prediction_runner.task)):
        def predict(self, generator, dataset, cfg, items, seed):
            records = [dataset.record(item.index, item.task, item.instruction) for item in items]
            lengths.extend(len(generator.prompt_format.tokenize(record, for_generation=True).input_ids) for record in records)
            return super().predict(generator, dataset, cfg, items, seed)

    rows = replace(runner.prediction_runner, task=Recorded()).predict("answers", block.dataset, block.options)
    assert len(rows) == len(lengths) == 12 and len(set(lengths)) > 4
    assert lengths == sorted(lengths, reverse=True)


@pytest.mark.slow
def test_masked_slots_give_the_same_answers_as_zero_features(tmp_path):
    corpus = shutil.copytree(GOLDEN / "data", tmp_path / "data")
    for folder in ("HL-UTT", "mae_340_UTT"):
        shutil.rmtree(corpus / folder)
        (corpus / folder).mkdir()
    masked = by_clip(answered(tmp_path / "masked", block=EMOTION | {"mask_slots": ["audio", "face"]}))
    zeroed = {**golden_block(corpus), "missing_features": "zero"}
    assert by_clip(answered(tmp_path / "zeroed", block=zeroed | EMOTION)) == masked
    assert by_clip(answered(tmp_path / "whole", block=EMOTION)) != masked


def test_an_unknown_slot_is_refused_with_those_of_the_model(tmp_path):
    text = refused(tmp_path, training=False, block={"mask_slots": ["voice"]})
    assert "mask_slots: 1 unknown slot: voice. The slots of this model are image, cls, face, video, audio." in text


# Several checkpoints


@pytest.fixture(scope="module")
def two(evaluated):
    return [str(evaluated / f"checkpoint_{epoch}.pth") for epoch in (0, 2)]


@pytest.fixture(scope="module")
def each(tmp_path_factory, two):
    """The answers of each of the two checkpoints."""
    folder = tmp_path_factory.mktemp("each")
    return [by_clip(answered(folder / f"run{i}", model={"ckpt": path}, block=EMOTION)) for i, path in enumerate(two)]


def test_an_ensemble_of_one_checkpoint_twice_gives_the_answers_of_that_checkpoint(tmp_path, two, each):
    alone = each[0]
    twice = by_clip(answered(tmp_path, model={"ckpt": [two[0], two[0]]}, block=EMOTION))
    assert twice.keys() == alone.keys()
    for name, row in twice.items():
        assert row["prediction"] == alone[name]["prediction"]
        assert row["loss"] == pytest.approx(alone[name]["loss"], abs=1e-6)


def test_the_loss_of_an_ensemble_is_that_of_the_mean_distribution(tmp_path, two, each):
    both = by_clip(answered(tmp_path, model={"ckpt": two}, block=EMOTION))
    labels = {row["name"]: row["target"] for row in both.values()}
    assert len(set(labels.values())) > 1
    for name, row in both.items():
        losses = [rows[name]["loss"] for rows in each]
        assert min(losses) <= row["loss"] < sum(losses) / 2 - 1e-7  # Jensen: better than the mean of the losses


@pytest.mark.slow
def test_label_probabilities_of_an_ensemble_are_the_mean_of_those_of_its_checkpoints(tmp_path, two):
    block = {"answer_by": "likelihood", "task_pool": ["emotion"]}
    both = by_clip(answered(tmp_path / "both", model={"ckpt": two}, block=block))
    each = [by_clip(answered(tmp_path / f"run{i}", model={"ckpt": path}, block=block)) for i, path in enumerate(two)]
    for name, row in both.items():
        for label, share in row["label_probabilities"].items():
            assert share == pytest.approx(sum(rows[name]["label_probabilities"][label] for rows in each) / 2, abs=1e-9)


def test_an_ensemble_of_weights_gives_the_answers_of_the_averaged_checkpoint(tmp_path, two):
    from emollama.convert.formats import average

    average(two, str(tmp_path / "mean.pth"))
    weights = by_clip(answered(tmp_path / "weights", model={"ckpt": two, "ensemble": "weights"}, block=EMOTION))
    assert weights == by_clip(answered(tmp_path / "mean", model={"ckpt": str(tmp_path / "mean.pth")}, block=EMOTION))


def test_training_refuses_an_ensemble_of_predictions(tmp_path, two):
    assert "training starts from one" in refused(tmp_path, model={"ckpt": two})


def test_beam_search_is_refused_for_an_ensemble_of_predictions(tmp_path, two):
    text = refused(tmp_path, training=False, model={"ckpt": two}, block={"num_beams": 2})
    assert "num_beams" in text and "ensemble: weights" in text


# The entry scripts


def test_train_py_with_evaluate_only_evaluates_without_training_and_writes_the_report(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    path = write(tmp_path, tree(tmp_path, block=EMOTION))
    options = ["run.job_id=alone", "run.evaluate_only=True"]
    monkeypatch.setattr(sys, "argv", ["train.py", "--cfg-path", path, "--options", *options])
    importlib.import_module("train").main()
    assert not (tmp_path / "out/alone/log.jsonl").exists() and not list((tmp_path / "out/alone").glob("*.pth"))
    assert (tmp_path / "out/alone/result/report.html").is_file()
    assert by_clip(tmp_path / "out/alone/result") == by_clip(answered(tmp_path, block=EMOTION))


def test_the_original_emer_table_is_evaluated_with_unchanged_reference_descriptions(tmp_path):
    corpus = shutil.copytree(GOLDEN / "data", tmp_path / "data")
    described = "Brows are raised, and the VOICE (soft) trembles: she seems worried."
    rows = [f'{name},"worried","Well, then.","{described}"' for name in NAMES]
    (corpus / "EMER.csv").write_text("\n".join(["names,emotions,subtitles,reasons", *rows]) + "\n")
    config_tree = tree(tmp_path)
    keys = {"data_root": str(corpus), "annotation_file": "EMER.csv", "max_new_tokens": 8, "batch_size": 8}
    config_tree["evaluation_datasets"] = {"emer": keys | {"judge": {"type": "lexical"}}}
    config = loaded(tmp_path, config_tree)
    config.runner_class(config, training=False).evaluate()
    result = tmp_path / "out/run/result"
    answers = lines(result / "predictions_emer.jsonl")
    assert {row["reference"] for row in answers} == {described} and "Well, then." in answers[0]["instruction"]
    metrics = json.loads((result / "metrics_emer.json").read_text())["tasks"]["reason_v2"]["metrics"]
    assert 0 <= metrics["clue_overlap"] < 10 and metrics["label_overlap"] is not None
