"""Encode clips that were read: the arrays to store, and the reasons of those that cannot be encoded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from emollama.encoders.encoder import Encoder
from emollama.errors import UserError
from emollama.extraction.jobs import Job
from emollama.media.source import Source, UnusableMedia

MAX_REASON_LENGTH = 300  # characters

Loaded = tuple[Source, Tensor]


def encode_batch(job: Job, encoder: Encoder, batch: Sequence[Loaded]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Encode a batch of clips.

    Args:
        job: the job of the encoder, which describes its arrays.
        encoder: the encoder with its weights.
        batch: clips and the results of ``encoder.load``.

    Returns:
        Clip name -> array in the dtype in which it is stored, and clip name -> why there is no array.

    Raises:
        UserError: If the device has too little memory, or an array has a different shape than the encoder's description.
    """
    arrays: dict[str, np.ndarray] = {}
    failed: dict[str, str] = {}
    for source, array in _encode(job, encoder, batch, failed):
        if not job.fits(array.shape):
            text = (
                f"encoders.{job.label}: the array of '{source.name}' has shape {array.shape}, but its description is {job.shape}."
            )
            raise UserError(f"{text} Correct the encoder's class.")
        with np.errstate(over="ignore"):
            stored = array.astype(job.cfg.dtype)
        if np.isfinite(stored).all():
            arrays[source.name] = stored
        else:
            failed[source.name] = f"features are not finite with precision {job.cfg.precision} and dtype {job.cfg.dtype}"
    return arrays, failed


def reason(error: Exception) -> str:
    """Return why a clip cannot be encoded, in one line."""
    text = str(error) if isinstance(error, UnusableMedia) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:MAX_REASON_LENGTH]


def _encode(job: Job, encoder: Encoder, batch: Sequence[Loaded], failed: dict[str, str]) -> Iterator[tuple[Source, np.ndarray]]:
    """Encode a batch. If this fails, encode its clips one by one, so that only unusable ones fail."""
    try:
        arrays = encoder.encode([tensor for _, tensor in batch])
    except torch.OutOfMemoryError:
        key = f"encoders.{job.label}"
        text = f"{key}.batch_size: the memory of the device is too small for {job.cfg.batch_size} clips. Lower it, or set"
        raise UserError(f"{text} {key}.precision: bf16. Finished arrays remain.") from None
    except (UserError, torch.AcceleratorError):
        raise
    except Exception as error:
        if len(batch) == 1:
            failed[batch[0][0].name] = reason(error)
            return
        for clip in batch:
            yield from _encode(job, encoder, [clip], failed)
        return
    yield from zip((source for source, _ in batch), arrays, strict=True)
