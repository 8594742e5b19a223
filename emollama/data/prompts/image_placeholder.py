"""``<ImageHere>``, the mark in a text at which the feature tokens of an image are inserted."""

from __future__ import annotations

import re

MARK = "<ImageHere>"
SPELLINGS = re.compile(r"<\s*image\s*here\s*>", re.IGNORECASE)


def check_instruction(instruction: str) -> str:
    """Return the instruction if it contains ``<ImageHere>`` at most once. Without the mark, the image comes first.

    Raises:
        ValueError: ``<ImageHere>`` appears more than once, or is misspelled.
    """
    marks = SPELLINGS.findall(instruction)
    if len(marks) > 1 or (marks and marks[0] != MARK):
        raise ValueError(f"{instruction!r} must contain {MARK} (with this spelling) once, or not at all to put the image first")
    return instruction
