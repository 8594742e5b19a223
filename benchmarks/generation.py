"""Time the evaluation of clips with batch size 8, compared with batch size 1, and check that the answers are equal.

    make demo && OMP_NUM_THREADS=1 MALLOC_MMAP_MAX_=0 python benchmarks/generation.py

The time includes everything that evaluation does with a clip (features, prompt, generation, loss of the target). The two batch
sizes alternate in one process, on the clips and the checkpoint of the demo. The exit status is 1 if an answer differs.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from statistics import median

from emollama.config import load
from emollama.decoding.answer_generator import AnswerGenerator
from emollama.runners.prediction_runner import PredictionRunner

ROOT = Path(__file__).parent.parent


def main() -> None:
    """Print clips per second of both batch sizes in each round, and the ratio of their medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="demo_run", help="folder of a finished demo (default: demo_run)")
    parser.add_argument("--clips", type=int, default=48, help="number of clips (default: 48)")
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds (default: 5)")
    arguments = parser.parse_args()
    os.environ["EMOLLAMA_DEMO"] = arguments.folder
    config = load(str(ROOT / "eval_configs/demo_EMER.yaml"), ["run.job_id=generation_benchmark"])
    runner = config.classes["run"](config, training=False)
    runner.model.eval()
    prediction_runner = PredictionRunner(
        runner.task, AnswerGenerator(runner.members, runner.prompt), runner.world, runner.precision, seed=0
    )
    block = runner.blocks["emer"]
    block.dataset.clips = block.dataset.clips[: arguments.clips]
    seconds: dict[int, list[float]] = {1: [], 8: []}
    answers: dict[int, list[list[int]]] = {}
    answer_text, ids = runner.prompt.answer_text, list[list[int]]()

    def record_ids(answer: list[int]) -> str:
        ids.append(answer)
        return answer_text(answer)

    runner.prompt.answer_text = record_ids
    for number in range(arguments.rounds + 1):
        for size, times in seconds.items():
            block.dataset.cfg.batch_size = size
            ids.clear()
            start = time.perf_counter()
            count = len(prediction_runner.predict("emer", block.dataset, block.options))
            times.append(time.perf_counter() - start)
            answers[size] = list(ids)
        if number:  # round 0 is a warm-up
            one, eight = (count / times[-1] for times in seconds.values())
            sys.stdout.write(f"round {number}: {one:.1f} clips/s with batch size 1, {eight:.1f} with batch size 8\n")
    ratio = median(seconds[1][1:]) / median(seconds[8][1:])
    equal = answers[1] == answers[8]
    tokens = sum(map(len, answers[1])) / len(answers[1])
    sys.stdout.write(
        f"ratio of medians {ratio:.2f}; {len(answers[1])} answers of {tokens:.0f} tokens, equal token ids: {equal}\n"
    )
    raise SystemExit(0 if equal else 1)


if __name__ == "__main__":
    main()
