"""The image tag ``<ImageHere>``, at which the feature tokens of an image are inserted into a text."""

from __future__ import annotations

import re

IMAGE_TAG = "<ImageHere>"
SPELLINGS = re.compile(r"<\s*image\s*here\s*>", re.IGNORECASE)


def check_instruction(instruction: str) -> str:
    """Return the instruction if it contains ``<ImageHere>`` at most once. Without it, the image comes first.

    Raises:
        ValueError: If ``<ImageHere>`` appears more than once, or is misspelled.
    """
    tags = SPELLINGS.findall(instruction)
    if len(tags) > 1 or (tags and tags[0] != IMAGE_TAG):
        raise ValueError(
            f"{instruction!r} must contain {IMAGE_TAG} (with this spelling) once, or not at all to put the image first"
        )
    return instruction
