"""The captions of a block of images: how many there are of each, the longest, and those that say nothing of their own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from emollama.checks.findings import Finding
from emollama.datasets.flickr30k_caption import Flickr30kCaption


def longest(dataset: Flickr30kCaption) -> dict[str, str]:
    """Image -> the longest text, in characters, that is learnt of it; without images that have no caption."""
    found = {}
    for image in dataset.images:
        if image.captions:
            learnt = {"joined": (image.joined,), "random": image.captions, "first": image.captions[:1]}[dataset.cfg.captions]
            found[image.name] = max(map(dataset.process_answer, learnt), key=len)
    return found


def findings(dataset: Flickr30kCaption) -> Iterator[Finding]:
    """Images with another number of captions than most, and those that share a caption with another image."""
    counts = {image.name: len(image.captions) for image in dataset.images if image.captions}
    usual, _ = Counter(counts.values()).most_common(1)[0] if counts else (0, 0)
    if usual == 1 and not dataset.training:
        text = f"{dataset.list_path()}: most images have one caption, so that answers are compared with that one alone"
        yield Finding("note", "captions", text, dataset.label)
    other = {name: count for name, count in counts.items() if count != usual}
    if other:
        text = f"{dataset.list_path()}: images with another number of captions than {usual}, as most have"
        details = tuple(f"{name} ({count})" for name, count in other.items())
        yield Finding("note", "captions", text, dataset.label, tuple(other), details)
    owners = Counter(image.joined for image in dataset.images if image.captions)
    repeated = tuple(image.name for image in dataset.images if owners[image.joined] > 1)
    if repeated:
        text = f"{dataset.list_path()}: images whose captions are another image's too, word for word"
        yield Finding("note", "repeated caption", text, dataset.label, repeated)
