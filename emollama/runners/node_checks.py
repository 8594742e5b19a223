"""Compare what must be the same on all nodes of a run before weights are loaded: configuration, clocks, weights and data.

Nodes can have disks of their own, so paths may differ between them, and contents are compared by digest.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
import time
import zlib
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from types import MappingProxyType
from typing import Any

from emollama.config import RunConfig
from emollama.config.layers import leaves
from emollama.data.dataset import SampleDataset
from emollama.data.shard_properties import values_digests
from emollama.distributed.process_group import World
from emollama.listing import LINES, abbreviated
from emollama.logs.logger import get_logger
from emollama.precision import Precision

# Keys that can differ between nodes: paths on their disks, and what a node needs for itself.
NODE_OVERRIDES = (
    "imports",
    "paths*",
    "*_path",
    "*.data_root",
    "*.annotation_file",
    "*.features.*",
    "*.storage",
    "encoders.*",
    "extraction.*",
    "model.llama_model",
    "model.vit_weights",
    "model.q_former_model",
    "model.ckpt",
    "run.output_dir",
    "run.num_workers",
)
POOLING = "*.features.*.pooling"
CLOCK_SECONDS = 5.0
VALUES = "features of "  # start of the names of digests of values, which not all stores and checkpoints have
ABSENT = "absent"  # stands for the value of a name that a node does not have
DIGEST = re.compile("[0-9a-f]{16,}")
# Reading all weights would take minutes, so only evenly spaced blocks of a file are compared. Smaller files are read completely.
BLOCKS, BLOCK = 16, 2**16


def compare_settings(config: RunConfig, precision: Precision, world: World) -> None:
    """Compare the configuration, the precision and the clocks of the nodes (the functions below)."""
    compare_configurations(config, world)
    compare_precision(precision, world)
    warn_of_clocks(world)


def compare_configurations(config: RunConfig, world: World) -> None:
    """Check that all nodes have the same configuration, except for paths.

    Values are compared as digests and shown as in the file, so that secrets from the environment are not sent or printed.

    Raises:
        UserError: If the configuration of a node differs from that of node 0.
    """
    if not world.several_nodes:
        return
    texts = {key: str(value) for key, value in leaves(config.unresolved())}
    own = {key: (texts.get(key, ""), _digest(_compared(key, value))) for key, value in leaves(config.resolved())}
    first, *others = world.gather(own)
    absent = ("not set", "")
    for rank, theirs in enumerate(others, 1):
        keys = [key for key in {**first, **theirs} if first.get(key, absent)[1] != theirs.get(key, absent)[1]]
        if keys:
            node, main = world.nodes.place(rank), world.nodes.place(0)
            changes = (f"{key}: {theirs.get(key, absent)[0]} on {node}, {first.get(key, absent)[0]} on {main}" for key in keys)
            raise world.user_error(
                f"the configuration of {node} differs from that of {main}:{LINES}{abbreviated(changes, LINES)}\nStart all nodes"
                " with the same file and options; only paths and run.num_workers may differ."
            )


def compare_precision(precision: Precision, world: World) -> None:
    """Check that ``run.amp_dtype: auto`` means the same on all nodes: gradients of fp16 are scaled, those of bf16 are not.

    Raises:
        UserError: If it does not, because the GPUs of some nodes have no bf16.
    """
    if not world.several_nodes:
        return
    dtypes = world.gather(precision.compute_dtype)
    if len(set(dtypes)) > 1:
        firsts = filter(world.nodes.is_first, range(world.size))
        nodes = ", ".join(f"{dtypes[rank]} on {world.nodes.place(rank)}" for rank in firsts)
        raise world.user_error(f"run.amp_dtype: auto is {nodes}, because not all GPUs have bf16. Set run.amp_dtype: fp16.")


def _compared(key: str, value: Any) -> Any:
    """Return what must be the same on all nodes: a value, or, of a key that can differ, whether it is set and how often."""
    if not any(fnmatch.fnmatchcase(key, pattern) for pattern in NODE_OVERRIDES) or fnmatch.fnmatchcase(key, POOLING):
        return value
    if isinstance(value, list | dict):
        return len(value)
    return value if value in (None, "auto") else "set"


def warn_of_clocks(world: World) -> None:
    """Warn on rank 0 and on the node itself if the clock of a node disagrees with that of node 0."""
    if not world.several_nodes:
        return
    world.any(False)  # all processes are here now
    times = world.gather(time.time())
    for rank in filter(world.nodes.is_first, range(1, world.size)):
        if abs(times[rank] - times[0]) > CLOCK_SECONDS and world.rank in (0, rank):
            get_logger().warning(
                "the clock of %s differs by %+.0f s from that of %s. Synchronize the clocks (NTP): launchers consider a node"
                " whose clock is 15 s behind dead",
                *(world.nodes.place(rank), times[rank] - times[0], world.nodes.place(0)),
            )


def compare_weights(config: RunConfig, world: World, *, resumes: bool) -> None:
    """Check that all nodes have the same language model, encoders and checkpoints.

    Args:
        config: the resolved configuration.
        world: the processes; the first one of each node reads its files.
        resumes: whether a checkpoint replaces ``model.ckpt``.

    Raises:
        UserError: If the files of a node differ from those of node 0.
    """
    if not world.several_nodes:
        return
    keys = ["llama_model", "vit_weights", "q_former_model", *([] if resumes else ["ckpt"])]
    fields: dict[str, str] = {}
    for key in keys if world.is_first else ():
        value = getattr(config.model, key, None)
        for path in map(Path, [value] if isinstance(value, str) else value or []):
            for name, digest in content_digests(path).items():
                file = path.name if isinstance(value, list) else name
                fields[f"model.{key} ({file})" if file else f"model.{key}"] = digest
    require_equal(fields if world.is_first else None, world, "weights", "Copy the same files to all nodes.")


def content_digests(path: Path) -> dict[str, str]:
    """Return name -> hash of the size and of blocks of the content, for the files of a folder, or "" -> hash for a file.

    It is empty if there is no such path, which can be the name of a model in a cache then.
    """
    if not path.is_dir():
        return {"": content_digest(path)} if path.exists() else {}
    files = (file for file in sorted(path.iterdir()) if file.is_file() and file.suffix != ".md")
    return {file.name: content_digest(file) for file in files if not file.name.startswith(".")}


def content_digest(file: Path) -> str:
    """Return a hash of the size and of blocks of the content of a file."""
    size = file.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    starts = range(0, size, BLOCK) if size <= BLOCKS * BLOCK else [(size - BLOCK) * n // (BLOCKS - 1) for n in range(BLOCKS)]
    with file.open("rb") as content:
        for start in starts:
            content.seek(start)
            digest.update(content.read(BLOCK))
    return digest.hexdigest()[:16]


def compare_datasets(datasets: Mapping[str, SampleDataset], world: World) -> None:
    """Check that all nodes have the same samples and texts in these datasets, and the same features if their stores know digests.

    Raises:
        UserError: If a dataset of a node differs from that of node 0.
    """
    if not world.several_nodes:
        return
    fields: dict[str, str] = {}
    for block_name, dataset in datasets.items() if world.is_first else ():
        fields[f"samples and texts of {block_name}"] = dataset.digest()
        digests = values_digests(dataset.features)
        fields |= {f"{VALUES}{block_name}, {slots}": digest for slots, digest in digests.items()}
    texts = {f"samples and texts of {block_name}": dataset for block_name, dataset in datasets.items()}
    require_equal(fields if world.is_first else None, world, "data", "Give all nodes the same data.", texts)


def require_equal(
    fields: Mapping[str, Any] | None,
    world: World,
    what: str,
    remedy: str,
    texts: Mapping[str, SampleDataset] = MappingProxyType({}),
) -> None:
    """Check that values which several processes have are the same in all of them.

    Args:
        fields: name -> value, which is not shown if it is a digest; None if this process is not compared.
        world: the processes.
        what: what the values are about.
        remedy: the end of the message.
        texts: name of a digest of texts -> the dataset, of which the message names the first sample that differs.

    Raises:
        UserError: If a process has other values. The message names its node, or its rank if there is only one node.
    """
    first, *others = world.gather(fields)
    assert first is not None
    for rank, theirs in enumerate(others, 1):
        if theirs is None:
            continue
        # Not all stores know the digest of their values.
        names = [name for name in {**first, **theirs} if not name.startswith(VALUES) or (name in first and name in theirs)]
        if different := [name for name in names if first.get(name, ABSENT) != theirs.get(name, ABSENT)]:
            place, main = world.nodes.place(rank), world.nodes.place(0)
            shown = []
            for name in different:
                own, other = first.get(name, ABSENT), theirs.get(name, ABSENT)
                if ABSENT in (own, other):
                    detail = f" (only on {main if other == ABSENT else place})"
                elif name in texts:
                    detail = f" (the first one is {_first_difference(texts[name], world, rank)})"
                else:
                    detail = "" if DIGEST.fullmatch(str(own)) else f" ({other!s:.60} instead of {own!s:.60})"
                shown.append(f"{name}{detail}")
            raise world.user_error(f"the {what} of {place} differ from those of {main}: {abbreviated(shown)}. {remedy}")


def _first_difference(dataset: SampleDataset, world: World, rank: int) -> str:
    """Return the name of the first sample whose texts differ between a rank and rank 0. Every rank calls it."""
    hashes: list[int] = []
    names: Sequence[str] = []
    if world.rank in (0, rank):
        content, names = dataset.inspect(), dataset.names()
        sentences, answers = content.sentences or {}, content.answers.values()
        texts = ([name, sentences.get(name), *(answer.get(name) for answer in answers)] for name in names)
        hashes = [zlib.crc32(json.dumps(text).encode()) for text in texts]
    gathered = world.gather(hashes)
    pairs = zip_longest(gathered[0], gathered[rank])
    position = next((index for index, (own, theirs) in enumerate(pairs) if own != theirs), None)
    sample = world.gather(names[position] if position is not None and position < len(names) else "")
    return sample[0] or sample[rank] or "unknown: their order or instructions differ"


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
