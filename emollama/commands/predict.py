"""Ask the model about videos: extract their features and generate answers, with the settings of an evaluation.

The output shows the inputs of the model for each video, and its answer.

To use the folder of a training run, specify its config.yaml with ``--cfg-path``, and its checkpoint with
``--options model.ckpt=FOLDER/checkpoint_best.pth``.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from typing import TYPE_CHECKING

from emollama.commands import running
from emollama.distributed.launcher import launch, processes_for
from emollama.distributed.watchdog import watching
from emollama.logs.console import aligned, write

if TYPE_CHECKING:
    from emollama.inference.requests import Answer

HELP = "extract the features of videos and print the model's answers"
EXAMPLE = (
    "emollama predict --cfg-path train_configs/demo_videos.yaml --video demo_videos/unseen/happy_1.mp4"
    " --options model.ckpt=demo_videos/trained/checkpoint_2.pth"
)
DOCS = "docs/extraction.md#ask-about-a-video"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--video``, ``--text``, ``--task``, ``--question`` and ``--json``, and the arguments of a run and of the launcher."""
    running.add_arguments(parser)
    parser.add_argument("--video", nargs="+", required=True, metavar="FILE", help="the videos")
    parser.add_argument("--text", metavar="SENTENCE", help="the sentence that is spoken in the video; requires a single video")
    task = "name of the task (default: the first task of the configuration's first block)"
    parser.add_argument("--task", metavar="NAME", help=task)
    question = "a question of your own; without --task, the prompt has no tag of a task"
    parser.add_argument("--question", metavar="TEXT", help=question)
    parser.add_argument("--json", action="store_true", help="print one JSON object per line, one for each video")


def run(arguments: argparse.Namespace) -> None:
    """Print the model's inputs and its answer for each video."""
    from emollama.config import load
    from emollama.errors import UserError
    from emollama.text_encoding import is_encodable

    if arguments.text is not None and len(arguments.video) > 1:
        count = len(arguments.video)
        raise UserError(f"--text belongs to a single video, but --video names {count}. Run the command once per video.")
    for name, text in (("--text", arguments.text), ("--question", arguments.question)):
        if text is not None and not is_encodable(text):
            raise UserError(f"{name}: the sentence is not UTF-8 text. Enter it in a terminal that uses UTF-8.")
    asked = {"text": arguments.text, "task": arguments.task, "question": arguments.question}
    config = load(arguments.cfg_path, arguments.options)
    processes = processes_for(arguments, config.run.device)
    if arguments.nproc is None and arguments.gpus is None:
        processes = min(processes, len(arguments.video))
    if arguments.dry_run:
        from emollama.inference.predict import dry_run

        write(dry_run(config, arguments.video, **asked, processes=processes))
        return
    if processes > 1:
        from emollama.inference.videos import require_videos

        # Checked before worker processes start, which takes seconds.
        require_videos(arguments.video)
        launch(arguments, processes)
        return
    from emollama.inference.predict import predict

    with watching(config.run.hang_minutes):
        answers = predict(config, arguments.video, **asked)
    if os.environ.get("RANK", "0") == "0":
        for video, answer in zip(arguments.video, answers, strict=True):
            write(_json(video, answer) if arguments.json else _answer_text(video, answer))


def _json(video: str, answer: Answer) -> str:
    """Return a JSON object about one video, in a line."""
    described = {
        "video": video,
        "task": answer.task,
        "prompt": answer.prompt,
        "sentence": answer.sentence,
        "modalities": {slot: asdict(modality) for slot, modality in answer.modalities.items()},
        "answer": answer.text,
        "label_probabilities": answer.label_probabilities,
    }
    return json.dumps(described, ensure_ascii=False) + "\n"


def _answer_text(video: str, answer: Answer) -> str:
    """Return the printed lines about one video."""
    sentence = "no sentence in the prompt" if answer.sentence is None else f'"{answer.sentence}"'
    shares = sorted((answer.label_probabilities or {}).items(), key=lambda item: -item[1])
    states = iter(aligned([[modality.state, modality.why] for modality in answer.modalities.values()], left=(0, 1)))
    probabilities = aligned([[f"{share:.1%}", label] for label, share in shares], left=(1,))
    rows = [[slot, next(states)] for slot in answer.modalities]
    rows += [["sentence", sentence], [answer.task or "answer", answer.text], *(["", line] for line in probabilities)]
    return "\n".join([video, *(f"  {line}" for line in aligned(rows, left=(0, 1)))]) + "\n"
