"""Parameters of token selection during generation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SamplingParams:
    """Parameters of greedy decoding and of sampling, as in transformers' GenerationConfig.

    Attributes:
        max_new_tokens: maximum number of new tokens per sequence.
        temperature: 0 selects the most likely token; values above 0 sample.
        top_p: sample only from the most likely tokens whose probabilities add up to this value.
        repetition_penalty: values above 1 make tokens that were already generated less likely.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True)
class SequenceParams:
    """Parameters of one sequence.

    Attributes:
        sampling: parameters of token selection.
        seed: random seed of sampling, so that a sampled answer does not depend on the other sequences.
        keeps_state: whether the last token comes with a copy of the sequence's state.
    """

    sampling: SamplingParams
    seed: int
    keeps_state: bool = False
