"""Checkpoints: the trained tensors under the names of the published files, and what a run needs to go on exactly.

A file is ``{"model", "optimizer", "scaler", "step", "epoch", "skipped", "facts", "features", "config"}``; ``features`` tells,
slot by slot, how the features were made that it was trained on. It loads with ``weights_only=True``,
and has its SHA-256 beside it (``<file>.sha256``), because a flipped bit does not stop torch.load.
"""

from __future__ import annotations

import fnmatch
import os
import pickle
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from emollama.checkpoint_files import other_architecture, require_checkpoint_file
from emollama.errors import UserError
from emollama.listing import listing
from emollama.optim import trainable
from emollama.paths import PATHS, atomic_write, read_text, sha256

LAST = "checkpoint_last.pth"
BEST = "checkpoint_best.pth"


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint and its digest. Killed at any moment, it leaves the old file or the new one, with its digest.

    Raises:
        UserError: the disk refuses (full, read-only); what was there before is untouched.
    """
    fresh, digest = path.with_name(f".{path.name}.new"), digest_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with fresh.open("wb") as file:
            torch.save(dict(content), file)
            file.flush()
            os.fsync(file.fileno())
        line = f"{sha256(fresh)}  {path.name}\n"
        earlier = read_text(str(digest)) if digest.is_file() else ""
        with atomic_write(digest) as file:  # both digests are there while the file is exchanged
            file.write(earlier + line)
        os.replace(fresh, path)
        with atomic_write(digest) as file:
            file.write(line)
    except (OSError, RuntimeError) as error:
        with suppress(OSError):
            fresh.unlink()
        raise UserError(
            f"{path} could not be written: {error}. Free some space; the checkpoints before it are intact."
        ) from error


def copy(source: Path, target: Path) -> None:
    """Copy a checkpoint with its digest; what was at the target is replaced whole.

    Raises:
        UserError: the source is not what was written.
    """
    if is_intact(source) is False:
        raise UserError(f"{source} is not what was written: its SHA-256 differs from {digest_path(source)}")
    digest = sha256(source)
    with atomic_write(digest_path(target)) as file:
        file.write(f"{digest}  {target.name}\n")
    with source.open("rb") as content, atomic_write(target, "wb") as file:
        shutil.copyfileobj(content, file)


def digest_path(path: str | Path) -> Path:
    """Where a checkpoint's digest lies."""
    return Path(f"{path}.sha256")


def is_intact(path: str | Path) -> bool | None:
    """Whether the file's bytes are those that were written; None where no digest lies beside it."""
    digest = str(digest_path(path))
    if not PATHS.isfile(digest):
        return None
    return sha256(path) in {line.split()[0] for line in read_text(digest).splitlines() if line.strip()}


