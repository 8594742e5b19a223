"""The causal language models of transformers, and the page docs/models.md, which this file writes.

Run it with each supported version of transformers; it replaces the column of that version:

    python tests/language_models.py
"""

from __future__ import annotations

import functools
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from emollama.models import lora_targets, packing_check, random_copy

PAGE = Path(__file__).parents[1] / "docs/models.md"
VERSION = ".".join(transformers.__version__.split(".")[:2])
ABSENT = "-"
KINDS = ("packed", "padded", "one at a time", "rejected")
# Encoders that a key makes decoders.
DECODERS = (
    "bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert rembert roberta roberta-prelayernorm"
    " roc_bert roformer xlm-roberta xlm-roberta-xl"
)
# Keys of families whose default configuration is incomplete, has other kinds of layers than the published models, or has too
# few positions for the tests.
KEYS: dict[str, dict[str, Any]] = {family: {"is_decoder": True} for family in DECODERS.split()} | {
    "bamba": {"attn_layer_indices": [9, 18, 27]},
    "blenderbot": {"max_position_embeddings": 512},
    "ctrl": {"n_positions": 512},
    "dbrx": {"attn_config": {"kv_n_heads": 8, "clip_qkv": 8, "rope_theta": 5e5}, "ffn_config": {"ffn_hidden_size": 128}},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 16},
    "deepseek_v2": {"num_experts_per_tok": 6, "n_group": 1, "topk_group": 1},
    "dots1": {"n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 1, "topk_group": 1},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 16},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128, "num_experts": 8, "moe_topk": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
    "xlm": {"causal": True},
    "xmod": {"default_language": "en_XX", "is_decoder": True},
}
# Beginning of the reason of a rejection -> what the page says.
REJECTIONS = {
    "it is not causal": "not causal",
    "it does not accept feature tokens": "needs token ids",
    "transformers cannot build it": "cannot be built",
    "it differs from plain transformers": "differs from transformers",
}
HEADER = """# Language models

<!-- This page is written by tests/language_models.py. -->

`model.llama_model` can be the folder of any causal language model that transformers implements.
There is no list of supported models in the code: before weights are loaded, and in `emollama plan`,
a small random copy of the model is compared with plain transformers, which runs each sample alone.
The losses of two samples, together and alone, decoded tokens, and the precision of the run are
compared. The result decides how micro-batches are run (key `model.packing`):

| result | meaning |
|---|---|
| packed | the samples of a micro-batch are in one row, without padding |
| padded | one row per sample; the model also computes on the padding |
| one at a time | one sample after the other, which is slower |
| own caches | generation runs one sequence at a time, with the cache that the model creates |
| no cache | generation recomputes the sequence for each new token |
| no beams | the beam search of transformers fails or gives other values, so that `num_beams` must be 1 |
| unchecked | transformers cannot run a small copy of the default configuration, so that samples run one at a time |
| rejected: not causal | a token depends on later ones |
| rejected: needs token ids | the model looks up token ids, which feature tokens do not have |
| rejected: cannot be built | transformers raises an exception for its default configuration |
| rejected: differs from transformers | no way of running it gives the losses of plain transformers, even for a single sample |
| † | random numbers in training (dropout inside a layer, noise of a router) depend on how a global batch is divided |

## Use another language model

Set the folder of the model, the EOS token of its tokenizer as end symbol, and its template of a
turn. The default values of the other keys fit every model. For Qwen2.5-7B-Instruct:

```yaml
model:
  llama_model: checkpoints/Qwen2.5-7B-Instruct
  end_sym: "<|im_end|>"
  prompt_template: "<|im_start|>user\\n{}<|im_end|>\\n<|im_start|>assistant\\n"
```

At the start, and in `emollama plan`, lines report how the model is run and what is probably a
mistake, such as an end symbol that is not a token of the model.

## Results

The table has the results for small copies of the default configurations of transformers, changed
in the keys that a row names. Those of a model with other settings can differ: `emollama plan`
prints a line if a model is not packed. Encoders such as BERT are rejected without
`is_decoder: true` in their config.json. LoRA targets are the layers that get adapters if
`model.lora_target_modules` is null: the query and value projections of each decoder layer.

`make test-models` repeats the check with the installed version of transformers. For each family
that is neither rejected nor unchecked, it also tests that losses and greedy answers equal those of
plain transformers, that a training step changes every adapter, and that merged and exported
adapters give the losses of the trained model.
"""


