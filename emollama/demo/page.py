"""The demo of the page: synthetic videos with descriptions, tiny encoders, a tiny Llama, and a model that is trained on them."""

from __future__ import annotations

import os
import time
from pathlib import Path

from emollama.demo.descriptions import add_descriptions, draw_conversations
from emollama.demo.folder import PAGE, VIDEO_CLIPS, demo_in, disk_errors, prepare_demo_folder, require_demo_folder
from emollama.demo.steps import DemoFolder, run_step
from emollama.demo.tiny_encoders import make_tiny_encoders
from emollama.demo.tiny_llama import make_tiny_llama
from emollama.demo.videos import make_videos
from emollama.logs.logger import get_logger, set_up

CONFIG = "train_configs/demo_app.yaml"
VARIABLE, FOLDER = "EMOLLAMA_DEMO_APP", "demo_app"  # environment variable and default folder in the configuration
CHECKPOINT = "trained/checkpoint_3.pth"
SEED = 42


def prepare_page_demo(folder: str) -> Path:
    """Make the demo unless the folder already has it, and return its absolute path. The configuration then finds the folder.

    Args:
        folder: the folder; an incomplete demo in it is replaced.

    Raises:
        UserError: If the folder contains other files, the disk is full, or a command failed.
    """
    root = require_demo_folder(folder, PAGE)
    os.environ[VARIABLE] = str(root)
    if demo_in(root) == PAGE and (root / CHECKPOINT).is_file():
        return root
    set_up(is_main=True)
    start = time.monotonic()
    get_logger().info("making the demo in %s: videos, encoders and a trained model (once, about two minutes)", root)
    prepare_demo_folder(folder, PAGE)
    with disk_errors(root):
        make_videos(root, clips=VIDEO_CLIPS, unseen=18, seed=SEED)
        add_descriptions(root)
        make_tiny_encoders(root / "encoders", seed=SEED)
        make_tiny_llama(root / "llm", draw_conversations(SEED, 4000), seed=SEED, steps=400)
    demo_folder = DemoFolder(root, VARIABLE, FOLDER)
    for command in ("extract", "train"):
        run_step(demo_folder, [command, "--cfg-path", CONFIG, "--nproc", "1"])
    get_logger().info("made the demo in %.0f seconds", time.monotonic() - start)
    return root
