"""Keys of the registered tasks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from emollama.data.prompts.prompt_style import PromptLayout
from emollama.errors import require_at_least
from emollama.models.sampling_params import SamplingParams


@dataclass
class ImageTextPretrainConfig:
    """Keys of a block under ``evaluation_datasets`` beside the dataset's own: how clips are asked and answers found."""

    answer_by: Literal["generate", "likelihood"] = "generate"
    """How the task emotion is answered. generate: in the model's own words. likelihood: the most probable of labels. Other
    tasks always generate."""
    max_new_tokens: int = 500
    """Tokens of an answer at most."""
    num_beams: int = 1
    """Beams of the search; 1 searches greedily."""
    temperature: float = 0.0
    """0 takes the most likely token; above 0 samples, the same for the same run.seed."""
    top_p: float = 1.0
    """Share of probability that sampling draws from; needs a temperature above 0."""
    repetition_penalty: float = 1.0
    """Above 1 makes tokens that were generated before less likely."""
    prompt_layout: PromptLayout = "train"
    """train: as in training. upstream_eval: as the released checkpoints were evaluated (no loss is given then)."""
    instruction: str = "first"
    """first: the first instruction of each task. Anything else is itself the instruction; {labels} in it is replaced."""
    aliases: dict[str, str] = field(default_factory=dict)
    """Word in an answer -> label that it stands for, such as {joyful: happy}; so labels of another set are carried over. With
    answer_by: likelihood the probabilities of a label and of its words add up."""
    mask_slots: list[str] = field(default_factory=list)
    """Slots whose rows are replaced by zeros, to see what they contribute: image, cls, face, video, audio."""

    def __post_init__(self) -> None:
        require_at_least(1, self, "max_new_tokens", "num_beams")
        if self.temperature < 0 or self.repetition_penalty <= 0 or not 0 < self.top_p <= 1:
            raise ValueError("temperature must be at least 0, repetition_penalty above 0, top_p above 0 and at most 1")
        if self.top_p < 1 and self.temperature == 0:
            raise ValueError("top_p has no effect at temperature 0. Set a temperature above 0, or leave top_p out.")
        if self.num_beams > 1 and self.temperature > 0:
            raise ValueError("num_beams and temperature are both above what searches greedily. Set one of them only.")

    def choice(self) -> SamplingParams:
        """How tokens are chosen, without beams."""
        return SamplingParams(self.max_new_tokens, self.temperature, self.top_p, self.repetition_penalty)

    def beams(self) -> dict[str, Any]:
        """Keyword arguments for transformers' ``generate``."""
        return {
            "max_new_tokens": self.max_new_tokens,
            "num_beams": self.num_beams,
            "repetition_penalty": self.repetition_penalty,
            "do_sample": False,
            **dict.fromkeys(("temperature", "top_p", "top_k")),
        }
