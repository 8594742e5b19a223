"""A small world of invented videos, with encoders, their features, and a model that was trained on them for two steps."""

from __future__ import annotations

from pathlib import Path

from helpers import write

from emollama import config

LABELS = ["happy", "sad", "neutral", "angry", "worried", "surprise"]
CLIPS = [f"clip_{number:03d}" for number in range(6)]

REPEATED = "because the face is calm, the voice is low and the words are few, so that the mood of the person is easy to see"


def tree_over(root: Path) -> dict:
    """Return a configuration for invented videos: encoders, their features, a training block and an evaluation block."""
    block = {
        "type": "custom",
        "data_root": str(root),
        "annotation_file": "labels.csv",
        "labels": LABELS,
        "task_pool": ["emotion"],
        "instructions": {"emotion": ["Which of {labels} is it?"]},
        **{f"{key}_feature_path": f"features/{key}" for key in ("image", "face", "video", "audio")},
    }
    encoders = root / "encoders"
    return {
        "model": {
            "arch": "minigpt_v2",
            "preset": "tiny",
            "llama_model": str(root / "llm"),
            "ckpt": str(root / "out/trained/checkpoint_0.pth"),
            "image_size": 56,
            "slot_dims": {"image": 176, "face": 64, "video": 64, "audio": 64},
        },
        "encoders": {
            "eva": {"weights": str(encoders / "eva_vit.safetensors"), "image_size": 56, "folder": "image"},
            "mae": {"weights": str(encoders / "mae"), "face": "centre", "folder": "face"},
            "videomae": {"weights": str(encoders / "videomae"), "folder": "video"},
            "hubert": {"weights": str(encoders / "hubert"), "folder": "audio"},
        },
        "extraction": {"videos": str(root / "videos"), "output": str(root / "features"), "device": "cpu"},
        "datasets": {"clips": block},
        "evaluation_datasets": {"answers": {**block, "answer_by": "likelihood"}},
        "run": {
            "output_dir": str(root / "out"),
            "max_epoch": 1,
            "iters_per_epoch": 2,
            "init_lr": 1e-2,
            "num_workers": 0,
            "device": "cpu",
            "amp": False,
        },
    }


def make_world(root: Path, *, long_answers: bool = False) -> Path:
    """Create the world in a folder and return the path of its configuration.

    Args:
        root: the folder.
        long_answers: let the language model repeat itself until ``max_new_tokens``; otherwise, its answers are nearly empty.
    """
    from emollama.demo.tiny_encoders import make_tiny_encoders
    from emollama.demo.tiny_llama import make_tiny_llama
    from emollama.demo.videos import draw_texts, make_videos

    make_videos(root, clips=len(CLIPS), unseen=2, seed=5)
    make_tiny_encoders(root / "encoders", seed=5)
    texts, steps, more = draw_texts(5, 100), 3, []
    if long_answers:
        texts, steps, more = [f"{text} {REPEATED}" for text in texts], 12, ["run.init_lr=1e-3"]
    make_tiny_llama(root / "llm", texts, seed=5, steps=steps)
    path = Path(write(root, tree_over(root)))
    extraction = config.load(str(path))
    extraction.extractor_class(extraction).run()
    training = config.load(str(path), ["model.ckpt=null", "run.job_id=trained", *more])
    training.runner_class(training).train()
    return path


def only(*keys: str) -> list[str]:
    """Return options that remove all other encoders, because building an encoder takes time."""
    return [f"encoders.{key}=null" for key in ("eva", "mae", "videomae", "hubert") if key not in keys]


def sentences(root: Path) -> dict[str, str]:
    """Return clip name -> spoken sentence."""
    lines = (root / "labels.csv").read_text().splitlines()[1:]
    return {line.split(",")[0]: line.split(",", 2)[2].strip('"') for line in lines}
