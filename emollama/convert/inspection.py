"""What a checkpoint holds, and what differs between two, as plain values."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emollama import checkpoint
from emollama.convert.weights import Weights
from emollama.models import adapters, checkpoint_names
from emollama.paths import sha256


def inspect(weights: Weights) -> dict[str, Any]:
    """What a checkpoint holds.

    Returns:
        Where it was read from ("source", "kind", "files" with digests), how far its run had come ("step", "epoch"),
        "parameters" and "tensors" without those that are set aside, "lora", the names under "set_aside" and "not_finite", and
        "groups": tensors whose names differ in a layer's number only (``*`` stands for it), of one shape and dtype.
    """
    groups: dict[tuple[str, tuple[int, ...], str], list[Tensor]] = {}
    for name, tensor in weights.tensors.items():
        pattern = re.sub(r"\.\d+(?=\.)", ".*", name)
        groups.setdefault((pattern, tuple(tensor.shape), dtype_name(tensor)), []).append(tensor)
    used = [tensor for name, tensor in weights.tensors.items() if not checkpoint_names.is_unused(name)]
    return {
        "source": weights.source,
        "kind": weights.kind,
        "files": [_file_info(path) for path in weights.files],
        "step": weights.facts.get("step"),
        "epoch": weights.facts.get("epoch"),
        "parameters": sum(map(Tensor.numel, used)),
        "tensors": len(used),
        "lora": _lora_info(weights),
        "set_aside": [name for name in weights.tensors if checkpoint_names.is_unused(name)],
        "not_finite": [name for name, tensor in weights.tensors.items() if not tensor.isfinite().all()],
        "groups": [
            {
                "name": name,
                "shape": list(shape),
                "dtype": dtype,
                "tensors": len(found),
                "parameters": sum(map(Tensor.numel, found)),
            }
            for (name, shape, dtype), found in groups.items()
        ],
    }


def every_tensor(weights: Weights) -> dict[str, dict[str, Any]]:
    """name -> shape and dtype, of all tensors."""
    return {name: {"shape": list(tensor.shape), "dtype": dtype_name(tensor)} for name, tensor in weights.tensors.items()}


def dtype_name(tensor: Tensor) -> str:
    """``float32``."""
    return str(tensor.dtype).removeprefix("torch.")


def _file_info(path: Path) -> dict[str, Any]:
    """Name, size, digest, and whether it is the digest beside the file (None where there is none)."""
    return {"file": str(path), "bytes": path.stat().st_size, "sha256": sha256(path), "as_written": checkpoint.is_intact(path)}


def _lora_info(weights: Weights) -> dict[str, Any] | None:
    found = {name: match for name in weights.tensors if (match := adapters.LORA.fullmatch(name))}
    if not found:
        return None
    layers = dict.fromkeys(match[1] for match in found.values())
    return {
        "ranks": sorted(
            {weights.tensors[name].shape[match[2] == "B"] for name, match in found.items() if weights.tensors[name].ndim == 2}
        ),
        "alpha": weights.lora_alpha,
        "targets": adapters.target_modules(layers),
        "layers": len(layers),
        "parameters": sum(weights.tensors[name].numel() for name in found),
    }


def layout_difference(first: Weights, second: Weights) -> dict[str, Any]:
    """What differs before any value is compared: names, shapes, dtypes and alpha; every entry is empty where nothing does."""
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
    """What differs between two checkpoints.

    Args:
        first, second: what to compare.
        tolerance: largest relative difference of tensors that count as equal, max |a - b| / max(max |a|, max |b|).

    Returns:
        "equal": whether names, shapes, dtypes and alpha are the same, and values to the tolerance. The entries of
        :func:`layout_difference`. "tensors": name -> {"max_abs", "relative"} of those of one shape (None where NaN or infinity
        stands in one of them only). "beyond": the names beyond the tolerance. "config": key -> both values of what differs in
        the stored configurations, which does not count.
    """
    layout = layout_difference(first, second)
    comparable = [name for name in first.tensors if name in second.tensors and name not in layout["shapes"]]
    values = {name: _difference(first.tensors[name], second.tensors[name]) for name in comparable}
    beyond = [name for name, found in values.items() if found["relative"] is None or found["relative"] > tolerance]
    one, other = (dict(_flat(weights.facts.get("config"))) for weights in (first, second))
    config = {key: [one.get(key), other.get(key)] for key in sorted({*one, *other}) if one.get(key) != other.get(key)}
    return {"equal": not (beyond or any(layout.values())), **layout, "beyond": beyond, "tensors": values, "config": config}


def _difference(one: Tensor, other: Tensor) -> dict[str, float | None]:
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
    """(dotted key, value) of every leaf of a plain tree."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    elif prefix:
        yield prefix, node
