"""Sample and Batch: what travels from the data workers to the model.

Letters: T tokens of a sample or of a whole micro-batch, B samples, n rows of a slot, D a slot's width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

IGNORED = -100


@dataclass(frozen=True)
class Record:
    """What a dataset says about one clip and one task, before tokenization.

    Attributes:
        name: the clip.
        task: the task's name.
        turns: (what the user says, the answer); an answer of None is one to be generated.
        features: slot -> raw rows (n, D), float32.
        reference: the last turn's answer as the data has it, before any text processor; a list where there are several.
        cache_key: key under which the model caches the features of this sample's frame (:mod:`emollama.stores.feature_cache`).
    """

    name: str
    task: str
    turns: list[tuple[str, str | None]]
    features: dict[str, Tensor]
    reference: str | list[str] | None = None
    cache_key: str | None = None


@dataclass(frozen=True)
class Sample:
    """A rendered record.

    Attributes:
        input_ids: (T,) int64; a value outside the embedding table is a placeholder for one row of the fusion module.
        labels: (T,) int64, ``IGNORED`` outside the answers.
        loss_weights: (T,) float32, 0 where labels are ignored.
        slots: slot -> raw rows (n, D).
        tokens_cut: how many tokens of text did not fit.
        cache_key: as the record's.
    """

    name: str
    task: str
    input_ids: Tensor
    labels: Tensor
    loss_weights: Tensor
    slots: dict[str, Tensor]
    tokens_cut: int = 0
    cache_key: str | None = None


@dataclass(frozen=True)
class PackedFeatures:
    """The raw rows of one slot for a whole micro-batch, and where each clip's begin.

    Attributes:
        values: (sum of n, D) float32.
        offsets: B + 1 integers; clip i owns rows ``offsets[i]`` to ``offsets[i + 1]``.
    """

    values: Tensor
    offsets: tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """A micro-batch: its samples joined into one row without padding.

    Attributes:
        names, tasks: B strings.
        input_ids, labels, position_ids: (T,) int64; positions restart at 0 with each sample.
        loss_weights: (T,) float32.
        cu_seqlens: (B + 1,) int32, where each sample begins.
        max_length: tokens of the longest sample.
        slots: slot -> :class:`PackedFeatures`; every slot that the fusion module declares, with 0 rows where a clip has none.
        tokens_cut: tokens of text that did not fit, over all samples.
        cache_key: B keys or None, as the records'.
    """

    names: tuple[str, ...]
    tasks: tuple[str, ...]
    input_ids: Tensor
    labels: Tensor
    loss_weights: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor
    max_length: int
    slots: dict[str, PackedFeatures]
    tokens_cut: int
    cache_key: tuple[str | None, ...]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sample."""
        return [int(length) for length in self.cu_seqlens.diff()]

    def to(self, device: torch.device) -> Batch:
        """The batch on another device (asynchronously where memory is pinned)."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory; called by the data loader."""
        return self._mapped(lambda tensor: tensor.pin_memory())

    def _mapped(self, function: Callable[[Tensor], Tensor]) -> Batch:
        return dataclasses.replace(
            self,
            input_ids=function(self.input_ids),
            labels=function(self.labels),
            loss_weights=function(self.loss_weights),
            position_ids=function(self.position_ids),
            cu_seqlens=function(self.cu_seqlens),
            slots={name: PackedFeatures(function(rows.values), rows.offsets) for name, rows in self.slots.items()},
        )


def collate(samples: list[Sample]) -> Batch:
    """Join samples into one row: no padding; positions restart; each slot's rows are joined in the same order."""
    lengths = torch.tensor([0] + [len(sample.input_ids) for sample in samples], dtype=torch.int32)
    return Batch(
        names=tuple(sample.name for sample in samples),
        tasks=tuple(sample.task for sample in samples),
        input_ids=torch.cat([sample.input_ids for sample in samples]),
        labels=torch.cat([sample.labels for sample in samples]),
        loss_weights=torch.cat([sample.loss_weights for sample in samples]),
        position_ids=torch.cat([torch.arange(len(sample.input_ids)) for sample in samples]),
        cu_seqlens=lengths.cumsum(0, dtype=torch.int32),
        max_length=int(lengths.max()),
        slots={slot: _joined([sample.slots[slot] for sample in samples]) for slot in samples[0].slots},
        tokens_cut=sum(sample.tokens_cut for sample in samples),
        cache_key=tuple(sample.cache_key for sample in samples),
    )


def _joined(rows: list[Tensor]) -> PackedFeatures:
    counts = torch.tensor([0] + [len(part) for part in rows])
    return PackedFeatures(rows[0] if len(rows) == 1 else torch.cat(rows), tuple(counts.cumsum(0).tolist()))
