"""``emollama checkpoint``: look into checkpoints, compare, average and convert them."""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

from emollama.logs.console import aligned, write

HELP = "inspect, compare, average and convert checkpoints (PEFT folders, merged models)"
EXAMPLE = "emollama checkpoint inspect checkpoint_best.pth"
DOCS = "docs/checkpoints.md"
SOURCE = "a checkpoint (.pth), a PEFT folder, or a .safetensors file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``inspect``, ``diff``, ``average`` and ``convert`` with their own arguments."""
    actions = parser.add_subparsers(dest="action", required=True)
    inspected = actions.add_parser("inspect", help="tensors, adapters, digest of a checkpoint")
    inspected.add_argument("source", help=SOURCE)
    inspected.add_argument("--all", action="store_true", help="every tensor, not only groups")
    inspected.add_argument("--json", action="store_true", help="print a JSON object")
    compared = actions.add_parser("diff", help="what differs between two checkpoints; exits with 1 if anything does")
    compared.add_argument("first", help=SOURCE)
    compared.add_argument("second", help=SOURCE)
    compared.add_argument(
        "--tolerance", type=float, default=0.0, help="largest relative difference of tensors that are equal (default: 0)"
    )
    compared.add_argument("--json", action="store_true", help="print a JSON object")
    averaged = actions.add_parser("average", help="the mean of several checkpoints")
    averaged.add_argument("sources", nargs="+", help=SOURCE)
    averaged.add_argument("--output", required=True, help="the file to write")
    converted = actions.add_parser("convert", help="to a PEFT folder, a merged language model, or back to a checkpoint")
    converted.add_argument("source", help=SOURCE)
    converted.add_argument("--to", required=True, choices=("peft", "pth", "merged"))
    converted.add_argument("--output", required=True, help="the file (pth) or folder to write; it must not be there")
    converted.add_argument("--llama-model", help="folder of the language model: merged needs it, peft checks against it")
    converted.add_argument("--lora-alpha", type=float, help="alpha of the adapters, where the source does not say it")


def run(arguments: argparse.Namespace) -> None:
    """Do it, and print what was found or written."""
    {"inspect": _inspect, "diff": _diff, "average": _average, "convert": _convert}[arguments.action](arguments)


def _inspect(arguments: argparse.Namespace) -> None:
    from emollama.convert.inspection import every_tensor, inspect
    from emollama.convert.weights import read

    weights = read(arguments.source, "inspect")
    report = inspect(weights) | ({"all": every_tensor(weights)} if arguments.all else {})
    write(json.dumps(report, indent=2, default=str) + "\n" if arguments.json else _inspection(report))


def _diff(arguments: argparse.Namespace) -> None:
    from emollama.convert.inspection import diff
    from emollama.convert.weights import read
    from emollama.errors import UserError

    if not 0 <= arguments.tolerance < math.inf:
        raise UserError(f"--tolerance is {arguments.tolerance}; it must be at least 0, and finite")
    report = diff(read(arguments.first, "diff"), read(arguments.second, "diff"), arguments.tolerance)
    write(json.dumps(report, indent=2, default=str) + "\n" if arguments.json else _differences(report, arguments))
    if not report["equal"]:
        raise SystemExit(1)


def _average(arguments: argparse.Namespace) -> None:
    from emollama.convert.formats import average

    average(arguments.sources, arguments.output)
    write(f"{arguments.output}: the mean of {len(arguments.sources)} checkpoints\n")


def _convert(arguments: argparse.Namespace) -> None:
    from emollama.convert import formats
    from emollama.convert.weights import read
    from emollama.errors import UserError
    from emollama.paths import require_new, require_new_file

    alpha, base = arguments.lora_alpha, arguments.llama_model
    if arguments.to == "merged" and base is None:
        raise UserError("--to merged needs --llama-model: the folder of the language model that the adapters are merged into")
    if arguments.to == "pth" and (alpha, base) != (None, None):
        raise UserError("--lora-alpha and --llama-model have no meaning with --to pth. Leave them out.")
    if arguments.to == "pth":
        require_new_file(arguments.output)
    else:
        require_new(arguments.output)
    weights = read(arguments.source, "convert")
    if arguments.to == "pth":
        formats.to_pth(weights, arguments.output)
    elif arguments.to == "peft":
        formats.to_peft(weights, arguments.output, alpha, base)
    else:
        formats.to_merged(weights, arguments.output, alpha, base)
    write(f"{arguments.output}: written\n")


