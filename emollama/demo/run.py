"""The demos: a complete training on a synthetic corpus, or only the files for synthetic videos or captioned drawings.

The demo of the corpus runs both training stages and the evaluation of unseen clips as ``emollama train`` and ``emollama eval`` in
separate processes, exactly as on real data. The other demos print the commands for the user to run.
"""

from __future__ import annotations

import json
import re
import shlex
import time
from pathlib import Path
from typing import Any

import numpy as np

from emollama.data.annotations import read_annotations
from emollama.demo.corpus import make_corpus
from emollama.demo.drawing_captions import draw_texts as draw_texts_of_scenes
from emollama.demo.drawing_files import write_drawings
from emollama.demo.folder import CAPTIONS, CORPUS, VIDEO_CLIPS, VIDEOS, disk_errors, prepare_demo_folder
from emollama.demo.steps import DemoFolder, next_steps, run_step
from emollama.demo.tiny_encoders import make_tiny_encoders
from emollama.demo.tiny_llama import make_tiny_llama
from emollama.demo.tiny_projection import make_pretrained
from emollama.demo.videos import draw_texts, make_videos
from emollama.demo.vocabulary import EMOTIONS
from emollama.logs.console import aligned, write
from emollama.logs.logger import get_logger, set_up
from emollama.paths import atomic_write
from emollama.run_folder import BlockScores, PredictionRecord, TaskRecord, metrics_file, parse, parse_all, predictions_file


def run_demo(folder: str, *, seed: int, processes: int, corpus_only: bool = False) -> None:
    """Write the corpus, train, evaluate, and print a table. The last line is the path of a JSON file with the results.

    Args:
        folder: the output folder; an earlier demo in it is replaced.
        seed: seed of the corpus, the language model and training.
        processes: number of processes of each training. Evaluation uses one process, because starting a second one takes longer.
        corpus_only: stop before training, and print the training commands.

    Raises:
        UserError: If the folder contains other files, the disk is full, or a command failed.
    """
    set_up(is_main=True)
    root = prepare_demo_folder(folder, CORPUS)
    start = time.monotonic()
    with disk_errors(root):
        _write_corpus_demo(root, seed)
    demo_folder = DemoFolder(root, "EMOLLAMA_DEMO", "demo_run")
    if corpus_only:
        write(_corpus_summary(demo_folder, processes))
        return
    stage_1 = ["model.ckpt=${paths.root}/stage_1/checkpoint_3.pth"]
    for command, config, options in (
        ("train", "train_configs/demo_stage_1.yaml", ["run.job_id=stage_1", f"run.seed={seed}"]),
        ("train", "train_configs/demo_stage_2.yaml", ["run.job_id=stage_2", f"run.seed={seed}"]),
        ("eval", "eval_configs/demo_emotion.yaml", ["run.job_id=recognition"]),
        ("eval", "eval_configs/demo_EMER.yaml", ["run.job_id=reasoning"]),
        ("eval", "eval_configs/demo_EMER.yaml", ["run.job_id=reasoning_stage_1", *stage_1]),
    ):
        nproc = processes if command == "train" else 1
        run_step(demo_folder, [command, "--cfg-path", config, "--nproc", str(nproc), "--options", *options])
    results = _results(root) | {"seconds": round(time.monotonic() - start, 1)}
    path = root / "figures.json"
    with disk_errors(root), atomic_write(path) as file:
        json.dump(results, file, indent=2)
    write(_table(results, root) + f"\n{path.resolve()}\n")


def _write_corpus_demo(root: Path, seed: int) -> None:
    corpus = make_corpus(root / "corpus", train_clips=2000, fine_clips=1000, test_clips=240, seed=seed)
    get_logger().info("wrote a synthetic corpus to %s", root / "corpus")
    get_logger().info("training a tokenizer and a tiny Llama on its texts (about a minute)")
    make_tiny_llama(root / "llm", corpus.texts, seed=seed, steps=700)


def make_videos_demo(folder: str, *, seed: int, clips: int = VIDEO_CLIPS) -> None:
    """Write videos, a table of labels, and tiny models for ``train_configs/demo_videos.yaml``; print the commands to run next.

    Args:
        folder: the output folder; an earlier demo in it and its results are replaced.
        seed: seed of the videos and the models.
        clips: number of labelled videos.

    Raises:
        UserError: If the folder contains other files, or the disk is full.
    """
    set_up(is_main=True)
    root = prepare_demo_folder(folder, VIDEOS)
    with disk_errors(root):
        _write_videos_demo(root, seed, clips)
    _print_next("train_configs/demo_videos.yaml", DemoFolder(root, "EMOLLAMA_DEMO_VIDEOS", "demo_videos"))


def _write_videos_demo(root: Path, seed: int, clips: int) -> None:
    make_videos(root, clips=clips, unseen=18, seed=seed)
    get_logger().info("wrote %d videos with labels.csv and 18 unseen videos to %s (discs and tones, no people)", clips, root)
    make_tiny_encoders(root / "encoders", seed=seed)
    get_logger().info("saved tiny encoders of the real classes with random, untrained weights")
    make_tiny_llama(root / "llm", draw_texts(seed, 2000), seed=seed, steps=100)
    get_logger().info("trained a tiny Llama on invented texts")


