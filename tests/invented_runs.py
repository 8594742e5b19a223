"""Run folders with invented files in the layout that training and evaluation write."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

SIX = ["happy", "sad", "neutral", "angry", "worried", "surprise"]
CUES = {
    "happy": ["the corners of the mouth rise", "the cheeks are lifted", "laughter breaks through the words"],
    "sad": ["the eyes are lowered", "the voice trails off", "the shoulders sink"],
    "neutral": ["the face rests", "the tone is even", "the hands lie still"],
    "angry": ["the brows are drawn together", "the words are bitten off", "a fist taps the table"],
    "worried": ["the forehead is furrowed", "the breath is short", "the hands knead a sleeve"],
    "surprise": ["the eyes are wide open", "the voice jumps up", "the head is pulled back"],
}
QUESTION = "Name the clues in the face, the voice and the words, and say which emotion they speak for."


def write_lines(path: Path, rows: list[Any]) -> None:
    """Write a JSON Lines file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def log_rows(steps: int, every: int = 1) -> list[dict[str, Any]]:
    """A falling loss, a cosine after a warm-up, a noisy gradient norm; one step in 400 had a non-finite loss."""
    rng = random.Random(1)
    rows = []
    for step in range(0, steps, every):
        lost = step % 400 == 399
        rate = 1e-6 + 9e-6 * min(1.0, step / 200) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        rows.append(
            {
                "step": step,
                "epoch": step * 6 // steps,
                "loss": None if lost else 0.45 + 2.1 * math.exp(-step / (steps / 6)) + abs(rng.gauss(0, 0.12)),
                "lr": rate,
                "grad_norm": None if lost else 0.8 + abs(rng.gauss(0, 0.5)) + 3 * math.exp(-step / (steps / 10)),
                "skipped_steps": (step + 1) // 400,
                "samples_per_s": 11.5 + rng.random(),
                "tokens_per_s": 4100 + 200 * rng.random(),
                "peak_memory_gib": 38.4,
            }
        )
    return rows


def validation_rows(epochs: int, best: int) -> list[dict[str, Any]]:
    """Metrics that rise until the epoch ``best`` and fall after it; the judge failed at epoch 1."""
    rng = random.Random(4)
    rows = []
    for epoch in range(epochs):
        gain = 1 - 0.6 ** (epoch + 1) if epoch <= best else 1 - 0.6 ** (best + 1) - 0.05 * (epoch - best)
        metrics: dict[str, Any] = {
            "dev/emotion/waf": 0.42 + 0.4 * gain + 0.004 * rng.random(),
            "dev/emotion/war": 0.44 + 0.4 * gain + 0.004 * rng.random(),
            "dev/emotion/uar": 0.33 + 0.4 * gain + 0.004 * rng.random(),
            "dev/emotion/invalid_rate": 0.02 + 0.1 * (1 - gain),
            "dev/emotion/loss": 1.4 - 0.9 * gain + 0.05 * rng.random(),
            "emer/reason/clue_overlap": None if epoch == 1 else 3.1 + 3.3 * gain,
            "emer/reason/label_overlap": 2.4 + 3.1 * gain,
            "emer/reason/loss": 2.3 - 0.8 * gain + 0.05 * rng.random(),
        }
        rows.append({"step": (epoch + 1) * 500, "epoch": epoch, "metrics": metrics, "best": epoch <= best})
    return rows


def label_rows(clips: int) -> list[dict[str, Any]]:
    """Predictions of the task emotion: mostly right, sometimes another label, one in 40 no label."""
    rng = random.Random(2)
    rows = []
    for index in range(clips):
        truth = rng.choices(SIX, (5, 5, 4, 4, 3, 1))[0]
        answer = truth if rng.random() < 0.78 else rng.choice(SIX)
        if index % 40 == 17:
            answer = "the person seems to be thinking about something"
        rows.append(
            {
                "name": f"invented_{index:08d}",
                "task": "emotion",
                "instruction": "Which one of these emotions does the clip show: happy, sad, neutral, angry, worried, surprise?",
                "prediction": answer if index % 7 else f"The person is {answer}.",
                "target": truth,
                "reference": truth,
                "loss": 0.2 + rng.random(),
            }
        )
    return rows


