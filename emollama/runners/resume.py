"""Going on with an interrupted run: which checkpoint, and whether it is the same run."""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import Any

from emollama import checkpoint
from emollama.config import RunConfig, from_plain
from emollama.config.layers import leaves
from emollama.data.loader import BatchLayout
from emollama.data.sampling import DatasetSampling
from emollama.distributed.process_group import World
from emollama.errors import EchoedError, UserError
from emollama.listing import abbreviated
from emollama.logs.logger import get_logger
from emollama.precision import Precision

# What may differ between a stored run and its continuation: paths, intervals, workers, the number of epochs.
RESUMABLE_OVERRIDES = (
    "imports",
    "paths*",
    "*_path",
    "*.data_root",
    "*.annotation_file",
    "encoders.*",
    "extraction.*",
    "evaluation_datasets*",
    "model.llama_model",
    "model.vit_weights",
    "model.q_former_model",
    "model.cache_visual",
    "model.ckpt",
    "model.ckpt_allow_missing",
    "run.output_dir",
    "run.job_id",
    "run.device",
    "run.num_workers",
    "run.max_epoch",
    "run.log_freq",
    "run.wandb_*",
    "run.save_every_iters",
    "run.keep_last",
    "run.max_skipped_steps",
    "run.evaluate*",
    "run.eval_epoch_interval",
    "run.metric",
    "run.save_best",
    "run.early_stop_patience",
    "run.show_clips",
    "run.allow_other_features",
)


def sampling_fields(
    layout: BatchLayout, datasets: dict[str, Any], samplings: list[DatasetSampling], world: World
) -> dict[str, Any]:
    """What the order of the draw rests on, beside the configuration: name -> value.

    Raises:
        UserError: another process sees other clips or texts.
    """
    facts: dict[str, Any] = {
        "samples of a step (processes x batch_size x accum_grad_iters)": layout.global_batch,
        "datasets in order": list(datasets),
    }
    for (label, dataset), sampling in zip(datasets.items(), samplings, strict=True):
        facts[f"clips of {label}"] = len(dataset)
        facts[f"list and texts of {label}"] = dataset.digest()
        facts[f"tasks of {label} in order"] = list(dataset.pool.tasks)
        facts[f"shards or difficulty of {label}"] = sampling.digest()
    first, *others = world.gather(facts)
    for rank, theirs in enumerate(others, 1):
        different = [name for name, value in first.items() if theirs[name] != value]
        if different:
            kind = UserError if world.is_main else EchoedError
            named = ", ".join(different)
            raise kind(f"process {rank} does not see what process 0 sees: {named}. Give all nodes the same data.")
    return facts


def run_fields(order: dict[str, Any], precision: Precision, prompt: Any) -> dict[str, Any]:
    """Everything that must be the same in a stored run and its continuation, beside the configuration: name -> value.

    Args:
        order: of :func:`sampling_fields`.
        precision: of the run.
        prompt: the model's renderer.
    """
    return order | {"dtype": str(precision.frozen_dtype), "the model's prompts": prompt.digest()}


def require_job_id(run: Any) -> None:
    """Check that a run with ``resume_ckpt_path: auto`` has a ``job_id``.

    Raises:
        UserError: ``run.job_id`` is null.
    """
    if run.resume_ckpt_path == "auto" and run.job_id is None:
        raise UserError("run.resume_ckpt_path: auto needs run.job_id, the name of the run's folder to look in")


def resume_content(config: RunConfig, folder: Path, facts: dict[str, Any], world: World) -> dict[str, Any] | None:
    """The content of the checkpoint to go on from, its ``path`` with it, or None for a fresh run.

    Args:
        config: ``run.resume_ckpt_path`` is a file, ``auto``, or None.
        folder: of the run; ``auto`` looks there.
        facts: what must be as it was, beside the configuration (:func:`run_fields`).
        world: rank 0 chooses, every rank reads.

    Raises:
        UserError: a fresh run would write into a folder that holds checkpoints, or the stored run is another one.
    """
    path = world.on_rank_zero(lambda: _checkpoint_to_resume(config.run.resume_ckpt_path, folder))
    if path is None:
        return None

    def read() -> dict[str, Any]:
        content = checkpoint.read(path, "run.resume_ckpt_path")
        _check_same_run(content, config, facts, path)
        return content | {"path": path}

    return world.rank_zero_first(read)


def _checkpoint_to_resume(configured: str | None, folder: Path) -> str | None:
    if configured is None:
        if any(folder.glob("checkpoint_*.pth")):
            raise UserError(
                f"{folder} holds the checkpoints of another run. Resume it with --options run.resume_ckpt_path=auto, or give"
                " this run another name: run.job_id."
            )
        return None
    if configured != "auto":
        return configured
    found = checkpoint.newest(folder)
    written = found.stat().st_mtime_ns if found else 0
    for path in folder.glob("checkpoint_*.pth"):
        if path.stat().st_mtime_ns > written and not checkpoint.is_intact(path):
            get_logger().warning("%s is damaged or incomplete, and is passed over", path)
    if found is None:
        get_logger().info("resume_ckpt_path: auto found no complete checkpoint in %s: starting fresh", folder)
        return None
    get_logger().info("resume_ckpt_path: auto takes %s", found)
    return str(found)


def _check_same_run(content: dict[str, Any], config: RunConfig, facts: dict[str, Any], path: str) -> None:
    lacking = [key for key in ("optimizer", "scaler", "step", "skipped", "facts", "config") if key not in content]
    if lacking:
        raise UserError(
            f"run.resume_ckpt_path: {path} lacks {', '.join(lacking)}: it holds weights, not a run. To start from its weights,"
            " set model.ckpt instead."
        )
    stored = {key: value for key, value in content["config"].items() if key != "imports"}  # no code comes out of a checkpoint
    then, now = (dict(leaves(tree.resolved())) for tree in (from_plain(stored, path), config))
    found = {
        key: (then.get(key), now.get(key))
        for key in sorted({*then, *now})
        if then.get(key) != now.get(key) and not _is_resumable_override(key, then.get(key), now.get(key))
    }
    old = content["facts"]
    found |= {name: (old.get(name), value) for name, value in facts.items() if old.get(name) != value}
    if found:
        changed = abbreviated((f"{key}: {old!r} then, {new!r} now" for key, (old, new) in found.items()), "; ")
        raise UserError(
            f"run.resume_ckpt_path: {path} belongs to a run that was configured differently: {changed}. Restore these"
            " values, or start a new run from its weights with model.ckpt."
        )


def _is_resumable_override(key: str, then: Any, now: Any) -> bool:
    """Whether a run may go on with another value: another place of a file may, its absence may not."""
    turned = key.startswith("datasets.") and (then is None) != (now is None) and not key.endswith("data_root")
    return not turned and any(fnmatch.fnmatchcase(key, pattern) for pattern in RESUMABLE_OVERRIDES)
