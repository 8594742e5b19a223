"""Train a tiny EVA transformer and Q-Former of the real classes on drawings, and save them in the published file formats.

Shape letters: F images, Q queries, W width of the Q-Former, K words.
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
from emollama.encoders.qformer import QFormer, with_original_names
from emollama.encoders.shapes import EvaShape, QFormerShape
from emollama.logs.console import track
from emollama.media.image_transforms import blip2_image

IMAGE_SIZE = 56
EVA = EvaShape(width=176, depth=2, inner=352)
QFORMER = QFormerShape(width=64, layers=4, heads=1, inner=128, every=2, queries=8, vision=EVA.width)
CPU = torch.device("cpu")


class TinyVision(nn.Module):
    """Both encoders with trainable random weights, drawn from torch's global generator."""

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
        """Encode images. The computation is that of the frozen classes, but with gradients.

        Args:
            images: (F, 3, IMAGE_SIZE, IMAGE_SIZE) normalized pixels.

        Returns:
            (F, Q, W).
        """
        tokens = self.vit.visual_encoder.forward_features(images)
        norm = self.vit.ln_vision
        tokens = F.layer_norm(tokens, (EVA.width,), norm.weight, norm.bias, LN_EPS)
        queries = self.q_former.query_tokens.expand(len(tokens), -1, -1)
        outputs: Tensor = self.q_former.qformer(query_embeds=queries, encoder_hidden_states=tokens).last_hidden_state
        return outputs

    def save(self, eva: Path, q_former: Path) -> None:
        """Write two files with the tensor names of ``eva_vit_g.pth`` and ``blip2_pretrained_flant5xxl.pth``.

        Args:
            eva: the file of the EVA transformer.
            q_former: the file of the Q-Former and ``ln_vision``.
        """
        torch.save(dict(self.vit.visual_encoder.state_dict()), eva)
        tensors = {f"ln_vision.{name}": value for name, value in self.vit.ln_vision.state_dict().items()}
        torch.save({"model": tensors | with_original_names(self.q_former.state_dict())}, q_former)


def train_vision(
    vision: TinyVision, rng: np.random.Generator, *, scenes: int, steps: int, batch_size: int = 32, lr: float = 1e-3
) -> nn.Linear:
    """Train both encoders in place: query i must predict attribute i through a linear readout that all queries share.

    Args:
        vision: the encoders.
        rng: generator of the scenes (from the training split) and batches.
        scenes: number of pictures.
        steps: optimizer steps.
        batch_size: pictures per step.
        lr: learning rate, with warmup and cosine decay.

    Returns:
        The readout, which maps (..., W) to (..., K) logits of WORDS.
    """
    images, attributes = draw_batch(rng, [draw_scene(rng, "train") for _ in range(scenes)])
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
        loss = F.cross_entropy(logits.flatten(0, 1), attributes[chosen].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    return readout


@torch.no_grad()
def named_share(vision: TinyVision, readout: nn.Linear, scenes: list[Scene], rng: np.random.Generator) -> float:
    """Return the share of the attributes of scenes that the encoders and the readout predict correctly."""
    images, attributes = draw_batch(rng, scenes)
    return float((readout(vision(images)).argmax(-1) == attributes).float().mean())


def draw_batch(rng: np.random.Generator, scenes: list[Scene]) -> tuple[Tensor, Tensor]:
    """Draw pictures of scenes.

    Returns:
        Normalized pixels (F, 3, IMAGE_SIZE, IMAGE_SIZE), and the indices of the attributes in WORDS (F, Q).
    """
    images = torch.stack([blip2_image(np.asarray(draw_picture(rng, scene)), IMAGE_SIZE) for scene in scenes])
    attributes = torch.tensor([[WORDS.index(word) for word in scene.attributes] for scene in scenes])
    return images, attributes
