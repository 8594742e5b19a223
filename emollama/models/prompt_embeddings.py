"""The input of the language model for prompts, in place of their ids."""

from __future__ import annotations

import torch
from torch import Tensor

from emollama.data.batch import Batch
from emollama.models.packed_llm import PackedLLM


@torch.inference_mode()
def prompt_embeddings(model: PackedLLM, batch: Batch) -> list[Tensor]:
    """Return the input embeddings of each of B prompts, (T, H) in the dtype of the language model.

    Args:
        model: a model, of whose language model only the embedding table is used.
        batch: B prompts without answers.
    """
    return list(model._embed(batch).split(list(batch.lengths)))
