"""Checks of features: arrays of a block, the time to read them, and clips that occur in two blocks."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from emollama.checks.findings import ArrayCounts, Finding, ReadingTime
from emollama.data.array_cache import FeatureCheck
from emollama.data.dataset import FeatureSource, VerifiableSource
from emollama.data.features import CONSTANT_DIGEST
from emollama.data.slots import PIXELS
from emollama.errors import UserError
from emollama.logs.console import Progress

MEASURED_CLIPS, MEASURED_SECONDS = 64, 5.0  # limits of the measurement of reading time


@dataclass
class ClipDigests:
    """Names and feature digests of the clips of a block, to find the same clips in other blocks.

    Attributes:
        names: clip names, in order.
        training: whether the block is used for training.
        digests: slot -> clip name -> digest of its array. Arrays with unread or constant values are left out.
    """

    names: Sequence[str]
    training: bool
    digests: dict[str, dict[str, str]] = field(default_factory=dict)


def measure_reading(sources: Sequence[FeatureSource], names: Sequence[str]) -> ReadingTime | None:
    """Read all arrays of evenly spaced clips, including arrays that cannot be used; return None without arrays or clips."""
    if not sources or not names:
        return None
    chosen = names[:: -(-len(names) // MEASURED_CLIPS)]
    start, read = time.perf_counter(), 0
    for name in chosen:
        for source in sources:
            if name in source:
                _read(source, name)
        read += 1
        if time.perf_counter() - start > MEASURED_SECONDS:
            break
    seconds = (time.perf_counter() - start) / read
    return ReadingTime(read, seconds, seconds * len(names))


def _read(source: FeatureSource, name: str) -> None:
    """Read an array; ignore errors, which the check of the arrays reports."""
    try:
        source.read(name)
    except UserError:
        return


def checked(source: FeatureSource, names: Sequence[str], block: str) -> FeatureCheck:
    """Check the arrays of a block's samples, with a progress bar."""
    with Progress(len(names), f"{block}: {' + '.join(source.slots)}") as bar:
        return source.check(names, bar.update)


def count_arrays(source: FeatureSource, names: Sequence[str], check: FeatureCheck) -> ArrayCounts:
    """Count the arrays of one feature folder or store by state, dtype and shape.

    Args:
        source: the arrays.
        names: names of the block's samples.
        check: the result of checking their arrays.
    """
    valid, problems = check
    present = len(valid) + len(problems)
    return ArrayCounts(
        key=source.key,
        path=source.path,
        slots=source.slots,
        present=present,
        missing=len(names) - present,
        unusable=len(problems),
        values_read=sum(file.digest != "" for file in valid.values()),
        bytes=sum(int(file.size) for file in valid.values()),
        kinds=dict(Counter(f"{file.dtype} {file.shape}" for file in valid.values()).most_common()),
    )


def array_notes(source: FeatureSource, check: FeatureCheck, block: str) -> Iterator[Finding]:
    """Yield notes about arrays with constant values and arrays that several clips share."""
    valid, slots = check.valid, " + ".join(source.slots)
    constant = tuple(name for name, file in valid.items() if file.digest == CONSTANT_DIGEST)
    if constant:
        text = f"{source.path} (slot {slots}): all values of these arrays are the same number, for example zeros for missing data"
        yield Finding("note", "constant features", text, block, constant)
    digests = identifying_digests(source, check)
    counts = Counter(digests.values())
    owners = defaultdict(list)
    for name, digest in digests.items():
        if counts[digest] > 1:
            owners[digest].append(name)
    if owners:
        text = f"{source.path} (slot {slots}): these clips have the same array as another clip of the annotation file"
        details = tuple(" = ".join(names) for names in owners.values())
        yield Finding("note", "same features", text, block, tuple(name for names in owners.values() for name in names), details)


def digest_findings(source: FeatureSource, names: Sequence[str], block: str) -> Iterator[Finding]:
    """Compare the arrays of a block with their recorded digests, and yield findings about changed and unverified arrays."""
    assert isinstance(source, VerifiableSource)
    slots = " + ".join(source.slots)
    with Progress(len(names), f"{block}: digests of {slots}") as bar:
        changed, without_digest = source.verify(names, bar.update)
    if changed:
        text = (
            f"{source.path} (slot {slots}): the bytes of these arrays differ from the digests that were recorded when they were"
        )
        remedy = "Extract these clips again, or restore the files. If you replaced .npy files, remove their lines in SHA256SUMS"
        yield Finding("problem", "changed features", f"{text} written. {remedy}", block, tuple(changed))
    if without_digest:
        text = f"{source.path} (slot {slots}): no digest was recorded for these arrays, so changed bytes in them cannot be found."
        remedy = "emollama extract records digests, and so does emollama pack (for existing tar shards, emollama pack --index)"
        yield Finding("note", "no digests", f"{text} {remedy}", block, tuple(without_digest))


def identifying_digests(source: FeatureSource, check: FeatureCheck) -> dict[str, str]:
    """Return clip name -> digest for arrays that identify their clip."""
    # Many videos start with the same frame, so a frame does not identify its clip.
    if source.slots == (PIXELS,):
        return {}
    return {name: file.digest for name, file in check.valid.items() if file.digest not in ("", CONSTANT_DIGEST)}


def overlaps(blocks: Mapping[str, ClipDigests]) -> Iterator[Finding]:
    """Yield findings about clips that occur in a training block and in an evaluation block.

    Clips are the same if they have the same name, or the same array under different names. Clips with the same name whose
    arrays all differ are reported as a note.
    """
    for first, second in combinations(blocks, 2):
        if blocks[first].training == blocks[second].training:
            continue
        one, other = blocks[first], blocks[second]
        other_names = set(other.names)
        common = [name for name in one.names if name in other_names]
        different = [name for name in common if _all_arrays_differ(one, other, name)]
        same = tuple(name for name in common if name not in set(different))
        where = f"{first} and {second}"
        if same:
            remedy = "Remove them from one of the blocks (exclude: [names], or its annotation file)"
            text = f"{where} contain clips with the same name, so the evaluation would use training data. {remedy}"
            yield Finding("problem", "train/test overlap", text, clips=same)
        if different:
            text = (
                f"{where} contain clips with the same name, but all their features differ, so they are probably different clips"
            )
            yield Finding("note", "same names", text, clips=tuple(different))
        renamed = dict(_same_array_other_name(one, other))
        if renamed:
            text = (
                f"these clips of {first} have the same array as a clip with another name in {second}. Remove them from one block"
            )
            details = tuple(f"{name} = {duplicate}" for name, duplicate in renamed.items())
            yield Finding("problem", "train/test overlap", text, clips=tuple(renamed), details=details)


def _all_arrays_differ(one: ClipDigests, other: ClipDigests, name: str) -> bool:
    """Return whether the clips with this name have arrays in a common slot, and all of these arrays differ."""
    pairs = [(one.digests[slot].get(name), other.digests[slot].get(name)) for slot in one.digests if slot in other.digests]
    compared = [first != second for first, second in pairs if first and second]
    return bool(compared) and all(compared)


def _same_array_other_name(one: ClipDigests, other: ClipDigests) -> Iterator[tuple[str, str]]:
    """Yield (name, other name) for clips that have the same array under different names."""
    for slot, digests in one.digests.items():
        names_by_digest = {digest: name for name, digest in other.digests.get(slot, {}).items()}
        for name, digest in digests.items():
            duplicate = names_by_digest.get(digest)
            if duplicate is not None and duplicate != name and digest != other.digests[slot].get(name):
                yield name, duplicate
