"""Pack features into packed or tar shards (--source), verify packed shards (--check), or index existing tar shards (--index)."""

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

HELP = "pack features into packed or tar shards, verify packed shards, or index tar shards"
EXAMPLE = "emollama pack --source features/eva --output features/eva_packed"
DOCS = "docs/data.md#features"

MAX_GIB = 2**20  # maximum size of a shard


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--source``, ``--check`` or ``--index``, ``--output``, and the settings of packing."""
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument(
        "--source", nargs="+", metavar="STORE", help="pack these folders of .npy files, tar shards or packed shards"
    )
    task.add_argument("--check", metavar="FOLDER", help="read packed shards and verify the digest of every byte")
    task.add_argument("--index", metavar="SHARDS", help="write the indexes of tar shards: a folder, or name-{000..011}.tar")
    output = "the new folder to write; with --index, the folder of the indexes (default: the folder of the tar shards)"
    parser.add_argument("--output", metavar="FOLDER", help=output)
    parser.add_argument("--to", choices=("packed", "tar"), default="packed", help="kind of shards (default: packed)")
    dtype = (
        "stored: unchanged values (default). float16: rounded values. int8: rounded values with one scale per feature vector."
        " The command prints the largest rounding error"
    )
    parser.add_argument("--dtype", choices=("stored", "float16", "int8"), default="stored", help=dtype)
    parser.add_argument("--shard-gib", type=float, default=1.0, metavar="N", help="size of a shard in GiB (default: 1)")
    skip = "leave out arrays that are unreadable or contain NaN or inf, and list them"
    parser.add_argument("--skip-bad", action="store_true", help=skip)


def run(arguments: argparse.Namespace) -> None:
    """Pack, verify or index, and print a summary."""
    if arguments.check:
        _check(arguments.check)
    elif arguments.index:
        _index(arguments.index, arguments.output)
    else:
        _pack(arguments)


def rounded_up(value: float) -> str:
    """Return a value rounded up to three digits, such as ``1.23e-04``, so that it remains an upper bound."""
    return f"{float(Context(prec=3, rounding=ROUND_UP).create_decimal(value)):.2e}"


def _pack(arguments: argparse.Namespace) -> None:
    # webdataset reads this variable when it is imported.
    os.environ["WDS_SECURE"] = "1"
    from emollama.errors import UserError
    from emollama.paths import new_folder
    from emollama.stores.packing import collect_sources, common_manifest, leftovers, pack
    from emollama.stores.shard_writers import PackedWriter, TarWriter

    if not arguments.output:
        raise UserError("--source requires --output FOLDER, the folder of the shards.")
    if arguments.to == "tar" and arguments.dtype == "int8":
        raise UserError("--dtype int8 requires packed shards, which contain its scales. Use --to packed, or --dtype float16.")
    if not 0 < arguments.shard_gib <= MAX_GIB:
        raise UserError(f"--shard-gib must be above 0 and at most {MAX_GIB}, not {arguments.shard_gib}.")
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
    for leftover in leftovers(Path(arguments.output)):
        write_plain(f"incomplete output of another pack command, which was killed or is still running: {leftover}\n")


def _report(report: PackingReport, dtype: str, output: str) -> str:
    shards, size, path_suffix = report.output
    lines = [f"{report.clips} clips packed into {output}, {size / 2**30:.2f} GiB; shards: {shards}"]
    if path_suffix:
        lines.append(f"In the configuration, use '{output}{path_suffix}'. The trailing '::' means that names contain dots.")
    if dtype != "stored":
        absolute, relative = map(rounded_up, report.deviation)
        lines.append(f"{dtype}: rounding error at most {absolute}, and at most {relative} of the largest value of the array")
    if report.skipped:
        lines += [f"{len(report.skipped)} clips left out:", *(f"  {problem}" for problem in report.skipped)]
    return "\n".join(lines) + "\n"


def _index(shards: str, output: str | None) -> None:
    from emollama.errors import DownloadError, UserError
    from emollama.stores.packing import common_manifest, index_tars
    from emollama.stores.tar_index import skipped_note

    try:
        indexes = index_tars(shards, Path(output) if output else None)
    except DownloadError as error:
        raise UserError(f"--index: {error}") from None
    write_plain(f"{len(indexes)} indexes written: {', '.join(map(str, indexes))}\n")
    if note := skipped_note(indexes.values()):
        write_plain(f"{note}\n")
    if output:
        if (manifest := common_manifest([shards])) is not None:
            manifest.write(output)
        write_plain(f"In the configuration, use '{output}' instead of the path of the shards.\n")


def _check(folder: str) -> None:
    from emollama.errors import UserError
    from emollama.listing import abbreviated
    from emollama.paths import require_local
    from emollama.stores.packed import PackedStore
    from emollama.stores.tar_paths import is_tar_path

    if is_tar_path(require_local(folder, "--check", "folder")):
        raise UserError(
            f"--check: '{folder}' contains tar shards, but --check verifies packed shards. To compare the arrays of tar"
            " shards with their digests, use emollama check-data --deep."
        )
    store = PackedStore.open(folder)
    with Progress(store.shards, "check", unit="shards") as bar:
        damaged = store.find_damaged(bar.update)
    if damaged:
        lines = abbreviated((f"{shard}: {abbreviated(clips) or 'none'}" for shard, clips in damaged.items()), "\n  ")
        raise UserError(
            f"{folder}: {len(damaged)} shards are damaged. Clips with changed bytes:\n  {lines}\nPack the features again."
        )
    write_plain(f"{folder}: {len(store)} clips, all shards match their digests\n")
