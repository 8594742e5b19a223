"""Attention over packed sequences, compared with an explicit masked softmax."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from emollama.models.attention import packed_attention

# Letters: T tokens of all sequences, H query heads, K key/value heads, E head width.
WIDTH = 8


def tensors(heads, kv_heads, tokens, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((1, heads, tokens, WIDTH), (1, kv_heads, tokens, WIDTH), (1, kv_heads, tokens, WIDTH))
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def offsets(lengths):
    return torch.tensor([0, *lengths]).cumsum(0).int()


def naive(query, key, value, lengths, window=None, scaling=None):
    """Attention (1, T, H, E) by softmax with a T x T mask: same sequence, not later, at most window - 1 tokens back."""
    heads, tokens = query.shape[1], query.shape[2]
    key, value = (tensor.repeat_interleave(heads // key.shape[1], dim=1) for tensor in (key, value))
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    positions = torch.arange(tokens)
    visible = (owner[:, None] == owner[None]) & (positions[:, None] >= positions[None])
    if window is not None:
        visible &= positions[:, None] - positions[None] < window
    scores = query @ key.transpose(2, 3) * (scaling or WIDTH**-0.5)
    return (scores.masked_fill(~visible, -torch.inf).softmax(-1) @ value).transpose(1, 2)


def packed(query, key, value, lengths, **kwargs):
    boundaries = {"cu_seqlens": offsets(lengths), "max_length": max(lengths), "lengths": lengths}
    return packed_attention(nn.Module(), query, key, value, None, **boundaries, **kwargs)[0]


@pytest.mark.parametrize("lengths", [[9], [4, 1, 7], [1, 1, 1], [3, 12]])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("window", [None, 1, 3, 100])
def test_packed_attention_is_causal_softmax_within_each_sequence(lengths, heads, kv_heads, window):
    query, key, value = tensors(heads, kv_heads, sum(lengths))
    output = packed(query, key, value, lengths, sliding_window=window)
    assert output.shape == (1, sum(lengths), heads, WIDTH)
    torch.testing.assert_close(output, naive(query, key, value, lengths, window))


def test_the_scaling_argument_of_a_model_is_used():
    query, key, value = tensors(4, 2, 10)
    torch.testing.assert_close(packed(query, key, value, [6, 4], scaling=0.7), naive(query, key, value, [6, 4], scaling=0.7))


def test_gradients_equal_those_of_masked_softmax():
    grads = []
    for function in (packed, naive):
        parts = [tensor.requires_grad_() for tensor in tensors(4, 2, 11)]
        out = function(*parts, [5, 6])
        (out * torch.arange(out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
        grads.append([tensor.grad for tensor in parts])
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_token_attends_neither_to_other_sequences_nor_to_later_tokens():
    parts = tensors(4, 2, 12)
    before = packed(*parts, [5, 7])
    changed = [tensor.clone() for tensor in parts]
    for tensor in changed:
        tensor[:, :, 3:5] += 1
    after = packed(*changed, [5, 7])
    assert after[:, 5:].equal(before[:, 5:]) and after[:, :3].equal(before[:, :3])
    assert not after[:, 3:5].equal(before[:, 3:5])


def test_dropout_is_applied_when_it_is_above_zero():
    parts = tensors(4, 4, 12)
    torch.manual_seed(0)
    assert not packed(*parts, [5, 7], dropout=0.5).equal(packed(*parts, [5, 7]))


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2)])
def test_the_variable_length_kernel_equals_masked_softmax(heads, kv_heads, window):
    if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] < 8:
        pytest.skip("needs a CUDA device of compute capability 8 or more")
    lengths = [5, 17, 1, 40]
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, count, sum(lengths), 64, generator=generator).cuda().bfloat16() for count in (heads, kv_heads, kv_heads)
    )
    output = packed_attention(
        nn.Module(),
        query,
        key,
        value,
        None,
        cu_seqlens=offsets(lengths).cuda(),
        max_length=max(lengths),
        sliding_window=window,
        scaling=0.125,
    )[0]
    expected = naive(query.double().cpu(), key.double().cpu(), value.double().cpu(), lengths, window, scaling=0.125)
    torch.testing.assert_close(output.double().cpu(), expected, atol=2e-2, rtol=2e-2)
