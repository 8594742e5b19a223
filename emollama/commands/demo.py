"""``emollama demo``: the main job on an invented corpus; or invented videos, or drawings with captions, to begin from."""

from __future__ import annotations

import argparse

from emollama.demo.folder import CAPTIONS, CORPUS, VIDEOS, require_demo_folder
from emollama.distributed.launcher import positive, require_sensible
from emollama.distributed.worker_variables import require_no_other_launcher

HELP = "train and evaluate on an invented corpus, or write invented videos or captioned drawings to start from"
EXAMPLE = "emollama demo"
DOCS = "README.md#start"
FOLDERS = {CORPUS: "demo_run", VIDEOS: "demo_videos", CAPTIONS: "demo_flickr"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``--folder``, ``--seed``, ``--processes``, and ``--corpus-only``, ``--videos-only`` or ``--captions-only``."""
    folder = "where everything goes (default: demo_run; demo_videos with --videos-only, demo_flickr with --captions-only)"
    parser.add_argument("--folder", default=None, help=folder)
    parser.add_argument("--seed", type=int, default=42, help="of the corpus and of training")
    processes = "number of processes of each training (default: 2)"
    parser.add_argument("--nproc", "--processes", dest="processes", type=positive, default=2, metavar="N", help=processes)
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--corpus-only", action="store_true", help="write the corpus and the tiny Llama, and stop")
    videos = "write videos, a table of labels, tiny encoders and a tiny Llama, for train_configs/demo_videos.yaml, and stop"
    part.add_argument("--videos-only", action="store_true", help=videos)
    drawings = "write drawings with captions in Flickr30k's form and tiny models, for train_configs/demo_flickr.yaml, and stop"
    part.add_argument("--captions-only", action="store_true", help=drawings)


def run(arguments: argparse.Namespace) -> None:
    """Run everything and print the figures; or write what is asked for."""
    from emollama.demo.environment import restart_with_fast_settings

    demo = VIDEOS if arguments.videos_only else CAPTIONS if arguments.captions_only else CORPUS
    folder = FOLDERS[demo] if arguments.folder is None else arguments.folder
    require_demo_folder(folder, demo)  # before torch is imported
    require_sensible(arguments.processes)
    if demo == CORPUS and arguments.processes > 1 and not arguments.corpus_only:
        require_no_other_launcher(f"--nproc {arguments.processes}")
    restart_with_fast_settings()
    from emollama.demo.run import make_flickr_demo, make_videos_demo, run_demo

    if demo == VIDEOS:
        make_videos_demo(folder, seed=arguments.seed)
    elif demo == CAPTIONS:
        make_flickr_demo(folder, seed=arguments.seed)
    else:
        run_demo(folder, seed=arguments.seed, processes=arguments.processes, corpus_only=arguments.corpus_only)
