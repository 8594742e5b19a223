"""Attention over packed sequences, through transformers' attention interface: sequences never see each other.

Letters: T tokens of all sequences together, H query heads, K key/value heads (H a multiple of K), E head width.

Where ``cu_seqlens`` is given (training, scoring) the batch is one row of joined sequences: on CUDA, in fp16 or bf16, one call
of PyTorch's variable-length flash attention; elsewhere a loop of scaled_dot_product_attention over the sequences. Where it is
not given (generation, which pads) transformers' own sdpa function does the work.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from emollama.errors import UserError

NAME = "emollama_packed"
AMPERE = 8  # major compute capability from which the variable-length kernel runs


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    cu_seqlens: Tensor | None = None,
    max_length: int = 0,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each packed sequence.

    Args:
        query: (1, H, T, E); key and value: (1, K, T, E).
        cu_seqlens: (B + 1,) int32, where each sequence begins; None hands over to sdpa.
        max_length: tokens of the longest sequence.
        sliding_window: how many tokens back a token sees; None for all.

    Returns:
        (1, T, H, E), and None in place of the attention weights.
    """
    if cu_seqlens is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    for unknown in ("softcap", "s_aux"):
        if kwargs.get(unknown) is not None:
            raise UserError(f"model.llama_model: its attention uses '{unknown}', which packed training does not know")
    if query.is_cuda and torch.is_autocast_enabled("cuda"):  # float32 weights leave float32 queries behind the rotation
        query, key, value = (tensor.to(torch.get_autocast_dtype("cuda")) for tensor in (query, key, value))
    scaling = kwargs.get("scaling")
    dropout = kwargs.get("dropout", 0.0)
    if _varlen_kernel_runs(query) and not dropout:
        from torch.nn.attention.varlen import varlen_attn

        groups = query.shape[1] // key.shape[1]  # enable_gqa is not in every supported PyTorch
        joined = varlen_attn(
            query[0].transpose(0, 1),  # (T, H, E)
            key[0].repeat_interleave(groups, 0).transpose(0, 1),
            value[0].repeat_interleave(groups, 0).transpose(0, 1),
            cu_seq_q=cu_seqlens,
            cu_seq_k=cu_seqlens,
            max_q=max_length,
            max_k=max_length,
            scale=scaling,
            window_size=((sliding_window or 0) - 1, 0),  # (-1, 0): causal over the whole sequence
        )
        assert isinstance(joined, Tensor)
        return joined.unsqueeze(0), None
    lengths = cu_seqlens.diff().tolist()
    parts = zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True)
    out = [_causal(*part, scaling=scaling, dropout=dropout, window=sliding_window) for part in parts]
    return torch.cat(out, dim=2).transpose(1, 2), None


def _causal(query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None, dropout: float, window: int | None) -> Tensor:
    length = query.shape[2]
    mask = None
    if window is not None and length > window:
        ones = torch.ones(length, length, dtype=torch.bool, device=query.device)
        mask = ones.tril().triu(1 - window)
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
    if not query.is_cuda or query.dtype not in (torch.float16, torch.bfloat16):
        return False
    return torch.cuda.get_device_capability(query.device)[0] >= AMPERE


def _packed_mask(*, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """No mask for packed sequences, which come without a padding mask; sdpa's own for padded ones."""
    return None if attention_mask is None else sdpa_mask(attention_mask=attention_mask, **kwargs)


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, _packed_mask)