def label_scores(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The metrics_<block>.json of these rows, computed independently of the package."""
    class_index = {label: i for i, label in enumerate(SIX)}
    counts = [[0] * 7 for _ in SIX]
    for row in rows:
        counts[class_index[row["reference"]]][next((class_index[label] for label in SIX if label in row["prediction"]), 6)] += 1
    per_class = []
    for i, label in enumerate(SIX):
        support, answered = sum(counts[i]), sum(row[i] for row in counts)
        precision, recall = counts[i][i] / max(answered, 1), counts[i][i] / max(support, 1)
        f1 = 2 * precision * recall / max(precision + recall, 1e-12)
        per_class.append({"label": label, "support": support, "precision": precision, "recall": recall, "f1": f1})
    invalid = [row for row in rows if not any(label in row["prediction"] for label in SIX)]
    metrics = {
        "war": sum(counts[i][i] for i in range(6)) / len(rows),
        "waf": sum(row["f1"] * row["support"] for row in per_class) / len(rows),
        "uar": sum(row["recall"] for row in per_class) / 6,
        "invalid_rate": len(invalid) / len(rows),
        "loss": sum(row["loss"] for row in rows) / len(rows),
    }
    invalid_answers = [{key: row[key] for key in ("name", "reference", "prediction")} for row in invalid]
    recognition = {"labels": SIX, "confusion": counts, "per_class": per_class, "invalid": invalid_answers}
    return {"clips": len(rows), "metrics": metrics, "recognition": recognition}


def description_rows(clips: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Predictions of the task reason, and their scores by a judge."""
    rng = random.Random(3)
    rows, scores = [], []
    for index in range(clips):
        one, other = rng.choice(SIX), rng.choice(SIX)
        other = one if rng.random() < 0.6 else other
        truth, answer = _description(rng, one), _description(rng, other)
        name = f"invented_{index:08d}"
        common = {"name": name, "task": "reason", "instruction": QUESTION, "loss": 1.2 + rng.random()}
        rows.append({**common, "prediction": answer, "target": truth.lower(), "reference": truth})
        clue = None if index == 5 else round(4 + 5 * rng.random() if one == other else 4 * rng.random(), 1)
        word_lists = {"true_words": [one, "attentive"], "predicted_words": [other]}
        scores.append({"name": name, "clue_overlap": clue, "label_overlap": 10.0 if one == other else 2.5, **word_lists})
    return rows, scores


def _description(rng: random.Random, emotion: str) -> str:
    cues = rng.sample(CUES[emotion], 3)
    return (
        f"At the beginning of the clip {cues[0]}, and while the person turns towards the camera {cues[1]}. In the audio the"
        f" sentence begins quietly and gains weight towards its end; {cues[2]}. What is said, 'I had not thought that it would"
        f" come to this so soon', fits with it: together these clues speak for a person who is {emotion}."
    )


def description_scores(rows: list[dict[str, Any]], scores: list[dict[str, Any]]) -> dict[str, Any]:
    """The metrics_<block>.json of these rows."""
    overlaps = [row["clue_overlap"] for row in scores if row["clue_overlap"] is not None]
    failures = [{"name": row["name"], "metric": "clue_overlap", "failure": "the reply has no number"}
                for row in scores if row["clue_overlap"] is None]  # fmt: skip
    return {
        "clips": len(rows),
        "metrics": {
            "clue_overlap": sum(overlaps) / len(overlaps),
            "label_overlap": sum(row["label_overlap"] for row in scores) / len(scores),
            "loss": sum(row["loss"] for row in rows) / len(rows),
        },
        "judge": {
            "name": "invented-judge-1", "calls": 3 * len(rows), "cached": 12, "prompt_tokens": 412_345,
            "completion_tokens": 20_118, "cost": 0.1284, "failures": failures,
        },
        "clip_scores": scores,
    }  # fmt: skip


CONFIG = """model:
  arch: minigpt_v2
  llama_model: ${oc.env:LLAMA_FOLDER}
  lora_r: 64
datasets:
  feature_face_caption:
    annotation_file: lists/MERR_fine_grained.txt
    batch_size: 4
evaluation_datasets:
  dev:
    task_pool: [emotion]
    answer_rule: search
  emer:
    task_pool: [reason]
    judge: {type: openai, model: invented-judge-1, api_key: "${oc.env:JUDGE_KEY}"}
run:
  init_lr: 1.0e-05
  max_epoch: 6
  iters_per_epoch: 500
  seed: 42
"""


def write_run(folder: Path, *, steps: int = 60, epochs: int = 6, best: int = 4, clips: int = 120) -> Path:
    """Write a run that has been trained, validated and evaluated; return its folder."""
    write_lines(folder / "log.jsonl", log_rows(steps))
    write_lines(folder / "eval.jsonl", validation_rows(epochs, best))
    (folder / "config.yaml").write_text(CONFIG, encoding="utf-8")
    write_results(folder / "result", clips)
    return folder


def write_results(folder: Path, clips: int, checkpoint: str | None = "runs/stage_2/checkpoint_best.pth") -> None:
    """Write the files of an evaluation of two blocks."""
    labelled = label_rows(clips)
    described, scores = description_rows(max(clips // 4, 8))
    for block, task, rows, content in (
        ("dev", "emotion", labelled, label_scores(labelled)),
        ("emer", "reason", described, description_scores(described, scores)),
    ):
        write_lines(folder / f"predictions_{block}.jsonl", rows)
        write_json(folder / f"metrics_{block}.json", {"block": block, "checkpoint": checkpoint, "tasks": {task: content}})
