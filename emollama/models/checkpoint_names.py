"""Names in the checkpoints of Emotion-LLaMA and MiniGPT-v2, and which gaps of theirs are known to be harmless."""

from __future__ import annotations

import fnmatch

# What those files hold and nothing uses: 36 tensors of a head that the published training code creates, and the angles of
# the rotary embedding (one tensor a layer), which transformers up to 4.31 stored, and computes by itself.
UNUSED = ("attention.*", "llama_model.*.rotary_emb.inv_freq")

# Absent together in a MiniGPT-v2 file, from which stage 1 starts: they are initialised, and the log says so.
ABSENT_TOGETHER = tuple(
    f"{layer}.{kind}"
    for layer in ("feats_llama_proj1", "feats_llama_proj2", "feats_llama_proj3", "cls_tk_llama_proj")
    for kind in ("weight", "bias")
)


def stored_name(name: str) -> str:
    """A parameter's name in our module tree -> its name in a checkpoint file.

    ``fusion.llama_proj.weight`` -> ``llama_proj.weight``; ``...lora_A.default.weight`` -> ``...lora_A.weight``. Names that
    are stored stay as they are; files written with peft 0.3 or later have the longer ones.
    """
    return name.removeprefix("fusion.").replace(".lora_A.default.", ".lora_A.").replace(".lora_B.default.", ".lora_B.")


def is_unused(name: str) -> bool:
    """Whether a stored tensor is set aside when its file is loaded."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in UNUSED)
