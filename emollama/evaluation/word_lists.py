"""Lists of emotion words, as one text a clip."""

from __future__ import annotations

import re
from collections.abc import Iterable

_ITEM = re.compile(r"""\s*(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)"|([^,'"\[\]][^,"\[\]]*)?)\s*(?:,|$)""")
_NUMBER = re.compile(r"[-+]?\d+(\.\d*)?\s*")
SHOWN = 60  # characters of a text in a message


def parse_words(text: str) -> tuple[str, ...]:
    """The words of ``['happy', "don't care"]``, of ``[happy, don't care]`` or of ``happy, don't care``; none of an empty text.

    Returns:
        :func:`plain_words` of them.

    Raises:
        ValueError: brackets or quotes without their partner, a list in a list, quoted words without a comma between them,
            numbers.
    """
    text = text.strip()
    inside = text[1:-1] if text.startswith("[") and text.endswith("]") and len(text) > 1 else text
    words, place = [], 0
    while place < len(inside):
        item = _ITEM.match(inside, place)
        if item is None or _NUMBER.fullmatch(item[3] or ""):
            short = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
            raise ValueError(f"not a list of words: {short}  (a list is ['happy', 'sad'], or happy, sad)")
        words.append(re.sub(r"\\(.)", r"\1", item[1] or item[2] or "") or item[3] or "")
        place = item.end()
    return plain_words(words)


def is_broken_list(text: str) -> bool:
    """Whether a text is no list that looks like one: brackets at both ends, or one at an end without a partner."""
    text = text.strip()
    opened, closed = text.startswith("["), text.endswith("]")
    meant = (opened and (closed or "]" not in text)) or (closed and "[" not in text)
    return meant and not is_list(text)


def is_list(text: str) -> bool:
    """Whether :func:`parse_words` reads it."""
    try:
        parse_words(text)
    except ValueError:
        return False
    return True


def split_words(text: str) -> tuple[str, ...]:
    """The words of any text, as the scorers of MERTools take a list apart: one bracket off each end, cut at quotes and commas."""
    return plain_words(re.split("['\",]", text.strip().removeprefix("[").removesuffix("]")))


def plain_words(words: Iterable[str]) -> tuple[str, ...]:
    """The words in lower case, without space at their ends, empty ones and repetition; in order."""
    return tuple(dict.fromkeys(plain for word in words if (plain := word.lower().strip())))
