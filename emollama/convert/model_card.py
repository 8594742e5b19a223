"""The model card of an exported model: data, metrics, provenance, licence and intended use."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

from emollama import __version__
from emollama.config import RunConfig
from emollama.convert.weights import Weights
from emollama.json_io import numbers, read_lines, read_object
from emollama.models import llm
from emollama.paths import sha256
from emollama.run_folder import EVALUATIONS, RESULT, BlockScores, ValidationRecord, block_of, metrics_file, parse, parse_all

USAGE = """\
## Usage

Features and text go in; the encoders that extract features are not part of this folder. An array
of a slot is what the encoder below computed, (vectors, size) or (size,).

```python
from transformers import AutoModelForCausalLM, AutoProcessor

folder = "."
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
inputs = processor({SLOTS}, text="the spoken sentence", task="TASK")
ids = model.generate(**inputs, tokenizer=processor.tokenizer)  # only the new ids, greedy by default
print(processor.answers(ids)[0])
```

A slot without an array gets zeros. Without `text`, the prompt has an empty sentence if those of the
training have sentences. `processor.tasks` has the tasks and their instructions, and `question=` asks
something else. `trust_remote_code=True` runs `modeling_emollama.py` and `processing_emollama.py` of
this folder.
"""


def text(weights: Weights, config: RunConfig, base: Path, intended_use: str) -> str:
    """Return the model card as Markdown. It contains names of files, but no paths.

    Args:
        weights: the exported checkpoint.
        config: its configuration.
        base: folder of the language model.
        intended_use: Markdown about intended use.
    """
    licence = base_licence(base)
    header = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    header += ["tags: [emotion-recognition, multimodal, emollama]", *([f"license: {licence}"] if licence else []), "---", ""]
    slots = ", ".join(f'"{slot}": {slot}' for slot in _arrays(config))
    tasks = [task for _, block in _blocks(config) for task in block.pool().tasks]
    usage = USAGE.replace("SLOTS", slots).replace("TASK", tasks[0])
    sections = [
        ["# Emotion language model", "", "Exported by emollama: a language model that reads projected feature vectors.", ""],
        [usage],
        ["## Features", "", *_table(["slot", "vectors per sample", "size"], _slots(config))],
        ["## Training data", "", *_table(["block", "type", "list", "tasks", "labels"], _data(config))],
        ["## Metrics", "", *_metrics_section(weights)],
        ["## Provenance", "", *_provenance(weights, base)],
        ["## Licence", "", *_licence_text(licence)],
        ["## Intended use", "", intended_use],
    ]
    return "\n".join([*header, *(line for section in sections for line in section)])


def base_licence(base: Path) -> str | None:
    """Return the licence that the model card of a language model names in its header; None if there is none."""
    try:
        card = (base / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    header = re.match(r"---\n(.*?)\n---", card, re.DOTALL)
    licence = re.search(r"^license:[ \t]*([\w.+-]+)[ \t]*$", header[1], re.MULTILINE) if header else None
    return licence[1] if licence else None


def _licence_text(licence: str | None) -> list[str]:
    named = f"its model card names `{licence}`" if licence else "its folder names none, so find it out before you share this"
    return [
        "The weights are those of the base language model with trained changes. The licence of the base",
        f"language model therefore applies to them: {named}.",
        "The training data may restrict the use further.",
        "",
    ]


def _arrays(config: RunConfig) -> dict[str, Any]:
    shapes = config.model_class.slot_shapes(config.model)
    tokens = {shape.class_token for shape in shapes.values()}
    return {slot: shape for slot, shape in shapes.items() if slot not in tokens and slot != "frame"}


def _slots(config: RunConfig) -> Iterator[list[str]]:
    for slot, shape in _arrays(config).items():
        count = "any" if shape.num_vectors is None else str(shape.num_vectors)
        yield [slot, f"1 class token + {count}" if shape.class_token else count, str(shape.dim)]


def _blocks(config: RunConfig) -> list[tuple[str, Any]]:
    blocks = [(f"datasets.{name}", cfg) for name, cfg in config.datasets.items()]
    return blocks + [(f"evaluation_datasets.{name}", block.dataset) for name, block in config.evaluation_datasets.items()]


def _data(config: RunConfig) -> Iterator[list[str]]:
    for key, cfg in _blocks(config):
        annotation_file = _file_name(str(getattr(cfg, "annotation_file", "")))
        yield [key, config.names[key], annotation_file, ", ".join(cfg.pool().tasks), ", ".join(cfg.labels)]


def _metrics_section(weights: Weights) -> list[str]:
    rows = _metrics(weights)
    if not rows:
        return ["There is no evaluation of this checkpoint in its run folder.", ""]
    return _table(["data", "task", "metric", "value"], rows)


def _metrics(weights: Weights) -> list[list[str]]:
    """Return the metrics of this checkpoint in the run folder: of the last evaluation, otherwise of validation."""
    source = Path(weights.source)
    rows: list[list[str]] = []
    for path in sorted((source.parent / RESULT).glob(metrics_file("*"))):
        scores = parse(BlockScores, read_object(path, []))
        evaluated = [scores.checkpoint] if isinstance(scores.checkpoint, str) else scores.checkpoint or []
        if [_file_name(name) for name in evaluated] == [source.name]:
            for task, record in scores.tasks.items():
                values = numbers(record.get("metrics"))
                rows += [[block_of(path), task, metric, _number(value)] for metric, value in values.items()]
    validation = _validation(source.parent / EVALUATIONS, weights.entries.get("epoch")) if not rows else {}
    return rows or [[*name.split("/", 2), _number(value)] for name, value in validation.items()]


def _validation(path: Path, epoch: Any) -> dict[str, float | None]:
    records = parse_all(ValidationRecord, read_lines(path, []))
    return next((record.metrics for record in reversed(records) if record.epoch == epoch), {})


def _provenance(weights: Weights, base: Path) -> list[str]:
    rows = [["emollama", __version__], *([_file_name(str(path)), f"SHA-256 {sha256(path)}"] for path in weights.files)]
    rows += [[key, str(weights.entries[key])] for key in ("step", "epoch") if isinstance(weights.entries.get(key), int)]
    config = llm.read_config(str(base))
    rows.append(["base language model", f"{config.model_type}, config.json with SHA-256 {sha256(base / llm.CONFIG)}"])
    lines = _table(["item", "value"], rows)
    features = weights.entries.get("features")
    if not features:
        return [*lines, "The checkpoint does not record how its features were extracted.", ""]
    content = json.dumps(_without_paths(features), indent=1, ensure_ascii=False, default=str)
    return [*lines, "Extraction of the features, as recorded in their manifests:", "", "```json", content, "```", ""]


def _without_paths(value: Any) -> Any:
    """Replace absolute paths by the names of their files."""
    if isinstance(value, Mapping):
        return {str(key): _without_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_paths(item) for item in value]
    return _file_name(value) if isinstance(value, str) and (PurePath(value).is_absolute() or "\\" in value) else value


def _file_name(path: str) -> str:
    return PureWindowsPath(path).name


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _table(head: list[str], rows: Any) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [*(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines), ""]
