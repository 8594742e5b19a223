"""Convert published data sets of images to the files that the datasets read."""

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

HELP = "convert Flickr30k to one caption file per split"
EXAMPLE = "emollama prepare flickr30k --annotations results.csv --images images"
DOCS = "docs/data.md#images-with-captions"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a sub-command for each data set."""
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    text = "convert the captions of Flickr30k"
    subparser = kinds.add_parser("flickr30k", help=text)
    formats = (
        "flickr_annotations_30k.csv, dataset_flickr30k.json, results_20130124.token or results.csv;"
        " the command recognizes the format by the content"
    )
    subparser.add_argument("--annotations", required=True, metavar="FILE", help=formats)
    subparser.add_argument("--images", required=True, metavar="FOLDER", help="the folder of images, which is only read")
    output = "folder for flickr30k_<split>.json, where no such file must exist (default: the folder of --annotations)"
    subparser.add_argument("--output", metavar="FOLDER", help=output)
    names = "splits to write (default: all); without any assignment of splits, the name of a single split for all images"
    subparser.add_argument("--split", nargs="+", metavar="NAME", help=names)
    lists = "lists of images, named after their splits (train.txt ...), or the folder of such lists; for files without splits"
    subparser.add_argument("--splits", nargs="+", metavar="LIST", help=lists)
    checks = "headers: open each image (default). all: decode each image. none: check only that each file exists"
    subparser.add_argument("--check-images", choices=("headers", "all", "none"), default="headers", help=checks)
    stop = "error: report all problems and write nothing (default). skip: leave out images with problems"
    subparser.add_argument("--on-problem", choices=("error", "skip"), default="error", help=stop)


def run(arguments: argparse.Namespace) -> None:
    """Write the caption files and print a summary."""
    from emollama.importers import caption_files, flickr30k
    from emollama.paths import require_local

    folder = Path(arguments.output or os.path.dirname(require_local(arguments.annotations, "--annotations without --output")))
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
    """Return split -> images for the splits to write.

    Raises:
        UserError: If a selected split does not exist, --splits is set although the file contains splits, or nothing assigns
            splits.
    """
    from emollama.importers import caption_files, flickr30k

    path, images = arguments.annotations, list(collection.images.values())
    if not images:
        return {}
    own = list(dict.fromkeys(image.split for image in images if image.split is not None))
    if arguments.splits:
        if own:
            raise UserError(f"--splits: {path} has its own splits: {abbreviated(own)}. Leave --splits out.")
        splits = flickr30k.assign_splits(collection, flickr30k.read_splits(arguments.splits))
        source = ", ".join(arguments.splits)
    elif own:
        splits, source = {name: [image for image in images if image.split == name] for name in own}, path
    elif len(arguments.split or ()) == 1:
        splits, source = {arguments.split[0]: images}, "--split"
    else:
        raise UserError(
            f"{path} contains no splits. Pass lists of the splits (--splits train.txt val.txt test.txt, or their folder),"
            " or assign all images to one split (--split test)."
        )
    return caption_files.select_splits(flickr30k.without_misspelled(collection, splits, source), arguments.split, source)
