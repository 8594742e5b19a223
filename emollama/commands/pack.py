"""``emollama pack``: features into packed or tar shards, an index for tar shards, and whether packed shards are whole."""

from __future__ import annotations

import argparse
import dataclasses
import os
from decimal import ROUND_UP, Context
from pathlib import Path
from typing import TYPE_CHECKING

from emollama.logs.console import Progress, write_plain

if TYPE_CHECKING:
    from emollama.stores.packing import PackingReport

HELP = "pack features into packed or tar shards; index tar shards; check packed shards"
EXAMPLE = "emollama pack --source features/eva --output features/eva_packed"
DOCS = "docs/data.md#features"

MOST_GIB = 2**20  # of a shard


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``--source``, ``--check`` or ``--index``; ``--output`` and how to pack."""
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--source", nargs="+", metavar="STORE", help="folders of .npy files, tar shards or packed shards to pack")
    task.add_argument("--check", metavar="FOLDER", help="read packed shards and compare every byte's digest")
    task.add_argument("--index", metavar="SHARDS", help="write the indexes of tar shards: a folder, or name-{000..011}.tar")
    parser.add_argument("--output", metavar="FOLDER", help="a new folder (of --index: for indexes that go not beside the tars)")
    parser.add_argument("--to", choices=("packed", "tar"), default="packed", help="kind of shards (default: packed)")
    parser.add_argument(
        "--dtype",
        choices=("stored", "float16", "int8"),
        default="stored",
        help="values as they are (default), rounded to float16, or int8 with a scale a row; prints how far they are off",
    )
    parser.add_argument("--shard-gib", type=float, default=1.0, metavar="N", help="size of a shard in GiB (default: 1)")
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave out and list arrays that are unreadable, or hold NaN or inf"
    )


def run(arguments: argparse.Namespace) -> None:
    """Pack, index or check, and say what was done."""
    if arguments.check:
        _check(arguments.check)
    elif arguments.index:
        _index(arguments.index, arguments.output)
    else:
        _pack(arguments)


def rounded_up(figure: float) -> str:
    """Three digits that are not below the figure: ``1.23e-04``."""
    return f"{float(Context(prec=3, rounding=ROUND_UP).create_decimal(figure)):.2e}"


def _pack(arguments: argparse.Namespace) -> None:
    os.environ["WDS_SECURE"] = "1"  # before webdataset is imported
    from emollama.errors import UserError
    from emollama.paths import new_folder
    from emollama.stores.packing import collect_sources, common_manifest, leftovers, pack
    from emollama.stores.shard_writers import PackedWriter, TarWriter

    if not arguments.output:
        raise UserError("--source needs --output FOLDER, the folder of the shards.")
    if arguments.to == "tar" and arguments.dtype == "int8":
        raise UserError("--dtype int8 needs the scales of packed shards. Take --to packed, or --dtype float16.")
    if not 0 < arguments.shard_gib <= MOST_GIB:
        raise UserError(f"--shard-gib: {arguments.shard_gib}, expected a size above 0 and of {MOST_GIB} at most.")
    manifest = common_manifest(arguments.source)
    with new_folder(Path(arguments.output), arguments.source) as folder:
        sources = collect_sources(arguments.source)
        shard_bytes = int(arguments.shard_gib * 2**30)
        writer = TarWriter(folder, shard_bytes) if arguments.to == "tar" else PackedWriter(folder, shard_bytes)
        with Progress(len(sources), "pack", unit="clips") as bar:
            report = pack(sources, writer, values=arguments.dtype, skip_bad=arguments.skip_bad, advance=bar.update)
        if manifest is not None:
            stored = manifest.dtype if arguments.dtype == "stored" else arguments.dtype
            dataclasses.replace(manifest, dtype=stored).write(folder)
    write_plain(_report(report, arguments.dtype, arguments.output))
    for left in leftovers(Path(arguments.output)):
        write_plain(f"left by a pack that was killed, or of one that is running: {left}\n")


def _report(report: PackingReport, dtype: str, output: str) -> str:
    shards, size, ending = report.output
    lines = [f"{report.clips} clips packed into {output}, {size / 2**30:.2f} GiB; shards: {shards}"]
    if ending:
        lines.append(f"Name '{output}{ending}' in the configuration: the dots belong to the clips' names.")
    if dtype != "stored":
        absolute, relative = map(rounded_up, report.deviation)
        lines.append(f"{dtype}: every value within {absolute} of its source, {relative} of the largest value of its array")
    if report.skipped:
        lines += [f"{len(report.skipped)} clips left out:", *(f"  {problem}" for problem in report.skipped)]
    return "\n".join(lines) + "\n"


def _index(shards: str, output: str | None) -> None:
    from emollama.stores.packing import common_manifest, index_tars

    written = index_tars(shards, Path(output) if output else None)
    write_plain(f"{len(written)} indexes written: {', '.join(map(str, written))}\n")
    if output:
        if (manifest := common_manifest([shards])) is not None:
            manifest.write(output)
        write_plain(f"Name '{output}' in the configuration, in place of the shards.\n")


def _check(folder: str) -> None:
    from emollama.errors import UserError
    from emollama.listing import abbreviated
    from emollama.stores.packed import PackedStore
    from emollama.stores.tars import is_tar_path

    if is_tar_path(folder):
        raise UserError(f"--check: '{folder}' holds tar shards, which are checked as they are read; it is for packed shards.")
    store = PackedStore.open(folder)
    with Progress(store.shards, "check", unit="shards") as bar:
        damaged = store.find_damaged(bar.update)
    if damaged:
        told = abbreviated((f"{shard}: {abbreviated(clips) or 'none'}" for shard, clips in damaged.items()), "\n  ")
        raise UserError(
            f"{folder}: {len(damaged)} shards are not as they were written. Clips that changed:\n  {told}\nPack again."
        )
    write_plain(f"{folder}: {len(store)} clips, every shard as it was written\n")
