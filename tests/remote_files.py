"""The golden corpus as a server has it: texts and tar shards."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from helpers import FOLDERS, GOLDEN, NAMES, golden_tree

from emollama.stores.shard_writers import TarWriter
from emollama.stores.store import open_store

LIST, CAPTIONS, TRANSCRIPTS = "MERR_coarse_grained.txt", "MERR_coarse_grained.json", "transcription_en_all.csv"


def packed_corpus(root: Path) -> Path:
    """Write a copy of the golden corpus with all features in two tar shards each, and return its folder."""
    shutil.copytree(GOLDEN / "data", root)
    for folder in FOLDERS.values():
        pack(root / folder, root / "shards" / folder, NAMES)
        shutil.rmtree(root / folder)
    return root


def pack(source: Path, target: Path, names: list[str]) -> None:
    """Write tar shards of the arrays, half of the clips in each, and their indexes."""
    target.mkdir(parents=True, exist_ok=True)
    store = open_store(str(source), "--source") if source.is_dir() else None
    arrays = {name: store.load(name) for name in names}
    size = sum(array.nbytes + 2048 for array in arrays.values()) // 2
    writer = TarWriter(target, size)
    for name, array in arrays.items():
        writer.add(name, (array,))
    writer.finish()
    writer.close()


def remote_tree(folder: Path, url: str) -> dict[str, Any]:
    """A configuration that trains on the corpus at a URL."""
    tree = golden_tree(folder)
    del tree["evaluation_datasets"]
    features = {slot: f"{url}/shards/{name}/shard-{{00000..00001}}.tar" for slot, name in FOLDERS.items()}
    names = {"annotation_file": LIST, "coarse_grained_json_path": CAPTIONS, "transcription_path": TRANSCRIPTS}
    tree["datasets"]["golden"] |= {"data_root": url, "features": features, "task_pool": ["emotion", "reason"], **names}
    tree["run"] |= {"evaluate": False, "save_every_iters": 1, "iters_per_epoch": 2, "num_workers": 1, "resume_ckpt_path": "auto"}
    return tree
