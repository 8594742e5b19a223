"""The tag ``<ImageHere>``, at which an output such as the feature tokens of an image is inserted into a user text."""

from __future__ import annotations

import re

from emollama.config.packaged import find_shipped
from emollama.errors import UserError
from emollama.paths import read_text

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


def read_prompts(path: str, key: str) -> list[str]:
    """Read a file of prompts with one prompt per line; blank lines are skipped.

    Args:
        path: UTF-8 text.
        key: the configuration key that named the file, for messages.

    Raises:
        UserError: If the file does not exist or has no prompt, or :func:`check_instruction` rejects a line.
    """
    prompts = []
    for line_number, line in enumerate(read_text(find_shipped(path, key)).splitlines(), 1):
        try:
            prompts += [check_instruction(line)] if line.strip() else []
        except ValueError as error:
            raise UserError(f"{key}: '{path}', line {line_number}: {error}") from None
    if not prompts:
        raise UserError(
            f"{key}: '{path}' contains no prompt. Expected lines such as <Img>{IMAGE_TAG}</Img> Describe this picture."
        )
    return prompts
