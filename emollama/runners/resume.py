"""Going on with an interrupted run: which checkpoint, and whether it is the same run."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from emollama import checkpoint
from emollama.config import RunConfig, from_plain
from emollama.errors import UserError
from emollama.logging import get_logger

# What may differ between a stored run and its continuation: paths, intervals, workers, the number of epochs.
MAY_DIFFER = (
    "imports",
    "paths*",
    "*_path",
    "*.data_root",
    "*.annotation_file",
    "evaluation_datasets*",
    "model.llama_model",
    "model.ckpt",
    "model.ckpt_allow_missing",
    "run.output_dir",
    "run.job_id",
    "run.device",
    "run.num_workers",
    "run.max_epoch",
    "run.log_freq",
    "run.save_every_iters",
    "run.keep_last",
    "run.max_skipped_steps",
)


GLOBAL_BATCH = "samples of a step (processes x batch_size x accum_grad_iters)"


def resume_content(config: RunConfig, folder: Path, sizes: dict[str, int]) -> dict[str, Any] | None:
    """The checkpoint to go on from, or None for a fresh run.

    Args:
        config: ``run.resume_ckpt_path`` is a file, ``auto``, or None.
        folder: of the run; ``auto`` looks there.
        sizes: what, beside the configuration, the order of the draw rests on: name -> number.

    Raises:
        UserError: a fresh run would write into a folder that holds checkpoints, or the stored run is another one.
    """
    path = _chosen(config.run.resume_ckpt_path, folder)
    if path is None:
        return None
    content = checkpoint.read(path, "run.resume_ckpt_path")
    _check_same_run(content, config, sizes, path)
    return content


def _chosen(configured: str | None, folder: Path) -> str | None:
    if configured is None:
        if any(folder.glob("checkpoint_*.pth")):
            raise UserError(
                f"{folder} holds the checkpoints of another run. Go on with it by run.resume_ckpt_path: auto, or name this run"
                " differently by run.job_id."
            )
        return None
    if configured != "auto":
        return configured
    found = checkpoint.newest(folder)
    if found is None:
        get_logger().info("resume_ckpt_path: auto found no complete checkpoint in %s: starting fresh", folder)
        return None
    get_logger().info("resume_ckpt_path: auto takes %s", found)
    return str(found)


def _check_same_run(content: dict[str, Any], config: RunConfig, sizes: dict[str, int], path: str) -> None:
    lacking = [key for key in ("optimizer", "scaler", "step", "sizes", "config") if key not in content]
    if lacking:
        raise UserError(
            f"run.resume_ckpt_path: {path} lacks {', '.join(lacking)}: it holds weights, not a run. To start from its weights,"
            " set model.ckpt instead."
        )
    then, now = (dict(_flat(tree.resolved())) for tree in (from_plain(content["config"], path), config))
    found = {
        key: (then.get(key), now.get(key))
        for key in sorted({*then, *now})
        if then.get(key) != now.get(key) and not any(fnmatch.fnmatchcase(key, pattern) for pattern in MAY_DIFFER)
    }
    found |= {name: (content["sizes"].get(name), now) for name, now in sizes.items() if content["sizes"].get(name) != now}
    if found:
        lines = [f"{key}: {old!r} then, {new!r} now" for key, (old, new) in found.items()]
        raise UserError(
            f"run.resume_ckpt_path: {path} belongs to a run that was configured differently: {'; '.join(lines)}. Restore these"
            " values, or start a new run from its weights with model.ckpt."
        )


def _flat(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf of a plain tree."""
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node
