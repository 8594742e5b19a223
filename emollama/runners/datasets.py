"""Build the datasets of a run, and check them before expensive work starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from emollama.component_errors import reported
from emollama.config import RunConfig
from emollama.data.dataset import ClipDataset, ClipsToPredict, DatasetConfig, SampleDataset
from emollama.data.slots import SlotShape, unfilled_slots
from emollama.errors import UserError
from emollama.listing import LINES, abbreviated
from emollama.logs.logger import get_logger
from emollama.precision import Precision
from emollama.runners.dataset_check import require_fitting_record, require_interface

DatasetBlock = tuple[type[SampleDataset], DatasetConfig]  # the dataset class of a block, and its Config


def training_blocks(config: RunConfig) -> dict[str, DatasetBlock]:
    """Return path -> (class, Config) for each block under ``datasets``."""
    return {
        f"datasets.{block_name}": (config.dataset_class(f"datasets.{block_name}"), cfg)
        for block_name, cfg in config.datasets.items()
    }


def slot_shapes_of_run(config: RunConfig) -> dict[str, SlotShape]:
    """Return slot -> the shape that the model expects, with the dtype in which the run computes on this machine."""
    compute_dtype = Precision.of_run(config.run).compute_dtype
    shapes = config.model_class.slot_shapes(config.model)
    return {slot: dataclasses.replace(shape, compute_dtype=compute_dtype) for slot, shape in shapes.items()}


def build_datasets(
    config: RunConfig,
    blocks: Mapping[str, DatasetBlock],
    *,
    training: bool,
    check: bool,
    clips: ClipsToPredict | None = None,
) -> dict[str, SampleDataset]:
    """Build the dataset of each block.

    Args:
        config: the resolved configuration.
        blocks: path of each block -> (class, Config).
        training: True for datasets to train on, False for datasets to evaluate.
        check: check the files of all samples, which only rank 0 does.
        clips: new clips that replace the samples of datasets to evaluate.

    Returns:
        path of each block -> dataset.

    Raises:
        UserError: If there is no block, or the data has problems; the message lists all of them.
    """
    if not blocks:
        group = "datasets" if training else "evaluation_datasets"
        reason = " (blocks without samples are ignored, see the warning)" if config.warnings else ""
        remedy = "Add one, such as {feature_face_caption: {annotation_file: ...}}"
        if not training:
            remedy += ", or set held_out in a block of 'datasets'"
        raise UserError(f"'{group}' has no block{reason}. {remedy}.{_command_for_other_blocks(config, training)}")
    shapes = slot_shapes_of_run(config)
    datasets: dict[str, SampleDataset] = {}
    errors = []
    for path, (cls, cfg) in blocks.items():
        try:
            with reported(f"{path}: the dataset class {cls.__name__}", cls):
                if clips is None:
                    datasets[path] = cls(cfg, slot_shapes=shapes, block_path=path, training=training)
                else:
                    assert issubclass(cls, ClipDataset)
                    datasets[path] = cls.for_clips(cfg, clips, slot_shapes=shapes, block_path=path)
            require_interface(datasets[path], path)
        except UserError as error:
            errors.append(str(error))  # the other blocks are checked as well, so that one message lists all errors
    if not errors:
        errors += unfilled_slot_problems(shapes, datasets, "datasets" if training else "evaluation_datasets")
    if check:
        errors += _data_errors(datasets, shapes, records=not errors)
    if errors:
        raise UserError(errors[0] if len(errors) == 1 else f"{len(errors)} problems:{LINES}{LINES.join(errors)}")
    for dataset in datasets.values():
        for note in dataset.notes:
            get_logger().info("%s", note)
    for path, slots in partly_filled_slots(shapes, datasets).items():
        text = "%s.features does not mention %s, which other blocks fill: its samples have none. Set them to null to confirm this"
        get_logger().warning(text, path, ", ".join(slots))
    return datasets


def _data_errors(datasets: Mapping[str, SampleDataset], shapes: Mapping[str, SlotShape], *, records: bool) -> list[str]:
    """Return an error with the problems that the datasets report, or raise one about records that do not fit the model.

    Args:
        datasets: path of each block -> dataset.
        shapes: the slots of the model.
        records: whether to check a record of each dataset if there are no problems.
    """
    problems: list[str] = []
    for path, dataset in datasets.items():
        with reported(f"{path}: problems() of the dataset class {type(dataset).__name__}", type(dataset)):
            problems += [problem.text for problem in dataset.problems()]
    if problems:
        return [f"the data cannot be used:{LINES}{abbreviated(problems, LINES)}"]
    for path, dataset in datasets.items() if records else ():
        require_fitting_record(dataset, path, shapes)
    return []


def partly_filled_slots(shapes: Mapping[str, SlotShape], datasets: Mapping[str, SampleDataset]) -> dict[str, list[str]]:
    """Return path of a block -> slots of the model that it does not mention. Each slot is mentioned by another block."""
    unmentioned = {path: unfilled_slots(shapes, [dataset.slot_sources]) for path, dataset in datasets.items()}
    return {path: slots for path, slots in unmentioned.items() if slots}


def warn_of_untrained_slots(trained: Mapping[str, SampleDataset], evaluated: Mapping[str, SampleDataset]) -> None:
    """Warn about slots that an evaluation fills and no training dataset does: the layers for them are not trained.

    Args:
        trained: block -> training dataset; nothing is compared without any.
        evaluated: block -> dataset to evaluate.
    """
    filled = {slot for dataset in trained.values() for slot, source in dataset.slot_sources.items() if source is not None}
    for block_name, dataset in evaluated.items() if trained else ():
        untrained = [slot for slot, source in dataset.slot_sources.items() if source is not None and slot not in filled]
        if untrained:
            text = "evaluation_datasets.%s has features for %s, but no training dataset has: the layers for them are not trained"
            get_logger().warning(text, block_name, ", ".join(untrained))


def unfilled_slot_problems(shapes: Mapping[str, SlotShape], datasets: Mapping[str, SampleDataset], group: str) -> list[str]:
    """Return a message for each declared slot that no dataset mentions, because the model would never get features there.

    Args:
        shapes: the slots of the model.
        datasets: path of each block -> dataset, all of one group.
        group: "datasets" or "evaluation_datasets", for messages.
    """
    return [
        f"model.slots declares '{slot}', but no block under '{group}' has features for it. Set features.{slot} in a block to"
        f" their path, or to null for no such features, or remove the slot (model.slots.{slot}: null)."
        for slot in unfilled_slots(shapes, [dataset.slot_sources for dataset in datasets.values()])
    ]


def _command_for_other_blocks(config: RunConfig, training: bool) -> str:
    """Return a sentence that names the command for the existing blocks of the other group, or ""."""
    if training and config.evaluation_datasets:
        return " To evaluate the blocks of 'evaluation_datasets', use emollama eval."
    if not training and config.datasets:
        return " To train on 'datasets' without evaluations, use emollama train with run.evaluate=False."
    return ""


def batch_size(configs: Mapping[str, DatasetConfig]) -> int:
    """Return the micro-batch size, which must be the same for all datasets of a run.

    Args:
        configs: block name -> block under ``datasets``.

    Raises:
        UserError: If the sizes differ.
    """
    sizes = {block_name: cfg.batch_size for block_name, cfg in configs.items()}
    if len(set(sizes.values())) > 1:
        raise UserError(f"all blocks under 'datasets' must have the same batch_size, but it is {sizes}. Set it to one value.")
    return int(next(iter(sizes.values())))


def batch_size_keys(block_names: Iterable[str]) -> str:
    """Return the keys with the micro-batch size of a run, such as ``datasets.a.batch_size and datasets.b.batch_size``."""
    return " and ".join(f"datasets.{block_name}.batch_size" for block_name in block_names)


def require_tasks(configs: Mapping[str, DatasetConfig], tasks_per_clip: int) -> None:
    """Check that each dataset has enough tasks for ``run.tasks_per_clip``.

    Args:
        configs: block name -> block under ``datasets``.
        tasks_per_clip: the value of the key.

    Raises:
        UserError: If a dataset has fewer tasks.
    """
    for block_name, cfg in configs.items():
        if len(tasks := cfg.pool().tasks) < tasks_per_clip:
            names = f"{len(tasks)} ({', '.join(tasks)})"
            raise UserError(
                f"run.tasks_per_clip is {tasks_per_clip}, but the number of tasks in datasets.{block_name}.task_pool is {names}."
                f" Set run.tasks_per_clip to at most {len(tasks)}, or add tasks."
            )
