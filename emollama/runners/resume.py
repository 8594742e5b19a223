"""What a run and the run that resumes it must have in common."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
from collections.abc import Mapping
from typing import Any

from emollama import checkpoint
from emollama.config import RunConfig, from_dict
from emollama.config.layers import leaves
from emollama.data.dataset import SampleDataset
from emollama.data.fusion_layout import FusionLayout
from emollama.data.loader import BatchLayout
from emollama.data.prompts.prompt import PromptFormat
from emollama.data.sampling import DatasetSampling
from emollama.data.shard_properties import values_digests
from emollama.distributed.process_group import World
from emollama.errors import UserError
from emollama.listing import abbreviated
from emollama.precision import Precision
from emollama.runners.node_checks import VALUES, require_equal
from emollama.runners.step_layout import remedy_for

# Keys that can differ between a stored run and the run that resumes it: paths, intervals, workers, the number of epochs, and the
# split of the global batch.
SAMPLES_OF_A_STEP = "samples of a step (processes x batch_size x accum_grad_iters)"
RESUMABLE_OVERRIDES = (
    "imports",
    "paths*",
    "*_path",
    "datasets.*.features.*",
    "*.data_root",
    "*.annotation_file",
    "datasets.*.storage",
    "datasets.*.stream",
    "encoders.*",
    "extraction.*",
    "evaluation_datasets*",
    "model.llama_model",
    # The names of the tensors are compared. Null is a list that depends on the language model.
    "model.lora_target_modules",
    "model.vit_weights",
    "model.q_former_model",
    "model.cache_visual",
    "model.merge_adapters",
    "model.kernels",
    "model.compile",
    "model.use_grad_checkpoint",
    "model.ckpt",
    "model.ckpt_allow_missing",
    "run.output_dir",
    "run.job_id",
    "run.device",
    "run.parallel",
    "run.shard_size",
    "run.reduce_dtype",
    "run.num_workers",
    # The samples of a step must be as many as before; sampling_fields compares them.
    "datasets.*.batch_size",
    "run.accum_grad_iters",
    "run.global_batch",
    "run.max_tokens",
    "run.max_epoch",
    "run.log_freq",
    "run.wandb_*",
    "run.save_every_iters",
    "run.async_save",
    "run.sharded_checkpoints",
    "run.keep_last",
    "run.max_skipped_steps",
    "run.evaluate*",
    "run.eval_epoch_interval",
    "run.metric",
    "run.save_best",
    "run.early_stop_patience",
    "run.show_clips",
    "run.hang_minutes",
    "run.stop_after_minutes",
    "run.allow_other_features",
)
POOLING = "datasets.*.features.*.pooling"  # changes the features, although all other keys of features are paths


FEATURE_TOKENS = "feature tokens"  # name of the outputs of the fusion module in a checkpoint
PUBLISHED_OUTPUTS = ({"video": ["image"], "feature": ["face", "video", "audio", "cls"]}, {"image": ["image"]})
# Prefixes of names in checkpoints -> what messages show instead. The stored names must not change.
DISPLAY_NAMES = {
    "list and texts of ": "annotation file and texts of ",
    "shards or difficulty of ": "shards or curriculum difficulty of ",
}


def sampling_fields(
    layout: BatchLayout, datasets: Mapping[str, SampleDataset], samplings: list[DatasetSampling], world: World
) -> dict[str, Any]:
    """Return everything outside the configuration that the order and content of the training samples depend on.

    The names are stored in checkpoints.

    Returns:
        name -> value.

    Raises:
        UserError: If processes have different samples or texts.
    """
    fields: dict[str, Any] = {
        SAMPLES_OF_A_STEP: layout.global_batch,
        "datasets in order": list(datasets),
    }
    for (block_name, dataset), sampling in zip(datasets.items(), samplings, strict=True):
        fields[f"clips of {block_name}"] = len(dataset)
        fields[f"list and texts of {block_name}"] = dataset.digest()
        fields[f"tasks of {block_name} in order"] = list(dataset.pool.tasks)
        fields[f"shards or difficulty of {block_name}"] = sampling.digest()
        fields |= {f"{VALUES}{block_name}, {slots}": digest for slots, digest in values_digests(dataset.features).items()}
    named = {_display_name(name): value for name, value in fields.items()}
    texts = {_display_name(f"list and texts of {block_name}"): dataset for block_name, dataset in datasets.items()}
    require_equal(named, world, "data", "Give all nodes the same data.", texts)
    return fields


def _display_name(field: str) -> str:
    prefix = next((prefix for prefix in DISPLAY_NAMES if field.startswith(prefix)), "")
    return DISPLAY_NAMES.get(prefix, "") + field.removeprefix(prefix)


def run_fields(sampling: dict[str, Any], precision: Precision, prompt: PromptFormat, layout: FusionLayout) -> dict[str, Any]:
    """Return everything outside the configuration that must be the same when a run is resumed.

    Args:
        sampling: the result of :func:`sampling_fields`.
        precision: precision of the run.
        prompt: prompt format of the model.
        layout: names and numbers of the feature tokens.

    Returns:
        name -> value.
    """
    fields = {"dtype": str(precision.frozen_dtype), "the model's prompts": prompt.digest()}
    return sampling | fields | {FEATURE_TOKENS: recorded_outputs(layout)}


def recorded_outputs(layout: FusionLayout) -> str | None:
    """Return the outputs and parts of a fusion module as a checkpoint records them; None for the published ones."""
    outputs = {output: list(parts) for output, parts in layout.outputs.items()}
    # Earlier checkpoints do not record them.
    return None if outputs in PUBLISHED_OUTPUTS else json.dumps(outputs)


def reordered_outputs(layout: FusionLayout, recorded: str | None) -> list[str]:
    """Return the recorded outputs whose parts a fusion module returns in another order; parts at the end may be new.

    Args:
        layout: the layout of the fusion module.
        recorded: the outputs of another training (:func:`recorded_outputs`).
    """
    if recorded is None:
        return []
    trained = json.loads(recorded)
    return [
        f"'{output}' ({', '.join(parts)})"
        for output, parts in trained.items()
        if list(layout.outputs.get(output, ()))[: len(parts)] != parts
    ]


def as_block(value: Any) -> Any:
    """Return a component that is selected by its name alone as a block: ``linear`` as ``{type: linear}``."""
    return {"type": value} if isinstance(value, str) else value


def comparable(config: RunConfig) -> dict[str, Any]:
    """Return dotted key -> value, the same for configurations that mean the same.

    A component that is selected by its name is a block, the shapes of slots have their defaults filled in, and the path of a
    feature without pooling is the same key in both of its forms.
    """
    tree = config.resolved()
    model = tree["model"]
    model |= {key: as_block(model[key]) for key in ("fusion", "prompt_format") if key in model}
    if "slots" in model:
        shapes = config.model_class.slot_shapes(config.model)
        model["slots"] = {slot: dataclasses.asdict(shape) for slot, shape in shapes.items()}
    keys = {_without_path(key): value for key, value in leaves(tree)}
    return {key: value for key, value in keys.items() if not (value is None and fnmatch.fnmatchcase(key, POOLING))}


def _without_path(key: str) -> str:
    """Return the key of a feature's path as it is without ``pooling``: ``features.audio`` for ``features.audio.path``."""
    return key.removesuffix(".path") if fnmatch.fnmatchcase(key, "datasets.*.features.*.path") else key


