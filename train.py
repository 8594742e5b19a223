"""Train: ``torchrun --nproc-per-node 4 train.py --cfg-path train_configs/<stage>.yaml [--options a.b=c ...]``."""

from __future__ import annotations

from emollama.cli import entry_point, parse_run
from emollama.config import load


def main() -> None:
    """Arguments -> configuration -> runner -> train, or evaluate where ``run.evaluate_only`` says so."""
    arguments = parse_run("Train a model as a YAML file says.")
    config = load(arguments.cfg_path, arguments.options)
    alone = config.run.evaluate_only
    runner = config.classes["run"](config, training=not alone)
    _ = runner.evaluate() if alone else runner.train()


if __name__ == "__main__":
    entry_point(main, when_interrupted="interrupted; a run that saved goes on by run.job_id and run.resume_ckpt_path: auto")
