"""Dropout: its statistics, and training runs whose losses do not depend on how the global batch is split."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from running import golden_config, read_jsonl
from torch import nn
from torch.utils.checkpoint import checkpoint
from workers import splits as worker

from emollama.config import load
from emollama.data.batch import Sample, collate
from emollama.models import attention
from emollama.models.attention import packed_attention
from emollama.models.dropout import (
    CounterDropout,
    checkpoint_contexts,
    dropped_elements,
    replace_dropout,
    token_keys_of,
    use_keys,
)
from emollama.runners import memory_choice

STEPS, EPOCH = 10, 5
TASKS = {"emotion": 1, "reason": 1, "reason_v2": 1}  # answers of very different lengths


def sample(seed, length):
    tokens = torch.zeros(length, dtype=torch.int64)
    return Sample("name", "emotion", tokens, tokens, tokens.float(), {}, dropout_seed=seed)


def keys_of(*samples):
    """Keys of packed samples, which are (seed, length)."""
    return token_keys_of(collate([sample(*one) for one in samples]))


def mask(p=0.5, name="a", seed=1, tokens=500, channels=400):
    """1 where an element is kept and scaled, 0 where it is dropped."""
    with use_keys(keys_of((seed, tokens))):
        output = CounterDropout(p, name)(torch.ones(1, tokens, channels))
    return (output[0] > 0).double()


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
def test_the_share_of_dropped_elements_is_the_probability_and_the_mean_is_preserved(p):
    with use_keys(keys_of((7, 500))):
        output = CounterDropout(p, "a")(torch.ones(500, 400))
    count = output.numel()
    assert abs((output == 0).double().sum() - p * count) < 4 * (count * p * (1 - p)) ** 0.5
    assert output.unique().tolist() == pytest.approx([0, 1 / (1 - p)], rel=2e-4)


def test_masks_of_other_modules_samples_and_neighbouring_tokens_and_channels_are_uncorrelated():
    first = mask()
    others = [mask(name="b"), mask(seed=2), mask(seed=-(2**31)), first.roll(1, 0), first.roll(1, 1), first.roll(2, 1)]
    limit = 4 / first.numel() ** 0.5
    for other in others:
        assert abs(torch.corrcoef(torch.stack([first.flatten(), other.flatten()]))[0, 1]) < limit


def test_the_shares_of_dropped_elements_vary_between_tokens_and_channels_like_those_of_independent_elements():
    kept = mask()
    for axis in (0, 1):
        shares, length = kept.mean(axis), kept.shape[axis]
        # The variance of n shares of independent elements has a relative standard deviation of sqrt(2 / n).
        assert abs(shares.var() * length / 0.25 - 1) < 4 * (2 / len(shares)) ** 0.5


def test_the_mask_is_that_of_the_hash_of_unsigned_integers():
    def mixed(values):
        values ^= values >> np.uint32(16)
        values *= np.uint32(0x85EBCA6B)
        values ^= values >> np.uint32(13)
        values *= np.uint32(0xC2B2AE35)
        return values ^ (values >> np.uint32(16))

    keys = np.arange(2**31 - 5, 2**31 + 8, dtype=np.uint32)
    words = mixed(mixed(keys ^ np.uint32(99))[:, None] ^ mixed(np.arange(1, 5, dtype=np.uint32)))
    expected = words.view(np.int16)[:, :7] < 20000 - 2**15
    assert dropped_elements(torch.tensor(keys.view(np.int32)), 7, 99, 20000).numpy().tolist() == expected.tolist()


def test_the_mask_of_a_sample_does_not_depend_on_the_other_samples_of_the_micro_batch():
    packed = keys_of((5, 3), (-8, 1), (2**31 - 1, 4))
    assert packed.tolist() == [key for one in ((5, 3), (-8, 1), (2**31 - 1, 4)) for key in keys_of(one).tolist()]
    assert len(set(packed.tolist())) == 8


def test_samples_without_seeds_and_evaluation_use_the_dropout_of_torch():
    dropout, ones = CounterDropout(0.5, "a"), torch.ones(4, 100)
    assert token_keys_of(collate([sample(None, 3), sample(1, 2)])) is None
    torch.manual_seed(0)
    expected = nn.functional.dropout(ones, 0.5)
    torch.manual_seed(0)
    assert dropout(ones).equal(expected)
    with use_keys(keys_of((1, 4))):
        assert not dropout(ones).equal(expected)
        assert dropout.eval()(ones) is ones


def test_an_input_without_one_row_for_each_token_is_dropped_by_torch_with_a_warning():
    with use_keys(keys_of((1, 4))), pytest.warns(UserWarning, match="depends on how the global batch is split"):
        output = CounterDropout(0.5, "a")(torch.ones(3, 100))
    assert set(output.unique().tolist()) == {0, 2}


def test_recomputed_activations_have_the_mask_of_their_forward_pass():
    layer = nn.Sequential(nn.Linear(8, 8), CounterDropout(0.5, "a"), nn.Tanh())
    inputs = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    options = {"use_reentrant": False, "context_fn": checkpoint_contexts}

    def gradient(recomputed):
        layer.zero_grad()
        losses = []
        for seed in (1, 2):
            with use_keys(keys_of((seed, 4))):
                output = checkpoint(layer, inputs, **options) if recomputed else layer(inputs)
            losses.append(output.sum())
        # Both forward passes precede the backward passes, which run outside of use_keys.
        sum(losses).backward()
        return layer[0].weight.grad.clone()

    assert gradient(True).equal(gradient(False))


def test_dropout_modules_of_a_language_model_are_replaced_except_for_those_that_drop_nothing():
    model = nn.ModuleDict({"a": nn.ModuleDict({"default": nn.Dropout(0.1)}), "b": nn.Dropout(0.0), "c": nn.Dropout(0.2).eval()})
    replace_dropout(model)
    assert type(model["a"]["default"]) is type(model["c"]) is CounterDropout and type(model["b"]) is nn.Dropout
    assert (model["a"]["default"].p, model["c"].p, model["c"].training) == (0.1, 0.2, False)


def test_attention_dropout_of_a_sample_does_not_depend_on_the_other_samples_of_the_micro_batch():
    samples = [(5, 6), (9, 7)]
    query = torch.randn(1, 2, 13, 8, generator=torch.Generator().manual_seed(0))

    def attend(part, *samples):
        lengths = [length for _, length in samples]
        offsets = torch.tensor([0, *lengths]).cumsum(0).int()
        with use_keys(keys_of(*samples)):
            return packed_attention(nn.Module(), part, part, part, None, cu_seqlens=offsets, lengths=lengths, dropout=0.5)[0]

    packed = attend(query, *samples)
    alone = [attend(part, one) for part, one in zip(query.split([6, 7], dim=2), samples, strict=True)]
    assert packed.equal(torch.cat(alone, 1))


def test_dropout_between_the_layers_of_a_language_model_does_not_depend_on_the_other_samples_of_the_micro_batch():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    # GPT-2 drops 10 % of embeddings, attention weights and the output of each layer.
    llm = GPT2LMHeadModel(GPT2Config(**sizes, attn_implementation=attention.NAME)).train()
    replace_dropout(llm)

    def logits(ids, *samples):
        lengths = [length for _, length in samples]
        positions = torch.cat([torch.arange(length) for length in lengths])
        options = {"cu_seqlens": torch.tensor([0, *lengths]).cumsum(0).int(), "lengths": lengths, "use_cache": False}
        with use_keys(keys_of(*samples)):
            return llm(input_ids=ids[None], position_ids=positions[None], **options).logits[0]

    packed = logits(torch.arange(13), (5, 6), (9, 7))
    alone = [logits(torch.arange(6), (5, 6)), logits(torch.arange(6, 13), (9, 7))]
    torch.testing.assert_close(packed, torch.cat(alone), atol=1e-6, rtol=1e-6)
    assert (packed - llm.eval()(input_ids=torch.arange(13)[None]).logits[0])[:6].abs().max() > 1e-3


def config(folder, batch, accumulate, checkpointing, **run):
    """A configuration of ten steps with dropout."""
    return golden_config(
        folder,
        run={"accum_grad_iters": accumulate, "iters_per_epoch": EPOCH, "max_epoch": STEPS // EPOCH, "init_lr": 1e-4} | run,
        data={"batch_size": batch, "task_pool": TASKS, "shuffle": True},
        model={"lora_dropout": 0.05, "dropout": 0.1, "use_grad_checkpoint": checkpointing},
    )


def losses(folder):
    return [row["loss"] for row in read_jsonl(folder / "out/run/log.jsonl")]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The folder of a run with a global batch of one micro-batch."""
    folder = tmp_path_factory.mktemp("dropout") / "1x1x4"
    worker.train_only(str(config(folder, 4, 1, True)))
    return folder


