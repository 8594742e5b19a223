"""The whole job on an invented corpus: corpus, tiny Llama, stage 1, stage 2, inference on unseen clips, a table.

Training and inference run as ``emollama train`` and ``emollama eval`` in processes of their own, exactly as on real data.
Of invented videos, and of drawings with captions, only the files are written; the user runs the commands that are printed.
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
from emollama.demo.folder import CAPTIONS, CORPUS, VIDEOS, disk_errors, prepare_demo_folder
from emollama.demo.steps import DemoFolder, next_steps, run_step
from emollama.demo.tiny_encoders import make_tiny_encoders
from emollama.demo.tiny_llama import make_tiny_llama
from emollama.demo.tiny_projection import make_pretrained
from emollama.demo.videos import draw_texts, make_videos
from emollama.demo.vocabulary import EMOTIONS
from emollama.logs.console import aligned, write
from emollama.logs.logger import get_logger, set_up
from emollama.paths import atomic_write


def run_demo(folder: str, *, seed: int, processes: int, corpus_only: bool = False) -> None:
    """Run every step, print a table and, as the last line, the path of a JSON file with the figures.

    Args:
        folder: where everything goes; an earlier demo in it is replaced.
        seed: of the corpus, the language model and training.
        processes: of each training; an evaluation takes less time than the start of a second process.
        corpus_only: stop before training, and print the commands that train.

    Raises:
        UserError: the folder holds something else, the disk is full, or a step failed.
    """
    set_up(is_main=True)
    root = prepare_demo_folder(folder, CORPUS)
    begun = time.monotonic()
    with disk_errors(root):
        _write_corpus_demo(root, seed)
    place = DemoFolder(root, "EMOLLAMA_DEMO", "demo_run")
    if corpus_only:
        write(_corpus_summary(place, processes))
        return
    stage_1 = ["model.ckpt=${paths.root}/stage_1/checkpoint_3.pth"]
    for command, config, options in (
        ("train", "train_configs/demo_stage_1.yaml", ["run.job_id=stage_1", f"run.seed={seed}"]),
        ("train", "train_configs/demo_stage_2.yaml", ["run.job_id=stage_2", f"run.seed={seed}"]),
        ("eval", "eval_configs/demo_emotion.yaml", ["run.job_id=recognition"]),
        ("eval", "eval_configs/demo_EMER.yaml", ["run.job_id=reasoning"]),
        ("eval", "eval_configs/demo_EMER.yaml", ["run.job_id=reasoning_stage_1", *stage_1]),
    ):
        number = processes if command == "train" else 1
        run_step(place, [command, "--cfg-path", config, "--nproc", str(number), "--options", *options])
    figures = _figures(root) | {"seconds": round(time.monotonic() - begun, 1)}
    path = root / "figures.json"
    with disk_errors(root), atomic_write(path) as file:
        json.dump(figures, file, indent=2)
    write(_table(figures, root) + f"\n{path.resolve()}\n")


def _write_corpus_demo(root: Path, seed: int) -> None:
    corpus = make_corpus(root / "corpus", train_clips=2000, fine_clips=1000, test_clips=240, seed=seed)
    get_logger().info("invented a corpus in %s (everything in it is synthetic)", root / "corpus")
    get_logger().info("training a tokenizer and a tiny Llama on its texts (a minute or so)")
    make_tiny_llama(root / "llm", corpus.texts, seed=seed, steps=700)


def make_videos_demo(folder: str, *, seed: int) -> None:
    """Write videos with a table of labels, and the tiny encoders and language model of ``train_configs/demo_videos.yaml``.

    Args:
        folder: where everything goes; an earlier demo in it is replaced, with what was made of it.
        seed: of everything.

    Raises:
        UserError: the folder holds something else, or the disk is full.
    """
    set_up(is_main=True)
    root = prepare_demo_folder(folder, VIDEOS)
    with disk_errors(root):
        _write_videos_demo(root, seed)
    _print_next("train_configs/demo_videos.yaml", DemoFolder(root, "EMOLLAMA_DEMO_VIDEOS", "demo_videos"))


def _write_videos_demo(root: Path, seed: int) -> None:
    make_videos(root, clips=120, unseen=18, seed=seed)
    get_logger().info("invented 120 videos with labels.csv, and 18 unseen ones, in %s (discs and tones, no people)", root)
    make_tiny_encoders(root / "encoders", seed=seed)
    get_logger().info("saved tiny encoders of the real classes with random weights: they know nothing")
    make_tiny_llama(root / "llm", draw_texts(seed, 2000), seed=seed, steps=200)
    get_logger().info("trained a tiny Llama on invented texts")


def make_flickr_demo(folder: str, *, seed: int) -> None:
    """Write drawings with captions, and the tiny encoders, language model and projection of ``train_configs/demo_flickr.yaml``.

    Args:
        folder: where everything goes; an earlier demo in it is replaced, with what was made of it.
        seed: of everything.

    Raises:
        UserError: the folder holds something else, or the disk is full.
    """
    set_up(is_main=True)
    root = prepare_demo_folder(folder, CAPTIONS)
    with disk_errors(root):
        _write_flickr_demo(root, seed)
    _print_next("train_configs/demo_flickr.yaml", DemoFolder(root, "EMOLLAMA_DEMO_FLICKR", "demo_flickr"))


def _write_flickr_demo(root: Path, seed: int) -> None:
    write_drawings(root, seed=seed)
    get_logger().info("invented drawings with captions in %s, in the forms of Flickr30k and of COCO", root)
    get_logger().info("training a tiny Llama on invented texts (half a minute or so)")
    make_tiny_llama(root / "llm", draw_texts_of_scenes(np.random.default_rng([seed, 2]), 6000), seed=seed, steps=600)
    get_logger().info("training a tiny EVA transformer and Q-Former to see drawings (a minute or so)")
    seen, loss = make_pretrained(root, root / "llm", seed=seed)
    text = "they name %.1f%% of the facts of unseen drawings; the projection has learnt to say alt texts (loss %.2f)"
    get_logger().info(text, 100 * seen, loss)


def _print_next(config: str, place: DemoFolder) -> None:
    write("\n".join(["", "Next:", *(f"  {line}" for line in next_steps(config, place))]) + "\n")


def _figures(root: Path) -> dict[str, Any]:
    """Accuracies on the unseen clips, from the files of predictions and the lists."""
    truth = {clip.name: clip.label for clip in read_annotations(str(root / "corpus/test/test_NCEV.txt"))}
    figures: dict[str, Any] = {"clips": len(truth)}
    for key, block in (("", "test"), ("_shuffled", "shuffled"), ("_sentence_only", "sentence_only")):
        answers = _answers(root / f"recognition/result/predictions_{block}.jsonl")
        figures[f"emotion_accuracy{key}"] = sum(answers[name] == label for name, label in truth.items()) / len(truth)
    reasons = _answers(root / "reasoning/result/predictions_emer.jsonl")
    named = {name: set(re.findall(r"\w+", text)) & set(EMOTIONS) for name, text in reasons.items()}
    for key, run in (("", "reasoning"), ("_stage_1", "reasoning_stage_1")):
        metrics = json.loads((root / f"{run}/result/metrics_emer.json").read_text(encoding="utf-8"))
        figures[f"clue_overlap{key}"] = metrics["tasks"]["reason_v2"]["metrics"]["clue_overlap"]
    figures["reason_label_accuracy"] = sum(named[name] == {label} for name, label in truth.items()) / len(truth)
    return figures


def _answers(path: Path) -> dict[str, str]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {row["name"]: row["prediction"] for row in rows}


def _corpus_summary(place: DemoFolder, processes: int) -> str:
    """Where the corpus and the tiny Llama are, and the commands that train on them."""
    places = aligned([("corpus (synthetic)", str(place.root / "corpus")), ("tiny Llama", str(place.root / "llm"))], left=(0, 1))
    number = ["--nproc", str(processes)] if processes > 1 else []
    commands = [
        place.shown(["train", "--cfg-path", f"train_configs/demo_{stage}.yaml", *number, "--options", f"run.job_id={stage}"])
        for stage in ("stage_1", "stage_2")
    ]
    return "\n".join(["", *places, "", "Next:", *(f"  {command}" for command in commands), ""])


def _table(figures: dict[str, Any], root: Path) -> str:
    rows = [
        ("emotion, unseen clips", f"{figures['emotion_accuracy']:.1%}"),
        ("emotion, features and sentences of other clips", f"{figures['emotion_accuracy_shuffled']:.1%}"),
        ("emotion, from the sentence alone", f"{figures['emotion_accuracy_sentence_only']:.1%}"),
        ("emotion, chance", f"{1 / len(EMOTIONS):.1%}"),
        ("reasoning names the right emotion and no other", f"{figures['reason_label_accuracy']:.1%}"),
        ("clues shared with the truth (0 to 10), stage 2", f"{figures['clue_overlap']:.2f}"),
        ("clues shared with the truth (0 to 10), stage 1", f"{figures['clue_overlap_stage_1']:.2f}"),
        ("unseen clips", str(figures["clips"])),
        ("seconds", f"{figures['seconds']:.0f}"),
    ]
    places: list[tuple[str, Path | str]] = [
        ("corpus (synthetic)", root / "corpus"),
        ("tiny Llama", root / "llm"),
        ("checkpoints, logs, TensorBoard", root / "stage_1"),
        ("", root / "stage_2"),
        ("predictions, scores, report", root / "recognition/result"),
        ("", root / "reasoning/result"),
    ]
    following = f"next, train on it with settings of your own: emollama init stage1 --data {shlex.quote(str(root))}"
    places.append(("TensorBoard of all runs", f"tensorboard --logdir {shlex.quote(str(root))}"))
    tables = [*aligned(rows), "", *aligned([(name, str(place)) for name, place in places], left=(0, 1))]
    return "\n".join(["", *tables, "", following, ""])
