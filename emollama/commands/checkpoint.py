"""Inspect, compare, average, convert and consolidate checkpoints."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emollama.logs.console import aligned, write
from emollama.run_folder import CONFIG

if TYPE_CHECKING:
    from emollama.convert.weights import Weights

HELP = "inspect, compare, average and convert checkpoints (PEFT folders, merged models, sharded checkpoints)"
EXAMPLE = "emollama checkpoint inspect checkpoint_best.pth"
DOCS = "docs/checkpoints.md"
SOURCE = "a checkpoint (.pth), the folder of a run (its best or else its last checkpoint), a PEFT folder, or a .safetensors file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sub-commands ``inspect``, ``diff``, ``average``, ``consolidate`` and ``convert``."""
    actions = parser.add_subparsers(dest="action", required=True)
    inspect = actions.add_parser("inspect", help="print tensors, adapters, digests and parts of a checkpoint")
    inspect.add_argument("source", help=SOURCE)
    inspect.add_argument("--all", action="store_true", help="list every tensor instead of groups")
    inspect.add_argument("--json", action="store_true", help="print a JSON object")
    diff = actions.add_parser("diff", help="compare two checkpoints; the exit status is 1 if they differ")
    diff.add_argument("first", help=SOURCE)
    diff.add_argument("second", help=SOURCE)
    tolerance = "largest relative difference at which tensors count as equal (default: 0)"
    diff.add_argument("--tolerance", type=float, default=0.0, metavar="FRACTION", help=tolerance)
    diff.add_argument("--json", action="store_true", help="print a JSON object")
    average = actions.add_parser("average", help="write the mean of several checkpoints")
    average.add_argument("sources", nargs="+", metavar="source", help=SOURCE)
    average.add_argument("--output", required=True, metavar="FILE", help="the checkpoint to write; it must not exist")
    consolidate = actions.add_parser(
        "consolidate", help="write a sharded checkpoint, with the state to resume a run, as a single file"
    )
    consolidate.add_argument("source", help="a checkpoint whose parts are in checkpoint_parts, or the folder of a run")
    consolidate.add_argument("--output", required=True, metavar="FILE", help="the checkpoint to write; it must not exist")
    convert = actions.add_parser(
        "convert",
        help="convert a checkpoint to a PEFT folder, a merged model or a folder for transformers, or back to a .pth file",
    )
    convert.add_argument("source", help=SOURCE)
    formats = (
        "peft: adapters in PEFT's format. merged: the language model with the adapters merged in, or with its weights after"
        " train_llm: full, as a Hugging Face folder. transformers: the whole model, which transformers loads without emollama."
        " pth: a checkpoint"
    )
    convert.add_argument("--to", required=True, choices=("peft", "pth", "merged", "transformers"), help=formats)
    convert.add_argument("--output", required=True, metavar="PATH", help="the file (pth) or folder to write; it must not exist")
    base = (
        "folder of the language model. merged requires it; peft uses it to check that the adapters fit; for transformers, the"
        " default is model.llama_model"
    )
    convert.add_argument("--llama-model", metavar="FOLDER", help=base)
    alpha = "alpha of the adapters, if the source does not contain it"
    convert.add_argument("--lora-alpha", type=float, metavar="ALPHA", help=alpha)
    cfg_path = "YAML configuration of the model and its datasets, for transformers (default: the one that the source contains)"
    convert.add_argument("--cfg-path", metavar="FILE", help=cfg_path)


def run(arguments: argparse.Namespace) -> None:
    """Run the sub-command."""
    actions = {"inspect": _inspect, "diff": _diff, "average": _average, "consolidate": _consolidate, "convert": _convert}
    actions[arguments.action](arguments)


def _file_of(source: str) -> str:
    """Return the checkpoint that ``emollama.load`` selects if the source is the folder of a run; otherwise the source."""
    if not (Path(source) / CONFIG).is_file():
        return source
    # This module imports torch.
    from emollama.runners.checkpoints import best_or_newest

    return str(best_or_newest(Path(source)))


