"""Strict parsing of a language model's reply: anything but an unambiguous score or list of words is a failure with a reason.

A score is the whole reply, ``8``, ``10/10``, ``7.5 of 10``, ``7.5 out of 10``, each also as ``Score: 8``; or the last line of a
longer reply in the form ``Score: 8``, if no other line has that form. A score that the reply quotes from the judged text is
therefore not mistaken for the judge's own. A leading ``<think>...</think>`` is not part of the reply.
"""

from __future__ import annotations

import re

from emollama.json_io import parse_json

MAX_SCORE = 10.0
_MAX_SCORE_LINE = 80  # characters; longer lines are not scores
_NUMBER = r"-?[0-9]+(?:\.[0-9]+)?"
_MARKS = "[*_`]*"  # bold, italics, code
_LABEL = rf"(?:(?:[-*+]|#+)\s+)?{_MARKS}(?:final\s+)?score{_MARKS}\s*:\s*{_MARKS}\s*"
_SCORE = re.compile(rf"({_LABEL})?{_MARKS}({_NUMBER})(?:\s*(?:/|of|out of)\s*({_NUMBER}))?\.?{_MARKS}\.?", re.IGNORECASE)
_THINK, _END = "<think>", "</think>"


class Unreadable(ValueError):
    """The reply does not contain what was asked for; the message states the reason."""


def read_score(reply: str) -> float:
    """Return the score in a reply, 0 to 10.

    Raises:
        Unreadable: If the reply contains no score, several, or one outside the scale.
    """
    lines = _lines(reply)
    scores = [
        match
        for line in lines
        if len(line) < _MAX_SCORE_LINE and (match := _SCORE.fullmatch(line)) and (match[1] or len(lines) == 1)
    ]
    if len(scores) > 1:
        raise Unreadable(f"{len(scores)} lines of the reply are scores: {', '.join(match[0] for match in scores)}")
    if not scores or scores[0][0] != lines[-1]:
        raise Unreadable(f"the reply does not end with a line 'Score: N': {excerpt(reply)}")
    score, maximum = float(scores[0][2]), float(scores[0][3] or MAX_SCORE)
    if maximum != MAX_SCORE or not 0 <= score <= MAX_SCORE:
        raise Unreadable(f"'{scores[0][0]}' is not a score from 0 to 10")
    return score


def read_words(reply: str) -> tuple[str, ...]:
    """Return the distinct words in a reply, in lower case. The last line, or the whole reply, must be a JSON list of strings.

    Raises:
        Unreadable: If neither is such a list, or several lines are.
    """
    lines = [line for line in _lines(reply) if not line.startswith("```")]
    lists = [strings for line in lines if (strings := _strings(line)) is not None]
    words = _strings("\n".join(lines))
    if words is None:
        if len(lists) > 1:
            raise Unreadable(f"{len(lists)} lines of the reply are lists of words")
        words = _strings(lines[-1]) if lines else None
    if words is None:
        raise Unreadable(f"the reply does not end with a JSON list of words: {excerpt(reply)}")
    return tuple(dict.fromkeys(word for word in (word.strip().lower() for word in words) if word))


def excerpt(text: str, length: int = 80) -> str:
    """Return the beginning of a text on one line, in quotes."""
    line = " ".join(text.split())
    return f"'{line[:length]}...'" if len(line) > length else f"'{line}'"


def _lines(reply: str) -> list[str]:
    """Return the non-empty lines, without a leading ``<think>...</think>``."""
    reply = reply.strip()
    if reply.startswith(_THINK):
        _, end, reply = reply.partition(_END)
        if not end:
            raise Unreadable(f"the reply has no {_END} after {_THINK}")
    return [line for line in map(str.strip, reply.splitlines()) if line]


def _strings(text: str) -> list[str] | None:
    """Return the strings of a JSON list; None for any other text."""
    try:
        value = parse_json(text)
    except ValueError:
        return None
    return value if isinstance(value, list) and all(isinstance(item, str) for item in value) else None
