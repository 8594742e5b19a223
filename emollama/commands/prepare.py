"""``emollama prepare``: published data sets of images, as the datasets read them."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from emollama.errors import UserError
from emollama.listing import abbreviated
from emollama.logs.console import write

if TYPE_CHECKING:
    from emollama.importers.caption_files import Splits
    from emollama.importers.flickr30k import Collection

HELP = "convert Flickr30k as published into one caption file per split"
EXAMPLE = "emollama prepare flickr30k --annotations results.csv --images images"
DOCS = "docs/data.md#images-with-captions"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A sub-command a data set."""
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    text = "Flickr30k: captions of images"
    one = kinds.add_parser("flickr30k", help=text, description=f"Prepare {text}.")
    forms = "flickr_annotations_30k.csv, dataset_flickr30k.json, results_20130124.token or results.csv; the content tells which"
    one.add_argument("--annotations", required=True, metavar="FILE", help=forms)
    one.add_argument("--images", required=True, metavar="FOLDER", help="the images; they are only read")
    beside = "where to write flickr30k_<split>.json; files that are there are not replaced (default: beside --annotations)"
    one.add_argument("--output", metavar="FOLDER", help=beside)
    names = "splits to write (default: all); for a file without splits, and without --splits, the one that all images go to"
    one.add_argument("--split", nargs="+", metavar="NAME", help=names)
    lists = "for a file without splits: lists of images called after their splits (train.txt ...), or a folder of them"
    one.add_argument("--splits", nargs="+", metavar="LIST", help=lists)
    look = "what is looked at: that images open (default), that all of each can be decoded, or only that the files are there"
    one.add_argument("--check-images", choices=("headers", "all", "none"), default="headers", help=look)
    stop = "stop, or leave out the images that have problems (default: error)"
    one.add_argument("--on-problem", choices=("error", "skip"), default="error", help=stop)


def run(arguments: argparse.Namespace) -> None:
    """Write the files and tell what is in them."""
    from emollama.importers import caption_files, flickr30k

    folder = Path(arguments.output or os.path.dirname(arguments.annotations))
    caption_files.require_output_folder(folder, arguments.images)
    collection = flickr30k.read(arguments.annotations)
    splits = _splits(arguments, collection)
    caption_files.require_new(folder, splits)
    usable = caption_files.with_readable_images(splits, arguments.images, arguments.check_images, collection)
    caption_files.require_usable(collection, usable, arguments.on_problem)
    settings = {key: value for key, value in vars(arguments).items() if key not in ("run", "command")}
    report = caption_files.write(folder, usable, collection, settings)
    text = caption_files.summary(report, folder)
    write(text)


def _splits(arguments: argparse.Namespace, collection: Collection) -> Splits:
    """split -> images, of those that are asked for.

    Raises:
        UserError: a split that there is not; lists of splits for a file that has its own, or none for one that has none.
    """
    from emollama.importers import caption_files, flickr30k

    path, images = arguments.annotations, list(collection.images.values())
    if not images:
        return {}
    own = list(dict.fromkeys(image.split for image in images if image.split is not None))
    if arguments.splits:
        if own:
            raise UserError(f"--splits: {path} has its own splits: {abbreviated(own)}. Leave --splits out.")
        found, source = flickr30k.assign_splits(collection, flickr30k.read_splits(arguments.splits)), ", ".join(arguments.splits)
    elif own:
        found, source = {name: [image for image in images if image.split == name] for name in own}, path
    elif len(arguments.split or ()) == 1:
        found, source = {arguments.split[0]: images}, "--split"
    else:
        text = f"{path} says nothing of splits. Name their lists (--splits train.txt val.txt test.txt, or their folder), or one"
        raise UserError(f"{text} name for all images (--split test).")
    return caption_files.select_splits(flickr30k.without_misspelled(collection, found, source), arguments.split, source)
