"""Tensor names in the checkpoints of Emotion-LLaMA and MiniGPT-v2, and the tensors that may be unused or missing there."""

from __future__ import annotations

import fnmatch

# Tensors in these files that no model uses: 36 tensors of a head that the published training code creates, and the angles of
# the rotary embedding (one tensor per layer), which transformers up to 4.31 stored and which are now computed.
IGNORED_TENSORS = ("attention.*", "llama_model.*.rotary_emb.inv_freq")

# A MiniGPT-v2 checkpoint, from which stage 1 starts, lacks all of these. They are initialized, and a log line says so.
OPTIONAL_TENSOR_GROUP = tuple(
    f"{layer}.{kind}"
    for layer in ("feats_llama_proj1", "feats_llama_proj2", "feats_llama_proj3", "cls_tk_llama_proj")
    for kind in ("weight", "bias")
)


def stored_name(name: str) -> str:
    """Convert a parameter's name in the module tree to its name in a checkpoint file.

    ``fusion.llama_proj.weight`` -> ``llama_proj.weight``; ``...lora_A.default.weight`` -> ``...lora_A.weight``. A name that
    is already in the stored form is returned unchanged. Files written with peft 0.3 or later contain ``.default``.
    """
    return without_adapter_name(name.removeprefix("fusion."))


def without_adapter_name(name: str) -> str:
    """Return the name of a tensor in a checkpoint without ``.default``, the name that peft gives to an adapter."""
    return name.replace(".lora_A.default.", ".lora_A.").replace(".lora_B.default.", ".lora_B.")


def is_unused(name: str) -> bool:
    """Return whether a stored tensor is ignored when its file is loaded."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in IGNORED_TENSORS)
