"""Checks that a dataset object has the members of its interface, and that its records fit the slots of the model."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from emollama.component_errors import reported, source_file
from emollama.data.batch import FEATURE_DTYPES, Record
from emollama.data.dataset import SampleDataset
from emollama.data.int8_vectors import SCALE_BYTES, dequantized
from emollama.data.slots import PIXELS, SlotShape
from emollama.errors import UserError
from emollama.interface_check import missing_members


def require_interface(dataset: SampleDataset, block_path: str) -> None:
    """Check that a dataset has all members of its interface, also those that its constructor sets.

    Raises:
        UserError: If members are missing. The message names the class, its file and the members.
    """
    if missing := missing_members(dataset, SampleDataset):
        raise UserError(f"{block_path}: {_name(dataset)} has no {', '.join(missing)}. Add them; see SampleDataset.")


def require_fitting_record(dataset: SampleDataset, block_path: str, shapes: Mapping[str, SlotShape]) -> None:
    """Check the features of the first sample's record against the slots of the model.

    Raises:
        UserError: If slots are missing or unknown, or the features of a slot have a different shape or dtype.
    """
    if not len(dataset):
        return
    task = dataset.pool.tasks[0]
    with reported(f"{block_path}: record() of the dataset class {type(dataset).__name__}", type(dataset)):
        record = dataset.record(0, task, dataset.pool.first_instruction(task))
    if set(record.features) != set(shapes):
        raise UserError(
            f"{block_path}: {_name(dataset)}: record() returns features for {', '.join(record.features) or 'no slot'}, but the"
            f" model has the slots {', '.join(shapes)}. Return (0, D) vectors for a slot without features."
        )
    for slot, shape in shapes.items():
        if problem := _problem(record, slot, shape) or _not_filled(dataset, record, slot):
            where = f"for the slot '{slot}' of '{record.name}'"
            raise UserError(f"{block_path}: {_name(dataset)}: record() returns {problem} {where}")


def _problem(record: Record, slot: str, shape: SlotShape) -> str | None:
    """Return what is wrong with the features of a slot, or None."""
    vectors, dim = record.features[slot], shape.dim
    if getattr(vectors, "dtype", None) == torch.int8 and vectors.shape[1:] == (dim + SCALE_BYTES,):
        vectors = dequantized(vectors)
    if not isinstance(vectors, torch.Tensor) or vectors.ndim != 2 or vectors.shape[1] != dim:
        return f"{tuple(getattr(vectors, 'shape', ()))} instead of (n, {dim})"
    if vectors.dtype not in FEATURE_DTYPES:
        return f"{vectors.dtype} instead of torch.float32 or torch.float16"
    if shape.num_vectors is not None and len(vectors) not in (0, shape.num_vectors):
        return f"{len(vectors)} vectors instead of {shape.num_vectors} (or 0 for none)"
    return None


def _not_filled(dataset: SampleDataset, record: Record, slot: str) -> str | None:
    """Return what is wrong if a slot is empty that the dataset claims to fill; pixels are encoded later."""
    encoded_later = PIXELS in record.features and len(record.features[PIXELS])
    if dataset.slot_sources.get(slot) is None or len(record.features[slot]) or encoded_later:
        return None
    return "no vectors (its slot_sources names a source of them)"


def _name(dataset: SampleDataset) -> str:
    return f"the dataset class {type(dataset).__name__} ({source_file(type(dataset))})"
