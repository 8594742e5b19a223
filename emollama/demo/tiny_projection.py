"""Pretrain a projection from the tiny Q-Former to the tiny Llama on short captions, in place of MiniGPT-4's published one.

Shape letters: B pictures, Q queries, W width of the Q-Former, H width of the Llama, T tokens, N texts.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from emollama.demo.drawing_captions import PROMPTS, alt_text, prompt_parts
from emollama.demo.drawings import draw_scene
from emollama.demo.tiny_vision import TinyVision, draw_batch, named_share, train_vision
from emollama.logs.console import track

BATCH_SIZE = 32  # pictures per optimizer step of the projection
LR = 1e-2  # initial learning rate of the projection


def make_pretrained(folder: Path, llm: Path, *, seed: int) -> tuple[float, float]:
    """Train the tiny encoders and the projection; write ``encoders/eva_vit.pth``, ``encoders/q_former.pth``, ``projection.pth``.

    The state of torch's global generator does not change.

    Args:
        folder: the folder to write to.
        llm: folder of the language model.
        seed: seed of all random draws.

    Returns:
        The share of attributes of unseen drawings that the encoders recognize, and the projection's last loss.
    """
    (folder / "encoders").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, 3])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vision = TinyVision()
        readout = train_vision(vision, rng, scenes=3000, steps=600)
        vision.save(folder / "encoders/eva_vit.pth", folder / "encoders/q_former.pth")
        share = named_share(vision, readout, [draw_scene(rng, "test") for _ in range(200)], rng)
        loss = pretrain_projection(vision, llm, folder / "projection.pth", rng, scenes=1000, steps=150)
    return share, loss


def pretrain_projection(vision: TinyVision, llm: Path, path: Path, rng: np.random.Generator, *, scenes: int, steps: int) -> float:
    """Train a projection on the alt texts of pictures, and save it in MiniGPT-4's format, ``{"model": {...}}``.

    Args:
        vision: the encoders, which are frozen.
        llm: folder of the Llama, which is frozen.
        path: the output file.
        rng: generator of the pictures (from the training split) and batches.
        scenes: number of pictures.
        steps: optimizer steps, with a decreasing learning rate.

    Returns:
        The loss of the last batch.
    """
    model = LlamaForCausalLM.from_pretrained(llm).requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(llm)
    training_scenes = [draw_scene(rng, "train") for _ in range(scenes)]
    with torch.no_grad():
        image_tokens = vision(draw_batch(rng, training_scenes)[0])  # (scenes, Q, W)
    answers = _tokenize(tokenizer, [alt_text(scene) for scene in training_scenes])
    projection = nn.Linear(image_tokens.shape[-1], model.config.hidden_size)
    optimizer = torch.optim.AdamW(projection.parameters(), lr=LR)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    for step in track(range(steps), steps, "training a projection", unit="steps"):
        chosen = torch.from_numpy(rng.integers(scenes, size=BATCH_SIZE))
        parts = prompt_parts(PROMPTS[step % len(PROMPTS)])
        prompt = [tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids for text in parts]
        loss = _loss(model, projection(image_tokens[chosen]), prompt, answers[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    torch.save({"model": {f"llama_proj.{name}": value for name, value in projection.state_dict().items()}}, path)
    return loss.item()


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> Tensor:
    """Return token ids (N, T) of the texts, each followed by </s> and padded with -100."""
    ids = [torch.tensor([*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]) for text in texts]
    return nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=-100)


def _loss(model: LlamaForCausalLM, image: Tensor, prompt: list[Tensor], answers: Tensor) -> Tensor:
    """Return the mean cross-entropy of answers (B, T) after a prompt with image tokens (B, Q, H) in the middle."""
    embed = model.get_input_embeddings()
    start = torch.tensor([[model.config.bos_token_id]])
    before, after = (embed(ids).expand(len(image), -1, -1) for ids in (torch.cat([start, prompt[0]], 1), prompt[1]))
    inputs = torch.cat([before, image, after, embed(answers.clamp_min(0))], 1)
    logits = model(inputs_embeds=inputs, use_cache=False).logits[:, -answers.shape[1] - 1 : -1]
    return F.cross_entropy(logits.flatten(0, 1), answers.flatten(), ignore_index=-100)
