"""Checks of the captions of an image dataset: captions per image, lengths, and repeated captions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from emollama.checks.findings import Finding
from emollama.datasets.flickr30k_caption import Flickr30kCaption


def longest(dataset: Flickr30kCaption) -> dict[str, str]:
    """Return image name -> its longest target text in characters; images without captions are left out."""
    texts = {}
    for image in dataset.images:
        if image.captions:
            targets = {"joined": (image.joined,), "random": image.captions, "first": image.captions[:1]}[dataset.cfg.captions]
            texts[image.name] = max(map(dataset.process_answer, targets), key=len)
    return texts


def findings(dataset: Flickr30kCaption) -> Iterator[Finding]:
    """Yield notes about images with an unusual number of captions and images that share captions."""
    counts = {image.name: len(image.captions) for image in dataset.images if image.captions}
    usual, _ = Counter(counts.values()).most_common(1)[0] if counts else (0, 0)
    if usual == 1 and not dataset.training:
        text = f"{dataset.list_path()}: most images have a single caption, so answers are compared with that caption only"
        yield Finding("note", "captions", text, dataset.block_path)
    other = {name: count for name, count in counts.items() if count != usual}
    if other:
        text = f"{dataset.list_path()}: most images have {usual} captions, but these have another number"
        details = tuple(f"{name} ({count})" for name, count in other.items())
        yield Finding("note", "captions", text, dataset.block_path, tuple(other), details)
    owners = Counter(image.joined for image in dataset.images if image.captions)
    repeated = tuple(image.name for image in dataset.images if owners[image.joined] > 1)
    if repeated:
        text = f"{dataset.list_path()}: these images have exactly the same captions as another image"
        yield Finding("note", "repeated caption", text, dataset.block_path, repeated)
