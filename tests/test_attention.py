"""Attention over packed sequences, compared with an explicit masked softmax."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, varlen

from emollama.models import attention
from emollama.models.attention import packed_attention
from emollama.models.planned_gpu import planned_gpu

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


def results(function, parts, *args, **kwargs):
    """Output and gradients of a function of query, key and value, in float64 on the CPU."""
    parts = [tensor.detach().clone().requires_grad_() for tensor in parts]
    output = function(*parts, *args, **kwargs)
    weights = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view(output.shape).to(output)
    return [tensor.detach().double().cpu() for tensor in (output, *torch.autograd.grad(output, parts, weights))]


# On a CPU, the loop over sequences; on a GPU, the variable-length kernel.
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2)])
def test_outputs_and_gradients_in_bfloat16_are_close_to_masked_softmax(heads, kv_heads, window, device):
    if device == "cuda" and (not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] < attention.AMPERE):
        pytest.skip("needs a CUDA device of compute capability 8 or more")
    lengths = [5, 17, 1, 140]
    parts = [tensor.repeat(1, 1, 1, 64 // WIDTH).bfloat16() for tensor in tensors(heads, kv_heads, sum(lengths))]
    options = {"cu_seqlens": offsets(lengths).to(device), "max_length": max(lengths), "sliding_window": window, "scaling": 0.1}
    own = results(
        lambda *parts: packed_attention(nn.Module(), *parts, None, lengths=lengths, **options)[0],
        [tensor.to(device) for tensor in parts],
    )
    for value, expected in zip(own, results(naive, [tensor.double() for tensor in parts], lengths, window, 0.1), strict=True):
        assert (value - expected).norm() <= 1e-2 * expected.norm()


@pytest.fixture
def kernel_calls(monkeypatch):
    """The (kernel, heads of the keys) of calls of the variable-length attention, as on an H100 with a recent cuDNN."""
    if not hasattr(varlen, "_select_backend"):
        pytest.skip("this version of PyTorch has only the flash kernel")
    calls, select = [], varlen._select_backend

    def recorded(query, key, *args):
        calls.append((SDPBackend(select(query, key, *args)), key.shape[1]))
        return calls[-1][0].value

    monkeypatch.setattr(varlen, "_select_backend", recorded)
    monkeypatch.setattr(varlen, "_cudnn_version_and_major_capability", lambda index: (92600, 9))
    varlen._should_use_cudnn.cache_clear()
    yield calls
    varlen._should_use_cudnn.cache_clear()


def attend_on_a_planned_gpu(heads=4, kv_heads=2):
    with FakeTensorMode(), planned_gpu(True):
        query, key, value = (torch.empty(1, n, 300, 64, dtype=torch.bfloat16, device="cuda") for n in (heads, kv_heads, kv_heads))
        seams = torch.empty(3, dtype=torch.int32, device="cuda")
        return packed_attention(nn.Module(), query, key, value, None, cu_seqlens=seams, max_length=200)[0]


def test_cudnn_which_prepares_each_new_shape_is_not_used_for_variable_lengths(kernel_calls, monkeypatch):
    enabled = torch.backends.cuda.cudnn_sdp_enabled()
    assert attend_on_a_planned_gpu().shape == (1, 300, 4, 64)
    assert torch.backends.cuda.cudnn_sdp_enabled() is enabled is True
    # PyTorch would prefer it.
    monkeypatch.setattr(attention, "_without_cudnn", nullcontext)
    attend_on_a_planned_gpu()
    assert [kernel for kernel, _ in kernel_calls] == [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION]


def test_keys_and_values_are_repeated_only_for_versions_that_need_it(kernel_calls, monkeypatch):
    attend_on_a_planned_gpu()
    monkeypatch.setattr(attention, "_accepts_gqa", lambda: False)
    attend_on_a_planned_gpu()
    assert [heads for _, heads in kernel_calls] == [2, 4]
