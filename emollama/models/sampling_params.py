"""How the next token is chosen."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen.

    Attributes:
        max_new_tokens: of a sequence.
        temperature: 0 takes the most likely token, above 0 samples.
        top_p: share of probability that sampling draws from.
        repetition_penalty: above 1 makes generated tokens less likely.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
