"""What can be checked before weights are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emollama import checkpoint
from emollama.component_configs import quantized_bits, require_quantizer
from emollama.config import RunConfig
from emollama.inference.remote_support import require_supported
from emollama.inference.videos import require_encoders
from emollama.runners.model_ckpt import checkpoint_paths, require_checkpoint


def checked_checkpoints(config: RunConfig, *, is_remote: bool = False) -> list[Mapping[str, Any]]:
    """Check that a configuration can answer questions about videos, and return the content of its checkpoints.

    Args:
        config: the resolved configuration.
        is_remote: whether the language model runs in a vLLM server.

    Raises:
        UserError: If a checkpoint is missing or damaged, no encoder computes features of videos, the package for quantized
            weights is missing, or a language model in a server cannot answer with these settings.
    """
    if is_remote:
        require_supported(config)
    else:
        require_quantizer(quantized_bits(config.model))
    require_encoders(config)
    require_checkpoint(config.model)
    return [checkpoint.read(path, "model.ckpt") for path in checkpoint_paths(config.model.ckpt)]