@dataclass
class Row:
    """A family: its default LoRA targets, and its result with each version of transformers."""

    targets: str = ABSENT
    results: dict[str, str] = field(default_factory=dict)

    @property
    def of_installed_version(self) -> str:
        return self.results.get(VERSION, ABSENT)

    @property
    def runs(self) -> bool:
        """Whether the installed version runs a small copy of the family correctly."""
        return not self.of_installed_version.startswith(("rejected", ABSENT)) and "unchecked" not in self.of_installed_version


def families() -> list[str]:
    """Names of the families of the installed version; configurations with a second name are listed once."""
    names = []
    for name in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        try:
            names += [name] if config_of(name).model_type == name else []
        except Exception:
            # Configurations without usable defaults are those of parts of a model.
            continue
    return names


def config_of(family: str) -> Any:
    return AutoConfig.for_model(family, **KEYS.get(family, {}))


@functools.cache
def checked(family: str) -> str:
    """The result of the check with the installed version, as the page shows it."""
    packing = packing_check.check(config_of(family))
    if packing.result == "rejected":
        return "rejected: " + next(text for start, text in REJECTIONS.items() if packing.reason.startswith(start))
    words = [packing.result if packing.batched else "one at a time"]
    generation = {"batch": [], "sequence": ["own caches"], "none": ["no cache"]}[packing.cache]
    words += ["unchecked"] if "could not be checked" in packing.reason else generation
    words += ["no beams"] if packing.beam_problem else []
    return ", ".join(words) + (" †" if packing.random_training else "")


@functools.cache
def default_targets(family: str) -> str:
    """The names of the layers that get LoRA adapters by default."""
    with torch.device("meta"):
        llm = AutoModelForCausalLM.from_config(config_of(family))
    names = dict.fromkeys(name.rpartition(".")[2] for name in lora_targets.resolve(llm, None))
    return ", ".join(f"`{name}`" for name in names)


def documented() -> dict[str, Row]:
    """The rows of the page."""
    text = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
    title, *lines = text[text.find("| family |") :].splitlines() or [""]
    versions = re.findall(r"transformers ([\d.]+)", title)
    rows = {}
    for line in lines[1:]:
        family, targets, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        results = {version: cell for version, cell in zip(versions, cells, strict=True) if cell != ABSENT}
        rows[family.split("`")[1]] = Row(targets, results)
    return rows


def page(rows: dict[str, Row]) -> str:
    """The text of the page."""
    versions = sorted(
        {version for row in rows.values() for version in row.results}, key=lambda text: [*map(int, text.split("."))]
    )
    counts = []
    for version in versions:
        results = [row.results.get(version, ABSENT) for row in rows.values()]
        tested = [result for result in results if result != ABSENT]
        kinds = {kind: sum(result.startswith(kind) for result in tested) for kind in KINDS}
        counts.append(
            f"* transformers {version}: {len(tested)} families, " + ", ".join(f"{n} {kind}" for kind, n in kinds.items())
        )
    title = " | ".join(["family", "default LoRA targets", *(f"transformers {version}" for version in versions)])
    table = [f"| {title} |", "|" + "---|" * (2 + len(versions))]
    for family, row in sorted(rows.items()):
        keys = f" with `{', '.join(KEYS[family])}`" if family in KEYS else ""
        table.append(
            "| " + " | ".join([f"`{family}`{keys}", row.targets, *(row.results.get(v, ABSENT) for v in versions)]) + " |"
        )
    return "\n".join([HEADER, "## Families", "", *counts, "", *table, ""])


def main() -> None:
    warnings.simplefilter("ignore")
    rows = documented()
    for row in rows.values():
        row.results.pop(VERSION, None)
    with random_copy.isolated():
        for family in families():
            row = rows.setdefault(family, Row())
            row.results[VERSION] = checked(family)
            if not row.results[VERSION].startswith("rejected"):
                row.targets = default_targets(family)
            print(family, row.results[VERSION], row.targets, flush=True)
    PAGE.write_text(page({family: row for family, row in rows.items() if row.results}), encoding="utf-8")


if __name__ == "__main__":
    main()
