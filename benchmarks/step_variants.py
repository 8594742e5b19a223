"""The training steps that step.py and gpu_check.py compare, on the same samples and with equal weights.

Shape letters: B = samples of a batch, W = tokens of the longest sample, H = width of the language model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from emollama.data.batch import IGNORED, Batch, Sample, collate
from emollama.models.attention import NAME as PACKED
from emollama.runners.runner_base import RunnerBase

ENCODER_SHARE = 0.22  # FLOPs of the image encoder of Emotion-LLaMA (ViT-g, 448 pixels) divided by those of the 7B language model


@dataclass(frozen=True)
class Step:
    """A training step.

    Attributes:
        runner: the runner whose model is trained.
        run: runs the whole step.
        gradients: computes only the gradients, and returns the loss.
    """

    runner: RunnerBase
    run: Callable[[], object]
    gradients: Callable[[], float]


@dataclass(frozen=True)
class HFOptions:
    """How Hugging Face code computes a step.

    Attributes:
        attention: attention implementation.
        by_length: whether the samples of a batch have similar lengths.
        all_logits: compute the logits of all tokens with the model's own loss; if False, only those at the answers.
        recompute: gradient checkpointing.
        encoder: an image encoder that runs in the step.
    """

    attention: str
    by_length: bool
    all_logits: bool
    recompute: bool
    encoder: ImageEncoder | None = None


PLAIN = HFOptions("eager", by_length=False, all_logits=True, recompute=True)
BEST = HFOptions("sdpa", by_length=True, all_logits=False, recompute=False)


def packed_step(runner: RunnerBase, samples: list[Sample], pack: int, *, recompute: bool) -> Step:
    """Return the project's own step."""
    batches = [collate(samples[start : start + pack]) for start in range(0, len(samples), pack)]

    def run() -> None:
        set_up(runner, PACKED, recompute)
        runner._step(0, batches)

    def gradients() -> float:
        set_up(runner, PACKED, recompute)
        return runner._gradients(0, batches, sum(batch.total_weight for batch in batches)).item()

    return Step(runner, run, gradients)


def hf_step(runner: RunnerBase, samples: list[Sample], size: int, options: HFOptions) -> Step:
    """Return a step with the forward pass of transformers on padded batches of this size."""
    if options.by_length:
        samples = sorted(samples, key=lambda sample: len(sample.input_ids))
    batches = [collate(samples[start : start + size]) for start in range(0, len(samples), size)]
    # The labels of the first token of a sample are not predicted.
    labelled = sum(int((sample.labels[1:] != IGNORED).sum()) for sample in samples)

    def accumulate() -> Tensor:
        set_up(runner, options.attention, options.recompute)
        total = torch.zeros((), device=runner.world.device)
        for cpu_batch in batches:
            batch = cpu_batch.to(runner.world.device)
            if options.encoder is not None:
                options.encoder.run(len(batch.names))
            with runner.precision.autocast():
                embeddings, mask, labels = pad(runner, batch)
                loss = padded_loss(runner.model.llama_model, embeddings, mask, labels, labelled, all_logits=options.all_logits)
            loss.backward()
            total += loss.detach()
        return total

    def run() -> None:
        accumulate()
        runner.parallel.clip_grad_norm(runner.cfg.max_grad_norm)
        runner.optimizer.step()
        runner.optimizer.zero_grad(set_to_none=True)

    return Step(runner, run, lambda: accumulate().item())


def padded_loss(llm: nn.Module, embeddings: Tensor, mask: Tensor, labels: Tensor, labelled: int, *, all_logits: bool) -> Tensor:
    """Return the sum of the cross-entropies divided by the number of labels of the whole step."""
    if all_logits:
        loss: Tensor = llm(inputs_embeds=embeddings, attention_mask=mask, labels=labels, num_items_in_batch=labelled).loss
        return loss
    causal = llm.get_base_model()  # type: ignore[operator]
    hidden = causal.model(inputs_embeds=embeddings, attention_mask=mask).last_hidden_state
    following = labels[:, 1:]
    positions = following != IGNORED
    logits = causal.lm_head(hidden[:, :-1][positions])
    return F.cross_entropy(logits.float(), following[positions], reduction="sum") / labelled


