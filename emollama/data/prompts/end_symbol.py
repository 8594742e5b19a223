"""The end symbol of answers: whether it is the EOS token, and whether it can be recognized in generated ids."""

from __future__ import annotations

from typing import Any

from emollama.data.prompts.segments import SegmentTokenizer
from emollama.errors import UserError


def eos_after(end_sym: str, texts: SegmentTokenizer, tokenizer: Any) -> list[int]:
    """Return the id of the EOS token, which follows the end symbol in training.

    Args:
        end_sym: the end symbol.
        texts: tokenizes the end symbol.
        tokenizer: a Hugging Face tokenizer.

    Raises:
        UserError: If there is no EOS token, or the end symbol already ends with it.
    """
    eos = tokenizer.eos_token_id
    if eos is None:
        raise UserError("eos: the tokenizer of the language model has no EOS token. Set eos: False.")
    ids = _ids(end_sym, texts)
    if ids[-1:] == [eos]:
        what = "is already" if len(ids) == 1 else "already ends with"
        raise UserError(f"eos: model.end_sym {end_sym!r} {what} the EOS token. Set eos: False.")
    return [eos]


def require_recognizable(end_sym: str, texts: SegmentTokenizer, tokenizer: Any) -> None:
    """Check that the ids of an answer contain the end symbol after decoding, so that generation can stop there.

    Args:
        end_sym: the end symbol, which no EOS token follows.
        texts: tokenizes the end symbol.
        tokenizer: a Hugging Face tokenizer.

    Raises:
        UserError: If they do not.
    """
    ids = _ids(f"a{end_sym}", texts)
    decoded = str(tokenizer.decode(ids))
    if ids[-1:] != [tokenizer.eos_token_id] and end_sym not in decoded:
        eos = tokenizer.eos_token
        remedy = f"the tokenizer's EOS token {eos!r}" if eos else "a token of the tokenizer"
        raise UserError(
            f"model.end_sym: the tokenizer turns {end_sym!r} into ids that mean {decoded.removeprefix('a')!r}, so the end of a"
            f" generated answer could not be recognized. Use another end symbol, such as {remedy}."
        )


def _ids(text: str, texts: SegmentTokenizer) -> list[int]:
    try:
        return texts.ids(text)
    except UserError as error:
        raise UserError(f"model.end_sym: {error}") from None
