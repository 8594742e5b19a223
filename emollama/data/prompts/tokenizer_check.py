"""Checks that a tokenizer belongs to its language model, and warnings about combinations that work but are probably mistakes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from emollama.errors import UserError

SAMPLE_TEXT = "She says: I'm happy, and smiles twice (2)."
REMEDY = "Put the tokenizer files that belong to the model into its folder"
# Rows without a token that are usual: real tables are padded, for example to a multiple of 128.
PADDING_ROWS, PADDING_SHARE = 1000, 0.1
SPECIAL = re.compile(r"<\|[^<>]*\|>|<[^<>\s]+>")


@dataclass(frozen=True)
class LLMVocabulary:
    """What the files of a language model, other than those of its tokenizer, say about its tokens.

    Attributes:
        folder: the folder of the language model.
        rows: number of rows of the embedding table.
        bos_ids, eos_ids: ids of BOS and EOS tokens in config.json.
        generation_eos_ids: ids of EOS tokens in generation_config.json.
    """

    folder: str
    rows: int
    bos_ids: tuple[int, ...] = ()
    eos_ids: tuple[int, ...] = ()
    generation_eos_ids: tuple[int, ...] = ()


def require_same_model(tokenizer: Any, vocabulary: LLMVocabulary) -> None:
    """Check that the ids of a tokenizer are rows of the embedding table, and that it has the tokens that config.json names.

    Added tokens may have larger ids, because texts of users never become such tokens; prompt formats check their own texts.

    Args:
        tokenizer: a Hugging Face tokenizer.
        vocabulary: what the other files of the model say.

    Raises:
        UserError: If the tokenizer is that of another model.
    """
    tokens, added = tokenizer.get_vocab(), tokenizer.get_added_vocab()
    largest = max((token for text, token in tokens.items() if text not in added), default=0)
    prefix = f"model.llama_model: the tokenizer in '{vocabulary.folder}' is that of another model:"
    if largest >= vocabulary.rows:
        raise UserError(
            f"{prefix} its tokens have ids up to {largest}, but the embedding table of the language model has"
            f" {vocabulary.rows} rows (vocab_size in config.json). {REMEDY}."
        )
    end = max(tokens.values(), default=0)
    for key, ids in (("bos_token_id", vocabulary.bos_ids), ("eos_token_id", vocabulary.eos_ids)):
        if missing := [token for token in ids if token > end]:
            raise UserError(
                f"{prefix} {key} in config.json is {missing[0]}, but the ids of the tokenizer end at {end}. {REMEDY}, or"
                f" correct {key}."
            )


def outside(text: str, token: int, rows: int) -> str:
    """Return the beginning of a message about a token that has no row in the embedding table."""
    return f"the token {text!r} has the id {token}, but the embedding table of the language model has only {rows} rows"


def warnings(tokenizer: Any, vocabulary: LLMVocabulary, end_sym: str) -> list[str]:
    """Return a line for each combination of tokenizer, language model and end symbol that is probably a mistake.

    Args:
        tokenizer: a Hugging Face tokenizer.
        vocabulary: what the other files of the model say.
        end_sym: the value of ``model.end_sym``.
    """
    return [
        *_round_trip(tokenizer, vocabulary),
        *_table(tokenizer, vocabulary),
        *_eos(tokenizer, vocabulary),
        *_end_symbol(tokenizer, end_sym),
    ]


def _round_trip(tokenizer: Any, vocabulary: LLMVocabulary) -> Iterator[str]:
    decoded = str(tokenizer.decode(tokenizer(SAMPLE_TEXT, add_special_tokens=False).input_ids))
    if decoded.strip() != SAMPLE_TEXT:
        yield (
            f"model.llama_model: the tokenizer in '{vocabulary.folder}' ({type(tokenizer).__name__}) loses text: {SAMPLE_TEXT!r}"
            f" becomes {decoded!r}. Check that its files and tokenizer_class in tokenizer_config.json belong to the model."
        )


def _table(tokenizer: Any, vocabulary: LLMVocabulary) -> Iterator[str]:
    tokens = max(tokenizer.get_vocab().values(), default=0) + 1
    unused = vocabulary.rows - tokens
    if unused > PADDING_ROWS and unused > PADDING_SHARE * tokens:
        yield (
            f"model.llama_model: the tokenizer in '{vocabulary.folder}' has {tokens} tokens, but the embedding table of the"
            f" language model has {vocabulary.rows} rows. It may be the tokenizer of another model. {REMEDY}."
        )


def _eos(tokenizer: Any, vocabulary: LLMVocabulary) -> Iterator[str]:
    of_model = list(dict.fromkeys([*vocabulary.eos_ids, *vocabulary.generation_eos_ids]))
    eos = tokenizer.eos_token_id
    if of_model and eos is not None and eos not in of_model:
        texts = tokenizer.convert_ids_to_tokens(of_model)
        names = ", ".join(f"{token} ({text!r})" if text else str(token) for token, text in zip(of_model, texts, strict=True))
        yield (
            f"model.llama_model: the EOS token of the tokenizer in '{vocabulary.folder}' is {eos} ({tokenizer.eos_token!r}), but"
            f" config.json and generation_config.json have {names}. It may be the tokenizer of another model. {REMEDY}, or"
            " correct eos_token in tokenizer_config.json."
        )


def _end_symbol(tokenizer: Any, end_sym: str) -> Iterator[str]:
    if not SPECIAL.fullmatch(end_sym.strip()):
        return
    ids = tokenizer(end_sym, add_special_tokens=False).input_ids
    if len(ids) == 1 and (ids[0] != tokenizer.unk_token_id or end_sym == tokenizer.unk_token):
        return
    eos = tokenizer.eos_token
    remedy = f"Set model.end_sym: {eos!r}, its EOS token" if eos else "Use a token of the tokenizer"
    yield (
        f"model.end_sym: {end_sym!r} looks like a special token, but the tokenizer has no such token and splits it into"
        f" {len(ids)}. {remedy}, unless a checkpoint was trained with {end_sym!r}."
    )
