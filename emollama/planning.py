"""Compute the number of parameters, the memory, and the tokens of a sample of a run from its configuration.

The model is built on the meta device from the language model's config.json; neither weights nor data are read. The numbers of
parameters are exact, those of memory are estimates of what PyTorch allocates.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from emollama.components import Model
from emollama.config import RunConfig
from emollama.data.batch import Record
from emollama.data.prompts.prompt import PromptFormat
from emollama.data.slots import without_pixels
from emollama.logs.console import aligned
from emollama.precision import Precision
from emollama.recomputation import recomputed_every, recomputed_layers

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
CHARACTERS_PER_TOKEN = 4  # estimate for English text if the folder of the language model has no tokenizer
SENTENCE_TOKENS, ANSWER_TOKENS = 20, 100  # assumed lengths of a sample's texts, for the memory of activations
BYTES_OF_4_BITS = 0.5 + 4 / 64  # 64 weights share a float32 scale
GIB = 2**30
VIT, QFORMER = "vit.", "qformer."  # parts of the names of the encoders' parameters


@dataclass(frozen=True)
class Plan:
    """Parameters, memory and tokens of a run.

    Attributes:
        parameters: group -> number of parameters.
        memory_gib: part -> memory in GiB on each GPU.
        tokens: part of a sample -> number of tokens.
        notes: the assumptions.
    """

    parameters: dict[str, int]
    memory_gib: dict[str, float]
    tokens: dict[str, int]
    notes: list[str]

    def text(self) -> str:
        """Return the numbers as tables."""
        parameters = {group_title(name): count for name, count in self.parameters.items()}
        sections: list[tuple[str, Mapping[str, float], str]]
        sections = [("Parameters", parameters, "{:,}"), ("Memory per GPU (GiB, estimated)", self.memory_gib, "{:.3f}")]
        tokens = {name.replace("rows: ", "feature tokens: "): count for name, count in self.tokens.items()}
        sections.append(("Tokens of a sample", tokens, "{:,}"))
        # A single table, so that the columns of all sections are aligned.
        table = iter(aligned([[name, form.format(value)] for _, numbers, form in sections for name, value in numbers.items()]))
        lines = []
        for title, numbers, _ in sections:
            lines += [title, *(f"  {next(table)}" for _ in numbers), ""]
        return "\n".join([*lines, *(f"* {note}" for note in self.notes)])


def plan(config: RunConfig) -> Plan:
    """Build the model on the meta device and compute the numbers.

    Args:
        config: the resolved configuration. The folder ``model.llama_model`` must contain a config.json; with a tokenizer, the
            number of text tokens is exact.

    Raises:
        UserError: If the folder does not exist, or the configuration is inconsistent.
    """
    precision = Precision.of_run(config.run)
    model = config.model_class(config.model, device=torch.device("meta"), frozen_dtype=precision.frozen_dtype)
    parameters = parameter_groups(model)
    trained = sum(parameter_groups(model, only_trained=True).values())
    parameters |= {"trainable": trained, "total": sum(parameters.values())}
    has_tokenizer = any(Path(config.model.llama_model, name).is_file() for name in TOKENIZER_FILES)
    prompt = model.prompt_format(config.model) if has_tokenizer else None
    tokens, notes = _tokens(config, model, prompt)
    batch = _samples_of_micro_batch(config, sum(tokens.values()))
    memory = _memory(config, model, sum(tokens.values()), batch)
    model_class, dtype = config.model_class, precision.frozen_dtype
    beams = any(block.task.num_beams > 1 for block in config.evaluation_datasets.values())
    uses = ["beam search"] * beams + ["shared prompts"] * (bool(config.datasets) and config.run.tasks_per_clip > 1)
    uses += ["compiled layers"] * (bool(config.datasets) and config.model.compile)
    notes += model_class.check_language_model(config.model, prompt, device=precision.device, frozen_dtype=dtype, uses=uses)
    notes.append(f"trained tensors: {', '.join(_trained_names(model))}")
    notes.append(
        f"the memory is for micro-batches of {batch}, sentences of {SENTENCE_TOKENS} tokens and answers of {ANSWER_TOKENS} tokens"
    )
    return Plan(parameters, memory, tokens, notes)


def _samples_of_micro_batch(config: RunConfig, tokens: int) -> int:
    """Return the largest number of samples of a micro-batch on a single process, for samples of this number of tokens."""
    run = config.run
    sizes = [block.dataset.batch_size for block in config.evaluation_datasets.values()]
    if config.datasets:
        batch_size = max(block.batch_size for block in config.datasets.values())
        of_step = run.global_batch or batch_size * run.accum_grad_iters
        sizes.append(batch_size if run.max_tokens is None else max(1, min(of_step, run.max_tokens // tokens)))
    return max(sizes, default=1)


def parameter_groups(model: Model, *, only_trained: bool = False) -> dict[str, int]:
    """Return the number of parameters of each group that has any.

    Args:
        model: the model.
        only_trained: count only parameters that require gradients.
    """
    groups = ("image encoder, frozen", "Q-Former, frozen", "language model, frozen", "language model, trained", "LoRA")
    counts = dict.fromkeys((*groups, "projection", "other modules, frozen", "other modules, trained"), 0)
    for name, parameter in model.named_parameters():
        if only_trained and not parameter.requires_grad:
            continue
        if name.startswith("fusion."):
            group = "projection"
        elif QFORMER in name:
            group = "Q-Former, frozen"
        elif VIT in name:
            group = "image encoder, frozen"
        elif "lora_" in name:
            group = "LoRA"
        else:
            module = "language model" if name.startswith("llama_model.") else "other modules"
            group = f"{module}, {'trained' if parameter.requires_grad else 'frozen'}"
        counts[group] += parameter.numel()
    return {name: count for name, count in counts.items() if count}


def group_title(group: str) -> str:
    """Return the name of a parameter group in tables; the keys of the --json output are those of :func:`parameter_groups`."""
    return "fusion module" if group == "projection" else group


def _trained_names(model: Model) -> list[str]:
    """Return the names of trained tensors in a checkpoint, with * in place of layer numbers."""
    trained = [model.stored_name(name) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return list(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in trained))


def _tokens(config: RunConfig, model: Model, prompt: PromptFormat | None) -> tuple[dict[str, int], list[str]]:
    shapes = without_pixels(model.slot_shapes(config.model))
    texts = [text for block in config.datasets.values() for text in block.turns()] or [""]
    layout = model.feature_layout(config.model)
    feature_tokens = layout.num_feature_tokens({slot: shape.num_zeros for slot, shape in shapes.items()})
    if prompt is not None:
        features = {slot: torch.zeros(shape.num_zeros, shape.dim) for slot, shape in shapes.items()}
        lengths = [len(prompt.tokenize(Record("", "", [(text, None)], features)).input_ids) for text in texts]
        text_tokens = max(lengths) - sum(feature_tokens.values())
    else:
        text_tokens = max(len(text) for text in texts) // CHARACTERS_PER_TOKEN + 30
    estimate = f"estimated with {CHARACTERS_PER_TOKEN} characters per token: {config.model.llama_model} has no tokenizer"
    method = "tokenized" if prompt is not None else estimate
    # The names are keys of the --json output; text() has plainer ones.
    named = {f"rows: {name}": count for name, count in feature_tokens.items()}
    notes = [f"prompt text is {method}"]
    if any_number := [slot for slot, shape in shapes.items() if shape.num_vectors is None]:
        text = "samples have any number of feature vectors in the slots {}; feature tokens and memory are for one vector in each"
        notes.append(text.format(", ".join(any_number)))
    return {**named, "prompt text": text_tokens, "sentence, answer": SENTENCE_TOKENS + ANSWER_TOKENS}, notes


def _frozen_bytes(config: RunConfig, model: Model, frozen: int, size: int) -> float:
    """Return the bytes of the language model's frozen parameters; ``size`` is that of a parameter that is not quantized."""
    if not (config.model.low_resource or config.model.load_in_4bit):
        return frozen * size
    # bitsandbytes leaves the embedding table and the output layer as they are, and peft makes them float32.
    llm = model.llama_model
    tables = {id(module.weight): module.weight.numel() for module in (llm.get_input_embeddings(), llm.get_output_embeddings())}
    whole: int = sum(tables.values())
    return (frozen - whole) * (1 if config.model.low_resource else BYTES_OF_4_BITS) + 4 * whole


