"""Train and evaluate a small model on a synthetic corpus, without downloads or a GPU.

With ``--videos-only`` or ``--captions-only``, write a data set for a shipped configuration instead.
"""

from __future__ import annotations

import argparse

from emollama.demo.folder import CAPTIONS, CORPUS, VIDEO_CLIPS, VIDEOS, require_demo_folder
from emollama.distributed.launcher import positive, require_sensible
from emollama.distributed.worker_variables import require_no_other_launcher
from emollama.errors import UserError

HELP = "train and evaluate on a synthetic corpus, or write synthetic videos or captioned drawings to try out commands"
EXAMPLE = "emollama demo"
DOCS = "README.md#start"
FOLDERS = {CORPUS: "demo_run", VIDEOS: "demo_videos", CAPTIONS: "demo_flickr"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--folder``, ``--seed``, ``--nproc``, ``--clips``, and ``--corpus-only``, ``--videos-only`` or ``--captions-only``."""
    folder = "folder to write (default: demo_run; demo_videos with --videos-only, demo_flickr with --captions-only)"
    parser.add_argument("--folder", default=None, help=folder)
    parser.add_argument("--seed", type=int, default=42, metavar="N", help="seed of the data and of training (default: 42)")
    processes = "number of training processes (default: 2)"
    parser.add_argument("--nproc", "--processes", dest="processes", type=positive, default=2, metavar="N", help=processes)
    clips = f"number of labelled videos of --videos-only (default: {VIDEO_CLIPS})"
    parser.add_argument("--clips", type=positive, metavar="N", help=clips)
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--corpus-only", action="store_true", help="only write the corpus and the tiny Llama")
    videos = "only write videos, a table of labels, tiny encoders and a tiny Llama, for train_configs/demo_videos.yaml"
    part.add_argument("--videos-only", action="store_true", help=videos)
    drawings = "only write captioned drawings in the format of Flickr30k and tiny models, for train_configs/demo_flickr.yaml"
    part.add_argument("--captions-only", action="store_true", help=drawings)


def run(arguments: argparse.Namespace) -> None:
    """Run the demo and print its metrics, or only write data."""
    from emollama.demo.environment import restart_with_fast_settings

    demo = VIDEOS if arguments.videos_only else CAPTIONS if arguments.captions_only else CORPUS
    if arguments.clips is not None and demo != VIDEOS:
        raise UserError("--clips: only the demo of videos has this option. Add --videos-only.")
    folder = FOLDERS[demo] if arguments.folder is None else arguments.folder
    # Checked before torch is imported, which takes seconds.
    require_demo_folder(folder, demo)
    require_sensible(arguments.processes)
    if demo == CORPUS and arguments.processes > 1 and not arguments.corpus_only:
        require_no_other_launcher(f"--nproc {arguments.processes}")
    restart_with_fast_settings()
    from emollama.demo.run import make_flickr_demo, make_videos_demo, run_demo

    if demo == VIDEOS:
        make_videos_demo(folder, seed=arguments.seed, clips=arguments.clips or VIDEO_CLIPS)
    elif demo == CAPTIONS:
        make_flickr_demo(folder, seed=arguments.seed)
    else:
        run_demo(folder, seed=arguments.seed, processes=arguments.processes, corpus_only=arguments.corpus_only)
