"""Comparisons of a small random copy of a language model with plain transformers.

Plain transformers runs each sample alone, from token ids, with its eager attention. Each comparison returns a text about the
difference, or "" if there is none.

Shape letters: T = tokens of all samples, V = size of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from emollama.data.batch import SharedPrompts
from emollama.decoding_state import DecodingState, left_padding_mask
from emollama.models import attention, dropout
from emollama.models.kv_cache import empty_cache, left_padded_state, unpacked_state
from emollama.models.padded import Positions, accepted, decode, logits_at, prefill_sequences, prefix_state
from emollama.models.random_copy import RandomCopy, plain_logits

TOLERANCE = 1e-4  # largest difference of a token's log-probability in float32
NOISE = 4  # in another precision: the typical error may be this multiple of that of plain transformers
DECODED = 2  # tokens at the end of each sample that are decoded after a prefill of the others
DECODED_IN_PRECISION = 8  # the same in another precision, where a median needs more tokens

BEAMS, BEAM_TOKENS = 3, 6  # of the beam search of the comparison

Forward = Callable[[Any, Sequence[Tensor]], Tensor]  # (model, samples) -> logits (T, V)


def packed_logits(llm: Any, samples: Sequence[Tensor], shared_tokens: Sequence[int] = (), **options: Any) -> Tensor:
    """Return the logits (T, V) of samples in one row, which the model receives like a micro-batch in training.

    ``shared_tokens`` are those of each sample that an earlier one has; see :class:`~emollama.data.batch.SharedPrompts`.
    """
    lengths = [len(ids) for ids in samples]
    starts = list(shared_tokens) or [0] * len(samples)
    ends = [start + length for start, length in zip(starts, lengths, strict=True)]
    ids, shared = torch.cat(list(samples)), SharedPrompts.of(starts, lengths)
    embeddings = llm.get_input_embeddings()(ids).unsqueeze(0)
    logits: Tensor = llm(
        inputs_embeds=embeddings,
        attention_mask=attention.unused_mask(embeddings),
        position_ids=torch.cat(list(map(torch.arange, starts, ends))).to(ids.device).unsqueeze(0),
        cu_seqlens=torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=ids.device),
        max_length=max(ends),
        lengths=lengths,
        shared=None if shared is None else shared.mapped(lambda tensor: tensor.to(ids.device)),
        **({"use_cache": False, "logits_to_keep": torch.arange(len(ids), device=ids.device)} | options),
    ).logits[0]
    return logits


def padded_logits(llm: Any, samples: Sequence[Tensor], *, batched: bool) -> Tensor:
    """Return the logits (T, V) of samples in padded rows, or of one sample after the other."""
    positions = Positions.of([range(len(ids)) for ids in samples], samples[0].device)
    sequences = [llm.get_input_embeddings()(ids) for ids in samples]
    return logits_at(llm, sequences, positions, batched=batched)


def causality(copy: RandomCopy) -> str:
    """Compare the logits of a sample with those of its beginnings."""
    ids, expected = copy.samples[0], copy.expected[0]
    for length in (len(ids) - DECODED, len(ids) // 2, len(ids) // 4):
        what = "it is not causal: with later tokens, the log-probability of a token"
        if problem := difference(plain_logits(copy.llm, ids[:length]), expected[:length], what):
            return problem
    return ""


def feature_tokens(copy: RandomCopy) -> str:
    """Run embeddings that are those of no token. Models with inputs for each layer look up the token of an embedding."""
    llm = copy.llm
    embeddings = llm.get_input_embeddings()(copy.samples[0])[None]
    logits = llm(inputs_embeds=embeddings + torch.randn_like(embeddings), **accepted(llm, use_cache=False)).logits
    return "" if bool(logits.isfinite().all()) else "the logits are not finite"


def packed(copy: RandomCopy) -> str:
    """Compare one sample alone, two packed samples, and decoding after a packed prefill."""
    with attention.recorded_calls() as calls:
        model = copy.build(attention.RECORDED)
        alone = packed_logits(model, copy.samples[:1])
    without = sorted({name for name, has_boundaries in calls if not has_boundaries})
    if without or not calls:
        layers = f"the attention layers {', '.join(without)} do not receive" if without else "no attention layer receives"
        return f"{layers} the boundaries of packed samples"
    if problem := difference(alone, copy.expected[0], "for a single sample, the log-probability of a token"):
        return problem
    together = packed_logits(model, copy.samples)
    if leak := difference(together, torch.cat(copy.expected), "next to another sample, the log-probability of a token"):
        return leak
    return _decoding(model, partial(packed_prefill, model), copy)


def packed_prefill(llm: Any, prompts: Sequence[Tensor]) -> DecodingState:
    """Return the state of prompts that were processed in one row."""
    cache = empty_cache()
    packed_logits(llm, prompts, past_key_values=cache, use_cache=True)
    return unpacked_state(cache, [len(ids) for ids in prompts])


def padded(copy: RandomCopy, implementation: str, *, batched: bool) -> str:
    """Compare two padded samples, and decoding without a cache."""
    model = copy.build(implementation)
    logits = padded_logits(model, copy.samples, batched=batched)
    problem = difference(logits, torch.cat(copy.expected), "the log-probability of a token")
    if problem:
        return problem
    state = prefix_state(_prompts(model, copy.samples), batched=batched)
    return difference(decode(model, _last(copy.samples), state), _expected(copy), "in decoding, the log-probability of a token")


def padded_decoding(copy: RandomCopy, implementation: str) -> str:
    """Compare decoding with the key-value cache of a padded prefill."""
    model = copy.build(implementation)

    def prefill(prompts: Sequence[Tensor]) -> DecodingState:
        lengths, cache = [len(ids) for ids in prompts], empty_cache()
        embeddings = [model.get_input_embeddings()(ids) for ids in prompts]
        last = Positions.of([[length - 1] for length in lengths], embeddings[0].device)
        logits_at(model, embeddings, last, batched=True, cache=cache)
        return left_padded_state(cache, lengths)

    return _decoding(model, prefill, copy)


def sequence_decoding(copy: RandomCopy, implementation: str) -> str:
    """Compare decoding with the caches that the model creates for each sequence.

    Both sequences are prefilled before one is decoded: a few models, such as RecurrentGemma, keep the state in their modules.
    """
    model = copy.build(implementation)

    def prefill(prompts: Sequence[Tensor]) -> tuple[Tensor, DecodingState]:
        return prefill_sequences(model, [model.get_input_embeddings()(ids) for ids in prompts])

    logits, _ = prefill([ids[:-DECODED] for ids in copy.samples])
    expected = torch.stack([part[-DECODED - 1] for part in copy.expected])
    problem = difference(logits, expected, "after a prefill, the log-probability of a token")
    return problem or _decoding(model, lambda prompts: prefill(prompts)[1], copy)


def sequence_logits(llm: Any, samples: Sequence[Tensor]) -> Tensor:
    """Return the logits (samples x DECODED_IN_PRECISION, V) of the last tokens, decoded with the caches of each sequence."""
    _, state = prefill_sequences(llm, _prompts(llm, samples, DECODED_IN_PRECISION))
    return decode(llm, _last(samples, DECODED_IN_PRECISION), state).flatten(0, 1)


def beams(copy: RandomCopy, implementation: str, *, together: bool) -> str:
    """Compare the logits in the beam search of transformers, which uses the model's own cache, with those of whole sequences.

    Args:
        copy: the copy.
        implementation: name of the attention implementation.
        together: also run two prompts, which are padded on the left, as for packed models.
    """
    model = copy.build(implementation)
    groups = [copy.samples[:1], *([copy.samples] if together else [])]
    return next((problem for prompts in groups if (problem := _beams(model, copy.llm, prompts))), "")


def _beams(llm: Any, plain: Any, prompts: Sequence[Tensor]) -> str:
    lengths = [len(ids) for ids in prompts]
    embeddings = [llm.get_input_embeddings()(ids) for ids in prompts]
    output = llm.generate(
        inputs_embeds=torch.nn.utils.rnn.pad_sequence(embeddings, batch_first=True, padding_side="left"),
        attention_mask=left_padding_mask(lengths, prompts[0].device),
        num_beams=BEAMS,
        num_return_sequences=BEAMS,
        do_sample=False,
        max_new_tokens=BEAM_TOKENS,
        eos_token_id=None,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    for index, (answer, beam) in enumerate(zip(output.sequences, output.beam_indices, strict=True)):
        # The beam of an answer changes from token to token, and its cache has to move with it.
        used = torch.stack([logits[row] for logits, row in zip(output.logits, beam.tolist(), strict=True)])
        ids = prompts[index // BEAMS]
        expected = plain_logits(plain, torch.cat([ids, answer]))[len(ids) - 1 : -1].float().log_softmax(-1)
        if problem := difference(used, expected, "in beam search, the log-probability of a token"):
            return problem
    return ""


def in_precision(
    copy: RandomCopy, implementation: str, forward: Forward, device: torch.device, dtype: torch.dtype, last: int | None = None
) -> str:
    """Compare the errors on a device in a precision with those of plain transformers there.

    The error of a sample is the median over its tokens, which does not change if a router chooses another expert for a few.

    Args:
        copy: the copy, which agrees with plain transformers in float32 on the CPU.
        implementation: name of the attention implementation.
        forward: computes the logits of the samples.
        device: device of the run.
        dtype: dtype of frozen weights and of autocast; float32 without autocast.
        last: of how many tokens at the end of each sample ``forward`` returns logits; None for all tokens.
    """
    samples = [ids.to(device) for ids in copy.samples]

    def errors(llm: Any, run: Forward, last: int | None = None) -> list[float]:
        llm = llm.to(device, dtype)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            logits = run(llm, samples)
        log_probs = logits.float().log_softmax(-1).cpu().split([last or len(ids) for ids in samples])
        pairs = zip(log_probs, copy.expected, strict=True)
        return [float((part - expected[-len(part) :]).abs().amax(-1).median()) for part, expected in pairs]

    try:
        plain = errors(copy.build("eager"), lambda llm, samples: torch.cat([plain_logits(llm, ids) for ids in samples]))
    except torch.OutOfMemoryError:
        raise
    except Exception:
        # The small widths of the copy can be unsuitable for a kernel, which says nothing about the model.
        return ""
    for own, allowed in zip(errors(copy.build(implementation), forward, last), plain, strict=True):
        if not own <= NOISE * allowed + TOLERANCE:
            name = str(dtype).removeprefix("torch.")
            return (
                f"in {name} on {device.type}, log-probabilities change by {own:.2g}, and by {allowed:.2g} in plain transformers"
            )
    return ""


def training_depends_on_the_batch(copy: RandomCopy, implementation: str, forward: Forward) -> str:
    """Compare the logits in training, with dropout, of two samples together and alone.

    Random numbers other than those of :mod:`emollama.models.dropout`, such as noise of a router, are different each time.
    """
    model = copy.build(implementation)
    dropout.replace_dropout(model)
    model.train()
    keys = torch.arange(sum(map(len, copy.samples)), dtype=torch.int32) * 40503
    with dropout.use_keys(keys):
        together = forward(model, copy.samples)
    alone = []
    for ids, part in zip(copy.samples, keys.split([len(ids) for ids in copy.samples]), strict=True):
        with dropout.use_keys(part):
            alone.append(forward(model, [ids]))
    return difference(together, torch.cat(alone).float().log_softmax(-1), "in training, the log-probability of a token")


def difference(logits: Tensor, expected: Tensor, what: str) -> str:
    """Return a text if logits differ from log-probabilities by more than the tolerance, "" otherwise."""
    change = float((logits.float().log_softmax(-1) - expected).abs().max())
    return "" if change <= TOLERANCE else f"{what} changes by {change:.2g}"


def _prompts(llm: Any, samples: Sequence[Tensor], decoded: int = DECODED) -> list[Tensor]:
    """Return the input embeddings (T, H) of the tokens of each sample that are prefilled."""
    return [llm.get_input_embeddings()(ids[:-decoded]) for ids in samples]


def _last(samples: Sequence[Tensor], decoded: int = DECODED) -> Tensor:
    return torch.stack([ids[-decoded:] for ids in samples])


def _expected(copy: RandomCopy) -> Tensor:
    return torch.stack([part[-DECODED:] for part in copy.expected])


def _decoding(llm: Any, prefill: Callable[[Sequence[Tensor]], DecodingState], copy: RandomCopy) -> str:
    """Compare the logits after the last two tokens of the samples, given a cache of the other tokens."""
    ids, expected, prompts = _last(copy.samples), _expected(copy), [ids[:-DECODED] for ids in copy.samples]
    state = prefill(prompts)
    # As for the candidates of an answer: several tokens at once, which the state does not keep.
    logits = decode(llm, ids, state, keep=False)
    if problem := difference(logits, expected, "in decoding, the log-probability of a token"):
        return problem
    # As in generation, one token at a time: the first sequence is finished, and the next one joins while the other continues.
    state.drop(0)
    steps = [decode(llm, ids[1:, :1], state)]
    state.append(prefill(prompts[:1]))
    steps.append(decode(llm, torch.stack([ids[1, 1:], ids[0, :1]]), state))
    state.drop(0)
    steps.append(decode(llm, ids[:1, 1:], state))
    what = "in decoding one token at a time, the log-probability of a token"
    return difference(torch.cat(steps)[:, 0], expected.flip(0).flatten(0, 1), what)