def _per_layer(llm: Any, name: str) -> list[float]:
    """Return a number of a language model's configuration in a list, or its value in each layer; [] if it has none."""
    try:
        value = getattr(llm, name, None)
    except RuntimeError:
        # transformers does not return a number that differs between layers.
        value = [getattr(layer, name, None) for layer in llm.per_layer_config]
    return [number for number in (value if isinstance(value, list | tuple) else [value]) if isinstance(number, int) and number]


def _inner_width(model: Model, hidden: int) -> float:
    """Return the inner width of the language model's layers, of which configurations have different names, or 4 hidden sizes."""
    llm = model.llm_config.get_text_config()
    for name in ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "decoder_ffn_dim", "moe_intermediate_size"):
        if widths := _per_layer(llm, name):
            return max(widths)
    return 4 * hidden


def _memory(config: RunConfig, model: Model, tokens: int, batch: int) -> dict[str, float]:
    size = 2 if config.run.amp else 4
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    encoder = [parameter for name, parameter in model.named_parameters() if VIT in name or QFORMER in name]
    frozen = sum(parameter.numel() for parameter in model.parameters()) - trained - sum(map(torch.Tensor.numel, encoder))
    llm = model.llm_config.get_text_config()
    hidden, layers = llm.hidden_size, llm.num_hidden_layers
    inner = _inner_width(model, hidden)
    positions = tokens * batch
    parts = {"frozen weights": _frozen_bytes(config, model, frozen, size), "trained weights (float32)": 4 * trained}
    if encoder:
        parts["frozen encoders"] = sum(parameter.numel() * parameter.element_size() for parameter in encoder)
    if config.datasets:
        layer = positions * ((10 * hidden + 4 * inner) * size + 4 * hidden * 4)  # norms keep float32 copies
        every = recomputed_every(config.model.use_grad_checkpoint)
        recomputed = recomputed_layers(layers, every) if model.llama_model.supports_gradient_checkpointing else 0
        # A layer that is recomputed stores its input, and one of them at a time stores everything.
        stored = (layers - recomputed + min(recomputed, 1)) * layer + recomputed * positions * hidden * size
        parts |= {
            "gradients (float32)": 4 * trained,
            "AdamW moments (float32)": 8 * trained,
            "activations": stored,
            # the logits, their float32 copy, log-softmax and gradient
            "logits at the answers": batch * ANSWER_TOKENS * llm.vocab_size * (size + 3 * 4),
        }
    else:
        longest = max((block.task.max_new_tokens for block in config.evaluation_datasets.values()), default=0)
        # Models without attention heads, such as Mamba, have no keys and values; the estimate is then an upper limit.
        query_heads = mean(_per_layer(llm, "num_attention_heads") or [1])
        heads = mean(_per_layer(llm, "num_key_value_heads") or [query_heads]) / query_heads
        parts["key-value cache"] = 2 * layers * hidden * heads * (positions + batch * longest) * size
    return {name: value / GIB for name, value in parts.items()} | {"sum": sum(parts.values()) / GIB}
