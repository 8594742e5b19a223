"""Save and load checkpoints: the trained tensors under the names of the published files, and the state to resume a run.

A checkpoint is a dictionary ``{"model", "optimizer", "scaler", "step", "epoch", "skipped", "facts", "features", "config"}``.
``facts`` contains values that must be equal in a resumed run, and ``features`` the provenance of the training features by slot.
Checkpoints load with ``weights_only=True``. A file ``<name>.sha256`` is next to each, as torch.load detects no flipped bit.
The values of a sharded checkpoint are in other files (:mod:`emollama.checkpoint_parts`).
"""

from __future__ import annotations

import fnmatch
import os
import pickle
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Protocol

import torch
from torch import Tensor

from emollama import checkpoint_parts, disk, weight_parts
from emollama.checkpoint_files import load, other_architecture, require_checkpoint_file
from emollama.errors import UserError
from emollama.file_digests import DamagedError, digest_path, matches, read_once, stored_digests
from emollama.listing import listing
from emollama.optim import HasParameters, trainable
from emollama.replaced_file import put_in_place, replaced, temporary_file

LAST, BEST = "checkpoint_last.pth", "checkpoint_best.pth"
RESUME_FIELDS_KEY = "facts"  # historical name of this entry of a checkpoint


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint and its digest. After an interruption, either the old or the new file exists, with its digest.

    Raises:
        UserError: If the file cannot be written, for example because the disk is full. An earlier file is unchanged then.
    """
    with replaced(path) as file:
        torch.save(dict(content), file)  # type: ignore[arg-type]  # it needs only write and flush


def copy(source: Path, target: Path) -> None:
    """Copy a checkpoint with its digest; the target is replaced as by :func:`save`.

    Raises:
        DamagedError: If the source does not match its digest. The target is unchanged then.
        UserError: If the target cannot be written.
    """

    def write(content: IO[bytes]) -> None:
        with replaced(target) as file:
            shutil.copyfileobj(content, file)
            if matches(source, file) is False:
                raise DamagedError("", source)

    _, error = read_once(source, write)
    if error is not None:
        raise error


def link(source: Path, target: Path) -> None:
    """Give a checkpoint a second name, with its digest; the target is replaced as by :func:`save`.

    Both names are of the same file (a hard link). On a file system without hard links, the target is a copy.

    Raises:
        DamagedError: If the file is copied and does not match its digest. The target is unchanged then.
        UserError: If the target cannot be written.
    """
    digests = stored_digests(digest_path(source))
    with temporary_file(target) as temporary:
        temporary.unlink(missing_ok=True)
        if len(digests) == 1 and _is_linked(source, temporary):
            return put_in_place(target, temporary, digests[0])
    return copy(source, target)


def _is_linked(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno in disk.FULL:
            raise
        return False
    return True


def read(path: str, key: str, *, values: bool = True) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, and compare it with its digest meanwhile.

    Args:
        path: a file with at least the entry ``model``.
        key: the configuration key or option with the path, for messages.
        values: read the weights of a sharded checkpoint, too. If False, they stay on the meta device, as the state of the
            optimizer always does, and the files with the values are not read: see :mod:`emollama.checkpoint_parts`.

    Raises:
        DamagedError: If the file, or one of the files of a sharded checkpoint, is missing or does not match its digest.
        UserError: If the file does not exist, is truncated, or contains anything other than tensors and plain values.
    """
    require_checkpoint_file(path, key)
    try:
        intact, content = read_once(path, load)
    except OSError as error:
        raise disk.unreadable(error.filename or path, key, error) from None
    if intact is False:
        raise DamagedError(key, path)
    if isinstance(content, Exception):
        raise _unusable(path, key, content) from None
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise UserError(f"{key}: {path} is not a checkpoint: expected a dictionary with an entry 'model' that contains tensors")
    if isinstance(entry := content.get(checkpoint_parts.ENTRY), dict):
        # Only this machine says where it has copies.
        entry.pop(checkpoint_parts.COPIED_TO, None)
    if values and (parts := checkpoint_parts.parts_of(content, path)):
        parts.require_intact(key)
        content["model"] = parts.read(content["model"], "model")
    return content


def _unusable(path: str, key: str, error: Exception) -> UserError:
    """Return the error for a file that torch.load cannot read; it raises many types of exceptions for damaged files."""
    if not isinstance(error, pickle.UnpicklingError):
        reason = f"{type(error).__name__} {error}".partition("\n")[0].rstrip(". ")
        return UserError(f"{key}: {path} is truncated or not a checkpoint: {reason}. Copy it again.")
    unsafe = re.search(r"GLOBAL (\S+)", str(error))
    if unsafe is None:
        return UserError(f"{key}: {path} is truncated or not a checkpoint. Copy it again, or specify another file.")
    return UserError(
        f"{key}: {path} contains an object of type {unsafe[1]} and was not loaded, because it could run code. Ask its author"
        " for a file that torch.load(weights_only=True) can read."
    )


