"""The YAML files that MiniGPT-4 and MiniGPT-v2 were released with: their keys and values, with paths of tiny files.

The paths that the released project keeps in further files (``llama_model``, ``build_info``) are in the same file here.
"""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

from flickr_world import FlickrWorld

VICUNA = {"end_sym": "###", "prompt_template": "###Human: {} ###Assistant: "}
LLAMA_2 = {"end_sym": "</s>", "prompt_template": "[INST] {} [/INST] "}
V2_TRAINING = {  # name of the dataset -> (batch_size, sample_ratio)
    "multitask_conversation": (2, 50),
    "llava_conversation": (2, 30),
    "unnatural_instruction": (1, 10),
    "refvg": (6, 40),
    "llava_detail": (4, 20),
    "llava_reason": (4, 80),
    "flickr_grounded_caption": (2, 80),
    "flickr_CaptionToPhrase": (2, 80),
    "flickr_ObjectToPhrase": (2, 80),
    "coco_caption": (6, 10),
    "textcaps_caption": (6, 30),
    "refcoco": (6, 25),
    "refcocop": (6, 25),
    "refcocog": (6, 25),
    "invrefcoco": (6, 10),
    "invrefcocop": (6, 10),
    "invrefcocog": (6, 10),
    "coco_vqa": (6, 15),
    "ok_vqa": (6, 8),
    "aok_vqa": (6, 12),
    "gqa": (6, 50),
    "ocrvqa": (6, 30),
}
V2_BENCHMARKS = ("refcoco", "refcocog", "refcoco+", "gqa", "okvqa", "vizwiz", "iconvqa", "vsr", "hm")


def processors(size: int, kind: str = "train") -> dict[str, Any]:
    """The processors of a dataset block."""
    return {
        "vis_processor": {"train": {"name": f"blip2_image_{kind}", "image_size": size}},
        "text_processor": {"train": {"name": "blip_caption"}},
    }


def run_block(folder: Path, **changes: Any) -> dict[str, Any]:
    """The ``run`` block of a training file; the released files differ in the changes."""
    return {
        "task": "image_text_pretrain",
        "lr_sched": "linear_warmup_cosine_lr",
        "init_lr": 1e-4,
        "min_lr": 8e-5,
        "warmup_lr": 1e-6,
        "weight_decay": 0.05,
        "max_epoch": 4,
        "num_workers": 4,
        "warmup_steps": 5000,
        "iters_per_epoch": 5000,
        "seed": 42,
        "output_dir": str(folder / "output"),
        "amp": True,
        "resume_ckpt_path": None,
        "evaluate": False,
        "train_splits": ["train"],
        "device": "cuda",
        "world_size": 1,
        "dist_url": "env://",
        "distributed": True,
    } | changes


def stage_1(folder: Path, world: FlickrWorld, model_type: str) -> dict[str, Any]:
    """minigpt4_stage1_pretrain.yaml and minigpt4_llama2_stage1_pretrain.yaml."""
    run = {"wandb_log": True, "job_name": "minigpt4_pretrain"} if model_type == "pretrain_vicuna0" else {}
    tars = {"laion": (115, "laion/{00000..00001}.tar"), "cc_sbu": (14, "cc_sbu/{00000..00000}.tar")}
    return {
        "model": {"arch": "minigpt4", "model_type": model_type, "llama_model": str(world.llama)},
        "datasets": {
            name: {"batch_size": 64, **processors(224), "sample_ratio": ratio, "build_info": {"storage": str(folder / path)}}
            for name, (ratio, path) in tars.items()
        },
        "run": run_block(folder, **run),
    }


