"""Export to a folder that transformers loads without emollama: merged language model, projections, prompts and a model card."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emollama.config import RunConfig, from_dict
from emollama.convert import hub_files, model_card, trained_llm
from emollama.convert.formats import write_language_model
from emollama.convert.hub_prompt import prompt_of, training_of
from emollama.convert.weights import Weights
from emollama.data.prompts.formats import EmotionLlamaFormat, MiniGPT4Format, TemplateFormat
from emollama.data.slots import SlotShape, without_pixels
from emollama.errors import UserError
from emollama.listing import listing
from emollama.models import adapters, checkpoint_names, merging
from emollama.models.fusion.build import FusionKey, build_fusion
from emollama.paths import new_folder
from emollama.registry import FUSIONS

HUB = Path(__file__).parent / "hub"
CODE = ("modeling_emollama.py", "processing_emollama.py")


@dataclass(frozen=True)
class ExportOptions:
    """How to export.

    Attributes:
        output: the folder to write.
        alpha: alpha of the adapters, if neither the checkpoint nor the configuration contains it.
        intended_use: Markdown for the model card.
    """

    output: str
    alpha: float | None
    intended_use: str


def stored_configuration(weights: Weights, llama_model: str | None) -> RunConfig:
    """Return the configuration that a checkpoint contains, as far as an export needs it.

    Args:
        weights: the checkpoint.
        llama_model: folder of the language model; None for that of the configuration.

    Raises:
        UserError: If the checkpoint contains no configuration, or one that cannot be used.
    """
    stored = weights.entries.get("config")
    if not isinstance(stored, dict) or not isinstance(stored.get("model"), dict) or "arch" not in stored["model"]:
        raise UserError(f"{weights.source} contains no configuration. Specify that of its training with --cfg-path.")
    # Modules of `imports` are code, which a checkpoint must not select.
    tree = {key: stored[key] for key in ("paths", "model", "datasets", "evaluation_datasets", "run") if key in stored}
    if llama_model is not None:
        tree["model"] = tree["model"] | {"llama_model": llama_model}
    try:
        return from_dict(tree, f"configuration in {weights.source}")
    except UserError as error:
        raise UserError(f"{error} Or specify another configuration with --cfg-path.") from None


def to_transformers(weights: Weights, config: RunConfig, options: ExportOptions) -> None:
    """Write a folder that AutoModelForCausalLM and AutoProcessor load with ``trust_remote_code=True``.

    Args:
        weights: the trained tensors.
        config: the configuration of the model, with the blocks of its datasets.
        options: how to export.

    Raises:
        UserError: If the model is not supported, tensors are missing or do not fit, or the output exists.
    """
    base, model, training = config.model.llama_model, _exportable(config), training_of(config)
    tensors = _fusion_tensors(model, weights, base)
    prompt = model.prompt
    with new_folder(options.output) as folder:
        with tempfile.TemporaryDirectory(dir=folder) as merged:
            in_configuration = None if weights.lora_alpha is not None else config.model.lora_alpha
            _merge(weights, base, in_configuration if options.alpha is None else options.alpha, Path(merged))
            names = hub_files.write_weights(Path(merged), tensors, folder)
        end_symbol = None if prompt.ends_with_eos else prompt.style.end_sym
        hub_files.write_config(folder, base, model.projections, end_symbol, training)
        hub_files.require_names(folder, names)
        hub_files.write_generation_config(folder, prompt, training["max_new_tokens"])
        content: dict[str, Any] = {"processor_class": "EmollamaProcessor"}
        content["auto_map"] = {"AutoProcessor": "processing_emollama.EmollamaProcessor"}
        content["prompt"] = prompt_of(prompt, model.slots, model.projections, training)
        hub_files.write_json(folder / "processor_config.json", content)
        hub_files.copy_tokenizer(Path(base), folder, prompt.tokenizer)
        for name in CODE:
            shutil.copyfile(HUB / name, folder / name)
        card = model_card.text(weights, config, Path(base), options.intended_use)
        (folder / "README.md").write_text(card, encoding="utf-8")


@dataclass(frozen=True)
class _Exportable:
    """A model whose parts the exported code has.

    Attributes:
        prompt: the prompt format.
        slots: slot -> shape of its feature vectors, without pixels.
        fusion: the value of ``model.fusion``.
        projections: slot, output, layer, dim and group of each projection, in the order of placeholder ids.
        ignored: glob patterns of checkpoint tensors that the model does not use.
    """

    prompt: TemplateFormat
    slots: Mapping[str, SlotShape]
    fusion: FusionKey
    projections: list[dict[str, Any]]
    ignored: tuple[str, ...]


def _exportable(config: RunConfig) -> _Exportable:
    """Return the parts of a configured model.

    Raises:
        UserError: If the model, its fusion module or its prompt format is not one that the exported code has.
    """
    # Imported here because these modules import transformers, which takes seconds.
    from emollama.models.fusion.linear import GROUP, ImageProjection, LinearFusion, layer_name
    from emollama.models.minigpt4 import MiniGPT4
    from emollama.models.minigpt_v2 import MiniGPTv2

    cfg, model_class = config.model, config.model_class
    text = "--to transformers: the exported code has {}, but {} is {}. Convert with --to peft or --to merged."
    if model_class is not MiniGPTv2 and model_class is not MiniGPT4:
        raise UserError(text.format("minigpt_v2 and minigpt4", "model.arch", config.names["model"]))
    fusion = "image_projection" if model_class is MiniGPT4 else cfg.fusion
    fusion_class, _ = FUSIONS.configured(fusion, "model.fusion")
    if fusion_class is not LinearFusion and fusion_class is not ImageProjection:
        raise UserError(text.format("the fusion module 'linear'", "model.fusion", fusion_class.__name__))
    prompt = model_class.prompt_format(cfg)
    if not isinstance(prompt, TemplateFormat) or type(prompt) not in (TemplateFormat, EmotionLlamaFormat, MiniGPT4Format):
        formats = "the prompt formats emotion_llama, minigpt4 and template"
        raise UserError(text.format(formats, "model.prompt_format", type(prompt).__name__))
    slots, is_linear = without_pixels(model_class.slot_shapes(cfg)), fusion_class is LinearFusion
    projections = [
        {
            "slot": slot,
            "output": output,
            "layer": layer_name(slot) if is_linear else "llama_proj",
            "dim": slots[slot].dim,
            "group": GROUP if is_linear and slot == "image" else 1,
        }
        for output, parts in prompt.feature_tokens.outputs.items()
        for slot in parts
    ]
    return _Exportable(prompt, slots, fusion, projections, model_class.ignored_tensors)


def _fusion_tensors(model: _Exportable, weights: Weights, base: str) -> dict[str, Tensor]:
    """Return the trained tensors of the fusion module by their names in it.

    Raises:
        UserError: If tensors are missing, have a different shape, or do not belong to the model.
    """
    language_model = adapters.build_base(base, dtype=torch.float32, device=torch.device("meta"))
    width = language_model.get_input_embeddings().weight.shape[1]
    module, _ = build_fusion(model.fusion, model.slots, width, torch.device("meta"))
    expected = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    trained = trained_llm.others(weights) if trained_llm.is_in(weights) else weights.whole().tensors
    rest = {name: tensor for name, tensor in trained.items() if not adapters.LORA_TENSOR_NAME.fullmatch(name)}
    rest = {name: tensor for name, tensor in rest.items() if not any(fnmatchcase(name, glob) for glob in model.ignored)}
    problems = [f"{name} {shape} is missing" for name, shape in expected.items() if name not in rest]
    for name, tensor in rest.items():
        if name not in expected:
            problems.append(f"{name} is not in the model")
        elif tuple(tensor.shape) != expected[name]:
            problems.append(f"{name} has shape {tuple(tensor.shape)}, expected {expected[name]}")
    if problems:
        raise UserError(
            f"{weights.source} does not fit the configuration: {listing(problems, 'mismatch', 'mismatches')}. Specify the"
            " configuration of its training with --cfg-path."
        )
    return {name: rest[name].float() for name in expected}


def _merge(weights: Weights, base: str, alpha: float | None, target: Path) -> None:
    """Write the trained language model, or a copy of it if it was not trained."""
    if any(name.startswith(adapters.LLM_PREFIX) and not checkpoint_names.is_unused(name) for name in weights.tensors):
        write_language_model(weights, alpha, base, target)
    else:
        merging.copy_changed(Path(base), {}, target)
