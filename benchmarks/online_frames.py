"""Time training steps that encode frames, compared with steps that read extracted image features, and compare the losses.

    OMP_NUM_THREADS=1 MALLOC_MMAP_MAX_=0 python benchmarks/online_frames.py

Run the README's commands under "Your videos" first, up to the extraction. Both runs train on the same clips with the same initial
weights, and their steps alternate in one process: reading or decoding, forward, backward, update. The exit status is 1 if a loss
differs by more than 1e-5.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from statistics import median

from emollama.config import load
from emollama.runners.runner_base import RunnerBase

ROOT = Path(__file__).parent.parent
BLOCK = "datasets.feature_face_caption"
ONLINE = (
    "model.vit_weights=${paths.root}/encoders/eva_vit.safetensors",
    "model.vit_precision=fp32",
    f"{BLOCK}.image_feature_path=null",
    f"{BLOCK}.image_path=../videos",
    f"{BLOCK}.frame_selection=middle",
)


def main() -> None:
    """Print the median time of a step of both runs, their ratio, and the largest difference of the losses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="demo_videos", help="folder of the README's commands (default: demo_videos)")
    parser.add_argument("--steps", type=int, default=40, help="number of steps (default: 40)")
    arguments = parser.parse_args()
    os.environ["EMOLLAMA_DEMO_VIDEOS"] = arguments.folder
    options = {"cached": (), "online": ONLINE}
    shared = ("run.evaluate=False", "run.job_id=online_frames_benchmark")
    runners = {}
    for name, run_options in options.items():
        config = load(str(ROOT / "train_configs/demo_videos.yaml"), [*shared, *run_options])
        runners[name] = RunnerBase(config)
    batches = {name: runner._step_batches() for name, runner in runners.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    losses: dict[str, list[float]] = {name: [] for name in runners}
    for step in range(arguments.steps):
        for name, runner in runners.items():
            start = time.perf_counter()
            losses[name].append(runner._step(step, next(batches[name]))["loss"])
            seconds[name].append(time.perf_counter() - start)
    cached, online = (median(times) for times in seconds.values())
    largest_difference = max(abs(one - other) for one, other in zip(*losses.values(), strict=True))
    sys.stdout.write(f"cached {1e3 * cached:.0f} ms per step, online {1e3 * online:.0f} ms, ratio {online / cached:.2f}\n")
    sys.stdout.write(f"{arguments.steps} steps, largest difference of the losses {largest_difference:.1e}\n")
    raise SystemExit(0 if largest_difference <= 1e-5 else 1)


if __name__ == "__main__":
    main()
