"""Attention over packed sequences, registered with transformers' attention interface.

Tokens attend only to tokens of their own sequence.

Shape letters: B = sequences, T = tokens of all sequences, H = query heads, K = key/value heads (H is a multiple of K),
E = head_dim.

In training and scoring, ``cu_seqlens`` is passed and the batch is a single row of concatenated sequences: on CUDA in fp16 or
bf16 this is one call of PyTorch's variable-length attention with the flash kernel, elsewhere a loop of
scaled_dot_product_attention over the sequences. Generation pads its sequences and passes no ``cu_seqlens``; then transformers'
own sdpa function is called.

A sequence that shares the beginning of a prompt (``shared``) has no queries for it. Its keys and values are those of the shared
tokens, gathered from the row, followed by its own. As in a key-value cache, the last query belongs to the last key.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from inspect import signature
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, masking_utils
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from emollama.data.batch import SharedPrompts
from emollama.models.dropout import sample_generator
from emollama.models.planned_gpu import is_on_gpu, is_planned

NAME = "emollama_packed"
RECORDED = "emollama_packed_recorded"
AMPERE = 8  # lowest major compute capability on which the variable-length kernel runs


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    cu_seqlens: Tensor | None = None,
    max_length: int = 0,
    lengths: Sequence[int] = (),
    shared: SharedPrompts | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute causal attention within each packed sequence.

    Args:
        module: the attention layer; only transformers' sdpa function uses it.
        query: (1, H, T, E).
        key: (1, K, T, E).
        value: (1, K, T, E).
        attention_mask: the mask of padded sequences; only transformers' sdpa function uses it. With ``cu_seqlens``, models should
            get :func:`unused_mask`.
        cu_seqlens: (B + 1,) int32, the index of each sequence's first token, then T. If None, sdpa is called instead.
        max_length: number of tokens of the longest sequence, with its shared ones.
        lengths: number of tokens of each sequence, for devices without the variable-length kernel.
        shared: the tokens of other sequences that a sequence attends to, too; None if there are none.
        sliding_window: number of tokens that a token attends to, itself included; None attends to all before it.
        **kwargs: options of transformers; ``scaling`` and ``dropout`` are used.

    Returns:
        (1, T, H, E), and None in place of the attention weights.

    Raises:
        NotImplementedError: If the language model needs a variant of attention that is not implemented here.
    """
    if cu_seqlens is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    for unsupported in ("softcap", "s_aux"):
        if kwargs.get(unsupported) is not None:
            # The check of the language model finds this, so that its samples are padded.
            raise NotImplementedError(f"its attention uses '{unsupported}', which packed micro-batches do not support")
    # With float32 weights, the rotary embedding returns float32 queries and keys even under autocast.
    device = query.device.type
    if is_on_gpu(query) and torch.is_autocast_enabled(device):
        query, key, value = (tensor.to(torch.get_autocast_dtype(device)) for tensor in (query, key, value))
    scaling = kwargs.get("scaling")
    dropout = kwargs.get("dropout", 0.0)
    if _varlen_kernel_runs(query) and not dropout:
        shape = (cu_seqlens, max_length, shared)
        return _varlen(query, key, value, *shape, scaling=scaling, window=sliding_window), None
    queries, keys, values = (_sequences(tensor, lengths) for tensor in (query, key, value))
    parts = zip(queries, _with_prompts(keys, shared), _with_prompts(values, shared), strict=True)
    out = []
    layer = getattr(module, "layer_idx", None) or 0
    for start, part in zip(accumulate(lengths, initial=0), parts, strict=False):
        with sample_generator(start, layer, query.device) if dropout else nullcontext():
            out.append(_causal(*part, scaling=scaling, dropout=dropout, window=sliding_window).transpose(1, 2))
    # Some models call view() on the output, as they can with the functions of transformers.
    return torch.cat(out, dim=1).contiguous(), None