def make_flickr_demo(folder: str, *, seed: int) -> None:
    """Write captioned drawings and tiny models for ``train_configs/demo_flickr.yaml``; print the commands to run next.

    Args:
        folder: the output folder; an earlier demo in it and its results are replaced.
        seed: seed of the drawings and the models.

    Raises:
        UserError: If the folder contains other files, or the disk is full.
    """
    set_up(is_main=True)
    root = prepare_demo_folder(folder, CAPTIONS)
    with disk_errors(root):
        _write_flickr_demo(root, seed)
    _print_next("train_configs/demo_flickr.yaml", DemoFolder(root, "EMOLLAMA_DEMO_FLICKR", "demo_flickr"))


def _write_flickr_demo(root: Path, seed: int) -> None:
    write_drawings(root, seed=seed)
    get_logger().info("wrote drawings with captions to %s, in the formats of Flickr30k and COCO", root)
    get_logger().info("training a tiny Llama on invented texts (about half a minute)")
    make_tiny_llama(root / "llm", draw_texts_of_scenes(np.random.default_rng([seed, 2]), 6000), seed=seed, steps=600)
    get_logger().info("training a tiny EVA transformer and Q-Former on drawings (about a minute)")
    share, loss = make_pretrained(root, root / "llm", seed=seed)
    text = "they recognize %.1f%% of the attributes of unseen drawings; a projection was trained on alt texts (loss %.2f)"
    get_logger().info(text, 100 * share, loss)


def _print_next(config: str, demo_folder: DemoFolder) -> None:
    write("\n".join(["", "Next:", *(f"  {line}" for line in next_steps(config, demo_folder))]) + "\n")


def _results(root: Path) -> dict[str, Any]:
    """Compute accuracies on the unseen clips from predictions and annotation files."""
    true_labels = {clip.name: clip.label for clip in read_annotations(str(root / "corpus/test/test_NCEV.txt"))}
    results: dict[str, Any] = {"clips": len(true_labels)}
    for key, block in (("", "test"), ("_shuffled", "shuffled"), ("_sentence_only", "sentence_only")):
        answers = _answers(root / "recognition/result" / predictions_file(block))
        results[f"emotion_accuracy{key}"] = sum(answers[name] == label for name, label in true_labels.items()) / len(true_labels)
    reasons = _answers(root / "reasoning/result" / predictions_file("emer"))
    mentioned = {name: set(re.findall(r"\w+", text)) & set(EMOTIONS) for name, text in reasons.items()}
    for key, run in (("", "reasoning"), ("_stage_1", "reasoning_stage_1")):
        scores = parse(BlockScores, json.loads((root / run / "result" / metrics_file("emer")).read_text(encoding="utf-8")))
        results[f"clue_overlap{key}"] = parse(TaskRecord, scores.tasks["reason_v2"]).metrics["clue_overlap"]
    results["reason_label_accuracy"] = sum(mentioned[name] == {label} for name, label in true_labels.items()) / len(true_labels)
    return results


def _answers(path: Path) -> dict[str, str]:
    predictions = parse_all(PredictionRecord, map(json.loads, path.read_text(encoding="utf-8").splitlines()))
    return {record.name: record.prediction for record in predictions}


def _corpus_summary(demo_folder: DemoFolder, processes: int) -> str:
    """Return the paths of the corpus and the tiny Llama, and the training commands."""
    root = demo_folder.root
    paths = aligned([("corpus (synthetic)", str(root / "corpus")), ("tiny Llama", str(root / "llm"))], left=(0, 1))
    nproc = ["--nproc", str(processes)] if processes > 1 else []
    commands = [
        demo_folder.command_line(
            ["train", "--cfg-path", f"train_configs/demo_{stage}.yaml", *nproc, "--options", f"run.job_id={stage}"]
        )
        for stage in ("stage_1", "stage_2")
    ]
    return "\n".join(["", *paths, "", "Next:", *(f"  {command}" for command in commands), ""])


def _table(results: dict[str, Any], root: Path) -> str:
    rows = [
        ("accuracy on unseen clips", f"{results['emotion_accuracy']:.1%}"),
        ("accuracy with inputs of other clips (control)", f"{results['emotion_accuracy_shuffled']:.1%}"),
        ("accuracy with the transcript only (control)", f"{results['emotion_accuracy_sentence_only']:.1%}"),
        ("accuracy by chance", f"{1 / len(EMOTIONS):.1%}"),
        ("reasoning mentions the correct emotion and no other", f"{results['reason_label_accuracy']:.1%}"),
        ("clue overlap with the reference (0 to 10), stage 2", f"{results['clue_overlap']:.2f}"),
        ("clue overlap with the reference (0 to 10), stage 1", f"{results['clue_overlap_stage_1']:.2f}"),
        ("unseen clips", str(results["clips"])),
        ("seconds", f"{results['seconds']:.0f}"),
    ]
    paths: list[tuple[str, Path | str]] = [
        ("corpus (synthetic)", root / "corpus"),
        ("tiny Llama", root / "llm"),
        ("checkpoints, logs, TensorBoard", root / "stage_1"),
        ("", root / "stage_2"),
        ("predictions, scores, report", root / "recognition/result"),
        ("", root / "reasoning/result"),
    ]
    following = f"next, train on it with your own settings: emollama init stage1 --data {shlex.quote(str(root))}"
    paths.append(("TensorBoard of all runs", f"tensorboard --logdir {shlex.quote(str(root))}"))
    tables = [*aligned(rows), "", *aligned([(name, str(path)) for name, path in paths], left=(0, 1))]
    return "\n".join(["", *tables, "", following, ""])
