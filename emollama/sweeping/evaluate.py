"""All checkpoints of a training run, evaluated alike, one after the other, by the runner's own evaluation.

A row is one model: what training began from, an epoch's checkpoint, or a file that is named. Each has a folder with its answers
and metrics (``result``) and, once it is done, a record of what was evaluated: the digest of the checkpoint and of everything in
the configuration that the figures rest on. A row whose record still holds is not evaluated again.
"""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from emollama import checkpoint, distributed
from emollama.config import RunConfig
from emollama.distributed import World
from emollama.errors import UserError
from emollama.layers import leaves
from emollama.logging import get_logger, set_up
from emollama.optim import trainable
from emollama.paths import require_writable, sha256, written_whole
from emollama.reporting.sweep import RECORD, Row, missing, read_records, read_sweep, write_sweep
from emollama.runners import recipes
from emollama.sweeping.rows import Start

OF_FIGURES = ("runner", "task", "seed", "amp", "amp_dtype")  # keys of ``run`` that figures rest on
# Keys of ``model`` that may be others than in training, without a word; so may paths and weights' files.
MAY_DIFFER = {"ckpt", "ckpt_allow_missing", "ensemble", "preset", "llama_model", "lora_dropout", "cache_visual"}


class Sweep:
    """Evaluates rows.

    Args:
        configured: options -> the configuration of the evaluation with these values.
        start_and_rows: of :func:`rows_of`.
        folder: of the training run.
        output: where everything goes.
    """

    def __init__(
        self, configured: Callable[[list[str]], Any], start_and_rows: tuple[Start, list[Row]], folder: Path, output: Path
    ) -> None:
        self._configured, (self._start, self._rows), self._output = configured, start_and_rows, output
        self._run_name = folder.resolve().name
        self._config: RunConfig = configured(["model.ckpt=null", "model.ckpt_allow_missing=['*']"])
        self._world: World = distributed.start(self._config.run.device)
        set_up(self._world.is_main)
        self._runner: Any = None

    def run(self, *, again: bool) -> str:
        """Evaluate what is not done yet, all of it with ``again``. Returns the table, which only rank 0 gets.

        Raises:
            UserError: a checkpoint that is missing, damaged or another model's, before anything is evaluated; and all that
                an evaluation says.
        """
        world = self._world
        self._rows = world.on_main(self._known)
        waiting = world.on_main(lambda: [row for row in self._rows if again or not self._is_done(row)])
        if passed := len(self._rows) - len(waiting):
            get_logger().info("%d of %d checkpoints were evaluated before; --again evaluates them anew", passed, len(self._rows))
        for place, row in enumerate(waiting):
            self._prepare(row)
            if not place:
                world.on_main(lambda: self._check(waiting))
            get_logger().info("%s (%d of %d): %s", row.label, place + 1, len(waiting), ", ".join(row.files) or "random values")
            self._runner.evaluate()
            world.on_main(lambda row=row: self._record(row))  # type: ignore[misc]
        told = world.on_main(self._written)
        return told if world.is_main else ""

    def _known(self) -> list[Row]:
        """The rows with their digests: every file is there, and what was written.

        Raises:
            UserError: one that is not; or the output cannot be written, or is another run's.
        """
        require_writable(self._output, "--output")
        earlier = read_records(self._output)
        if others := sorted({row.run for row in earlier} - {self._run_name}):
            raise UserError(
                f"--output: '{self._output}' holds the sweep of another run, {', '.join(others)}. Name another folder."
            )
        configuration = self._digest()
        for key, (then, now) in self._differences().items():
            get_logger().warning("model.%s: %r in the run, %r in this evaluation", key, then, now)
        if not self._rows[0].files:
            text = "the run began from random projections and adapters (model.ckpt: null): its first row is them, of run.seed %d"
            get_logger().info(text, self._start.seed)
        rows = []
        for row in self._rows:
            digests = tuple(_digest_of(path, row.label) for path in row.files)
            rows.append(replace(row, sha256=digests, configuration=configuration, run=self._run_name))
        return rows

    def _digest(self) -> str:
        """Of everything in the configuration that figures rest on, beside the checkpoint."""
        tree = self._config.resolved()
        data = "evaluation_datasets" if tree.get("evaluation_datasets") else "datasets"
        model = {key: value for key, value in tree["model"].items() if key not in ("ckpt", "ckpt_allow_missing", "ensemble")}
        run = {key: tree["run"][key] for key in OF_FIGURES} | {"seed": self._start.seed}
        content = {"model": model, "data": tree.get(data), "run": run}
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()

    def _differences(self) -> dict[str, tuple[Any, Any]]:
        """Key of ``model`` -> (the run's value, the evaluation's), where they differ and it may matter.

        Raises:
            UserError: they are not even of one architecture.
        """
        then, now = (dict(leaves(tree)) for tree in (self._start.model, self._config.resolved()["model"]))
        if then["arch"] != now["arch"]:
            raise UserError(
                f"model.arch: the run trained '{then['arch']}', and this evaluation has '{now['arch']}'. Use its model."
            )
        keys = [key for key in sorted({*then, *now}) if key not in MAY_DIFFER and not key.endswith(("_path", "_weights"))]
        return {key: (then.get(key), now.get(key)) for key in keys if then.get(key) != now.get(key)}

    def _is_done(self, row: Row) -> bool:
        """Whether the row's record says just this, and its metrics are there."""
        found = next((other for other in read_records(self._output) if other.label == row.label), None)
        if found is None or (found.sha256, found.configuration) != (row.sha256, row.configuration):
            return False
        return not missing(self._output, found)

    def _prepare(self, row: Row) -> None:
        """Give the runner the row's tensors; a new runner, where there is none or the checkpoint lacks any that are trained."""
        config = self._configured(self._values(row))
        one = self._runner is not None and len(row.files) == 1
        tensors = self._world.main_first(lambda: checkpoint.read(row.files[0], row.label))["model"] if one else {}
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

    def _values(self, row: Row) -> list[str]:
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

    def _check(self, rows: list[Row]) -> None:
        """Compare checkpoints' names, shapes and features with the model, before anything is evaluated.

        Raises:
            UserError: one is another model's.
        """
        for row in rows:
            allowed = self._configured(self._values(row)).model.ckpt_allow_missing
            for file in row.files:
                content = checkpoint.read(file, row.label)
                checkpoint.load_trainable(self._runner.members[0], content["model"], path=file, allow_missing=allowed, dry=True)
                unlike = recipes.unlike_checkpoint(content.get("features"), self._runner.features, file)
                recipes.require_alike(unlike, self._config.run.allow_other_features)

    def _record(self, row: Row) -> None:
        with written_whole(self._output / row.label / RECORD) as file:
            json.dump(asdict(replace(row, blocks=tuple(self._runner.blocks))), file, indent=1)
        self._written()

    def _written(self) -> str:
        return write_sweep(read_sweep(self._output, self._rows[0].configuration))


def _digest_of(path: str, label: str) -> str:
    """The SHA-256 of a checkpoint.

    Raises:
        UserError: no such file, or it is not what was written.
    """
    if not Path(path).is_file():
        raise UserError(f"{label}: no file '{path}'. Correct the path, or name another one: --checkpoints {label}=FILE.")
    if checkpoint.is_intact(path) is False:
        raise UserError(f"{label}: {path} is not what was written: its SHA-256 differs from {path}.sha256. Copy it again.")
    return sha256(path)
