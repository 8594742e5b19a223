"""``emollama demo``: the main job on an invented corpus."""

from __future__ import annotations

import argparse

NAME = "demo"
HELP = "both training stages and inference on an invented corpus"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``--folder``, ``--seed``, ``--processes``, ``--corpus-only``."""
    parser.add_argument("--folder", default="demo_run", help="where everything goes (default: demo_run)")
    parser.add_argument("--seed", type=int, default=42, help="of the corpus and of training")
    parser.add_argument("--processes", type=int, default=2, help="processes of each torchrun")
    parser.add_argument("--corpus-only", action="store_true", help="write the corpus and the tiny Llama, and stop")


def run(arguments: argparse.Namespace) -> None:
    """Run everything and print the figures."""
    from emollama.demo.run import run_demo

    run_demo(arguments.folder, seed=arguments.seed, processes=arguments.processes, corpus_only=arguments.corpus_only)