def read(path: str, key: str) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Args:
        path: a file with at least the entry ``model``.
        key: the configuration key that named it, for messages.

    Raises:
        UserError: missing, truncated, changed since it was written, or carrying anything but tensors and plain values.
    """
    require_checkpoint_file(path, key)
    if is_intact(path) is False:
        raise UserError(f"{key}: {path} is not what was written: its SHA-256 differs from {path}.sha256. Use another checkpoint.")
    try:
        content = torch.load(PATHS.get_local_path(path), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            raise UserError(f"{key}: {path} is truncated, or no checkpoint. Name another file, or copy it again.") from None
        raise UserError(
            f"{key}: {path} holds more than tensors and plain values ({found[1]}) and was not opened, since it could run code."
            " Ask its author for a file that torch.load(weights_only=True) reads."
        ) from None
    except Exception as error:  # torch.load meets garbage with errors of many kinds
        reason = f"{type(error).__name__} {error}".partition("\n")[0].rstrip(". ")
        raise UserError(f"{key}: {path} is truncated, or no checkpoint: {reason}. Copy it again.") from None
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise UserError(f"{key}: {path} has no entry 'model' with tensors; it is not a checkpoint of this kind")
    return content


def by_stored_name(stored: Mapping[str, Any], stored_name: Callable[[str], str], path: str) -> dict[str, Tensor]:
    """The tensors of a file under the names of the published files; those of later versions of peft are longer.

    Args:
        stored: name in the file -> tensor.
        stored_name: any of a tensor's names -> that of the published files.
        path: the file, for messages.

    Raises:
        UserError: something else than a tensor, or two tensors for one name.
    """
    strange = [str(name) for name, tensor in stored.items() if not isinstance(tensor, Tensor)]
    if strange:
        raise UserError(f"checkpoint {path}: not tensors under 'model', {listing(strange)}; it is not a checkpoint of this kind")
    named = {stored_name(str(name)): tensor for name, tensor in stored.items()}
    twice = [str(name) for name in stored if str(name) not in named and stored_name(str(name)) in stored]
    if twice:
        raise UserError(f"checkpoint {path}: a second tensor for one name, {listing(twice)}; it is not clear which is meant")
    return named


def load_trainable(
    model: nn.Module, stored: Mapping[str, Tensor], *, path: str, allow_missing: list[str], dry: bool = False
) -> list[str]:
    """Copy stored tensors into the model's trained parameters.

    Args:
        model: names its own exceptions (``stored_name``, ``unused_names``, ``absent_together``), the keys that its
            shapes depend on (``shape_keys``), and its ``model.arch`` (``architecture``).
        stored: name in the file -> tensor.
        path: the file, for messages.
        allow_missing: globs of trained tensors that may be absent.
        dry: only check; the model may be on the meta device.

    Returns:
        Lines for the log about tensors that keep their initial values or were set aside.

    Raises:
        UserError: missing, unexpected or misshapen tensors, all of them by name.
    """
    naming: Any = model
    wanted = {naming.stored_name(name): parameter for name, parameter in trainable(model).items()}
    stored = by_stored_name(stored, naming.stored_name, path)
    missing = [name for name in wanted if name not in stored]
    unexpected = [name for name in stored if name not in wanted]
    aside = [name for name in unexpected if _matches(name, naming.unused_names)]
    notes = [f"{path}: set aside tensors that nothing uses: {listing(aside)}"] if aside else []
    together, allowed = set(naming.absent_together), {name for name in missing if _matches(name, allow_missing)}
    if together and together <= set(missing) <= together | allowed:
        notes.append(f"{path}: a MiniGPT-v2 file; initialised: {listing(sorted(together))}")
        allowed -= together
        missing = []
    missing = [name for name in missing if name not in allowed]
    if allowed:
        notes.append(f"{path}: not in the file, initialised as ckpt_allow_missing says: {listing(sorted(allowed))}")
    _refuse(path, wanted, stored, (missing, sorted({*unexpected} - {*aside})), naming)
    if not dry:
        with torch.no_grad():
            for name, parameter in wanted.items():
                if name in stored:
                    parameter.copy_(stored[name])
    return notes


def _refuse(
    path: str, wanted: Mapping[str, Tensor], stored: Mapping[str, Tensor], names: tuple[list[str], list[str]], naming: Any
) -> None:
    missing, unexpected = names
    problems = []
    if missing:
        problems.append(f"missing tensors (ckpt_allow_missing takes globs of those that may be), {listing(missing)}")
    if unexpected:
        problems.append(f"unexpected tensors (are train_llm, lora_target_modules and fusion the same?), {listing(unexpected)}")
    shapes = [
        f"{name} {tuple(stored[name].shape)} where {tuple(parameter.shape)} is expected"
        for name, parameter in wanted.items()
        if name in stored and stored[name].shape != parameter.shape
    ]
    if shapes:
        problems.append(f"tensors of another shape (are {naming.shape_keys} the same?), {listing(shapes)}")
    if problems:
        raise UserError(f"checkpoint {path}: {other_architecture(wanted, stored, naming.architecture)}{'; '.join(problems)}")


def mean(parts: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of several files' tensors, summed in float64 one file after the other, in the first one's dtypes.

    Raises:
        UserError: they do not hold the same tensors.
    """
    rest = iter(parts)
    first = next(rest)
    sums = {name: tensor.double() for name, tensor in first.items()}
    count = 1
    for part in rest:
        count += 1
        different = sorted(part.keys() ^ sums.keys())
        if different:
            raise UserError(f"these checkpoints have no mean: only some of them hold the tensors {listing(different)}")
        for name, tensor in part.items():
            sums[name] += tensor
    return {name: (sums.pop(name) / count).to(tensor.dtype) for name, tensor in first.items()}


def newest(folder: Path) -> Path | None:
    """The checkpoint of a run's folder that went furthest among those that are complete, or None."""
    steps = {path: step_of(path) for path in folder.glob("checkpoint_*.pth")}
    for path in sorted((path for path in steps if steps[path] >= 0), key=lambda path: (-steps[path], path.name == BEST)):
        if is_intact(path):
            return path
    return None


def step_of(path: Path) -> int:
    """The step that a checkpoint stores, read without its tensors; -1 for a file that is not there or cannot be read."""
    try:
        return int(torch.load(path, map_location="meta", weights_only=True, mmap=True)["step"])
    except Exception:  # another program's file, garbage, a cut file: whatever it is, it is not one to go on from
        return -1


def drop_old(folder: Path, keep_last: int) -> None:
    """Delete all but the newest ``keep_last`` epoch checkpoints; best and last are never touched."""
    epochs = {int(found[1]): path for path in folder.iterdir() if (found := re.fullmatch(r"checkpoint_(\d+)\.pth", path.name))}
    for epoch in sorted(epochs)[: -keep_last or None]:
        epochs[epoch].unlink()
        digest_path(epochs[epoch]).unlink(missing_ok=True)


def _matches(name: str, globs: tuple[str, ...] | list[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in globs)
