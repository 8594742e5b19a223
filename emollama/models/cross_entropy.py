"""The cross-entropy of each labelled token, without further tensors of the size of the logits.

With a large vocabulary, these are the largest tensors of a training step. The functions of PyTorch keep the logits in float32,
their log-softmax, its gradient and that of the logits. Here, the gradient overwrites the logits, a part of the rows at a time.

Shape letters: L = labelled tokens, V = size of the vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

PART = 2**22  # elements of the logits that are processed at once, 16 MiB in float32


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of each token, (L,), in float32 or in the type of the logits if it is wider.

    The backward pass overwrites the logits, so nothing else may need them. A second backward pass raises a RuntimeError.

    Args:
        logits: (L, V), of any floating-point type.
        labels: (L,) int64, the correct tokens.
    """
    losses: Tensor = _CrossEntropy.apply(logits, labels)
    return losses


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        ctx.save_for_backward(logits, labels)
        wide, rows = torch.promote_types(logits.dtype, torch.float32), _rows(logits)
        parts = zip(logits.split(rows), labels[:, None].split(rows), strict=True)
        return torch.cat([part.log_softmax(-1, dtype=wide).gather(1, column) for part, column in parts]).squeeze(1).neg()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        logits, labels = ctx.saved_tensors
        parts = (tensor.split(_rows(logits)) for tensor in (logits, labels[:, None], grad[:, None]))
        for part, column, factor in zip(*parts, strict=True):
            gradient = part.softmax(-1, dtype=grad.dtype).mul_(factor)
            part.copy_(gradient.scatter_(1, column, gradient.gather(1, column) - factor))
        return logits, None


def _rows(logits: Tensor) -> int:
    return max(1, PART // logits.shape[1])
