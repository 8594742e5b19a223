"""Summary of a checkpoint, and differences between two checkpoints, as plain values for text and JSON output."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emollama import file_digests
from emollama.checkpoint_parts import Parts
from emollama.convert.weights import Weights
from emollama.models import adapters, checkpoint_names
from emollama.paths import sha256


def inspect(weights: Weights) -> dict[str, Any]:
    """Summarize a checkpoint.

    Returns:
        "source", "kind" and "files" (with digests); "parts", a summary of the files of a sharded checkpoint; "step" and "epoch"
        of the run; "parameters" and "tensors", the numbers of parameters and tensors in use; "lora", a summary of the adapters;
        "set_aside", the names of unused tensors; "not_finite", the names of tensors with NaN or infinity; and "groups" of tensors
        with the same shape and dtype whose names differ only in the number of the layer (``*`` in the name of the group).
    """
    groups: dict[tuple[str, tuple[int, ...], str], list[Tensor]] = {}
    for name, tensor in weights.tensors.items():
        pattern = re.sub(r"\.\d+(?=\.)", ".*", name)
        groups.setdefault((pattern, tuple(tensor.shape), dtype_name(tensor)), []).append(tensor)
    parts = _parts_info(weights.parts) if weights.parts else None
    readable = parts is None or parts["intact"] == len(parts["files"])
    used = [tensor for name, tensor in weights.tensors.items() if not checkpoint_names.is_unused(name)]
    return {
        "source": weights.source,
        "kind": weights.kind,
        "files": [_file_info(path) for path in weights.files],
        "parts": parts,
        "step": weights.entries.get("step"),
        "epoch": weights.entries.get("epoch"),
        "parameters": sum(map(Tensor.numel, used)),
        "tensors": len(used),
        "lora": _lora_info(weights),
        "set_aside": [name for name in weights.tensors if checkpoint_names.is_unused(name)],
        "not_finite": [name for name in weights.tensors if readable and not weights.values([name])[name].isfinite().all()],
        "groups": [
            {
                "name": name,
                "shape": list(shape),
                "dtype": dtype,
                "tensors": len(tensors),
                "parameters": sum(map(Tensor.numel, tensors)),
            }
            for (name, shape, dtype), tensors in groups.items()
        ],
    }


def every_tensor(weights: Weights) -> dict[str, dict[str, Any]]:
    """Return name -> shape and dtype for all tensors."""
    return {name: {"shape": list(tensor.shape), "dtype": dtype_name(tensor)} for name, tensor in weights.tensors.items()}


def dtype_name(tensor: Tensor) -> str:
    """Return the name of a tensor's dtype, such as ``float32``."""
    return str(tensor.dtype).removeprefix("torch.")


def _file_info(path: Path) -> dict[str, Any]:
    """Return path, size and digest of a file, and whether the digest matches the .sha256 file (None if there is none)."""
    return {"file": str(path), "bytes": path.stat().st_size, "sha256": sha256(path), "as_written": file_digests.is_intact(path)}


def _parts_info(parts: Parts) -> dict[str, Any]:
    """Summarize the files of a sharded checkpoint; their "state" is "intact", "changed" or "missing" (also if incomplete)."""
    intact = parts.intact()
    states = ["intact" if part.name in intact else "changed" if part.is_in(parts.folder) else "missing" for part in parts.files]
    return {
        "folder": str(parts.folder),
        "bytes": sum(part.bytes for part in parts.files),
        "intact": len(intact),
        "files": [asdict(part) | {"state": state} for part, state in zip(parts.files, states, strict=True)],
    }


def _lora_info(weights: Weights) -> dict[str, Any] | None:
    """Summarize the LoRA adapters; return None if there are none."""
    matches = {name: match for name in weights.tensors if (match := adapters.LORA_TENSOR_NAME.fullmatch(name))}
    if not matches:
        return None
    layers = dict.fromkeys(match[1] for match in matches.values())
    return {
        # A has the shape (rank, in features), and B has (out features, rank).
        "ranks": sorted(
            {weights.tensors[name].shape[match[2] == "B"] for name, match in matches.items() if weights.tensors[name].ndim == 2}
        ),
        "alpha": weights.lora_alpha,
        "targets": adapters.target_modules(layers),
        "layers": len(layers),
        "parameters": sum(weights.tensors[name].numel() for name in matches),
    }


def layout_difference(first: Weights, second: Weights) -> dict[str, Any]:
    """Return the differences in names, shapes, dtypes and alpha; entries without differences are empty."""
    one, other = first.tensors, second.tensors
    both = [name for name in one if name in other]
    alphas = [first.lora_alpha, second.lora_alpha]
    return {
        "only_in_first": [name for name in one if name not in other],
        "only_in_second": [name for name in other if name not in one],
        "shapes": {
            name: [list(one[name].shape), list(other[name].shape)] for name in both if one[name].shape != other[name].shape
        },
        "dtypes": {
            name: [dtype_name(one[name]), dtype_name(other[name])] for name in both if one[name].dtype != other[name].dtype
        },
        "lora_alpha": alphas if None not in alphas and alphas[0] != alphas[1] else [],
    }


def diff(first: Weights, second: Weights, tolerance: float = 0.0) -> dict[str, Any]:
    """Compare two checkpoints.

    Args:
        first: the first checkpoint.
        second: the second checkpoint.
        tolerance: largest relative difference of equal tensors, max |a - b| / max(max |a|, max |b|).

    Returns:
        "equal": whether names, shapes, dtypes and alpha are the same, and all values agree within the tolerance. The entries of
        :func:`layout_difference`. "tensors": name -> {"max_abs", "relative"} for tensors of the same shape; both are None if only
        one of the tensors contains NaN or infinity at some position. "beyond": names of tensors beyond the tolerance. "config":
        key -> both values for keys that differ in the stored configurations, which do not affect "equal".
    """
    layout = layout_difference(first, second)
    comparable = [name for name in first.tensors if name in second.tensors and name not in layout["shapes"]]
    values = {name: _difference(first.tensors[name], second.tensors[name]) for name in comparable}
    beyond = [name for name, difference in values.items() if difference["relative"] is None or difference["relative"] > tolerance]
    one, other = (dict(_flat(weights.entries.get("config"))) for weights in (first, second))
    config = {key: [one.get(key), other.get(key)] for key in sorted({*one, *other}) if one.get(key) != other.get(key)}
    return {"equal": not (beyond or any(layout.values())), **layout, "beyond": beyond, "tensors": values, "config": config}


def _difference(one: Tensor, other: Tensor) -> dict[str, float | None]:
    """Return the largest absolute and relative difference of two tensors of the same shape; NaN equals NaN."""
    a, b = one.double().flatten(), other.double().flatten()
    same = (a == b) | (a.isnan() & b.isnan())
    if same.all():
        return {"max_abs": 0.0, "relative": 0.0}
    gap = (a - b).abs().masked_fill(same, 0).max().item()
    if not math.isfinite(gap):
        return {"max_abs": None, "relative": None}
    finite = torch.cat([a, b]).nan_to_num(posinf=0, neginf=0)
    return {"max_abs": gap, "relative": gap / finite.abs().max().item()}


def _flat(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) for every leaf of a plain tree."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    elif prefix:
        yield prefix, node
