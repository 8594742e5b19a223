"""The key ``model.ckpt``: the checkpoints from which a model starts, or the members of an ensemble."""

from __future__ import annotations

from functools import partial
from typing import Any

from emollama.checkpoint_files import require_checkpoint_file, require_language_model
from emollama.errors import UserError


def checkpoint_paths(ckpt: str | list[str] | None) -> list[str]:
    """Return the value of ``model.ckpt`` as a list of files."""
    return [ckpt] if isinstance(ckpt, str) else list(ckpt or [])


def is_ensemble(cfg: Any) -> bool:
    """Return whether a ``model`` block configures an ensemble that averages predictions."""
    return len(checkpoint_paths(cfg.ckpt)) > 1 and cfg.ensemble == "predictions"


def require_checkpoint(cfg: Any) -> None:
    """Check that the checkpoint of a ``model`` block exists, before expensive work starts.

    Raises:
        UserError: If ``ckpt`` is null or not a file.
    """
    if not cfg.ckpt and not cfg.ckpt_allow_missing:
        raise UserError(
            "model.ckpt is null, so no trained weights are loaded. Specify a checkpoint, or set model.ckpt_allow_missing: ['*']"
            " to evaluate random projections and adapters."
        )
    for path in checkpoint_paths(cfg.ckpt):
        require_checkpoint_file(path, "model.ckpt")


def missing_files(cfg: Any) -> list[str]:
    """Return error messages for the paths ``model.llama_model`` and ``model.ckpt`` that do not exist."""
    checks = [partial(require_language_model, cfg.llama_model)]
    checks += [partial(require_checkpoint_file, path, "model.ckpt") for path in checkpoint_paths(cfg.ckpt)]
    problems = []
    for check in checks:
        try:
            check()
        except UserError as error:
            problems.append(str(error))
    return problems