def by_stored_name(stored: Mapping[str, Any], stored_name: Callable[[str], str], path: str) -> dict[str, Tensor]:
    """Rename the tensors of a file to the names of the published files; later versions of peft write longer names.

    Args:
        stored: name in the file -> tensor.
        stored_name: function from any name of a tensor to its name in the published files.
        path: path of the file, for messages.

    Raises:
        UserError: If a value is not a tensor, or two tensors have the same name.
    """
    if others := [str(name) for name, tensor in stored.items() if not isinstance(tensor, Tensor)]:
        problem = f"all values in the entry 'model' must be tensors; got {listing(others, 'other value')}"
        raise UserError(f"checkpoint {path}: {problem}")
    named = {stored_name(str(name)): tensor for name, tensor in stored.items()}
    if duplicates := [str(name) for name in stored if str(name) not in named and stored_name(str(name)) in stored]:
        raise UserError(
            f"checkpoint {path} contains two tensors for the same parameter. Remove one of each pair:"
            f" {listing(duplicates, 'longer name')}"
        )
    return named


class StoredModel(HasParameters, Protocol):
    """A model whose trained parameters are stored in checkpoints; see :class:`~emollama.components.Model`."""

    ignored_tensors: tuple[str, ...]
    optional_tensor_group: tuple[str, ...]
    optional_tensors: tuple[str, ...]
    shape_keys: tuple[str, ...]
    architecture: str

    def stored_name(self, name: str, /) -> str:
        """Return the name in a checkpoint of the parameter with this name."""
        ...


def load_trainable(
    model: StoredModel,
    stored: Mapping[str, Tensor],
    *,
    path: str,
    allow_missing: list[str],
    new_slots: bool = False,
    dry: bool = False,
) -> list[str]:
    """Copy stored tensors into the model's trained parameters.

    Args:
        model: the model. Its attributes define names (``stored_name``), tensors that may be unused or missing
            (``ignored_tensors``, ``optional_tensor_group``, ``optional_tensors``), and names for messages (``shape_keys``,
            ``architecture``).
        stored: name in the file -> tensor. Those on the meta device are only compared.
        path: path of the file, for messages.
        allow_missing: glob patterns of trained tensors that may be missing.
        new_slots: allow missing tensors of slots that were added after the checkpoint's training (``optional_tensors``), as at
            the start of a training.
        dry: only check; the model can be on the meta device.

    Returns:
        Log lines about tensors that keep their initial values or were ignored.

    Raises:
        UserError: If tensors are missing, unexpected or of a different shape; the message lists all of them by name.
    """
    parameters = {model.stored_name(name): parameter for name, parameter in trainable(model).items()}
    stored = by_stored_name(stored, model.stored_name, path)
    missing = [name for name in parameters if name not in stored]
    unexpected = [name for name in stored if name not in parameters]
    unused = [name for name in unexpected if _matches(name, model.ignored_tensors)]
    notes = [f"{path}: ignored {listing(unused, 'unused tensor')}"] if unused else []
    new = [name for name in missing if new_slots and _matches(name, model.optional_tensors)]
    missing = [name for name in missing if name not in new]
    if new:
        notes.append(f"{path}: initialized {listing(new, 'missing tensor')} of slots that the checkpoint was not trained with")
    together = {name for name in model.optional_tensor_group if name in parameters}
    allowed = {name for name in missing if _matches(name, allow_missing)}
    # Only if all of them are missing is this a MiniGPT-v2 file; otherwise the missing tensors are reported.
    if together and together <= set(missing) <= together | allowed:
        notes.append(f"{path} is a MiniGPT-v2 checkpoint; initialized {listing(sorted(together), 'missing tensor')}")
        allowed, missing = allowed - together, []
    missing = [name for name in missing if name not in allowed]
    if allowed:
        notes.append(f"{path}: initialized {listing(sorted(allowed), 'missing tensor')} (allowed by ckpt_allow_missing)")
    _require_match(path, parameters, stored, (missing, sorted({*unexpected} - {*unused})), model)
    if not dry:
        with torch.no_grad():
            for name, parameter in parameters.items():
                if name in stored and not stored[name].is_meta:
                    weight_parts.fill(parameter, stored[name])
    return notes


def _require_match(
    path: str,
    parameters: Mapping[str, Tensor],
    stored: Mapping[str, Tensor],
    names: tuple[list[str], list[str]],
    model: StoredModel,
) -> None:
    missing, unexpected = names
    problems = []
    if missing:
        problems.append(f"{listing(missing, 'missing tensor')} (to allow this, set ckpt_allow_missing to glob patterns)")
    if unexpected:
        problems.append(
            f"{listing(unexpected, 'unexpected tensor')} (are train_llm, lora_target_modules, slots and fusion the same?)"
        )
    shapes = [
        f"{name} has shape {tuple(stored[name].shape)}, expected {tuple(parameter.shape)}"
        for name, parameter in parameters.items()
        if name in stored and stored[name].shape != parameter.shape
    ]
    if shapes:
        details = listing(shapes, "tensor with a different shape", "tensors with different shapes")
        problems.append(f"{details} (do {', '.join(model.shape_keys)} differ?)")
    if problems:
        raise UserError(f"checkpoint {path}: {other_architecture(parameters, stored, model.architecture)}{'; '.join(problems)}")


def _matches(name: str, globs: tuple[str, ...] | list[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in globs)
