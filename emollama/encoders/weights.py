"""Files of pretrained weights: their tensors, and the digest that tells two of them apart.

A path is a file (.pth, .bin, .safetensors) or a folder as Hugging Face models are published, in one piece or in several.
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
from emollama.errors import UserError
from emollama.listing import listing
from emollama.paths import PATHS, looked_up, not_a_file, sha256

CONFIG = "config.json"
WRAPPERS = ("model", "module", "state_dict")  # entries under which training code keeps the tensors


def weight_files(path: str) -> list[Path]:
    """The files that hold the tensors: the file itself, or those of a folder, sorted: all .safetensors, else all .bin."""
    folder = Path(path)
    if not folder.is_dir():
        return [folder]
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


def digest(path: str) -> str:
    """SHA-256 of a weights file; of a folder, over the names and digests of config.json and its weight files.

    A file that did not change since is not read again.
    """
    if not os.path.isdir(path):
        return _remembered_sha256(Path(path))
    files = [Path(path, CONFIG), *weight_files(path)]
    lines = [f"{_remembered_sha256(file)}  {file.name}\n" for file in files if file.is_file()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _remembered_sha256(path: Path) -> str:
    seen, status = ValidationCache.load("weights", os.path.abspath(path)), os.stat(path)
    stamp = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    if (known := seen.recall(path.name, stamp)) is None:
        known = sha256(path)
        seen.add(path.name, stamp, known)
        seen.save()
    return known


def read_tensors(path: str, key: str) -> dict[str, Tensor]:
    """Every tensor of a file or a folder by its name, on the CPU; mapped, so that only what is used is read.

    Args:
        path: see the module; tensors under ``model``, ``module`` or ``state_dict`` are taken out of it.
        key: the configuration key that named it, for messages.

    Raises:
        UserError: nothing there, truncated, able to run code, or without tensors.
    """
    files = weight_files(path)
    if not files:
        raise UserError(f"{key}: no weights (*.safetensors, pytorch_model*.bin) in the folder '{path}'. Download them too.")
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= _read_file(str(file), key)
    return tensors


def require_fit(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], *, file: str, remedy: str) -> None:
    """Check that a file holds the tensors of a model, and no others.

    Args:
        tensors: name -> value, of the file.
        wanted: the same of the model, on any device.
        file: its configuration key and path, for messages.
        remedy: for messages.

    Raises:
        UserError: a tensor is missing, of another shape, or unknown: names all of them.
    """
    wrong = sorted(name for name in wanted if name not in tensors or tensors[name].shape != wanted[name].shape)
    strange = sorted(set(tensors) - set(wanted))
    if wrong or strange:
        what = f"lacks, or has in another shape, {listing(wrong)}" if wrong else f"has unknown tensors, {listing(strange)}"
        raise UserError(f"{file} {what}. {remedy}")


@contextmanager
def random_weights(key: str) -> Iterator[None]:
    """Around what builds a model with random weights on the CPU: they are the same each time. Says so, and under which key."""
    logging.getLogger("emollama").warning("%s: random weights, for tests: the features mean nothing", key)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _read_file(path: str, key: str) -> dict[str, Tensor]:
    if not looked_up(PATHS.isfile, path, key):
        raise not_a_file(key, path, "Download the weights, or correct the path.")
    local = PATHS.get_local_path(path)
    try:
        content = load_file(local) if path.endswith(".safetensors") else _load_pickle(local)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            raise UserError(f"{key}: {path} is truncated, or no file of weights. Download it again.") from None
        raise UserError(
            f"{key}: {path} holds more than tensors and plain values ({found[1]}) and was not opened, since it could run code."
            " Save its tensors alone: torch.save({'model': tensors}, ...)."
        ) from None
    except (SafetensorError, OSError, ValueError, RuntimeError, EOFError) as error:
        reason = f"{error}".partition("\n")[0].rstrip(". ")
        raise UserError(f"{key}: {path} is truncated, or no file of weights: {reason}. Download it again.") from None
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    tensors = (
        {str(name): value for name, value in content.items() if isinstance(value, Tensor)} if isinstance(content, Mapping) else {}
    )
    if not tensors:
        raise UserError(f"{key}: {path} holds no tensors by name. Name a file of weights.")
    return tensors


def _load_pickle(path: str) -> Any:
    """What torch.save wrote; the arguments of its training, which most published files carry, are harmless."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
