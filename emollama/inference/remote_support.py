"""What a language model in a vLLM server cannot do, checked before anything is loaded."""

from __future__ import annotations

from emollama.config import RunConfig
from emollama.errors import UserError
from emollama.inference.prediction_block import prediction_blocks
from emollama.models.packed_llm import PackedLLM
from emollama.runners.model_ckpt import is_ensemble

KEY = "--engine-url"
NO_LIKELIHOODS = (
    f"label probabilities are not available with {KEY}: vLLM returns no log-probabilities of given tokens after prompt embeddings"
    " (it refuses echo and prompt_logprobs)."
)
NO_BEAM_SEARCH = f"beam search is not available with {KEY}."


def require_supported(config: RunConfig) -> None:
    """Check that a language model in a server can answer with the settings of a configuration.

    Raises:
        UserError: If it cannot. The message names the key.
    """
    if is_ensemble(config.model):
        raise UserError(f"model.ckpt: {KEY} does not support an ensemble. Set model.ensemble: weights, or one checkpoint.")
    if not issubclass(config.model_class, PackedLLM):
        raise UserError(f"model.arch: {KEY} supports only models that are derived from PackedLLM.")
    for block in prediction_blocks(config):
        if block.block.task.answer_by == "likelihood":
            raise UserError(f"{block.key}.answer_by: {NO_LIKELIHOODS} Set it to generate.")
        if block.block.task.num_beams > 1:
            raise UserError(f"{block.key}.num_beams: {NO_BEAM_SEARCH} Set it to 1.")
