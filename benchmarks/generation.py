"""How many times as fast clips are answered eight at a time as one at a time, with the same answers.

    make demo && OMP_NUM_THREADS=1 MALLOC_MMAP_MAX_=0 python benchmarks/generation.py

Both ways go through everything that evaluation does to a clip (features, prompt, generation, loss of the target) and take turns
in one process, on clips and checkpoint of the demo. Exits with 1 where an answer differs.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from statistics import median

from emollama.config import load
from emollama.runners.answering import Answering

ROOT = Path(__file__).parent.parent


def main() -> None:
    """Print clips a second of both, round by round, and the ratio of their medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", default="demo_run", help="of a finished demo")
    parser.add_argument("--clips", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    os.environ["EMOLLAMA_DEMO"] = arguments.folder
    config = load(str(ROOT / "eval_configs/demo_EMER.yaml"), ["run.job_id=generation_benchmark"])
    runner = config.classes["run"](config, training=False)
    runner.model.eval()
    answering = Answering(runner.task, runner.members, runner.prompt, runner.world, runner.precision, seed=0)
    block = runner.blocks["emer"]
    block.dataset.clips = block.dataset.clips[: arguments.clips]
    seconds: dict[int, list[float]] = {1: [], 8: []}
    answers: dict[int, list[list[int]]] = {}
    texts_of, ids = runner.prompt.answer_text, list[list[int]]()
    runner.prompt.answer_text = lambda found: (ids.append(found), texts_of(found))[1]
    for number in range(arguments.rounds + 1):
        for size, times in seconds.items():
            block.dataset.cfg.batch_size = size
            ids.clear()
            begun = time.perf_counter()
            rows = answering.rows("emer", block.dataset, block.options)
            times.append(time.perf_counter() - begun)
            answers[size] = list(ids)
        if number:  # the round before them is not counted
            one, eight = (len(rows) / times[-1] for times in seconds.values())
            sys.stdout.write(f"round {number}: {one:.1f} clips/s alone, {eight:.1f} by eights\n")
    ratio = median(seconds[1][1:]) / median(seconds[8][1:])
    equal = answers[1] == answers[8]
    tokens = sum(map(len, answers[1])) / len(answers[1])
    sys.stdout.write(f"ratio of medians {ratio:.2f}; {len(answers[1])} answers of {tokens:.0f} tokens, equal ids: {equal}\n")
    raise SystemExit(0 if equal else 1)


if __name__ == "__main__":
    main()
