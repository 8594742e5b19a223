"""Train a tiny Llama and its tokenizer on texts within seconds, and save them as a Hugging Face folder.

Shape letters: B texts, T tokens.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from emollama.logs.console import track
from emollama.tensor_files import save_pretrained

UNK, BOS, EOS = "<unk>", "<s>", "</s>"
ANSWER_MARK = "[/INST]"
PROMPT_WEIGHT = 0.2  # weight of a text's prompt (up to ANSWER_MARK) in the loss; the weight of its answer is 1
TokenizedText = tuple[list[int], int]  # token ids (T,), number of them in the prompt
BYTES = [f"<0x{value:02X}>" for value in range(256)]


def make_tiny_llama(
    folder: Path, texts: Sequence[str], *, seed: int, steps: int, batch_size: int = 32, lr: float = 6e-3,
    hidden: int = 64, layers: int = 2, vocab: int = 800,
) -> None:  # fmt: skip
    """Train a tokenizer and a LlamaForCausalLM, and save both (safetensors, float32).

    The same arguments give the same tokenizer, and the same weights up to rounding on different machines. The state of torch's
    global generator does not change.

    Args:
        folder: the folder to write to.
        texts: prompts with answers, separated by ANSWER_MARK.
        seed: seed of weights and batches.
        steps: optimizer steps.
        batch_size: texts per step.
        lr: learning rate, with warmup and cosine decay.
        hidden: width of the model, a multiple of 16 (the width of an attention head).
        layers: number of layers.
        vocab: maximum size of the vocabulary.
    """
    transformers_logging.disable_progress_bar()
    tokenizer = train_tokenizer(texts, vocab)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(_llama_config(len(tokenizer), hidden, layers))
    tokenized = [_tokenize(tokenizer, text) for text in texts]
    _train(model, tokenized, np.random.default_rng(seed), steps, batch_size, lr)
    model.eval()
    save_pretrained(model, folder)
    save_pretrained(tokenizer, folder)


def train_tokenizer(texts: Sequence[str], vocab: int) -> PreTrainedTokenizerFast:
    """Train a byte-fallback BPE tokenizer with Llama 2's conventions: <unk> 0, <s> 1, </s> 2, 256 bytes, `▁` for a space.

    Marks of the prompt such as `[INST]` and `<video>` are ordinary text.

    Args:
        texts: the training texts.
        vocab: maximum size of the vocabulary.
    """
    learner = Tokenizer(models.BPE(unk_token=UNK))
    learner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)  # no piece crosses a space
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=[UNK, BOS, EOS, *BYTES], initial_alphabet=["▁"], show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    merges = [(left, right) for left, right in json.loads(learner.to_str())["model"]["merges"]]
    tokenizer = Tokenizer(models.BPE(learner.get_vocab(), merges, unk_token=UNK, fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([UNK, BOS, EOS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[(BOS, 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=UNK, bos_token=BOS, eos_token=EOS, clean_up_tokenization_spaces=False
    )


def _tokenize(tokenizer: PreTrainedTokenizerFast, text: str) -> TokenizedText:
    prompt, mark, answer = text.rpartition(ANSWER_MARK)
    start, end = tokenizer([prompt + mark, answer.strip()], add_special_tokens=False)["input_ids"]
    return [tokenizer.bos_token_id, *start, *end, tokenizer.eos_token_id], 1 + len(start)


def _llama_config(vocab: int, hidden: int, layers: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=hidden * 5 // 2,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 16,
        num_key_value_heads=hidden // 16,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=None,
        tie_word_embeddings=False,
    )


def _batches(texts: Sequence[TokenizedText], rng: np.random.Generator, steps: int, size: int) -> Iterator[list[TokenizedText]]:
    """Yield ``steps`` random batches of ``size`` texts of similar length, which need little padding."""
    by_length = sorted(texts, key=lambda text: len(text[0]))
    for _ in range(steps):
        start = int(rng.integers(max(1, len(texts) - 4 * size)))
        window = by_length[start : start + 4 * size]
        yield [window[i] for i in rng.integers(len(window), size=size)]


def _loss(model: LlamaForCausalLM, batch: Sequence[TokenizedText]) -> torch.Tensor:
    """Return the mean over texts of (mean loss of answer tokens + PROMPT_WEIGHT x mean loss of prompt tokens), a scalar."""
    width = max(len(ids) for ids, _ in batch)
    ids = torch.tensor([ids + [2] * (width - len(ids)) for ids, _ in batch])  # (B, T), padded on the right
    weights = torch.zeros(len(batch), width)
    for i, (tokens, prompt) in enumerate(batch):
        weights[i, :prompt] = PROMPT_WEIGHT / max(1, prompt)
        weights[i, prompt : len(tokens)] = 1 / (len(tokens) - prompt)
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return (losses * weights[:, 1:].flatten()).sum() / len(batch)


def _train(
    model: LlamaForCausalLM, texts: Sequence[TokenizedText], rng: np.random.Generator, steps: int, size: int, lr: float
) -> None:
    """Train the model in place on texts of any length."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    warmup = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda k: min((k + 1) / warmup, 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * k / steps)))
    )
    for batch in track(_batches(texts, rng, steps, size), steps, "training a tiny Llama", unit="steps"):
        loss = _loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
