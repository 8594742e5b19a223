"""Strict reading of a language model's reply. Whatever is not plainly a score or a list of words is a failure with its reason.

A score is the whole of a reply, ``8``, ``10/10``, ``7.5 of 10``, ``7.5 out of 10``, each also as ``Score: 8``; or the last line
of a longer one, there with the word, and only where no other line is a score with that word. So a score that a reply repeats from
a text it judges is not taken for the judge's own. What a model thinks in a leading ``<think>...</think>`` is not its reply.
"""

from __future__ import annotations

import json
import re

MOST = 10.0
_LONG = 80  # characters; no line of a score has so many
_NUMBER = r"-?[0-9]+(?:\.[0-9]+)?"
_MARKS = "[*_`]*"  # bold, italics, code
_LABEL = rf"(?:(?:[-*+]|#+)\s+)?{_MARKS}(?:final\s+)?score{_MARKS}\s*:\s*{_MARKS}\s*"
_SCORE = re.compile(rf"({_LABEL})?{_MARKS}({_NUMBER})(?:\s*(?:/|of|out of)\s*({_NUMBER}))?\.?{_MARKS}\.?", re.IGNORECASE)
_THINK, _END = "<think>", "</think>"


class Unreadable(ValueError):
    """A reply that does not say what was asked; the text tells why."""


def read_score(reply: str) -> float:
    """The score in a reply, 0 to 10.

    Raises:
        Unreadable: there is none, several, or one outside the scale.
    """
    lines = _lines(reply)
    found = [match for line in lines if len(line) < _LONG and (match := _SCORE.fullmatch(line)) and (match[1] or len(lines) == 1)]
    if len(found) > 1:
        raise Unreadable(f"{len(found)} lines of the reply are scores: {', '.join(match[0] for match in found)}")
    if not found or found[0][0] != lines[-1]:
        raise Unreadable(f"the reply does not end with a line 'Score: N': {excerpt(reply)}")
    score, most = float(found[0][2]), float(found[0][3] or MOST)
    if most != MOST or not 0 <= score <= MOST:
        raise Unreadable(f"'{found[0][0]}' is not a score from 0 to 10")
    return score


def read_words(reply: str) -> tuple[str, ...]:
    """The words in a reply, lower case, each once: its last line, or the whole of it, is a JSON list of strings.

    Raises:
        Unreadable: it is not, or another line is such a list too.
    """
    lines = [line for line in _lines(reply) if not line.startswith("```")]
    lists = [found for line in lines if (found := _strings(line)) is not None]
    words = _strings("\n".join(lines))
    if words is None:
        if len(lists) > 1:
            raise Unreadable(f"{len(lists)} lines of the reply are lists of words")
        words = _strings(lines[-1]) if lines else None
    if words is None:
        raise Unreadable(f"the reply does not end with a JSON list of words: {excerpt(reply)}")
    return tuple(dict.fromkeys(word for word in (word.strip().lower() for word in words) if word))


def excerpt(text: str, length: int = 80) -> str:
    """The beginning of a text on one line, in quotes."""
    line = " ".join(text.split())
    return f"'{line[:length]}...'" if len(line) > length else f"'{line}'"


def _lines(reply: str) -> list[str]:
    """The lines that are not empty, without what was thought before them."""
    reply = reply.strip()
    if reply.startswith(_THINK):
        _, end, reply = reply.partition(_END)
        if not end:
            raise Unreadable(f"the reply does not get beyond {_THINK}")
    return [line for line in map(str.strip, reply.splitlines()) if line]


def _strings(text: str) -> list[str] | None:
    """The strings of a JSON list; None where it is anything else."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, list) and all(isinstance(item, str) for item in found) else None
