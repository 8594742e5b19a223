"""Train a model: ``torchrun --nproc-per-node 4 train.py --cfg-path train_configs/<stage>.yaml [--options a.b=c ...]``.

``emollama train`` does the same and starts the processes itself.
"""

from __future__ import annotations

from emollama.cli import entry_point, parse_run
from emollama.commands.train import run


def main() -> None:
    """Parse the command line and train."""
    run(parse_run("Train a model with the configuration in a YAML file."))


if __name__ == "__main__":
    entry_point(main)