def set_up(runner: RunnerBase, attention: str, checkpointing: bool) -> None:
    """Set the attention implementation and gradient checkpointing of the language model."""
    llm: Any = runner.model.llama_model
    llm.get_base_model().set_attn_implementation(attention)
    for module in llm.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = checkpointing


def pad(runner: RunnerBase, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Pad a packed batch on the right: return embeddings (B, W, H), attention mask (B, W) and labels (B, W)."""
    lengths = batch.lengths
    embeddings = pad_sequence(list(cast(Any, runner.model)._embed(batch).split(lengths)), batch_first=True)
    labels = pad_sequence(list(batch.labels.split(lengths)), batch_first=True, padding_value=IGNORED)
    mask = torch.arange(labels.shape[1], device=labels.device) < torch.tensor(lengths, device=labels.device)[:, None]
    return embeddings, mask.long(), labels


class StepDifference(NamedTuple):
    """How much loss and gradients of a step differ from those of another one: relative differences (L2), and the cosine."""

    loss: float
    gradients: float
    cosine: float

    def is_rounding(self, dtype: torch.dtype) -> bool:
        """Return whether the differences are within the limits of the dtype of the run."""
        if dtype == torch.float32:
            return max(self.loss, self.gradients) <= 1e-5
        return self.loss <= 3e-2 and self.cosine > 0.999

    def __str__(self) -> str:
        relative = f"relative differences of loss and gradients {self.loss:.1e}, {self.gradients:.1e}"
        return f"{relative}, cosine of the gradients {self.cosine:.6f}"


def loss_and_gradients(step: Step) -> tuple[float, Tensor]:
    """Return the loss of a step and all its gradients in a row, without dropout."""
    model = cast(nn.Module, step.runner.model)
    with without_dropout(step.runner):
        loss = step.gradients()
    gradients = torch.cat([weight.grad.flatten().float() for weight in model.parameters() if weight.grad is not None])
    step.runner.optimizer.zero_grad(set_to_none=True)
    return loss, gradients


def difference(first: tuple[float, Tensor], other: tuple[float, Tensor]) -> StepDifference:
    """Compare two results of :func:`loss_and_gradients`."""
    (loss, gradients), (other_loss, other_gradients) = first, other
    relative = ((other_gradients - gradients).norm() / gradients.norm()).item()
    cosine = (
        gradients.double() @ other_gradients.double() / (gradients.double().norm() * other_gradients.double().norm())
    ).item()
    return StepDifference(abs(other_loss / loss - 1), relative, cosine)


class ImageEncoder:
    """A frozen vision transformer whose forward pass has ``ENCODER_SHARE`` of the FLOPs of the language model's step.

    Args:
        runner: the runner, whose language model and device count.
        samples: samples with the average number of tokens.
    """

    def __init__(self, runner: RunnerBase, samples: list[Sample], width: int = 384) -> None:
        tokens = sum(len(sample.input_ids) for sample in samples) / len(samples)
        llm = cast(nn.Module, runner.model.llama_model)  # a Protocol cannot require a base class
        frozen = sum(weight.numel() for name, weight in llm.named_parameters() if "_proj" in name)
        patches = samples[0].slots["image"].shape[0]
        block = 2 * patches * 12 * width**2 + 4 * patches**2 * width
        depth = max(1, round(ENCODER_SHARE * 4 * frozen * tokens / block))
        dtype = torch.bfloat16 if runner.cfg.amp else torch.float32
        blocks = [Block(width, width // 64).eval().to(runner.world.device, dtype) for _ in range(depth)]
        self._blocks = nn.Sequential(*blocks)
        self._input = torch.randn(1, patches, width, device=runner.world.device, dtype=dtype)

    @torch.inference_mode()
    def run(self, images: int) -> None:
        """Encode images, which have as many vectors as the samples."""
        self._blocks(self._input.expand(images, -1, -1))


@contextmanager
def without_dropout(runner: RunnerBase) -> Iterator[None]:
    """Inside ``with``, nothing is dropped, although the model is in training mode, which recomputation needs."""
    modules = [module for module in cast(nn.Module, runner.model).modules() if isinstance(module, nn.Dropout)]
    before = [module.p for module in modules]
    for module in modules:
        module.p = 0.0
    try:
        yield
    finally:
        for module, p in zip(modules, before, strict=True):
            module.p = p