def _inspect(arguments: argparse.Namespace) -> None:
    from emollama.convert.inspection import every_tensor, inspect
    from emollama.convert.weights import read

    weights = read(_file_of(arguments.source), "inspect", values=False)
    report = inspect(weights) | ({"all": every_tensor(weights)} if arguments.all else {})
    write(json.dumps(report, indent=2, default=str) + "\n" if arguments.json else _inspection(report))
    if report["parts"] and report["parts"]["intact"] < len(report["parts"]["files"]):
        raise SystemExit(1)


def _diff(arguments: argparse.Namespace) -> None:
    from emollama.convert.inspection import diff
    from emollama.convert.weights import read
    from emollama.errors import UserError

    if not 0 <= arguments.tolerance < math.inf:
        raise UserError(f"--tolerance must be finite and at least 0, not {arguments.tolerance}.")
    first, second = (read(_file_of(source), "diff") for source in (arguments.first, arguments.second))
    report = diff(first, second, arguments.tolerance)
    write(json.dumps(report, indent=2, default=str) + "\n" if arguments.json else _differences(report, arguments))
    if not report["equal"]:
        raise SystemExit(1)


def _average(arguments: argparse.Namespace) -> None:
    from emollama.convert.formats import average

    average([_file_of(source) for source in arguments.sources], arguments.output)
    write(f"{arguments.output}: the mean of {len(arguments.sources)} checkpoints\n")


def _consolidate(arguments: argparse.Namespace) -> None:
    from emollama.convert.consolidation import consolidate

    consolidate(_file_of(arguments.source), arguments.output)
    write(f"{arguments.output}: written\n")


def _convert(arguments: argparse.Namespace) -> None:
    from emollama.convert import formats
    from emollama.convert.weights import read
    from emollama.errors import UserError
    from emollama.paths import require_new, require_new_file

    alpha, base = arguments.lora_alpha, arguments.llama_model
    if arguments.to == "merged" and base is None:
        raise UserError("--to merged requires --llama-model, the folder of the language model from which the training started.")
    if arguments.to == "pth" and (alpha, base) != (None, None):
        raise UserError("--lora-alpha and --llama-model have no effect with --to pth. Leave them out.")
    if arguments.cfg_path is not None and arguments.to != "transformers":
        raise UserError(f"--cfg-path has no effect with --to {arguments.to}. Leave it out.")
    if arguments.to == "pth":
        require_new_file(arguments.output)
    else:
        require_new(arguments.output)
    weights = read(_file_of(arguments.source), "convert", values=False)
    weights.require_intact("convert")
    if arguments.to == "pth":
        formats.to_pth(weights, arguments.output)
    elif arguments.to == "peft":
        formats.to_peft(weights, arguments.output, alpha, base)
    elif arguments.to == "transformers":
        _to_transformers(weights, arguments)
    else:
        formats.to_merged(weights, arguments.output, alpha, base)
    write(f"{arguments.output}: written\n")


def _to_transformers(weights: Weights, arguments: argparse.Namespace) -> None:
    from emollama import config
    from emollama.config.reading import option_of
    from emollama.convert.hub_folder import ExportOptions, stored_configuration, to_transformers
    from emollama.inference.intended_use import INTENDED_USE

    base = arguments.llama_model
    if arguments.cfg_path is None:
        configuration = stored_configuration(weights, base)
    else:
        options = [] if base is None else [option_of("model.llama_model", base)]
        configuration = config.load(arguments.cfg_path, options)
    to_transformers(weights, configuration, ExportOptions(arguments.output, arguments.lora_alpha, INTENDED_USE))


