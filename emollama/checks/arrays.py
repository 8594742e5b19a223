"""The features of a block: what its arrays are, how long they take to read, and which clips stand in two blocks."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from emollama.checks.findings import ArrayCounts, Finding, LabelExtractionSummary
from emollama.data.features import CONSTANT, FeatureCheck, Features
from emollama.data.problems import Problem
from emollama.data.slots import FRAME
from emollama.errors import UserError
from emollama.logs.console import Progress

MEASURED_CLIPS, MEASURED_SECONDS = 64, 5.0  # the reading is measured on so many clips, for so long at most


@dataclass
class Fingerprints:
    """What tells the clips of a block from those of others.

    Attributes:
        names: in order.
        training: whether they are trained on.
        digests: slot -> clip -> digest of its array; without arrays whose values were not read or are all one number.
    """

    names: list[str]
    training: bool
    digests: dict[str, dict[str, str]] = field(default_factory=dict)


def measure_reading(sources: Sequence[Features], names: Sequence[str]) -> LabelExtractionSummary | None:
    """Read all arrays of some clips, spread over the list; arrays that cannot be used take their time all the same."""
    if not sources or not names:
        return None
    chosen = names[:: -(-len(names) // MEASURED_CLIPS)]
    begun, read = time.perf_counter(), 0
    for name in chosen:
        for source in sources:
            if name in source:
                _read(source, name)
        read += 1
        if time.perf_counter() - begun > MEASURED_SECONDS:
            break
    seconds = (time.perf_counter() - begun) / read
    return LabelExtractionSummary(read, seconds, seconds * len(names))


def _read(source: Features, name: str) -> None:
    try:
        source.read(name)
    except UserError:
        return


@dataclass(frozen=True)
class Surveyed(Features):
    """Features of a block whose clips have been looked at; they are not looked at again."""

    survey_made: FeatureCheck = field(kw_only=True)

    @classmethod
    def of(cls, source: Features, names: Sequence[str], *, all_values: bool, block: str) -> Surveyed:
        """Look at the arrays of a block's clips, with a progress bar."""
        with Progress(len(names), f"{block}: {' + '.join(source.slots)}") as bar:
            made = source.check(names, all_values=all_values, advance=bar.update)
        return cls(**vars(source), survey_made=made)

    def problems(self, names: Iterable[str], *, all_values: bool = False) -> list[Problem]:
        """What was found wrong."""
        return self.survey_made.problems


def table_of(source: Surveyed, names: Sequence[str]) -> ArrayCounts:
    """The figures of one place's arrays."""
    good, problems = source.survey_made
    present = len(good) + len(problems)
    return ArrayCounts(
        key=source.key,
        path=source.path,
        slots=source.slots,
        present=present,
        missing=len(names) - present,
        unusable=len(problems),
        values_read=sum(look.digest != "" for look in good.values()),
        bytes=sum(int(look.size) for look in good.values()),
        kinds=dict(Counter(f"{look.dtype} {look.shape}" for look in good.values()).most_common()),
    )


def notes_of(source: Surveyed, block: str) -> Iterator[Finding]:
    """Arrays that are all one number, and arrays that several clips share."""
    good, slots = source.survey_made.good, " + ".join(source.slots)
    alike = tuple(name for name, look in good.items() if look.digest == CONSTANT)
    if alike:
        text = f"{source.path} (slot {slots}): arrays whose values are all the same number, such as zeros for what is missing"
        yield Finding("note", "constant features", text, block, alike)
    digests = digests_of(source)
    counts = Counter(digests.values())
    owners = defaultdict(list)
    for name, digest in digests.items():
        if counts[digest] > 1:
            owners[digest].append(name)
    if owners:
        text = f"{source.path} (slot {slots}): clips with the very same array as another clip of the list"
        details = tuple(" = ".join(names) for names in owners.values())
        yield Finding("note", "same features", text, block, tuple(name for names in owners.values() for name in names), details)


def digests_of(source: Surveyed) -> dict[str, str]:
    """Clip -> digest, where there is one that tells arrays apart: one frame of a video does not, many begin with the same."""
    if source.slots == (FRAME,):
        return {}
    return {name: look.digest for name, look in source.survey_made.good.items() if look.digest not in ("", CONSTANT)}


def overlaps(prints: Mapping[str, Fingerprints]) -> Iterator[Finding]:
    """Clips that stand in a block of training and in one of evaluation: under one name, or with one array under two names.

    A common name is no overlap where both blocks' arrays could be compared and none is the same: a note tells of these.
    """
    for first, second in combinations(prints, 2):
        if prints[first].training == prints[second].training:
            continue
        one, other = prints[first], prints[second]
        known = set(other.names)
        common = [name for name in one.names if name in known]
        strangers = [name for name in common if _differ(one, other, name)]
        same = tuple(name for name in common if name not in set(strangers))
        where = f"{first} and {second}"
        if same:
            remedy = "Take them out of one of the two (exclude: [names], or its list)"
            text = f"clips by the same name stand in {where}: what is trained on cannot test. {remedy}"
            yield Finding("problem", "train/test overlap", text, clips=same)
        if strangers:
            text = f"clips of {where} have the same name, but all their features differ: different clips, it seems"
            yield Finding("note", "same names", text, clips=tuple(strangers))
        renamed = dict(_renamed(one, other))
        if renamed:
            text = f"clips of {first} have the very same array as a clip by another name in {second}. Take them out of one"
            details = tuple(f"{name} = {twin}" for name, twin in renamed.items())
            yield Finding("problem", "train/test overlap", text, clips=tuple(renamed), details=details)


def _differ(one: Fingerprints, other: Fingerprints, name: str) -> bool:
    """Whether some arrays under this name could be compared, and all of them differ."""
    pairs = [(one.digests[slot].get(name), other.digests[slot].get(name)) for slot in one.digests if slot in other.digests]
    compared = [first != second for first, second in pairs if first and second]
    return bool(compared) and all(compared)


def _renamed(one: Fingerprints, other: Fingerprints) -> Iterator[tuple[str, str]]:
    for slot, digests in one.digests.items():
        names_by_digest = {digest: name for name, digest in other.digests.get(slot, {}).items()}
        for name, digest in digests.items():
            twin = names_by_digest.get(digest)
            if twin is not None and twin != name and digest != other.digests[slot].get(name):
                yield name, twin
