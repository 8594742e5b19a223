"""Files and folders have the permissions that the umask allows, with each library that writes them."""

from __future__ import annotations

import ast
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import GOLDEN

import emollama
from emollama import checkpoint
from emollama.convert import formats
from emollama.convert.weights import read
from emollama.demo.tiny_encoders import make_tiny_encoders
from emollama.demo.tiny_llama import make_tiny_llama
from emollama.evaluation.judges.cache import Reply, ReplyCache
from emollama.paths import atomic_write, new_folder
from emollama.stores.feature_cache import FeatureCache
from emollama.stores.packing import collect_sources, pack
from emollama.stores.shard_writers import PackedWriter, TarWriter

FILE = "checkpoint_slim.pth"  # a golden checkpoint with adapters


def write_checkpoint(folder):
    checkpoint.save(folder / "run/checkpoint_last.pth", {"model": {"a": torch.ones(2)}})
    checkpoint.copy(folder / "run/checkpoint_last.pth", folder / "run/checkpoint_best.pth")


def write_peft(folder):
    formats.to_peft(read(str(GOLDEN / FILE), "convert"), str(folder / "peft"), 16, None)


def write_pth(folder):
    formats.to_pth(read(str(GOLDEN / FILE), "convert"), str(folder / "new.pth"))


def write_merged(folder):
    formats.to_merged(read(str(GOLDEN / FILE), "convert"), str(folder / "merged"), 16, str(GOLDEN / "llama"))


def write_new_folder(folder):
    with new_folder(folder / "new/folder") as output:
        (output / "a.txt").write_text("a")


def write_text(folder):
    for name in ("a.json", "new/b.json"):
        with atomic_write(folder / name) as file:
            file.write("{}")
    with atomic_write(folder / "c.bin", "wb", durable=False) as file:
        file.write(b"c")


def write_shards(folder, kind):
    source = folder / "source"
    source.mkdir()
    np.save(source / "a.npy", np.ones((2, 3), np.float32))
    with new_folder(folder / "shards") as output:
        pack(collect_sources([str(source)]), kind(output, 2**20), values="stored", advance=lambda: None)


WRITERS = {
    "atomic_write": write_text,
    "new_folder": write_new_folder,
    "checkpoints": write_checkpoint,
    "peft": write_peft,
    "pth": write_pth,
    "merged": write_merged,
    "tiny llama": lambda folder: make_tiny_llama(folder / "llm", ["a b c", "b c a"], seed=0, steps=1, batch_size=2),
    "tiny encoders": lambda folder: make_tiny_encoders(folder / "encoders", seed=0),
    "packed shards": lambda folder: write_shards(folder, PackedWriter),
    "tar shards": lambda folder: write_shards(folder, TarWriter),
    "cached features": lambda folder: FeatureCache(str(folder / "cache"), (1, 2)).write("a/b.npy", np.ones((1, 2), np.float32)),
    "judge's cache": lambda folder: ReplyCache(folder / "judge/replies.sqlite3").store("k", "m", Reply("text", "stop", 1, 1)),
}


@pytest.fixture(params=[0o022, 0o027])
def umask(request):
    """The umask of this test."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.parametrize("name", WRITERS)
def test_written_files_and_folders_have_the_permissions_of_the_umask(tmp_path, umask, name):
    WRITERS[name](tmp_path)
    paths = list(tmp_path.rglob("*"))
    assert any(path.is_file() for path in paths)
    allowed = {path: (0o777 if path.is_dir() else 0o666) & ~umask for path in paths}
    wrong = {str(path): oct(mode) for path in paths if (mode := stat.S_IMODE(path.stat().st_mode)) != allowed[path]}
    assert wrong == {}


WRITING = ("save_file", "serialize_file", "mkstemp", "save_pretrained")  # the last function is called as a method


def test_only_one_module_calls_the_writers_of_safetensors_and_hugging_face():
    calling = set()
    root = Path(emollama.__path__[0])
    for path in root.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)) if any(name in text for name in WRITING) else ():
            called = node.func if isinstance(node, ast.Call) else None
            if (getattr(called, "attr", None) or getattr(called, "id", None)) in WRITING[:-1]:
                calling.add(path.relative_to(root).as_posix())
            if isinstance(called, ast.Attribute) and called.attr == WRITING[-1]:
                calling.add(path.relative_to(root).as_posix())
    assert calling == {"tensor_files.py"}
