"""``<ImageHere>``: the mark in a text where the rows of an image go."""

from __future__ import annotations

import re

MARK = "<ImageHere>"
MISSPELT = re.compile(r"<\s*image\s*here\s*>", re.IGNORECASE)


def checked(instruction: str) -> str:
    """The instruction, if the image has one place in it or none (then it goes first).

    Raises:
        ValueError: ``<ImageHere>`` stands in it more than once, or is misspelt.
    """
    marks = MISSPELT.findall(instruction)
    if len(marks) > 1 or (marks and marks[0] != MARK):
        raise ValueError(f"{instruction!r} must hold {MARK}, spelt so, once; or not at all, and the image goes first")
    return instruction
