"""Read files of pretrained weights and compute their digests.

A path is a file (.pth, .bin, .safetensors) or a Hugging Face folder with one or several files of weights.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from emollama.data.validation_cache import ValidationCache
from emollama.encoders.configs import EncoderConfig
from emollama.errors import UserError
from emollama.listing import listing
from emollama.paths import PATHS, not_a_file, path_exists, require_local, sha256

CONFIG = "config.json"
WRAPPERS = ("model", "module", "state_dict")  # entries of training code's checkpoints that contain the tensors


def weight_files(path: str) -> list[Path]:
    """Return the files with tensors: the file itself; of a folder, its .safetensors or otherwise its .bin files, sorted."""
    folder = Path(path)
    if not folder.is_dir():
        return [folder]
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


def digest(path: str) -> str:
    """Return the SHA-256 of a file; of a folder, that of the names and digests of config.json and the files of weights.

    Digests are cached until a file changes.
    """
    if not os.path.isdir(path):
        return _cached_sha256(Path(path))
    files = [Path(path, CONFIG), *weight_files(path)]
    lines = [f"{_cached_sha256(file)}  {file.name}\n" for file in files if file.is_file()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def recorded_weights(cfg: EncoderConfig) -> str:
    """Return the digest of an encoder's weights for its manifest; "random" or "none" without pretrained weights."""
    if cfg.random_weights:
        return "random"
    return digest(cfg.weights) if cfg.weights else "none"


def _cached_sha256(path: Path) -> str:
    cache, status = ValidationCache.load("weights", os.path.abspath(path)), os.stat(path)
    stamp = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    if (checksum := cache.get(path.name, stamp)) is None:
        checksum = sha256(path)
        cache.add(path.name, stamp, checksum)
        cache.save()
    return checksum


def read_tensors(path: str, key: str) -> dict[str, Tensor]:
    """Read all tensors of a file or folder on the CPU. Files are memory-mapped, so that only tensors that are used are loaded.

    Args:
        path: see the module; entries ``model``, ``module`` and ``state_dict`` are unwrapped.
        key: the configuration key that contains the path, for messages.

    Returns:
        Name -> tensor.

    Raises:
        UserError: If a file is missing, remote or truncated, could execute code, or contains no tensors.
    """
    files = weight_files(require_local(path, key))
    if not files:
        raise UserError(f"{key}: no weights (*.safetensors, pytorch_model*.bin) in the folder '{path}'. Download them, too.")
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= _read_file(str(file), key)
    return tensors


def require_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, file: str, remedy: str) -> None:
    """Check that a file contains the tensors of a model with their shapes, and no others.

    Args:
        tensors: name -> tensor of the file.
        expected: name -> tensor of the model, on any device.
        file: configuration key and path of the file, for messages.
        remedy: last sentence of the message.

    Raises:
        UserError: If tensors are missing, unknown or have other shapes. The message lists all of them.
    """
    wrong = sorted(name for name in expected if name not in tensors or tensors[name].shape != expected[name].shape)
    unknown = sorted(set(tensors) - set(expected))
    if wrong:
        raise UserError(f"{file} has missing tensors or wrong shapes ({listing(wrong, 'tensor')}). {remedy}")
    if unknown:
        raise UserError(f"{file} contains {listing(unknown, 'unknown tensor')}. {remedy}")


@contextmanager
def random_weights(key: str) -> Iterator[None]:
    """Seed this block, which builds a model on the CPU, so that its random weights are the same each time; log a warning.

    Args:
        key: the configuration key of the weights, for the warning.
    """
    logging.getLogger("emollama").warning("%s: random weights for tests. The features are meaningless", key)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _read_file(path: str, key: str) -> dict[str, Tensor]:
    if not path_exists(PATHS.isfile, path, key):
        raise not_a_file(key, path, "Download the weights, or correct the path.")
    local = PATHS.get_local_path(path)
    try:
        content = load_file(local) if path.endswith(".safetensors") else _load_pickle(local)
    except pickle.UnpicklingError as error:
        match = re.search(r"GLOBAL (\S+)", str(error))
        if match is None:
            raise UserError(f"{key}: {path} is truncated or not a file of weights. Download it again.") from None
        raise UserError(
            f"{key}: {path} contains more than tensors and plain values ({match[1]}). It was not loaded, because it could execute"
            " code. Save only its tensors: torch.save({'model': tensors}, ...)."
        ) from None
    except (SafetensorError, OSError, ValueError, RuntimeError, EOFError) as error:
        reason = f"{error}".partition("\n")[0].rstrip(". ")
        raise UserError(f"{key}: {path} is truncated or not a file of weights: {reason}. Download it again.") from None
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    tensors = (
        {str(name): value for name, value in content.items() if isinstance(value, Tensor)} if isinstance(content, Mapping) else {}
    )
    if not tensors:
        raise UserError(f"{key}: {path} contains no named tensors. Specify a file of weights.")
    return tensors


def _load_pickle(path: str) -> Any:
    # Most published files contain the arguments of their training, an argparse.Namespace, which is harmless.
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