def stage_2(folder: Path, world: FlickrWorld, model_type: str, ckpt: Path) -> dict[str, Any]:
    """minigpt4_stage2_finetune.yaml and minigpt4_llama2_stage2_finetune.yaml."""
    schedule = {"init_lr": 3e-5, "min_lr": 1e-5, "max_epoch": 5, "iters_per_epoch": 200, "warmup_steps": 200}
    return {
        "model": {
            "arch": "mini_gpt4" if model_type == "pretrain_llama2" else "minigpt4",
            "model_type": model_type,
            "max_txt_len": 160,
            **(LLAMA_2 if model_type == "pretrain_llama2" else VICUNA),
            "prompt_path": str(world.prompts),
            "ckpt": str(ckpt),
            "llama_model": str(world.llama),
        },
        "datasets": {"cc_sbu_align": {**processors(224), "build_info": {"storage": f"{folder}/cc_sbu_align/"}}},
        "run": run_block(folder, **schedule, batch_size_train=12, batch_size_eval=12),
    }


def demo(world: FlickrWorld, model_type: str, ckpt: Path) -> dict[str, Any]:
    """minigpt4_eval.yaml, minigpt4_llama2_eval.yaml and minigptv2_eval.yaml, which configure the chat demo."""
    v2 = {"arch": "minigpt_v2", "max_txt_len": 500, "low_resource": False, "lora_r": 64, "lora_alpha": 16}
    v2 |= {"end_sym": "</s>", "prompt_template": "[INST] {} [/INST]"}
    v1 = {"arch": "minigpt4", "max_txt_len": 160, "low_resource": True}
    own = v2 if model_type == "pretrain" else v1 | (LLAMA_2 if model_type == "pretrain_llama2" else VICUNA)
    return {
        "model": {"model_type": model_type, **own, "ckpt": str(ckpt), "llama_model": str(world.llama)},
        "datasets": {"cc_sbu_align": processors(448 if model_type == "pretrain" else 224, "eval")},
        "run": {"task": "image_text_pretrain"},
    }


def v2_finetune(folder: Path, world: FlickrWorld, ckpt: Path) -> dict[str, Any]:
    """minigptv2_finetune.yaml."""
    model = {"arch": "minigpt_v2", "model_type": "pretrain", "max_txt_len": 1024, "image_size": 448, "end_sym": "</s>"}
    model |= {"llama_model": str(world.llama), "ckpt": str(ckpt), "use_grad_checkpoint": True, "chat_template": True}
    schedule = {"init_lr": 1e-5, "max_epoch": 50, "num_workers": 6, "warmup_steps": 1000, "iters_per_epoch": 1000}
    return {
        "model": model | {"lora_r": 64, "lora_alpha": 16},
        "datasets": {
            name: {"batch_size": size, **processors(448), "sample_ratio": ratio} for name, (size, ratio) in V2_TRAINING.items()
        },
        "run": run_block(folder, **schedule, wandb_log=True, job_name="minigptv2_finetune"),
    }


def v2_benchmark(folder: Path, world: FlickrWorld, ckpt: Path) -> dict[str, Any]:
    """minigptv2_benchmark_evaluation.yaml."""
    block = {"eval_file_path": "annotations", "img_path": "images", "max_new_tokens": 20, "batch_size": 10}
    return demo(world, "pretrain", ckpt) | {
        "evaluation_datasets": {name: dict(block) for name in V2_BENCHMARKS},
        "run": {"task": "image_text_pretrain", "name": "minigptv2_evaluation", "save_path": str(folder / "output")},
    }


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """Write a tar with these members in order and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def sample(key: str, image: bytes, caption: Any) -> list[tuple[str, bytes]]:
    """The members of one sample, as img2dataset writes them."""
    text = {"caption": caption, "url": "https://example.org/x.jpg", "key": key}
    return [(f"{key}.jpg", image), (f"{key}.json", json.dumps(text).encode()), (f"{key}.txt", str(caption).encode())]


def end_of_members(path: Path) -> int:
    """Return the number of bytes before the end mark of a tar."""
    with tarfile.open(path) as tar:
        tar.getmembers()
        return tar.offset
