"""A very small EVA transformer and Q-Former of the real classes, that learn to see drawings; in files like the published ones.

Letters: F images, Q queries, W width of the Q-Former, K words.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emollama.demo.drawings import WORDS, Scene, draw_picture, draw_scene
from emollama.encoders.eva_vit import LN_EPS, EvaVit
from emollama.encoders.qformer import RENAMED, QFormer
from emollama.encoders.shapes import EvaShape, QFormerShape
from emollama.logs.console import track
from emollama.media.image_transforms import blip2_image

IMAGE_SIZE = 56
EVA = EvaShape(width=176, depth=2, inner=352)
QFORMER = QFormerShape(width=64, layers=4, heads=1, inner=128, every=2, queries=8, vision=EVA.width)
CPU = torch.device("cpu")


class TinyVision(nn.Module):
    """Both encoders, to be trained together, with random weights out of torch's global generator."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = EvaVit(EVA, image_size=IMAGE_SIZE, precision="fp32", device=CPU)
        self.q_former = QFormer(QFORMER, device=CPU)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        nn.init.normal_(self.vit.visual_encoder.get_parameter("pos_embed"), std=0.5)
        nn.init.normal_(self.q_former.query_tokens)
        self.requires_grad_(True)

    def forward(self, images: Tensor) -> Tensor:
        """(F, 3, side, side) normalised pixels -> (F, Q, W); the frozen classes' own way, with gradients."""
        rows = self.vit.visual_encoder.forward_features(images)
        norm = self.vit.ln_vision
        rows = F.layer_norm(rows, (EVA.width,), norm.weight, norm.bias, LN_EPS)
        queries = self.q_former.query_tokens.expand(len(rows), -1, -1)
        seen: Tensor = self.q_former.qformer(query_embeds=queries, encoder_hidden_states=rows).last_hidden_state
        return seen

    def save(self, eva: Path, q_former: Path) -> None:
        """Write two files under the names of ``eva_vit_g.pth`` and ``blip2_pretrained_flant5xxl.pth``."""
        torch.save(dict(self.vit.visual_encoder.state_dict()), eva)
        tensors = {f"ln_vision.{name}": value for name, value in self.vit.ln_vision.state_dict().items()}
        for name, value in self.q_former.state_dict().items():
            for original, ours in RENAMED.items():
                name = name.replace(ours, original)
            tensors[name] = value
        torch.save({"model": tensors}, q_former)


def learn_to_see(
    vision: TinyVision, rng: np.random.Generator, *, scenes: int, steps: int, batch_size: int = 32, lr: float = 1e-3
) -> nn.Linear:
    """Train both encoders in place: query i has to name fact i, through one linear readout that all queries share.

    Args:
        vision: what is trained.
        rng: of scenes (of the training split) and batches.
        scenes: different pictures.
        steps: optimizer steps of ``batch_size`` pictures at learning rate ``lr``, warm-up and cosine.

    Returns:
        The readout, (..., W) -> (..., K) logits of the words.
    """
    images, facts = draw_batch(rng, [draw_scene(rng, "train") for _ in range(scenes)])
    readout = nn.Linear(QFORMER.width, len(WORDS))
    parameters = [*vision.parameters(), *readout.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    warmup = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda k: min((k + 1) / warmup, 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * k / steps)))
    )
    for _ in track(range(steps), steps, "training tiny encoders", unit="steps"):
        chosen = torch.from_numpy(rng.integers(scenes, size=batch_size))
        logits = readout(vision(images[chosen]))
        loss = F.cross_entropy(logits.flatten(0, 1), facts[chosen].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    return readout


@torch.no_grad()
def named_share(vision: TinyVision, readout: nn.Linear, scenes: list[Scene], rng: np.random.Generator) -> float:
    """The share of the facts of these scenes that the readout names."""
    images, facts = draw_batch(rng, scenes)
    return float((readout(vision(images)).argmax(-1) == facts).float().mean())


def draw_batch(rng: np.random.Generator, scenes: list[Scene]) -> tuple[Tensor, Tensor]:
    """Pictures (F, 3, side, side) normalised, and the numbers of their facts among the words (F, Q)."""
    images = torch.stack([blip2_image(np.asarray(draw_picture(rng, scene)), IMAGE_SIZE) for scene in scenes])
    facts = torch.tensor([[WORDS.index(word) for word in scene.facts] for scene in scenes])
    return images, facts
