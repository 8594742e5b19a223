"""All checkpoints of a training run, evaluated alike, one after the other, by the runner's own evaluation.

A row is one model: what training began from, an epoch's checkpoint, or a file that is named. Each has a folder with its answers
and metrics (``result``) and, once it is done, a record of what was evaluated: the digest of the checkpoint and of all that the
figures of each block rest on (:mod:`emollama.inference.fingerprint`). What a record still holds of is not evaluated again.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from emollama import checkpoint
from emollama.config import RunConfig
from emollama.distributed import process_group
from emollama.distributed.process_group import World
from emollama.errors import UserError
from emollama.inference.fingerprint import changes, compared, fingerprint_of
from emollama.inference.run_checkpoints import Start
from emollama.listing import abbreviated
from emollama.logs.logger import get_logger, set_up
from emollama.optim import trainable
from emollama.paths import atomic_write, not_found, require_writable, sha256
from emollama.reporting.checkpoint_table import (
    RECORD,
    CheckpointRow,
    missing,
    read_checkpoint_table,
    read_records,
    write_checkpoint_table,
)
from emollama.runners import provenance


class CheckpointEvaluation:
    """Evaluates rows.

    Args:
        configured: options -> the configuration of the evaluation with these values.
        start_and_rows: of :func:`rows_of`.
        folder: of the training run.
        output: where everything goes.
    """

    def __init__(
        self,
        configured: Callable[[list[str]], Any],
        start_and_rows: tuple[Start, list[CheckpointRow]],
        folder: Path,
        output: Path,
    ) -> None:
        self._configured, (self._start, self._rows), self._output = configured, start_and_rows, output
        self._run_name = folder.resolve().name
        self._config: RunConfig = configured(["model.ckpt=null", "model.ckpt_allow_missing=['*']"])
        self._world: World = process_group.start(self._config.run.device)
        set_up(self._world.is_main)
        self._runner: Any = None
        self._blocks: dict[str, Any] = {}

    def run(self, *, again: bool) -> str:
        """Evaluate what is not done yet, all of it with ``again``. Returns the table, which only rank 0 gets.

        Raises:
            UserError: a checkpoint that is missing, damaged or another model's, before anything is evaluated; and all that
                an evaluation says.
        """
        world = self._world
        self._rows = world.on_rank_zero(self._with_digests)
        waiting = world.on_rank_zero(lambda: self._waiting(again=again))
        if passed := len(self._rows) - len(waiting):
            get_logger().info("%d of %d checkpoints were evaluated before; --again evaluates them anew", passed, len(self._rows))
        told = "" if waiting else world.on_rank_zero(self._written)
        for place, (row, blocks) in enumerate(waiting):
            self._prepare(row)
            if not place:
                world.on_rank_zero(lambda: self._check([row for row, _ in waiting]))
            files = ", ".join(row.files) or "random values"
            get_logger().info("%s (%d of %d), %s: %s", row.label, place + 1, len(waiting), ", ".join(blocks), files)
            world.on_rank_zero(lambda row=row: self._record_of(row).unlink(missing_ok=True))  # type: ignore[misc]
            self._runner.blocks = {label: self._blocks[label] for label in blocks}
            self._runner.evaluate()
            world.on_rank_zero(lambda row=row: self._record(row))  # type: ignore[misc]
            told = world.on_rank_zero(self._written)
        return told if world.is_main else ""

    def configurations(self) -> list[RunConfig]:
        """Return the configuration that evaluates each checkpoint; the files and the output folder are checked.

        Raises:
            UserError: a checkpoint is missing or damaged, or the output belongs to another run.
        """
        self._rows = self._world.on_rank_zero(self._with_digests)
        return [self._configured(self._values(row)) for row in self._rows]

    def _with_digests(self) -> list[CheckpointRow]:
        """The rows with their digests: every file is there, and what was written.

        Raises:
            UserError: one that is not; or the output cannot be written, or is another run's.
        """
        require_writable(self._output, "--output")
        earlier = read_records(self._output)
        if others := sorted({row.run for row in earlier} - {self._run_name}):
            raise UserError(
                f"--output: '{self._output}' holds the sweep of another run, {abbreviated(others)}. Name another folder."
            )
        for key, (then, now) in self._differences().items():
            get_logger().warning("%s: %r in the run, %r in this evaluation", key, then, now)
        if not self._rows[0].files:
            text = "the run began from random projections and adapters (model.ckpt: null): its first row is them, of run.seed %d"
            get_logger().info(text, self._start.seed)
        digests = [tuple(_digest_of(path, row.label) for path in row.files) for row in self._rows]
        basis = fingerprint_of(self._config, self._start.seed)
        told = zip(self._rows, digests, strict=True)
        return [replace(row, sha256=digest, basis=basis, run=self._run_name) for row, digest in told]

    def _differences(self) -> dict[str, tuple[Any, Any]]:
        """``model.<key>`` -> (the run's value, the evaluation's), where they differ and it may matter.

        Raises:
            UserError: they are not even of one architecture.
        """
        then, now = (compared(tree) for tree in (self._start.model, self._config.resolved()["model"]))
        trained, given = then["model.arch"], now["model.arch"]
        if trained != given:
            raise UserError(f"model.arch: the run trained '{trained}', and this evaluation has '{given}'. Use its model.")
        return {key: (then.get(key), now.get(key)) for key in sorted({*then, *now}) if then.get(key) != now.get(key)}

    def _waiting(self, *, again: bool) -> list[tuple[CheckpointRow, list[str]]]:
        """The rows to be evaluated, each with its blocks. Tells why those are that were evaluated before."""
        earlier = {row.label: row for row in read_records(self._output) if row.basis}
        for row in earlier.values():
            if missing(self._output, row):  # no row of the table until they are there again
                self._record_of(row).unlink()
        waiting: list[tuple[CheckpointRow, list[str]]] = []
        reasons: dict[str, list[str]] = {}
        for row in self._rows:
            then, blocks = earlier.get(row.label), row.blocks
            if then is not None and not again:
                changed = {label: [f"the metrics of block {label} are missing"] for label in missing(self._output, row)}
                changed |= changes(then, row)
                for reason in chain(*changed.values()):
                    reasons.setdefault(reason, []).append(row.label)
                blocks = [label for label in blocks if label in changed or "" in changed]
                if not blocks and then.basis != row.basis:  # a block less
                    self._record(row)
            if blocks:
                waiting.append((row, blocks))
        for reason, labels in reasons.items():
            get_logger().info("evaluated again, %s: %s", reason, ", ".join(labels))
        return waiting

    def _prepare(self, row: CheckpointRow) -> None:
        """Give the runner the row's tensors; a new runner, where there is none or the checkpoint lacks any that are trained."""
        config = self._configured(self._values(row))
        one = self._runner is not None and len(row.files) == 1
        tensors = self._world.rank_zero_first(lambda: checkpoint.read(row.files[0], row.label))["model"] if one else {}
        if tensors and self._holds_all(tensors):
            for member in self._runner.members:
                checkpoint.load_trainable(member, tensors, path=row.files[0], allow_missing=[])
            self._runner.config, self._runner.folder = config, self._output / row.label
            return
        self._runner = None  # its memory is needed for the next
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._runner = config.classes["run"](config, training=False)
        self._blocks = self._runner.blocks

    def _values(self, row: CheckpointRow) -> list[str]:
        """The options that make the evaluation's configuration the row's."""
        files: Any = list(row.files) if len(row.files) > 1 else (row.files or (None,))[0]
        values = {
            "model.ckpt": files,
            "model.ensemble": "weights",  # several files of a start are their mean, as in training
            "run.output_dir": str(self._output),
            "run.job_id": row.label,
            "run.seed": self._start.seed,  # of the random values that training began with
        }
        if row.epoch == -1:
            values["model.ckpt_allow_missing"] = self._start.model.get("ckpt_allow_missing", []) if row.files else ["*"]
        return [f"{key}={json.dumps(value)}" for key, value in values.items()]

    def _holds_all(self, tensors: dict[str, Any]) -> bool:
        model = self._runner.members[0]
        return {model.stored_name(name) for name in trainable(model)} <= {model.stored_name(name) for name in tensors}

    def _check(self, rows: list[CheckpointRow]) -> None:
        """Compare checkpoints' names, shapes and features with the model, before anything is evaluated.

        Raises:
            UserError: one is another model's.
        """
        for row in rows:
            allowed = self._configured(self._values(row)).model.ckpt_allow_missing
            for file in row.files:
                content = checkpoint.read(file, row.label)
                checkpoint.load_trainable(self._runner.members[0], content["model"], path=file, allow_missing=allowed, dry=True)
                unlike = provenance.checkpoint_mismatches(content.get("features"), self._runner.features, file)
                provenance.require_no_mismatches(unlike, self._config.run.allow_other_features)

    def _record_of(self, row: CheckpointRow) -> Path:
        return self._output / row.label / RECORD

    def _record(self, row: CheckpointRow) -> None:
        with atomic_write(self._record_of(row)) as file:
            json.dump(asdict(row), file, indent=1)

    def _written(self) -> str:
        return write_checkpoint_table(read_checkpoint_table(self._output, self._rows[0].basis))


def _digest_of(path: str, label: str) -> str:
    """The SHA-256 of a checkpoint.

    Raises:
        UserError: no such file, or it is not what was written.
    """
    if not Path(path).is_file():
        raise not_found(label, path, f"Correct the path, or name another one: --checkpoints {label}=FILE.")
    if checkpoint.is_intact(path) is False:
        raise UserError(f"{label}: {path} is not what was written: its SHA-256 differs from {path}.sha256. Copy it again.")
    return sha256(path)
