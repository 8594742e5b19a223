"""Write the random language model and the random samples of gpu_check.py, and build a runner that uses them."""

from __future__ import annotations

import csv
import gc
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.utils import logging as transformers_logging

from emollama.config import load
from emollama.runners.runner_base import RunnerBase

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "train_configs/Emotion-LLaMA_finetune.yaml"
# The folder of the language model in CONFIG.
LLM_FOLDER = "checkpoints/Llama-2-7b-chat-hf"
SAMPLES = 64
ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
EMOTIONS = ("happy", "sad", "neutral", "angry", "worried", "surprise")
TEXT = "the man lowers his brows and shouts while a woman looks out of the window with raised cheeks so she seems worried"


@dataclass(frozen=True)
class Sizes:
    """The sizes of model, samples and measurements.

    Attributes:
        llm: shape of the language model, as keyword arguments of LlamaConfig.
        image_width: width of the image encoder's feature vectors.
        image_size: side of an image in pixels; there is one feature vector per 14 x 14 pixels.
        answer_words: minimum and maximum number of words of an answer.
        batch_sizes: batch sizes for timing steps without gradient checkpointing.
        max_tokens: tokens of a micro-batch of the variant with a budget.
        warmup_steps: number of steps of each variant before the timed steps.
        new_tokens: number of tokens that decoding generates for each prompt.
        options: additional options of the run.
    """

    llm: dict[str, int | float]
    image_width: int
    image_size: int
    answer_words: tuple[int, int]
    batch_sizes: tuple[int, ...]
    max_tokens: int
    warmup_steps: int
    new_tokens: int
    options: tuple[str, ...] = ()


LLAMA_2_7B: dict[str, int | float] = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
}
# The weights are so large that attention affects the loss, which compare_losses needs.
TINY_LLAMA: dict[str, int | float] = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 800,
    "initializer_range": 0.2,
}
FULL = Sizes(
    llm=LLAMA_2_7B,
    image_width=1408,
    image_size=448,
    answer_words=(40, 140),
    batch_sizes=(1, 4, 9, 18, 36),
    max_tokens=4096,
    warmup_steps=3,
    new_tokens=48,
    options=("run.loss_average=token",),  # the average of transformers
)
# Float32, because most CPUs multiply bf16 matrices slowly.
TINY = Sizes(
    llm=TINY_LLAMA,
    image_width=176,
    image_size=112,
    answer_words=(4, 40),
    batch_sizes=(4,),
    max_tokens=300,
    warmup_steps=1,
    new_tokens=8,
    options=("run.num_workers=1", "run.amp=False", "run.loss_average=token"),
)


def write_files(folder: Path, sizes: Sizes) -> None:
    """Write all files that CONFIG reads."""
    write_llm(folder / LLM_FOLDER, sizes)
    write_samples(folder / "MERR", sizes)


def write_llm(folder: Path, sizes: Sizes) -> None:
    """Write a Llama with random weights in bf16, and the tokenizer of the tests."""
    transformers_logging.disable_progress_bar()
    config = LlamaConfig(
        **sizes.llm,
        num_key_value_heads=sizes.llm["num_attention_heads"],
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    with DEVICE:
        llm = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    llm.save_pretrained(folder, max_shard_size="4GB")
    for path in ROOT.glob("tests/golden/llama/tokenizer*"):
        shutil.copy(path, folder)
    # Free its memory, which would otherwise be part of the variants' peaks.
    del llm
    gc.collect()
    if ON_GPU:
        torch.cuda.empty_cache()


def write_samples(folder: Path, sizes: Sizes) -> None:
    """Write samples in the format of MERR, with random features and texts."""
    rng, words = np.random.default_rng(0), TEXT.split()
    names = [f"sample_{index:08d}" for index in range(SAMPLES)]
    folder.mkdir(parents=True)
    labels = [f"{name} 10 {EMOTIONS[index % len(EMOTIONS)]}\n" for index, name in enumerate(names)]
    (folder / "MERR_coarse_grained.txt").write_text("".join(labels), encoding="utf-8")
    captions = {name: {"caption": " ".join(rng.choice(words, rng.integers(*sizes.answer_words)))} for name in names}
    (folder / "MERR_coarse_grained.json").write_text(json.dumps(captions), encoding="utf-8")
    reasons = {name: {"smp_reason_caption": " ".join(reversed(entry["caption"].split()))} for name, entry in captions.items()}
    (folder / "MERR_fine_grained.json").write_text(json.dumps(reasons), encoding="utf-8")
    with (folder / "transcription_en_all.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "sentence"])
        writer.writerows([name, " ".join(rng.choice(words, 9))] for name in names)
    patches = (sizes.image_size // 14) ** 2
    utterance = (1024,)
    shapes = {"eva": (patches + 1, sizes.image_width), "mae_340_UTT": utterance, "maeV_399_UTT": utterance, "HL-UTT": utterance}
    for kind, shape in shapes.items():
        (folder / kind).mkdir()
        for name in names:
            np.save(folder / kind / f"{name}.npy", rng.standard_normal(shape, dtype=np.float32).astype(np.float16))


def make_runner(folder: Path, sizes: Sizes, *further: str) -> RunnerBase:
    """Build a runner of CONFIG for the files in a folder, with further options; trained weights are random, always the same."""
    options = [
        f"paths.root={folder}",
        f"run.output_dir={folder / 'out'}",
        "model.ckpt=null",
        f"model.image_size={sizes.image_size}",
        f"model.slots.image.dim={sizes.image_width}",
        *sizes.options,
        *further,
    ]
    return RunnerBase(load(str(ROOT / CONFIG), options))
