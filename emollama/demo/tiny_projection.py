"""A projection from the tiny Q-Former into the tiny Llama, pretrained on terse captions, in place of MiniGPT-4's published one.

Letters: B pictures, Q queries, W width of the Q-Former, H width of the Llama, T tokens.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from emollama.demo.drawing_captions import PROMPTS, alt_text, in_template
from emollama.demo.drawings import draw_scene
from emollama.demo.tiny_vision import TinyVision, draw_batch, learn_to_see, named_share
from emollama.logs.console import track

BATCH_SIZE = 32  # pictures of an optimizer step of the projection
LR = 1e-2  # it begins with


def make_pretrained(folder: Path, llm: Path, *, seed: int) -> tuple[float, float]:
    """Write ``encoders/eva_vit.pth``, ``encoders/q_former.pth`` and ``projection.pth``.

    torch's global generator is left as it was.

    Args:
        folder: where to write.
        llm: the language model's folder.
        seed: of everything random.

    Returns:
        Share of the facts of unseen drawings that the encoders' rows tell, and the projection's last loss.
    """
    (folder / "encoders").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, 3])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vision = TinyVision()
        readout = learn_to_see(vision, rng, scenes=3000, steps=600)
        vision.save(folder / "encoders/eva_vit.pth", folder / "encoders/q_former.pth")
        told = named_share(vision, readout, [draw_scene(rng, "test") for _ in range(200)], rng)
        loss = pretrain_projection(vision, llm, folder / "projection.pth", rng, scenes=1000, steps=150)
    return told, loss


def pretrain_projection(vision: TinyVision, llm: Path, path: Path, rng: np.random.Generator, *, scenes: int, steps: int) -> float:
    """Train a projection so that the Llama says the alt texts of pictures, and save it as MiniGPT-4's is: ``{"model": {...}}``.

    Args:
        vision: the frozen encoders.
        llm: the frozen Llama's folder.
        path: of the new file.
        rng: of the pictures (of the training split) and batches.
        scenes: how many pictures.
        steps: optimizer steps, at a falling learning rate.

    Returns:
        The last batch's loss.
    """
    model = LlamaForCausalLM.from_pretrained(llm).requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(llm)
    drawn = [draw_scene(rng, "train") for _ in range(scenes)]
    with torch.no_grad():
        rows = vision(draw_batch(rng, drawn)[0])
    answers = _padded(tokenizer, [alt_text(scene) for scene in drawn])
    projection = nn.Linear(rows.shape[-1], model.config.hidden_size)
    optimizer = torch.optim.AdamW(projection.parameters(), lr=LR)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    for step in track(range(steps), steps, "training a projection", unit="steps"):
        chosen = torch.from_numpy(rng.integers(scenes, size=BATCH_SIZE))
        before, behind = in_template(PROMPTS[step % len(PROMPTS)])
        prompt = [tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids for text in (before, behind)]
        loss = _loss(model, projection(rows[chosen]), prompt, answers[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    torch.save({"model": {f"llama_proj.{name}": value for name, value in projection.state_dict().items()}}, path)
    return loss.item()


def _padded(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> Tensor:
    """Token ids (N, T) with </s> behind each text; -100 behind that."""
    rows = [torch.tensor([*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]) for text in texts]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)


def _loss(model: LlamaForCausalLM, image: Tensor, prompt: list[Tensor], answers: Tensor) -> Tensor:
    """Mean cross-entropy of answers (B, T) behind the prompt with an image's rows (B, Q, H) in the middle."""
    embed = model.get_input_embeddings()
    start = torch.tensor([[model.config.bos_token_id]])
    before, behind = (embed(ids).expand(len(image), -1, -1) for ids in (torch.cat([start, prompt[0]], 1), prompt[1]))
    inputs = torch.cat([before, image, behind, embed(answers.clamp_min(0))], 1)
    logits = model(inputs_embeds=inputs, use_cache=False).logits[:, -answers.shape[1] - 1 : -1]
    return F.cross_entropy(logits.flatten(0, 1), answers.flatten(), ignore_index=-100)
