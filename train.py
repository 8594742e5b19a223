"""Train: ``torchrun --nproc-per-node 4 train.py --cfg-path train_configs/<stage>.yaml [--options a.b=c ...]``.

``emollama train`` does the same, and starts the processes itself.
"""

from __future__ import annotations

from emollama.cli import entry_point, parse_run
from emollama.commands.train import run


def main() -> None:
    """Arguments -> training."""
    run(parse_run("Train a model as a YAML file says."))


if __name__ == "__main__":
    entry_point(main)
