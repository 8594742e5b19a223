"""Text processors: what happens to an answer before it is tokenized."""

from __future__ import annotations

import re
from collections.abc import Callable

_PUNCTUATION = re.compile(r'[.!"()*#:;~]')
_RUN_OF_SPACE = re.compile(r"\s{2,}")


def blip_caption(text: str, max_words: int) -> str:
    """Lower case, ``. ! " ( ) * # : ; ~`` to spaces, runs of white space to one space, ends stripped, cut to max_words.

    Source: the processor of the same name in LAVIS, with which the published models were trained.
    """
    text = _RUN_OF_SPACE.sub(" ", _PUNCTUATION.sub(" ", text.lower())).strip()
    words = text.split(" ")
    return " ".join(words[:max_words])


def verbatim(text: str, max_words: int) -> str:
    """The text as written, whatever its length."""
    return text


TEXT_PROCESSORS: dict[str, Callable[[str, int], str]] = {"blip_caption": blip_caption, "verbatim": verbatim}
