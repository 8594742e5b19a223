"""What an exported processor needs to know about prompts, as JSON values: processor_config.json and part of config.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from emollama.config import RunConfig
from emollama.data.dataset import ClipDataset, DatasetConfig, SampleDataset
from emollama.data.instructions import user_text
from emollama.data.prompts.configs import PromptLayout
from emollama.data.prompts.formats import TemplateFormat
from emollama.data.slots import SlotShape, declared_slots
from emollama.errors import UserError
from emollama.logs.logger import get_logger


def training_of(config: RunConfig) -> dict[str, Any]:
    """Return tasks, labels and decoding of the blocks of a configuration; blocks under evaluation_datasets come first.

    Returns:
        "tasks": name of a task -> texts that ask for it; "user_texts": name of a task -> "is_tagged", whether the name precedes a
        question, and "has_sentences", whether its prompts contain spoken sentences; "labels"; "layout" and "max_new_tokens" of
        the first block.

    Raises:
        UserError: If there is no block.
    """
    blocks = {f"evaluation_datasets.{label}": block for label, block in config.evaluation_datasets.items()}
    blocks |= {f"datasets.{label}": config.default_block(cfg) for label, cfg in config.datasets.items()}
    if not blocks:
        raise UserError(
            "--to transformers: the configuration has no block under datasets or evaluation_datasets, whose instructions and"
            " labels the export contains. Specify the configuration of the training with --cfg-path."
        )
    tasks: dict[str, list[str]] = {}
    user_texts: dict[str, dict[str, bool]] = {}
    for key, block in blocks.items():
        dataset, pool, own = block.dataset, block.dataset.pool(), block.task.instruction
        new, turns = [task for task in pool.tasks if task not in tasks], dataset.turns()
        has_sentences = bool(new) and _has_sentences(config.dataset_class(key), dataset, key)
        for task in new:
            instructions = pool.instructions[task] if own == "first" else [pool.fill_labels(own)]
            # A dataset of images with captions has instructions without the tag of a task.
            is_tagged = pool.instructions[task][0] not in turns
            tasks[task] = [user_text(task, text, None) if is_tagged else text for text in instructions]
            user_texts[task] = {"is_tagged": is_tagged, "has_sentences": has_sentences}
    labels = next((list(block.dataset.labels) for block in blocks.values() if block.dataset.labels), [])
    first = next(iter(blocks.values())).task
    decoding = {"layout": first.prompt_layout, "max_new_tokens": first.max_new_tokens}
    return {"tasks": tasks, "user_texts": user_texts, "labels": labels, **decoding}


def _has_sentences(dataset_class: type[SampleDataset], cfg: DatasetConfig, key: str) -> bool:
    """Return whether the prompts of a block contain spoken sentences; False with a warning if that cannot be read."""
    try:
        return issubclass(dataset_class, ClipDataset) and dataset_class.has_sentences(cfg, block_path=key)
    except UserError as error:
        text = "%s: the annotation file cannot be read, so the exported processor adds no sentence by default: %s"
        get_logger().warning(text, key, error)
        return False


def prompt_of(
    prompt: TemplateFormat, slots: Mapping[str, SlotShape], projections: Sequence[Mapping[str, Any]], training: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the value of ``prompt`` in processor_config.json.

    Args:
        prompt: the prompt format.
        slots: slot -> shape of its feature vectors, without pixels.
        projections: slot, output and group of each part, in the order of placeholder ids.
        training: the result of :func:`training_of`.
    """
    cfg, style = prompt.cfg, prompt.style
    arrays = {slot: slots[slot] for slot in declared_slots(slots)}
    return {
        "slots": {
            slot: {"dim": shape.dim, "length": shape.num_vectors, "class_token": shape.class_token}
            for slot, shape in arrays.items()
        },
        "outputs": list(prompt.feature_tokens.outputs),
        "parts": [{key: item[key] for key in ("slot", "output", "group")} for item in projections],
        "first_placeholder": prompt.feature_tokens.embedding_rows,
        "layouts": {name: _layout(layout) for name, layout in cfg.parsed_layouts.items()},
        "layout": training["layout"],
        "tokenize": cfg.tokenize,
        "bos_id": prompt.bos_id if cfg.bos == "always" else None,
        "bos_text": prompt.bos_text,
        "opening": style.opening,
        "closing": style.closing,
        "end_symbol": style.end_sym,
        "max_context_len": style.max_context_len,
        "tagged_output": cfg.tagged_output,
        "tag_prefix": cfg.tag_prefix,
        "prompts": list(cfg.prompts),
        "tasks": training["tasks"],
        "user_texts": training["user_texts"],
        "labels": training["labels"],
    }


def _layout(layout: PromptLayout) -> dict[str, Any]:
    sections = [
        {"optional": section.optional, "fragments": [[fragment.kind, fragment.value] for fragment in section.fragments]}
        for section in layout.template.sections
    ]
    return {"second_bos": layout.second_bos, "sections": sections}
