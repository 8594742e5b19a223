"""Text processors, which change an answer before it is tokenized."""

from __future__ import annotations

import re
from collections.abc import Callable

_PUNCTUATION = re.compile(r'[.!"()*#:;~]')
_RUN_OF_SPACE = re.compile(r"\s{2,}")


def blip_caption(text: str, max_words: int) -> str:
    """Convert to lower case, replace ``. ! " ( ) * # : ; ~`` and repeated white space by one space, strip, cut to max_words.

    This is the processor of the same name in LAVIS, with which the published models were trained.
    """
    text = _RUN_OF_SPACE.sub(" ", _PUNCTUATION.sub(" ", text.lower())).strip()
    words = text.split(" ")
    return " ".join(words[:max_words])


def verbatim(text: str, max_words: int) -> str:
    """Return the text unchanged. ``max_words`` has no effect."""
    return text


TEXT_PROCESSORS: dict[str, Callable[[str, int], str]] = {"blip_caption": blip_caption, "verbatim": verbatim}
