"""Evaluate the blocks of a YAML file; ``emollama eval`` does the same.

``torchrun --nproc-per-node 1 eval_emotion_EMER.py --cfg-path eval_configs/eval_emotion_EMER.yaml [--options a.b=c ...]``
"""

from __future__ import annotations

from emollama.cli import entry_point, parse_run
from emollama.commands.eval import run


def main() -> None:
    """Parse the command line and evaluate."""
    run(parse_run("Answer the blocks under evaluation_datasets and score the answers."))


if __name__ == "__main__":
    entry_point(main)