def _sequences(heads: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    """Return the queries, keys or values of each sequence."""
    # Split as (1, T, H, E), the layout of the projections, so that gradients are joined in it and need not be copied again.
    return [part.transpose(1, 2) for part in heads.transpose(1, 2).split(list(lengths), dim=1)]


def _with_prompts(parts: Sequence[Tensor], shared: SharedPrompts | None) -> Sequence[Tensor]:
    """Return the keys or values that each sequence attends to: those of its shared tokens, then its own."""
    if shared is None:
        return parts
    joined, owner = [], parts[0]
    for part, count in zip(parts, shared.tokens, strict=True):
        owner = owner if count else part
        joined.append(torch.cat([owner[:, :, :count], part], dim=2) if count else part)
    return joined


def _varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    max_length: int,
    shared: SharedPrompts | None,
    *,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    cu_keys = cu_seqlens if shared is None else shared.cu_attended
    if shared is not None:
        key, value = (tensor.index_select(2, shared.attended) for tensor in (key, value))
    options: dict[str, Any] = {}
    if (groups := query.shape[1] // key.shape[1]) > 1:
        if _accepts_gqa():
            options = {"enable_gqa": True}
        else:
            key, value = (tensor.repeat_interleave(groups, 1) for tensor in (key, value))
    with _without_cudnn():
        joined = varlen_attn(
            query[0].transpose(0, 1),  # (T, H, E)
            key[0].transpose(0, 1),
            value[0].transpose(0, 1),
            cu_seq_q=cu_seqlens,
            cu_seq_k=cu_keys,
            max_q=max_length,
            max_k=max_length,
            scale=scaling,
            window_size=((window or 0) - 1, 0),  # (-1, 0) is causal attention over the whole sequence
            **options,
        )
    assert isinstance(joined, Tensor)
    return joined.unsqueeze(0)


@cache
def _accepts_gqa() -> bool:
    """Return whether varlen_attn accepts fewer key than query heads, as it does since PyTorch 2.12."""
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in signature(varlen_attn).parameters


@contextmanager
def _without_cudnn() -> Iterator[None]:
    """Let PyTorch choose the flash kernel of variable-length attention inside ``with``.

    On H100, H200 and B200, PyTorch 2.15 prefers cuDNN, which first builds a plan for each number and maximum length of
    sequences. This takes tens of milliseconds, and almost every micro-batch has others. The backward pass uses the kernel of the
    forward pass.
    """
    # Not sdpa_kernel, which would also disable the other kernels for other threads, and takes several times as long.
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def _causal(query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None, dropout: float, window: int | None) -> Tensor:
    length, before = key.shape[2], key.shape[2] - query.shape[2]
    mask = None
    if before or (window is not None and length > window):
        mask = torch.ones(query.shape[2], length, dtype=torch.bool, device=query.device).tril(before)
        mask = mask if window is None else mask.triu(before + 1 - window)
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _varlen_kernel_runs(query: Tensor) -> bool:
    if not is_on_gpu(query) or query.dtype not in (torch.float16, torch.bfloat16):
        return False
    return is_planned() or torch.cuda.get_device_capability(query.device)[0] >= AMPERE


def unused_mask(embeddings: Tensor) -> Tensor:
    """Return the ``attention_mask`` of packed sequences, (1, 1, 1, 1), which has no effect.

    transformers creates no mask if it gets one of four dimensions. Without one, it would read the positions, and so wait for the
    device, to find out whether the sequences are packed.

    Args:
        embeddings: the input embeddings, for dtype and device.
    """
    return embeddings.new_zeros(1, 1, 1, 1)


def _padded_mask(**kwargs: Any) -> Tensor | None:
    """Return the mask of transformers' sdpa function, for generation."""
    # To find out whether a mask can be left out, transformers would read it, and so wait for the device.
    return sdpa_mask(**(kwargs if kwargs.get("attention_mask") is None else kwargs | {"allow_is_causal_skip": False}))


@contextmanager
def one_sequence_per_row() -> Iterator[None]:
    """Inside ``with``, transformers does not read the positions of padded rows to find out whether they are packed sequences.

    For tensors without values, it would assume that they are, and create a mask that it does not create in a run.
    """
    before = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = before


_RECORDERS: list[list[tuple[str, bool]]] = []


@contextmanager
def recorded_calls() -> Iterator[list[tuple[str, bool]]]:
    """Record which attention layers of models with the implementation ``RECORDED`` receive ``cu_seqlens``.

    Yields:
        (class and number of the layer, whether it received ``cu_seqlens``) of each call.
    """
    calls: list[tuple[str, bool]] = []
    _RECORDERS.append(calls)
    try:
        yield calls
    finally:
        _RECORDERS.remove(calls)


def _recorded_attention(module: torch.nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    name = f"{type(module).__name__} {getattr(module, 'layer_idx', '')}".strip()
    for calls in _RECORDERS:
        calls.append((name, kwargs.get("cu_seqlens") is not None))
    return packed_attention(module, *args, **kwargs)


AttentionInterface.register(NAME, packed_attention)
AttentionInterface.register(RECORDED, _recorded_attention)
AttentionMaskInterface.register(RECORDED, _padded_mask)
AttentionMaskInterface.register(NAME, _padded_mask)