# "1x1x4" is ranks x accumulated micro-batches x samples of a micro-batch.
def require_equal(values, reference):
    assert len(values) == len(reference) and len(set(reference)) == len(reference)
    assert max(abs(a - b) for a, b in zip(values, reference, strict=True)) < 1e-6


@pytest.mark.parametrize(
    ("accumulate", "batch", "checkpointing", "max_tokens"),
    [
        pytest.param(4, 1, True, None, marks=pytest.mark.slow),
        (4, 1, False, None),
        (1, 4, False, 150),
        pytest.param(1, 4, "auto", "auto", marks=pytest.mark.slow),
    ],
)
def test_losses_with_dropout_do_not_depend_on_micro_batches_and_recomputation(
    reference, tmp_path, monkeypatch, accumulate, batch, checkpointing, max_tokens
):
    # Without free memory, auto recomputes all layers, and micro-batches are as small as possible.
    monkeypatch.setattr(memory_choice, "memory", lambda device: (0, 0, 0))
    passes = worker.forward_passes(str(config(tmp_path, batch, accumulate, checkpointing, max_tokens=max_tokens)))
    assert max_tokens is None or max(passes) > 1
    require_equal(losses(tmp_path), losses(reference))


@pytest.mark.slow
def test_no_micro_batch_of_a_model_that_pads_samples_exceeds_the_maximum_with_its_padding(reference, tmp_path):
    cfg = load(str(config(tmp_path, 4, 1, True, max_tokens=300)), ["model.packing=padded"])
    runner = cfg.runner_class(cfg)
    sizes, forward = [], runner.model.forward

    def padded_forward(batch):
        sizes.append((len(batch.lengths), batch.max_length))
        return forward(batch)

    runner.model.forward = padded_forward
    runner.train()
    assert max(count * longest for count, longest in sizes) <= 300 and max(count for count, _ in sizes) > 1
    require_equal(losses(tmp_path), losses(reference))


