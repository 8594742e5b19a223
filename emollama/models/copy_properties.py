"""Properties of a language model that its small random copy shows: the limit of its positions, and the first layer that differs.

Shape letters: T = tokens of a sample, V = size of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

from torch import Tensor

from emollama.models.packing_comparisons import TOLERANCE, padded_logits
from emollama.models.random_copy import RandomCopy, plain_logits, random_model

POSITION_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len")
POSITIONS = 32  # of the copy with which the limit of a table is found


def first_different_layer(copy: RandomCopy) -> str:
    """Return the name and class of the first layer whose output differs for embeddings in place of token ids."""
    plain = _layer_outputs(copy, plain_logits)
    own = _layer_outputs(copy, lambda llm, ids: padded_logits(llm, [ids], batched=False))
    different = (name for name in own if name in plain and not own[name].allclose(plain[name], atol=TOLERANCE))
    return f"first in {next(different, 'no layer alone')}"


def _layer_outputs(copy: RandomCopy, run: Callable[[Any, Tensor], Tensor]) -> dict[str, Tensor]:
    """Return name and class of a numbered module -> its output for the first sample, in the order of the calls."""
    llm, outputs = copy.build("eager"), dict[str, Tensor]()

    def record(module: Any, inputs: Any, output: Any, *, name: str) -> None:
        outputs[f"{name} ({type(module).__name__})"] = output[0] if isinstance(output, tuple) else output

    for name, module in llm.named_modules():
        if name.rpartition(".")[2].isdigit():
            module.register_forward_hook(partial(record, name=name))
    run(llm, copy.samples[0])
    return outputs


def position_table(copy: RandomCopy) -> int | None:
    """Return the number of tokens for which a model has learned or stored positions; None if a longer sample works, too."""
    config = deepcopy(copy.config)
    text = config.get_text_config()
    key = next((key for key in POSITION_KEYS if isinstance(getattr(text, key, None), int)), None)
    if key is None:
        return None
    limit: int = getattr(text, key)
    setattr(text, key, POSITIONS)
    ids = copy.samples[0].repeat(2)[: POSITIONS + 1]
    try:
        model = random_model(config)
        plain_logits(model, ids[:POSITIONS])
    except Exception:
        # The model cannot be built with so few positions.
        return None
    try:
        plain_logits(model, ids)
    except (IndexError, RuntimeError):
        return limit
    return None
