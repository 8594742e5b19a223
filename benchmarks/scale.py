"""Print the tables of docs/scale.md, or write them into it: the memory and the communication of models of 7B to 70B.

    python benchmarks/scale.py
    python benchmarks/scale.py --write

They are those of ``emollama plan`` for stage 1 of Emotion-LLaMA. No weights are needed. It takes some minutes.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from emollama.config import load
from emollama.memory import GIB
from emollama.planning import memory
from emollama.planning.card import required_bytes
from emollama.planning.memory import Sharding
from emollama.planning.planner import Planner

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/scale.md"
CONFIG = ROOT / "train_configs/Emotion-LLaMA_finetune.yaml"
TOKENS = 4096  # of a micro-batch
CARDS = (24, 48, 80, 141)  # GB
# The shapes of Llama 2, and of Code Llama for 34B: hidden size, inner size, layers, heads, key-value heads.
SHAPES = {
    "7B": (4096, 11008, 32, 32, 32),
    "13B": (5120, 13824, 40, 40, 40),
    "34B": (8192, 22016, 48, 64, 8),
    "70B": (8192, 28672, 80, 64, 8),
}
KEYS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
TRAINED = {"LoRA": "lora", "all weights": "full"}
DDP, DDP_8 = Sharding("ddp", 1, 1), Sharding("ddp", 8, 1)
FSDP = [Sharding("fsdp", gpus, gpus) for gpus in (2, 4, 8, 16)]
HSDP = Sharding("hsdp", 16, 8)

Rows = dict[tuple[str, str], tuple[Planner, memory.RunMemory]]  # (model, what is trained) -> its run


def runs(folder: Path, models: Iterable[str] = SHAPES) -> Rows:
    """Count a step of each model; the folder gets their config.json files."""
    rows: Rows = {}
    for name in models:
        (folder / name).mkdir()
        shape = dict(zip(KEYS, SHAPES[name], strict=True))
        (folder / name / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 32_000, **shape}))
        for trained, key in TRAINED.items():
            options = [f"model.llama_model={folder / name}", f"model.train_llm={key}", "model.use_grad_checkpoint=True"]
            planner = Planner(load(str(CONFIG), [*options, "run.amp=True", "run.amp_dtype=bf16"]), 1, "cuda")
            rows[name, trained] = planner, planner.run(1, planner.micro_batch_of(TOKENS))
    return rows


def needed(run: memory.RunMemory, sharding: Sharding) -> float:
    """Return the GiB that a GPU must have."""
    return required_bytes(memory.components(run, sharding)) / GIB


def memory_table(rows: Rows) -> list[str]:
    """Return the lines of the table of the memory."""
    return _table(rows, [DDP, *FSDP, HSDP], lambda run, sharding: f"{needed(run, sharding):.1f}")


def communication_table(rows: Rows) -> list[str]:
    """Return the lines of the table of the bytes that are received in a step."""
    return _table(rows, [DDP_8, *FSDP, HSDP], lambda run, sharding: f"{memory.received_bytes(run, sharding) / GIB:.1f}")


def _table(rows: Rows, shardings: list[Sharding], cell: Callable[[memory.RunMemory, Sharding], str]) -> list[str]:
    titles = [_title(sharding) for sharding in shardings]
    lines = [[*key, *(cell(run, sharding) for sharding in shardings)] for key, (_, run) in rows.items()]
    return _markdown(["model", "trained", *titles], lines)


def _title(sharding: Sharding) -> str:
    if sharding.gpus == 1:
        return f"1 GPU, `{sharding.mode}`"
    gpus = f"{sharding.gpus // sharding.shards} x {sharding.shards}" if sharding.mode == "hsdp" else str(sharding.gpus)
    return f"{gpus}, `{sharding.mode}`"


def cards_table(rows: Rows) -> list[str]:
    """Return the lines of the table of the smallest GPUs on which a model fits, with the mode that needs the least memory."""
    columns = {"1 GPU": DDP, **{f"{sharding.gpus} GPUs": sharding for sharding in FSDP[:3]}, "2 nodes of 8": FSDP[3]}

    def cell(run: memory.RunMemory, sharding: Sharding) -> str:
        return next((str(card) for card in CARDS if needed(run, sharding) * GIB <= card * 1e9), "-")

    lines = [[*key, *(cell(run, sharding) for sharding in columns.values())] for key, (_, run) in rows.items()]
    return _markdown(["model", "trained", *columns], lines)


def _markdown(titles: list[str], lines: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" if cells else "|" + "---|" * len(titles) for cells in (titles, [], *lines)]


def mib_of_token(planner: Planner) -> float:
    """Return the MiB that a step needs for each further token."""
    one, two = (required_bytes(planner.needed(1, planner.micro_batch_of(n * TOKENS), "ddp")) for n in (1, 2))
    return (two - one) / TOKENS / 2**20


def page(text: str, rows: Rows) -> str:
    """Return the page with new tables and numbers in place of its own."""
    for lines in (memory_table(rows), cards_table(rows), communication_table(rows)):
        start = text.index(lines[0])
        end = text.index("\n\n", start)
        text = text[:start] + "\n".join(lines) + text[end:]
    planner, _ = rows["7B", "LoRA"]
    return re.sub(r"[\d.]+ MiB for each token", f"{mib_of_token(planner):.3f} MiB for each token", text)


def main() -> None:
    """Print or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the tables into docs/scale.md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = runs(Path(folder))
        if arguments.write:
            PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), rows), encoding="utf-8")
            return
        for table in (memory_table, cards_table, communication_table):
            sys.stdout.write("\n".join([*table(rows), "", ""]))


if __name__ == "__main__":
    main()
