"""The checkpoints to evaluate: the start of a training run, its epochs, and files that the user names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emollama.config import from_dict
from emollama.errors import UserError
from emollama.json_io import mapping
from emollama.paths import read_text
from emollama.reporting.checkpoint_table import CheckpointRow
from emollama.reporting.configuration import parse_config
from emollama.run_folder import CONFIG
from emollama.runners.model_ckpt import checkpoint_paths

PRETRAINED, UNTRAINED = "pretrained", "untrained"


@dataclass(frozen=True)
class Start:
    """The start of a run: its resolved ``model`` block and its ``run.seed``."""

    model: dict[str, Any]
    seed: int


def start_of(folder: Path) -> Start:
    """Read the start of the run in a folder.

    Raises:
        UserError: If the folder does not exist, or contains no valid configuration.
    """
    if not folder.is_dir():
        raise UserError(f"--run-folder: no folder '{folder}'. Specify the folder of a training run, output_dir/<job_id>.")
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"--run-folder: '{folder}' is not the folder of a run: it has no {CONFIG}. Name output_dir/<job_id>.")
    tree = parse_config(read_text(str(path))) or {}
    if damaged := [key for key in ("model", "run") if not mapping(tree.get(key))]:
        raise UserError(f"--run-folder: {path} is incomplete: it has no block '{damaged[0]}'. Copy the file again.")
    needed = {key: tree[key] for key in ("imports", "paths", "model") if tree.get(key)}
    seed = {key: value for key, value in mapping(tree.get("run")).items() if key == "seed"}
    config = from_dict(needed | {"run": seed}, str(path))
    return Start(config.resolved()["model"], config.run.seed)


def checkpoints_of(folder: Path, named: dict[str, str]) -> tuple[Start, list[CheckpointRow]]:
    """Return the start of a run, and a row for the start, for the checkpoint of each epoch, and for each file in ``named``.

    Args:
        folder: the folder of the run.
        named: label -> checkpoint file. The label "pretrained" replaces the file of the start.

    Raises:
        UserError: If the folder is not a run or has no checkpoints of epochs, or a label is used twice or cannot be a folder
            name.
    """
    start = start_of(folder)
    epochs = {int(match[1]): path for path in folder.iterdir() if (match := re.fullmatch(r"checkpoint_(\d+)\.pth", path.name))}
    if not epochs:
        raise UserError(
            f"--run-folder: no checkpoint_<epoch>.pth in '{folder}'. Train first, or specify a run folder with checkpoints."
        )
    files = [named[PRETRAINED]] if PRETRAINED in named else checkpoint_paths(start.model.get("ckpt"))
    rows = [CheckpointRow(PRETRAINED if files else UNTRAINED, -1, tuple(files))]
    rows += [CheckpointRow(f"epoch_{epoch}", epoch, (str(epochs[epoch]),)) for epoch in sorted(epochs)]
    used = {row.label for row in rows} - {PRETRAINED}
    for label in named:
        if label in used:
            raise UserError(f"--checkpoints: the label '{label}' is already the name of a row of the run. Use another label.")
        if not re.fullmatch(r"\w[\w.-]*", label):
            raise UserError(
                f"--checkpoints: the label '{label}' becomes the name of a folder."
                " Use letters, digits, _, - and . only, and do not start with - or '.'."
            )
    return start, [*rows, *(CheckpointRow(label, None, (file,)) for label, file in named.items() if label != PRETRAINED)]