@pytest.mark.slow
def test_losses_with_dropout_do_not_depend_on_the_number_of_processes(reference, tmp_path, ranks):
    # Both processes choose the same micro-batches and recomputed layers.
    ranks(worker.train_only, str(config(tmp_path, 2, 1, "auto", max_tokens="auto")))
    require_equal(losses(tmp_path), losses(reference))


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [True, False])
def test_losses_with_dropout_of_four_processes_are_those_of_one(reference, tmp_path, launch, checkpointing):
    completed = launch("train.py", "--cfg-path", str(config(tmp_path, 1, 1, checkpointing)), processes=4)
    assert completed.returncode == 0, completed.stderr
    require_equal(losses(tmp_path), losses(reference))


@pytest.mark.slow
def test_a_run_resumes_with_another_split_of_the_global_batch(reference, tmp_path, ranks):
    stored = str(reference / "out/run/checkpoint_0.pth")
    keys = {"resume_ckpt_path": stored, "global_batch": 4, "max_tokens": 240}
    passes = ranks(worker.forward_passes, str(config(tmp_path, 1, 1, "auto", **keys)))
    require_equal(losses(tmp_path), losses(reference)[EPOCH:])
    # In four of these steps, the two samples of one process fit into one micro-batch, but not those of the other.
    assert passes == [[2, 2, 2, 1, 2]] * 2