def _inspection(report: dict[str, Any]) -> str:
    from emollama.listing import abbreviated

    words = {True: "as written", None: "no .sha256 beside it"}
    lines = [f"{report['source']}: {report['kind']}"]
    lines += [
        f"  {found['file']}  {found['bytes']:,} bytes  SHA-256 {found['sha256']}, {words[found['as_written']]}"
        for found in report["files"]
    ]
    rows = [[key, str(report[key])] for key in ("step", "epoch") if report[key] is not None]
    rows.append(["parameters", f"{report['parameters']:,} in {report['tensors']} tensors"])
    lora = report["lora"]
    if lora:
        alpha = "not stored" if lora["alpha"] is None else f"{lora['alpha']:g}"
        ranks = ", ".join(map(str, lora["ranks"]))
        layers = f"{lora['layers']} linear layers ({', '.join(lora['targets'])})"
        rows.append(["LoRA", f"rank {ranks}, alpha {alpha}, {layers}, {lora['parameters']:,} parameters"])
    if report["set_aside"]:
        rows.append(["set aside", f"{len(report['set_aside'])} tensors that nothing uses, of the groups marked -"])
    if report["not_finite"]:
        rows.append(["not finite", abbreviated(report["not_finite"], where="--json has all")])
    return "\n".join([*lines, *aligned(rows, left=(0, 1)), "", *_table(report), ""])


def _table(report: dict[str, Any]) -> list[str]:
    from emollama.models.checkpoint_names import is_unused

    if "all" in report:
        rows = [(name, found["shape"], found["dtype"], "") for name, found in report["all"].items()]
    else:
        rows = [(found["name"], found["shape"], found["dtype"], f"x {found['tensors']}") for found in report["groups"]]
    cells = [
        [f"{'-' if is_unused(name) else ' '} {name}", "x".join(map(str, shape)), dtype, count]
        for name, shape, dtype, count in rows
    ]
    return aligned(cells, left=(0, 2, 3))


def _settings(config: dict[str, tuple[Any, Any]], arguments: argparse.Namespace) -> list[str]:
    """Lines about the stored configurations; one where only one of the two has any."""
    for side, source in enumerate((arguments.first, arguments.second)):
        if config and all(pair[side] is None for pair in config.values()):
            return [f"config, does not count: {source} has none"]
    return [f"config, does not count: {key}: {one!r} | {other!r}" for key, (one, other) in config.items()]


def _differences(report: dict[str, Any], arguments: argparse.Namespace) -> str:
    lines = [f"only in {arguments.first}: {name}" for name in report["only_in_first"]]
    lines += [f"only in {arguments.second}: {name}" for name in report["only_in_second"]]
    for key in ("shapes", "dtypes"):
        lines += [f"{name}: {one} | {other}" for name, (one, other) in report[key].items()]
    if report["lora_alpha"]:
        lines.append("lora_alpha: {} | {}".format(*report["lora_alpha"]))
    for name in report["beyond"]:
        found = report["tensors"][name]
        size = (
            "NaN or infinity in one of them" if found["max_abs"] is None else "max |a - b| {max_abs:.3g}, relative {relative:.3g}"
        )
        lines.append(f"{name}: {size.format(**found)}")
    lines += _settings(report["config"], arguments)
    largest = max((found["relative"] or 0.0 for found in report["tensors"].values()), default=0.0)
    verdict = "equal" if report["equal"] else "different"
    compared = f"{len(report['tensors'])} tensors compared, largest relative difference {largest:.3g}"
    return "\n".join([*lines, f"{verdict}: {compared}", ""])
