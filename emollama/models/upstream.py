"""Names in the checkpoints of Emotion-LLaMA and MiniGPT-v2, and which gaps of theirs are known to be harmless."""

from __future__ import annotations

# 36 tensors of a head that the published training code creates and never uses.
UNUSED = ("attention.*",)

# Absent together in a MiniGPT-v2 file, from which stage 1 starts: they are initialised, and the log says so.
ABSENT_TOGETHER = tuple(
    f"{layer}.{kind}"
    for layer in ("feats_llama_proj1", "feats_llama_proj2", "feats_llama_proj3", "cls_tk_llama_proj")
    for kind in ("weight", "bias")
)


def stored_name(name: str) -> str:
    """A parameter's name in our module tree -> its name in a checkpoint file.

    ``fusion.llama_proj.weight`` -> ``llama_proj.weight``; ``...lora_A.default.weight`` -> ``...lora_A.weight``.
    """
    return name.removeprefix("fusion.").replace(".lora_A.default.", ".lora_A.").replace(".lora_B.default.", ".lora_B.")
