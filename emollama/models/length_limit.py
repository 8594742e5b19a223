"""The number of tokens of a sequence that a language model can process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from emollama.errors import UserError
from emollama.models import llm

if TYPE_CHECKING:
    from emollama.models.packing_check import Packing


@dataclass(frozen=True)
class LengthLimit:
    """The number of tokens of a sequence that a language model can process, and why."""

    tokens: int
    reason: str

    def require_keys(self, cfg: Any, feature_tokens: int) -> None:
        """Check the largest numbers of tokens of the ``model`` block, given the number of feature tokens of a sample.

        Raises:
            UserError: If a sequence can be longer.
        """
        others = 1 + feature_tokens  # 1 for the BOS token
        longest = cfg.max_context_len + cfg.max_txt_len + others
        if longest > self.tokens:
            raise UserError(
                f"model.max_context_len {cfg.max_context_len} + model.max_txt_len {cfg.max_txt_len} + {others} feature tokens and"
                f" BOS exceed {self.tokens} tokens, but {self.reason}. Decrease model.max_context_len or model.max_txt_len by"
                f" {longest - self.tokens}."
            )

    def require(self, tokens: int) -> None:
        """Check the number of tokens of the longest sequence, which generation or features of any length can increase.

        Raises:
            UserError: If it is longer.
        """
        if tokens > self.tokens:
            raise UserError(
                f"a sequence has {tokens} tokens, but {self.reason}. Decrease model.max_context_len, model.max_txt_len,"
                " max_new_tokens of the evaluation, or the length of the features."
            )


def length_limit(packing: Packing, config: Any) -> LengthLimit | None:
    """Return the smallest limit of a language model; None if it has none.

    Args:
        packing: how the language model is run.
        config: the configuration of the language model, an object of transformers.
    """
    limits = []
    if packing.max_tokens is not None:
        limits.append(LengthLimit(packing.max_tokens, f"'{config.model_type}' has positions for {packing.max_tokens} tokens"))
    if (switch := llm.position_limit(config)) is not None:
        text = f"above {switch}, '{config.model_type}' encodes the positions of a whole micro-batch differently"
        limits.append(LengthLimit(switch, text))
    return min(limits, key=lambda limit: limit.tokens, default=None)
