"""Compare what must be the same on all nodes of a run before weights are loaded: configuration, clocks, weights and data.

Nodes can have disks of their own, so paths may differ between them, and contents are compared by digest.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emollama.config import RunConfig
from emollama.config.layers import leaves
from emollama.data.dataset import SampleDataset
from emollama.data.shard_properties import values_digests
from emollama.distributed.process_group import World
from emollama.listing import LINES, abbreviated
from emollama.logs.logger import get_logger

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
# Reading all weights would take minutes, so only evenly spaced blocks of a file are compared. Smaller files are read completely.
BLOCKS, BLOCK = 16, 2**16


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
                "the clock of %s differs by %+.0f s from that of %s. Synchronize the clocks (NTP): launchers take a node whose"
                " clock is 15 s behind for dead",
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
            if path.exists():
                fields[f"model.{key} ({path.name})" if isinstance(value, list) else f"model.{key}"] = content_digest(path)
    require_equal(fields, world, "weights", "Copy the same files to all nodes.")


def content_digest(path: Path) -> str:
    """Return a hash of the sizes and of blocks of the contents of a file, or of the files in a folder with their names."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in (file for file in files if file.is_file() and file.suffix != ".md" and not file.name.startswith(".")):
        size = file.stat().st_size
        digest.update(f"{file.name if path.is_dir() else ''} {size} ".encode())
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
        fields |= {f"features of {block_name}, {slots}": digest for slots, digest in digests.items()}
    require_equal(fields, world, "data", "Give all nodes the same data.")


def require_equal(fields: Mapping[str, Any], world: World, what: str, remedy: str) -> None:
    """Check that values which several processes have are the same in all of them.

    Raises:
        UserError: If a process has other values. The message names its node, or its rank if there is only one node.
    """
    first, *others = world.gather(fields)
    for rank, theirs in enumerate(others, 1):
        if different := [name for name, value in first.items() if theirs.get(name, value) != value]:
            place, main = world.nodes.place(rank), world.nodes.place(0)
            raise world.user_error(f"the {what} of {place} differ from those of {main}: {', '.join(different)}. {remedy}")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
