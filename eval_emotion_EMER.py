"""Answer the evaluation blocks of a YAML file.

``torchrun --nproc-per-node 1 eval_emotion_EMER.py --cfg-path eval_configs/eval_emotion_EMER.yaml [--options a.b=c ...]``
"""

from __future__ import annotations

from emollama.cli import entry_point, parse_run
from emollama.config import load
from emollama.logging import get_logger


def main() -> None:
    """Arguments -> configuration -> runner -> evaluate."""
    arguments = parse_run("Answer the blocks under evaluation_datasets, and score the answers.")
    config = load(arguments.cfg_path, arguments.options)
    for path in config.classes["run"](config, training=False).evaluate():
        get_logger().info("wrote %s", path)


if __name__ == "__main__":
    entry_point(main)
