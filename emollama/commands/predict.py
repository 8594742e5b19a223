"""Ask the model about videos: extract their features and generate answers, with the settings of an evaluation.

The output shows the inputs of the model for each video, and its answer.
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
    from emollama.inference.predict import VideoAnswer

HELP = "extract the features of videos and print the model's answers"
EXAMPLE = "emollama predict --cfg-path train_configs/demo_videos.yaml --video clip.mp4"
DOCS = "docs/extraction.md#ask-about-a-video"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--video``, ``--text``, ``--task`` and ``--json``, and the arguments of a run and of the launcher."""
    running.add_arguments(parser)
    parser.add_argument("--video", nargs="+", required=True, metavar="FILE", help="the videos")
    parser.add_argument("--text", metavar="SENTENCE", help="the sentence that is spoken in the video; requires a single video")
    task = "name of the task (default: the first task of the configuration's first block)"
    parser.add_argument("--task", metavar="NAME", help=task)
    parser.add_argument("--json", action="store_true", help="print one JSON object per line, one for each video")


def run(arguments: argparse.Namespace) -> None:
    """Print the model's inputs and its answer for each video."""
    from emollama.config import load
    from emollama.errors import UserError
    from emollama.text_encoding import is_encodable

    if arguments.text is not None and len(arguments.video) > 1:
        count = len(arguments.video)
        raise UserError(f"--text belongs to a single video, but --video names {count}. Run the command once per video.")
    if arguments.text is not None and not is_encodable(arguments.text):
        raise UserError("--text: the sentence is not UTF-8 text. Enter it in a terminal that uses UTF-8.")
    config = load(arguments.cfg_path, arguments.options)
    processes = processes_for(arguments, config.run.device)
    if arguments.nproc is None and arguments.gpus is None:
        processes = min(processes, len(arguments.video))
    if arguments.dry_run:
        from emollama.inference.predict import dry_run

        write(dry_run(config, arguments.video, text=arguments.text, task=arguments.task, processes=processes))
        return
    if processes > 1:
        from emollama.inference.videos import require_videos

        # Checked before worker processes start, which takes seconds.
        require_videos(arguments.video)
        launch(arguments, processes)
        return
    from emollama.inference.predict import predict

    with watching(config.run.hang_minutes):
        answers = predict(config, arguments.video, text=arguments.text, task=arguments.task)
    for answer in answers if os.environ.get("RANK", "0") == "0" else ():
        write(json.dumps(asdict(answer), ensure_ascii=False) + "\n" if arguments.json else _answer_text(answer))


def _answer_text(answer: VideoAnswer) -> str:
    """Return the printed lines about one video."""
    sentence = "no sentence in the prompt" if answer.sentence is None else f'"{answer.sentence}"'
    shares = sorted((answer.label_probabilities or {}).items(), key=lambda item: -item[1])
    states = iter(aligned([[modality.state, modality.why] for modality in answer.modalities.values()], left=(0, 1)))
    probabilities = aligned([[f"{share:.1%}", label] for label, share in shares], left=(1,))
    rows = [[slot, next(states)] for slot in answer.modalities]
    rows += [["sentence", sentence], [answer.task, answer.answer], *(["", line] for line in probabilities)]
    return "\n".join([answer.video, *(f"  {line}" for line in aligned(rows, left=(0, 1)))]) + "\n"
