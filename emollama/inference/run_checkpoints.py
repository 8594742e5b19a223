"""The rows of a sweep: what a training run began from, its epochs' checkpoints, and files that are named."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emollama.config import from_plain
from emollama.errors import UserError
from emollama.paths import read_text
from emollama.reporting.checkpoint_table import CheckpointRow
from emollama.reporting.configuration import CONFIG, parsed
from emollama.reporting.json_io import mapping
from emollama.runners.build import checkpoint_paths

PRETRAINED, UNTRAINED = "pretrained", "untrained"


@dataclass(frozen=True)
class Start:
    """What a run began from: its ``model`` and ``run.seed``."""

    model: dict[str, Any]
    seed: int


def start_of(folder: Path) -> Start:
    """What the run in a folder began from.

    Raises:
        UserError: there is no such folder, or its configuration does not say.
    """
    if not folder.is_dir():
        raise UserError(f"--run-folder: no folder '{folder}'. Name the folder of a training run, output_dir/<job_id>.")
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"--run-folder: no {CONFIG} in '{folder}': it is no folder of a run. Name output_dir/<job_id>.")
    tree = parsed(read_text(str(path))) or {}
    needed = {key: tree[key] for key in ("imports", "paths", "model") if tree.get(key)}
    seed = {key: value for key, value in mapping(tree.get("run")).items() if key == "seed"}
    config = from_plain(needed | {"run": seed}, str(path))
    return Start(config.resolved()["model"], config.run.seed)


def checkpoints_of(folder: Path, more: dict[str, str]) -> tuple[Start, list[CheckpointRow]]:
    """What a run began from, and the rows of its sweep: that start, each epoch's checkpoint, and what ``more`` names.

    Args:
        folder: of the run.
        more: label -> checkpoint.

    Raises:
        UserError: no run, no checkpoints of epochs in it, or labels that are taken or name no folder.
    """
    start = start_of(folder)
    epochs = {int(found[1]): path for path in folder.iterdir() if (found := re.fullmatch(r"checkpoint_(\d+)\.pth", path.name))}
    if not epochs:
        raise UserError(
            f"--run-folder: no checkpoint_<epoch>.pth in '{folder}'. Train first, or name the folder of a run that has."
        )
    files = [more[PRETRAINED]] if PRETRAINED in more else checkpoint_paths(start.model.get("ckpt"))
    rows = [CheckpointRow(PRETRAINED if files else UNTRAINED, -1, tuple(files))]
    rows += [CheckpointRow(f"epoch_{epoch}", epoch, (str(epochs[epoch]),)) for epoch in sorted(epochs)]
    taken = {row.label for row in rows} - {PRETRAINED}
    for label in more:
        if not re.fullmatch(r"\w[\w.-]*", label) or label in taken:
            why = "is the name of an epoch's row" if label in taken else "names a folder: letters, digits, _ - and . only"
            raise UserError(f"--checkpoints: the label '{label}' {why}. Choose another one.")
    return start, [*rows, *(CheckpointRow(label, None, (file,)) for label, file in more.items() if label != PRETRAINED)]
