"""The cross-entropy of labelled tokens: values and gradients of PyTorch, with less memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.autograd.graph import saved_tensors_hooks

from emollama.models import cross_entropy as module
from emollama.models.cross_entropy import cross_entropy

ROWS, VOCABULARY = 7, 11


@pytest.fixture(params=[1, 3 * VOCABULARY, 100 * VOCABULARY], ids=["a row at once", "three rows", "all rows"], autouse=True)
def part(request, monkeypatch):
    monkeypatch.setattr(module, "PART", request.param)


def losses_and_gradient(function, dtype):
    generator = torch.Generator().manual_seed(0)
    leaf = (4 * torch.randn(ROWS, VOCABULARY, generator=generator)).to(dtype).requires_grad_()
    labels = torch.randint(VOCABULARY, (ROWS,), generator=generator)
    losses = function(leaf * 1, labels)
    (losses * torch.rand(ROWS, generator=generator)).sum().backward()
    return losses.detach(), leaf.grad


def of_pytorch(logits, labels):
    return F.cross_entropy(logits.float() if logits.dtype != torch.float64 else logits, labels, reduction="none")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-15), (torch.float32, 1e-7), (torch.bfloat16, 4e-3)], ids=str)
def test_losses_and_gradients_are_those_of_pytorch(dtype, tolerance):
    losses, gradient = losses_and_gradient(cross_entropy, dtype)
    expected, expected_gradient = losses_and_gradient(of_pytorch, dtype)
    assert torch.equal(losses, expected)
    assert losses.dtype == expected.dtype
    assert gradient.dtype == dtype
    torch.testing.assert_close(gradient, expected_gradient, rtol=tolerance, atol=tolerance)


def test_only_the_logits_are_saved_and_become_the_gradient():
    saved = []
    logits = torch.randn(ROWS, VOCABULARY, requires_grad=True) * 1
    with saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        losses = cross_entropy(logits, torch.zeros(ROWS, dtype=torch.int64))
    assert {tensor.data_ptr() for tensor in saved if tensor.is_floating_point()} == {logits.data_ptr()}
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    assert gradient.data_ptr() == logits.data_ptr()


def test_a_second_backward_pass_raises_an_error():
    losses = cross_entropy(torch.randn(ROWS, VOCABULARY, requires_grad=True) * 1, torch.zeros(ROWS, dtype=torch.int64))
    losses.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        losses.sum().backward()
