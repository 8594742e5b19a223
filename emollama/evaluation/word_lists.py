"""Parsing of lists of emotion words, written as one text per sample."""

from __future__ import annotations

import re
from collections.abc import Iterable

_ITEM = re.compile(r"""\s*(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)"|([^,'"\[\]][^,"\[\]]*)?)\s*(?:,|$)""")
_NUMBER = re.compile(r"[-+]?\d+(\.\d*)?\s*")
_SENTENCE = re.compile(r"\w[.!?:;]|[<>\[\]\n]")  # punctuation after a word, tags, brackets
PHRASE = 3  # maximum number of words of an item of a list without brackets
SHOWN = 60  # characters of a text in a message


def parse_words(text: str) -> tuple[str, ...]:
    """Parse ``['happy', "don't care"]``, ``[happy, don't care]`` or ``happy, don't care``; an empty text has no words.

    Returns:
        The words, normalized by :func:`normalized_words`.

    Raises:
        ValueError: If the text has unbalanced brackets or quotes, nested lists, quoted words without a comma between them, or
            numbers.
    """
    text = text.strip()
    inside = text[1:-1] if text.startswith("[") and text.endswith("]") and len(text) > 1 else text
    words, position = [], 0
    while position < len(inside):
        item = _ITEM.match(inside, position)
        if item is None or _NUMBER.fullmatch(item[3] or ""):
            short = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
            raise ValueError(f"expected a list of words such as ['happy', 'sad'] or happy, sad, got {short}")
        words.append(re.sub(r"\\(.)", r"\1", item[1] or item[2] or "") or item[3] or "")
        position = item.end()
    return normalized_words(words)


def is_broken_list(text: str) -> bool:
    """Return whether a text looks like a list but cannot be parsed: it has brackets at both ends, or an unbalanced one."""
    text = text.strip()
    opened, closed = text.startswith("["), text.endswith("]")
    looks_like_list = (opened and (closed or "]" not in text)) or (closed and "[" not in text)
    return looks_like_list and not is_list(text)


def is_plain_list(text: str) -> bool:
    """Return whether a text consists of words or short phrases that are separated by commas, rather than of a sentence."""
    items = text.split(",")
    # "sad and tired" without a comma is not a list.
    longest = PHRASE if len(items) > 1 else PHRASE - 1
    return not _SENTENCE.search(text) and all(len(item.split()) <= longest for item in items)


def is_label(text: str) -> bool:
    """Return whether a text is a single word or a short phrase."""
    return bool(text.strip()) and "," not in text and ";" not in text and is_plain_list(text)


def is_list(text: str) -> bool:
    """Return whether :func:`parse_words` can parse the text."""
    try:
        parse_words(text)
    except ValueError:
        return False
    return True


def split_words(text: str) -> tuple[str, ...]:
    """Split any text as the scorers of MERTools do: remove one bracket at each end, then split at quotes and commas."""
    return normalized_words(re.split("['\",]", text.strip().removeprefix("[").removesuffix("]")))


def published_words(text: str) -> tuple[str, ...]:
    """Return the words of a list in brackets as the scorer of MER2024-OV reads it: split at quotes only, in lower case.

    ``[glad, sad]`` is one word, and white space inside the quotes is a part of the word.
    """
    inside = re.split(r"[\[\]]", text)[1] if "[" in text else ""
    return tuple(item.lower() for item in split_at_quotes(inside))


def split_at_quotes(text: str) -> list[str]:
    """Split a text at quotes, and leave out white space and commas between two words."""
    return [item for item in re.split("['\"]", text) if item.strip() not in ("", ",")]


def normalized_words(words: Iterable[str]) -> tuple[str, ...]:
    """Return the words in order, in lower case and stripped, without empty words and duplicates."""
    return tuple(dict.fromkeys(normal for word in words if (normal := word.lower().strip())))