def require_job_id(run: Any) -> None:
    """Check that a run with ``resume_ckpt_path: auto`` has a ``job_id``.

    Raises:
        UserError: If ``run.job_id`` is null.
    """
    if run.resume_ckpt_path == "auto" and run.job_id is None:
        raise UserError(
            "run.resume_ckpt_path: auto needs run.job_id, the name of the run's folder. Set it to that of the run to resume."
        )


def require_same_run(content: dict[str, Any], config: RunConfig, fields: dict[str, Any], path: str, processes: int) -> None:
    """Check that a checkpoint belongs to the run that resumes from it.

    Args:
        content: the content of the checkpoint.
        config: the resolved configuration.
        fields: values that must be equal in the checkpoint (:func:`run_fields`).
        path: its path, for messages.
        processes: number of processes of the run, for the remedy.

    Raises:
        UserError: If it contains only weights, or values differ.
    """
    missing = [
        key for key in ("optimizer", "scaler", "step", "skipped", checkpoint.RESUME_FIELDS_KEY, "config") if key not in content
    ]
    if missing:
        raise UserError(
            f"run.resume_ckpt_path: {path} contains weights, but not the state of a run (missing entries: {', '.join(missing)})."
            " To start a new run from its weights, set model.ckpt instead."
        )
    # The modules of `imports` are not loaded, because a checkpoint must not be able to run code.
    stored = {key: value for key, value in content["config"].items() if key != "imports"}
    then, now = (comparable(tree) for tree in (from_dict(stored, path), config))
    different = {
        key: (then.get(key), now.get(key))
        for key in sorted({*then, *now})
        if then.get(key) != now.get(key) and not _is_resumable_override(key, then.get(key), now.get(key))
    }
    stored_fields = content[checkpoint.RESUME_FIELDS_KEY]
    required = {name: value for name, value in fields.items() if name in stored_fields or not name.startswith(VALUES)}
    different |= {name: (stored_fields.get(name), value) for name, value in required.items() if stored_fields.get(name) != value}
    if different:
        changed = abbreviated(
            (
                f"{_display_name(key)}: {checkpoint_value!r} in the checkpoint, {value!r} in this run"
                for key, (checkpoint_value, value) in different.items()
            ),
            "; ",
        )
        samples, remedy = stored_fields.get(SAMPLES_OF_A_STEP), ""
        if SAMPLES_OF_A_STEP in different and samples:
            remedy = f" ({remedy_for(samples, config, processes, then['run.tasks_per_clip'])})"
        raise UserError(
            f"run.resume_ckpt_path: {path} belongs to a run that was configured differently: {changed}. Restore these"
            f" values{remedy}, or start a new run from its weights with model.ckpt."
        )


def _is_resumable_override(key: str, then: Any, now: Any) -> bool:
    """Return whether a run can be resumed with a different value of a key.

    A file of a dataset can have another path, but a file cannot be added or removed, because that changes the samples.
    """
    if fnmatch.fnmatchcase(key, POOLING):
        return False
    added_or_removed = key.startswith("datasets.") and (then is None) != (now is None) and not key.endswith("data_root")
    return not added_or_removed and any(fnmatch.fnmatchcase(key, pattern) for pattern in RESUMABLE_OVERRIDES)
