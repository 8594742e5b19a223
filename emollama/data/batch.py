"""The data structures of a sample on its way from the dataset to the model: Record, Sample, Batch.

Letters: T tokens of a sample or of a whole micro-batch, B samples, n feature vectors of a slot, D their size.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from emollama.data.int8_vectors import dequantized

IGNORED = -100
FEATURE_DTYPES = (torch.float32, torch.float16)  # of the feature vectors of records


@dataclass(frozen=True)
class Record:
    """A sample as its dataset returns it: texts and features, not yet tokenized.

    Attributes:
        name: the name of the clip or image.
        task: the task's name.
        turns: (user text, answer) of each turn; the answer is None if it is to be generated.
        features: slot -> feature vectors (n, D), in float32 or float16, or in int8 with their scales
            (:mod:`emollama.data.int8_vectors`).
        reference: the answer of the last turn as in the data, before any text processor; a list of alternatives for captions.
        cache_key: key under which the model caches the features of this sample's frame (:mod:`emollama.stores.feature_cache`);
            None if nothing is cached.
    """

    name: str
    task: str
    turns: list[tuple[str, str | None]]
    features: dict[str, Tensor]
    reference: str | list[str] | None = None
    cache_key: str | None = None


@dataclass(frozen=True)
class Sample:
    """A tokenized record.

    Attributes:
        name: the name of the clip or image.
        task: the task's name.
        input_ids: (T,) int64; a negative id is a placeholder for one feature token of the fusion module.
        labels: (T,) int64, ``IGNORED`` outside the answers.
        loss_weights: (T,) float32, 0 where labels are ignored.
        slots: slot -> feature vectors (n, D).
        tokens_cut: number of text tokens that exceeded the length limits.
        cache_key: the record's cache key.
        dropout_seed: signed integer of 32 bits from which the model's dropout is computed; None outside of training.
        shared_tokens: number of tokens that come before ``input_ids``, and that an earlier sample of the micro-batch starts with:
            the last one that shares none. The sample has no features then, because they are in these tokens.
    """

    name: str
    task: str
    input_ids: Tensor
    labels: Tensor
    loss_weights: Tensor
    slots: dict[str, Tensor]
    tokens_cut: int = 0
    cache_key: str | None = None
    dropout_seed: int | None = None
    shared_tokens: int = 0


@dataclass(frozen=True)
class SharedPrompts:
    """The tokens of a packed micro-batch that a sample attends to because it shares the beginning of an earlier sample.

    Attributes:
        tokens: number of shared tokens of each of the B samples.
        attended: (A,) int64, the tokens that each sample attends to, sample after sample: the shared ones, then its own.
        cu_attended: (B + 1,) int32, the index in ``attended`` where each sample begins, and A.
    """

    tokens: tuple[int, ...]
    attended: Tensor
    cu_attended: Tensor

    @classmethod
    def of(cls, tokens: Sequence[int], lengths: Sequence[int]) -> SharedPrompts | None:
        """Return the object for samples with these numbers of shared and of own tokens; None if none is shared."""
        if not any(tokens):
            return None
        attended, owner, start = [], 0, 0
        for count, length in zip(tokens, lengths, strict=True):
            owner = owner if count else start
            attended += [torch.arange(owner, owner + count), torch.arange(start, start + length)]
            start += length
        sums = accumulate((count + length for count, length in zip(tokens, lengths, strict=True)), initial=0)
        return cls(tuple(tokens), torch.cat(attended), torch.tensor(list(sums), dtype=torch.int32))

    def max_length(self, lengths: Sequence[int]) -> int:
        """Return the number of tokens of the longest sample; ``lengths`` are those of own tokens."""
        return max(count + length for count, length in zip(self.tokens, lengths, strict=True))

    def mapped(self, function: Callable[[Tensor], Tensor]) -> SharedPrompts:
        """Return the object with the results of a function in place of the tensors."""
        return SharedPrompts(self.tokens, function(self.attended), function(self.cu_attended))


def _concatenated(vectors: Sequence[Tensor]) -> Tensor:
    """Return the feature vectors of samples, B tensors (n, D), one after the other, in the widest of their dtypes."""
    dtype = functools.reduce(torch.promote_types, (part.dtype for part in vectors))
    shape = torch.Size((sum(map(len, vectors)), *vectors[0].shape[1:]))
    if get_worker_info() is None or not shape.numel():
        return torch.cat(list(vectors))
    # A data worker passes tensors in shared memory. It would copy those that are elsewhere, as torch's default_collate says.
    storage = torch.UntypedStorage._new_shared(shape.numel() * dtype.itemsize)
    return torch.cat(list(vectors), out=torch.empty(0, dtype=dtype).set_(storage).view(shape))


@dataclass(frozen=True)
class PackedFeatures:
    """The feature vectors of one slot for a whole micro-batch, with the boundaries of the samples.

    They have the stored dtype, so that less is copied to the device. The model converts them there.

    Attributes:
        values: (sum of n, D), in float32 or float16, or (sum of n, D + 4) in int8 with scales
            (:mod:`emollama.data.int8_vectors`).
        offsets: B + 1 integers; the vectors ``offsets[i]`` to ``offsets[i + 1]`` belong to sample i.
    """

    values: Tensor
    offsets: tuple[int, ...]

    @classmethod
    def pack(cls, vectors: Sequence[Tensor]) -> PackedFeatures:
        """Pack the feature vectors of samples: B tensors (n, D)."""
        offsets = tuple(accumulate((len(part) for part in vectors), initial=0))
        if len({part.dtype for part in vectors}) > 1:
            vectors = [dequantized(part) for part in vectors]
        # torch.cat copies even a single tensor, and image features are large. Of several dtypes, the result has the widest.
        return cls(vectors[0] if len(vectors) == 1 else _concatenated(vectors), offsets)

    def float(self) -> PackedFeatures:
        """Return the same feature vectors in float32."""
        return PackedFeatures(dequantized(self.values).float(), self.offsets)

    def split(self) -> list[Tensor]:
        """Return the feature vectors of each sample: B tensors (n, D)."""
        return [self.values[first:end] for first, end in pairwise(self.offsets)]


@dataclass(frozen=True)
class Batch:
    """A micro-batch: samples packed into one sequence without padding.

    Attributes:
        names, tasks: B strings.
        input_ids, labels, position_ids: (T,) int64; positions restart with each sample at 0, or after its shared tokens.
        loss_weights: (T,) float32.
        total_weight: sum of the loss weights.
        lengths: number of tokens of each sample, without its shared ones.
        cu_seqlens: (B + 1,) int32, the first token of each sample, and T.
        label_positions: (L,) int64, the tokens with a label.
        label_counts: number of labels of each sample.
        label_columns: (C,) int64, the different positions of labels in their samples, ascending, without shared tokens.
        feature_positions: (F,) int64, the tokens with a placeholder id: first those of the id -1, then those of -2, and so on.
        feature_counts: number of tokens with each placeholder id, from -1 on.
        slots: slot -> :class:`PackedFeatures`, for every slot of the model; a sample without features has 0 vectors. Samples
            with shared tokens are left out.
        tokens_cut: number of text tokens of all samples that exceeded the length limits.
        cache_key: the cache key or None of each record in ``slots``.
        dropout_seeds: (B,) int32, the samples' seeds; None if a sample has no seed.
        shared: the tokens of other samples that samples attend to; None if no sample has shared tokens.
    """

    names: tuple[str, ...]
    tasks: tuple[str, ...]
    input_ids: Tensor
    labels: Tensor
    loss_weights: Tensor
    total_weight: float
    position_ids: Tensor
    lengths: tuple[int, ...]
    cu_seqlens: Tensor
    label_positions: Tensor
    label_counts: tuple[int, ...]
    label_columns: Tensor
    feature_positions: Tensor
    feature_counts: tuple[int, ...]
    slots: dict[str, PackedFeatures]
    tokens_cut: int
    cache_key: tuple[str | None, ...]
    dropout_seeds: Tensor | None = None
    shared: SharedPrompts | None = None

    @property
    def max_length(self) -> int:
        """Number of tokens of the longest sample, with its shared ones."""
        return max(self.lengths) if self.shared is None else self.shared.max_length(self.lengths)

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors of the batch."""
        tensors: list[Tensor] = []

        def add(tensor: Tensor) -> Tensor:
            tensors.append(tensor)
            return tensor

        self.mapped(add)
        return tensors

    def to(self, device: torch.device) -> Batch:
        """Return the batch on another device; the copy is asynchronous if the memory is pinned."""
        return self.mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory. The data loader calls this method."""
        return self.mapped(lambda tensor: tensor.pin_memory())

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keep the memory of the tensors until the work in a CUDA stream that uses them is done."""
        for tensor in self.tensors:
            tensor.record_stream(stream)

    def mapped(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Return the batch with the results of a function in place of the tensors."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        changes: dict[str, Any] = {name: function(value) for name, value in fields.items() if isinstance(value, Tensor)}
        slots = {slot: PackedFeatures(function(packed.values), packed.offsets) for slot, packed in self.slots.items()}
        shared = None if self.shared is None else self.shared.mapped(function)
        return dataclasses.replace(self, slots=slots, shared=shared, **changes)


def collate(samples: list[Sample]) -> Batch:
    """Pack samples into one sequence without padding; each slot's feature vectors are concatenated in the same order."""
    seeds = [sample.dropout_seed for sample in samples if sample.dropout_seed is not None]
    lengths = tuple(len(sample.input_ids) for sample in samples)
    input_ids = torch.cat([sample.input_ids for sample in samples])
    labels = torch.cat([sample.labels for sample in samples])
    loss_weights = torch.cat([sample.loss_weights for sample in samples])
    starts = [sample.shared_tokens for sample in samples]
    with_features = [sample for sample in samples if not sample.shared_tokens]
    # The model would have to wait for the device to find these positions.
    label_positions = (labels != IGNORED).nonzero().squeeze(1)
    columns = torch.cat([torch.arange(length) for length in lengths])
    placeholders = (input_ids < 0).nonzero().squeeze(1)
    order = input_ids[placeholders].sort(descending=True, stable=True)
    return Batch(
        names=tuple(sample.name for sample in samples),
        tasks=tuple(sample.task for sample in samples),
        input_ids=input_ids,
        labels=labels,
        loss_weights=loss_weights,
        total_weight=float(loss_weights.sum(dtype=torch.float64)),
        position_ids=torch.cat([torch.arange(start, start + length) for start, length in zip(starts, lengths, strict=True)]),
        lengths=lengths,
        cu_seqlens=torch.tensor(list(accumulate(lengths, initial=0)), dtype=torch.int32),
        label_positions=label_positions,
        label_counts=tuple(int((sample.labels != IGNORED).sum()) for sample in samples),
        label_columns=columns[label_positions].unique(),
        feature_positions=placeholders[order.indices],
        feature_counts=tuple((-1 - order.values).bincount().tolist()),
        slots={slot: PackedFeatures.pack([sample.slots[slot] for sample in with_features]) for slot in samples[0].slots},
        tokens_cut=sum(sample.tokens_cut for sample in samples),
        cache_key=tuple(sample.cache_key for sample in with_features),
        dropout_seeds=torch.tensor(seeds, dtype=torch.int32) if len(seeds) == len(samples) else None,
        shared=SharedPrompts.of(starts, lengths),
    )
