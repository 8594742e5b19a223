"""Keys of the registered tasks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from emollama.data.prompts.configs import TRAIN
from emollama.decoding.sampling_params import SamplingParams
from emollama.errors import require_at_least
from emollama.field_texts import documented


@documented
@dataclass
class ImageTextPretrainConfig:
    """Keys of a block under ``evaluation_datasets`` that define how samples are answered, in addition to the dataset's keys."""

    answer_by: Literal["generate", "likelihood"] = "generate"
    """How the task emotion is answered. generate: with generated text. likelihood: with the most probable of the labels.
    Other tasks always generate text."""
    max_new_tokens: int = 500
    """Maximum number of tokens of an answer."""
    num_beams: int = 1
    """Number of beams of the beam search; 1 decodes greedily."""
    temperature: float = 0.0
    """0 decodes greedily; values above 0 sample. Answers are reproducible with the same run.seed."""
    top_p: float = 1.0
    """Sample only from the most likely tokens whose probabilities add up to this value. It needs a temperature above 0."""
    repetition_penalty: float = 1.0
    """Values above 1 make tokens that were already generated less likely."""
    prompt_layout: str = TRAIN
    """Layout of the prompt format. train: the layout of training. Other layouts are for evaluation only, and no loss is computed
    with them: upstream_eval is the layout in which the released Emotion-LLaMA checkpoints were evaluated; the layouts of your own
    prompt format are those of model.prompt_format.layouts."""
    instruction: str = "first"
    """first: the first instruction of each task. Any other text is the instruction itself; {labels} in it is replaced."""
    aliases: dict[str, str] = field(default_factory=dict)
    """Words in answers and the labels that they stand for, such as {joyful: happy}, for example labels of another dataset.
    With answer_by: likelihood, the probabilities of a label and of its aliases are added."""
    mask_slots: list[str] = field(default_factory=list)
    """Slots whose features are replaced by zeros, to measure their contribution: image, cls, face, video, audio, or
    further slots of the model."""

    def __post_init__(self) -> None:
        require_at_least(1, self, "max_new_tokens", "num_beams")
        if not 0 <= self.temperature < math.inf or not self.repetition_penalty > 0 or not 0 < self.top_p <= 1:
            raise ValueError("temperature must be at least 0 and finite, repetition_penalty above 0, top_p above 0 and at most 1")
        # Beyond these values, scores overflow.
        if 0 < self.temperature < 1e-3 or not 1e-2 <= self.repetition_penalty <= 100:
            raise ValueError("temperature must be 0 or at least 0.001, and repetition_penalty between 0.01 and 100")
        if self.top_p < 1 and self.temperature == 0:
            raise ValueError("top_p has no effect at temperature 0. Set a temperature above 0, or remove top_p.")
        if self.num_beams > 1 and self.temperature > 0:
            raise ValueError("beam search (num_beams) and sampling (temperature) cannot be combined. Set only one of them.")

    def sampling_params(self) -> SamplingParams:
        """Return the parameters of token selection without beam search."""
        return SamplingParams(self.max_new_tokens, self.temperature, self.top_p, self.repetition_penalty)

    def beam_search_options(self) -> dict[str, Any]:
        """Return keyword arguments for transformers' ``generate``."""
        return {
            "max_new_tokens": self.max_new_tokens,
            "num_beams": self.num_beams,
            "repetition_penalty": self.repetition_penalty,
            "do_sample": False,
            # Unset the sampling parameters that a model's generation_config.json may contain.
            **dict.fromkeys(("temperature", "top_p", "top_k")),
        }
