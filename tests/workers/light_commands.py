"""Run every command that must not import torch, one after another in this process, and record which libraries they import.

The arguments are the file to write and the configurations to show. The file gets {"loaded": {command: [heavy libraries loaded
after it]}, "output": {command: [exit status, standard output]}}. Before the commands, modules are imported and a judge is built.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import sys
from importlib import import_module
from pathlib import Path

HEAVY = {"torch", "transformers", "peft", "torchvision", "webdataset", "matplotlib", "matplotlib.pyplot", "jinja2", "openai"}
LABELS = {"clip_1": "happy", "clip_2": "angry", "clip_3": "sad"}


def write_inputs() -> None:
    """Lists, captions, images, arrays and runs for the commands, in the current directory."""
    import numpy as np
    from invented_runs import write_run
    from PIL import Image

    with open("labels.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("name", "discrete"), *LABELS.items()])
    Path("truth.csv").write_text("name,label\n" + "".join(f"{name},{label}\n" for name, label in LABELS.items()))
    write_sources()
    Path("words.csv").write_text("name,english\n" + "".join(f"{name},She frowns; she is sad.\n" for name in LABELS))
    rows = [{"name": name, "task": "emotion", "prediction": "sad", "reference": label} for name, label in LABELS.items()]
    Path("answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("images").mkdir()
    captions = []
    for number in range(2):
        Image.new("RGB", (8, 8)).save(f"images/{number}.jpg")
        captions += [f"{number}.jpg| {index}| A grey square." for index in range(5)]
    Path("results.csv").write_text("image_name| comment_number| comment\n" + "\n".join(captions) + "\n")
    Path("features").mkdir()
    for name in LABELS:
        np.save(f"features/{name}.npy", np.ones((1, 4), np.float32))
    for name in ("run_a", "run_b"):
        write_run(Path(name))


def write_sources() -> None:
    """Sources of the importers, in the current directory."""
    import numpy as np

    np.savez_compressed("label-6way.npz", train_corpus={name: {"emo": label, "val": 0.5} for name, label in LABELS.items()})
    Path("emer.csv").write_text("name,chinese,english\n" + "".join(f"{name},,She is sad.\n" for name in LABELS))
    Path("videos").mkdir()
    for name in LABELS:
        Path(f"videos/{name}.mp4").touch()
        folder = Path("factory") / name
        folder.mkdir(parents=True)
        record = {
            "chronological_emotion_peaks": ["Peak at 0.27s: happy (moderate)"],
            "overall_peak_frame_info": {"timestamp": 0.27},
            "final_summary": "She smiles.",
        }
        (folder / f"{name}_merr_data.json").write_text(json.dumps(record))


def commands(configurations: list[str]) -> list[list[str]]:
    """The command lines."""
    answers = ["--predictions", "answers.jsonl", "--truth", "truth.csv"]
    described = ["--predictions", "words.csv", "--truth", "words.csv"]
    return [
        [],
        ["--help"],
        ["--version"],
        ["train", "--help"],
        ["trian"],
        *(["config", "show", "--cfg-path", configuration] for configuration in configurations),
        ["reference"],
        ["reference", "run.metric"],
        ["completion", "bash"],
        ["import", "mer2024", "labels.csv", "--output", "mer2024"],
        ["import", "mer2025", "labels.csv", "--output", "mer2025"],
        ["import", "mertools", "label-6way.npz", "--split", "train", "--output", "mertools"],
        ["import", "emer", "emer.csv", "--output", "emer"],
        ["import", "mer-factory", "factory", "--output", "factory_lists"],
        ["import", "videos", "videos", "truth.csv", "--output", "video_lists"],
        ["prepare", "flickr30k", "--annotations", "results.csv", "--images", "images", "--split", "test"],
        ["pack", "--source", "features", "--output", "packed"],
        ["pack", "--check", "packed"],
        ["score", *answers, "--resamples", "100"],
        ["score", *described, "--judge", "lexical", "--resamples", "100"],
        ["rate", *described, "--output", "sheet.csv"],
        ["compare", "run_a", "run_b"],
        ["report", "run_a"],
    ]


def build_judge() -> None:
    """Build a judge that uses a language model, without a request."""
    from emollama.registry import JUDGES

    JUDGES.built({"type": "openai", "model": "m", "key_env": None, "cache_path": "replies.sqlite3"}, "judge")


def import_reporting() -> None:
    """Import the modules that compare runs and write reports."""
    import_module("emollama.reporting.comparison")
    import_module("emollama.reporting.report")


def load_session() -> None:
    """Load a session of the Python API."""
    emollama = import_module("emollama")
    emollama.load(sys.argv[2], {"run.seed": 1})


def main() -> None:
    """Run the commands; their plots are built but not rendered."""
    from plots import plots, white_pixel

    from emollama.cli import main as emollama

    write_inputs()
    loaded, output = {}, {}
    for step in (build_judge, import_reporting, load_session):
        step()
        loaded[step.__name__] = sorted(HEAVY & sys.modules.keys())
    for line in commands(sys.argv[2:]):
        text = io.StringIO()
        status = None
        with plots(white_pixel), contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            try:
                emollama(line)
            except SystemExit as ended:
                status = ended.code
        name = " ".join(line)
        loaded[name] = sorted(HEAVY & sys.modules.keys())
        output[name] = [status or 0, text.getvalue()]
    Path(sys.argv[1]).write_text(json.dumps({"loaded": loaded, "output": output}))


if __name__ == "__main__":
    main()