def _inspection(report: dict[str, Any]) -> str:
    from emollama.listing import abbreviated

    # A file whose digest differs from its .sha256 file has been rejected before this point.
    states = {True: "matches its .sha256 file", None: "no .sha256 file"}
    lines = [f"{report['source']}: {report['kind']}"]
    lines += [
        f"  {file['file']}  {file['bytes']:,} bytes  SHA-256 {file['sha256']}, {states[file['as_written']]}"
        for file in report["files"]
    ]
    rows = _parts(report["parts"]) if report["parts"] else []
    rows += [[key, str(report[key])] for key in ("step", "epoch") if report[key] is not None]
    rows.append(["parameters", f"{report['parameters']:,} in {report['tensors']} tensors"])
    lora = report["lora"]
    if lora:
        alpha = "not stored" if lora["alpha"] is None else f"{lora['alpha']:g}"
        ranks = ", ".join(map(str, lora["ranks"]))
        layers = f"{lora['layers']} linear layers ({', '.join(lora['targets'])})"
        rows.append(["LoRA", f"rank {ranks}, alpha {alpha}, {layers}, {lora['parameters']:,} parameters"])
    if report["set_aside"]:
        rows.append(["unused", f"{len(report['set_aside'])} tensors, in the groups marked -"])
    if report["not_finite"]:
        rows.append(["not finite", abbreviated(report["not_finite"], where="--json lists all")])
    return "\n".join([*lines, *aligned(rows, left=(0, 1)), "", *_table(report), ""])


def _parts(parts: dict[str, Any]) -> list[list[str]]:
    """Return rows about the files of a sharded checkpoint."""
    files, intact = parts["files"], parts["intact"]
    state = "all of them intact" if intact == len(files) else f"only {intact} of them intact, so the values were not checked"
    rows = [["sharded", f"{len(files)} files in {parts['folder']}, {parts['bytes']:,} bytes, {state}"]]
    return rows + [
        [file["state"], f"{file['name']} ({file['bytes']:,} bytes, written by {file['host']})"]
        for file in files
        if file["state"] != "intact"
    ]


def _table(report: dict[str, Any]) -> list[str]:
    from emollama.models.checkpoint_names import is_unused

    if "all" in report:
        rows = [(name, tensor["shape"], tensor["dtype"], "") for name, tensor in report["all"].items()]
    else:
        rows = [(group["name"], group["shape"], group["dtype"], f"x {group['tensors']}") for group in report["groups"]]
    cells = [
        [f"{'-' if is_unused(name) else ' '} {name}", "x".join(map(str, shape)), dtype, count]
        for name, shape, dtype, count in rows
    ]
    return aligned(cells, left=(0, 2, 3))


def _settings(config: dict[str, tuple[Any, Any]], arguments: argparse.Namespace) -> list[str]:
    """Return lines about the stored configurations, or a single line if only one checkpoint contains a configuration."""
    for side, source in enumerate((arguments.first, arguments.second)):
        if config and all(pair[side] is None for pair in config.values()):
            return [f"config (not compared): {source} has none"]
    return [f"config (not compared): {key}: {one!r} | {other!r}" for key, (one, other) in config.items()]


def _differences(report: dict[str, Any], arguments: argparse.Namespace) -> str:
    lines = [f"only in {arguments.first}: {name}" for name in report["only_in_first"]]
    lines += [f"only in {arguments.second}: {name}" for name in report["only_in_second"]]
    for key in ("shapes", "dtypes"):
        lines += [f"{name}: {one} | {other}" for name, (one, other) in report[key].items()]
    if report["lora_alpha"]:
        lines.append("lora_alpha: {} | {}".format(*report["lora_alpha"]))
    for name in report["beyond"]:
        tensor = report["tensors"][name]
        if tensor["max_abs"] is None:
            lines.append(f"{name}: NaN or infinity in only one of them")
        else:
            lines.append("{}: max |a - b| {max_abs:.3g}, relative {relative:.3g}".format(name, **tensor))
    lines += _settings(report["config"], arguments)
    largest = max((tensor["relative"] or 0.0 for tensor in report["tensors"].values()), default=0.0)
    verdict = "equal" if report["equal"] else "different"
    compared = f"{len(report['tensors'])} tensors compared, largest relative difference {largest:.3g}"
    return "\n".join([*lines, f"{verdict}: {compared}", ""])
