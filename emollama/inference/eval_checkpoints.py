"""Evaluation of all checkpoints of a training run with one configuration, by the evaluation of the runner.

A row is one model: the start of training, the checkpoint of an epoch, or a checkpoint that the user names. Each row has a folder
with its answers and metrics (``result``). After its evaluation, the folder also contains a record with the digests of the
checkpoint and of everything else that determines the metrics of each block (:mod:`emollama.inference.fingerprint`). A later call
evaluates only the blocks whose record is missing or has other digests.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from emollama import checkpoint, file_digests
from emollama.config import RunConfig
from emollama.distributed import process_group
from emollama.distributed.process_group import World
from emollama.errors import UserError
from emollama.folder_lock import FolderLock
from emollama.inference.fingerprint import changes, compared, fingerprint_of
from emollama.inference.run_checkpoints import Start
from emollama.json_io import Notes
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
from emollama.reporting.report import write_report_if_possible
from emollama.runners import provenance
from emollama.runners.evaluation import EvaluationSet
from emollama.runners.runner import Runner


class CheckpointEvaluation:
    """Evaluates the rows of a run and writes their table.

    Args:
        load_config: returns the configuration of the evaluation, with the given ``--options``.
        start_and_rows: the result of :func:`checkpoints_of`.
        folder: the folder of the training run.
        output: the folder to write.
    """

    def __init__(
        self,
        load_config: Callable[[list[str]], RunConfig],
        start_and_rows: tuple[Start, list[CheckpointRow]],
        folder: Path,
        output: Path,
    ) -> None:
        self._load_config, (self._start, self._rows), self._output = load_config, start_and_rows, output
        self._run_name = folder.resolve().name
        self._config: RunConfig = load_config(["model.ckpt=null", "model.ckpt_allow_missing=['*']"])
        self._world: World = process_group.start(self._config.run.device)
        set_up(self._world.is_main)
        self._current_runner: Runner | None = None
        self._blocks: dict[str, EvaluationSet] = {}

    def run(self, *, again: bool) -> str:
        """Evaluate the rows that have no valid record, or all rows with ``again``. Returns the table on rank 0, "" elsewhere.

        Raises:
            UserError: If a checkpoint is missing, is damaged or belongs to another model, which is checked before the first
                evaluation, if an evaluation fails, or if another process writes to the output folder.
            Stopped: If a process was asked to stop.
        """
        world, locks = self._world, ExitStack()
        world.on_rank_zero(lambda: locks.enter_context(FolderLock(self._output, "--output")) and None)
        with locks:
            return self._evaluate(again=again)

    def _evaluate(self, *, again: bool) -> str:
        world = self._world
        self._rows = world.on_rank_zero(self._with_digests)
        pending = world.on_rank_zero(lambda: self._pending(again=again))
        if skipped := len(self._rows) - len(pending):
            text = "%d of %d checkpoints are already evaluated and skipped; --again evaluates all of them"
            get_logger().info(text, skipped, len(self._rows))
        table = "" if pending else world.on_rank_zero(self._write_table)
        for index, (row, blocks) in enumerate(pending):
            self._prepare(row)
            # The check needs a model, which the first row has loaded.
            if not index:
                world.on_rank_zero(lambda: self._check([row for row, _ in pending]))
            files = ", ".join(row.files) or "random values"
            get_logger().info("%s (%d of %d), %s: %s", row.label, index + 1, len(pending), ", ".join(blocks), files)
            # The record is removed first, so that an evaluation that is killed leaves no record of an earlier one.
            world.on_rank_zero(lambda row=row: self._record_path(row).unlink(missing_ok=True))  # type: ignore[misc]
            self._runner.blocks = {label: self._blocks[label] for label in blocks}
            self._runner.evaluate(write_report_if_possible)
            world.on_rank_zero(lambda row=row: self._write_record(row))  # type: ignore[misc]
            table = world.on_rank_zero(self._write_table)
        return table if world.is_main else ""

    def configurations(self) -> list[RunConfig]:
        """Check the checkpoints and the output folder, and return the configuration that evaluates each row.

        Raises:
            UserError: If a checkpoint is missing or damaged, or the output belongs to another run.
        """
        self._rows = self._world.on_rank_zero(self._with_digests)
        return [self._load_config(self._values(row)) for row in self._rows]

    def _with_digests(self) -> list[CheckpointRow]:
        """Return the rows with their digests.

        Raises:
            UserError: If a checkpoint is missing or damaged, or the output cannot be written or belongs to another run.
        """
        require_writable(self._output, "--output")
        notes: Notes = []
        earlier = read_records(self._output, notes)
        for note in notes:
            get_logger().warning("%s", note)
        if others := sorted({row.run for row in earlier} - {self._run_name}):
            raise UserError(
                f"--output: '{self._output}' contains the evaluation of another run, {abbreviated(others)}. Specify another"
                " folder."
            )
        for key, (run_value, evaluation_value) in self._differences().items():
            get_logger().warning("%s: %r in the run, %r in this evaluation", key, run_value, evaluation_value)
        if not self._rows[0].files:
            text = "training started from random projections and adapters (model.ckpt: null); the first row evaluates them"
            get_logger().info("%s (run.seed %d)", text, self._start.seed)
        digests = [tuple(_digest_of(path, row.label) for path in row.files) for row in self._rows]
        basis = fingerprint_of(self._config, self._start.seed)
        rows = zip(self._rows, digests, strict=True)
        return [replace(row, sha256=digest, basis=basis, run=self._run_name) for row, digest in rows]

    def _differences(self) -> dict[str, tuple[Any, Any]]:
        """Return ``model.<key>`` -> (value of the run, value of the evaluation) for the relevant keys that differ.

        Raises:
            UserError: If the architectures differ.
        """
        trained, evaluated = (compared(tree) for tree in (self._start.model, self._config.resolved()["model"]))
        run_arch, arch = trained["model.arch"], evaluated["model.arch"]
        if run_arch != arch:
            raise UserError(
                f"model.arch: the run trained '{run_arch}', but this evaluation has '{arch}'. Set model.arch={run_arch}."
            )
        keys = [key for key in sorted({*trained, *evaluated}) if trained.get(key) != evaluated.get(key)]
        return {key: (trained.get(key), evaluated.get(key)) for key in keys}

    def _pending(self, *, again: bool) -> list[tuple[CheckpointRow, list[str]]]:
        """Return the rows to evaluate, each with its blocks. Log why rows that have a record are evaluated again."""
        earlier = {row.label: row for row in read_records(self._output, []) if row.basis}
        for row in earlier.values():
            # Without the record, the table has no such row until its metrics exist again.
            if missing(self._output, row):
                self._record_path(row).unlink()
        pending: list[tuple[CheckpointRow, list[str]]] = []
        reasons: dict[str, list[str]] = {}
        for row in self._rows:
            recorded, blocks = earlier.get(row.label), row.blocks
            if recorded is not None and not again:
                lost = missing(self._output, row)
                changed = {label: [f"the metrics of block {label} are missing ({path})"] for label, path in lost.items()}
                changed |= changes(recorded, row)
                for reason in chain(*changed.values()):
                    reasons.setdefault(reason, []).append(row.label)
                blocks = [label for label in blocks if label in changed or "" in changed]
                # The configuration has fewer blocks than the record.
                if not blocks and recorded.basis != row.basis:
                    self._write_record(row)
            if blocks:
                pending.append((row, blocks))
        for reason, labels in reasons.items():
            get_logger().info("evaluating again because %s: %s", reason, ", ".join(labels))
        return pending

    @property
    def _runner(self) -> Runner:
        assert self._current_runner is not None, "no row is prepared"
        return self._current_runner

    def _prepare(self, row: CheckpointRow) -> None:
        """Load the row's tensors into the runner. Build a new runner if the tensors do not replace all trained ones."""
        config = self._load_config(self._values(row))
        reusable = self._current_runner is not None and len(row.files) == 1
        tensors = self._world.rank_zero_first(lambda: checkpoint.read(row.files[0], row.label))["model"] if reusable else {}
        if tensors and self._has_all_trained(tensors):
            for member in self._runner.members:
                checkpoint.load_trainable(member, tensors, path=row.files[0], allow_missing=[])
            self._runner.config, self._runner.folder = config, self._output / row.label
            return
        # The next model needs the memory of this one.
        self._current_runner = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._current_runner = config.runner_class(config, training=False)
        self._blocks = self._runner.blocks

    def _values(self, row: CheckpointRow) -> list[str]:
        """Return the options that configure the evaluation of a row."""
        files: Any = list(row.files) if len(row.files) > 1 else (row.files or (None,))[0]
        values = {
            "model.ckpt": files,
            # Training that starts from several files starts from the mean of their weights.
            "model.ensemble": "weights",
            "run.output_dir": str(self._output),
            "run.job_id": row.label,
            # Tensors that no checkpoint contains get the random values with which training started.
            "run.seed": self._start.seed,
        }
        if self._config.model.merge_adapters:
            # The tensors of the next checkpoint replace those of the adapters.
            values["model.merge_adapters"] = False
        if row.epoch == -1:
            new_slots = self._config.model_class.feature_layout(self._config.model).optional_tensors
            allowed = [*self._start.model.get("ckpt_allow_missing", []), *new_slots]
            values["model.ckpt_allow_missing"] = allowed if row.files else ["*"]
        return [f"{key}={json.dumps(value)}" for key, value in values.items()]

    def _has_all_trained(self, tensors: dict[str, Any]) -> bool:
        """Return whether the tensors of a checkpoint include all trained parameters of the model."""
        model = self._runner.members[0]
        return {model.stored_name(name) for name in trainable(model)} <= {model.stored_name(name) for name in tensors}

    def _check(self, rows: list[CheckpointRow]) -> None:
        """Compare the tensors and features of all checkpoints with the model.

        Raises:
            UserError: If a checkpoint belongs to another model.
        """
        for row in rows:
            allowed = self._load_config(self._values(row)).model.ckpt_allow_missing
            for file in row.files:
                content = checkpoint.read(file, row.label)
                checkpoint.load_trainable(self._runner.members[0], content["model"], path=file, allow_missing=allowed, dry=True)
                mismatches = provenance.checkpoint_mismatches(content.get("features"), self._runner.features, file)
                provenance.require_no_mismatches(mismatches, self._config.run.allow_other_features)

    def _record_path(self, row: CheckpointRow) -> Path:
        return self._output / row.label / RECORD

    def _write_record(self, row: CheckpointRow) -> None:
        with atomic_write(self._record_path(row)) as file:
            json.dump(asdict(row), file, indent=1)

    def _write_table(self) -> str:
        return write_checkpoint_table(read_checkpoint_table(self._output, self._rows[0].basis))


def _digest_of(path: str, label: str) -> str:
    """Return the SHA-256 of a checkpoint.

    Raises:
        UserError: If the file does not exist or is damaged.
    """
    if not Path(path).is_file():
        raise not_found(label, path, f"Correct the path, or specify another file with --checkpoints {label}=FILE.")
    file_digests.require_intact(path, label)
    return sha256(path)
