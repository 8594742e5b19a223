"""Build the language model: frozen, with LoRA adapters, or fully trained.

No other module of the package builds a language model from its folder. On the meta device it is built from config.json alone,
so that parameters can be counted before weights are loaded.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.utils import logging as transformers_logging

from emollama import weight_parts
from emollama.component_configs import quantized_bits, require_quantizer
from emollama.errors import UserError
from emollama.listing import abbreviated, listing
from emollama.models import dropout, fp8_linear, lora_targets
from emollama.models.configs import LLMConfig, TrainLLM
from emollama.recomputation import recomputed_every, set_recomputation
from emollama.weight_parts import Weights, WeightShare


@dataclass(frozen=True)
class LLMOptions:
    """Options for loading and training the language model.

    Attributes:
        path: folder of the model.
        train: train LoRA adapters, nothing, or all weights.
        lora_r, lora_alpha, lora_dropout: as in peft's LoraConfig.
        lora_targets: the layers with adapters; see :func:`~emollama.models.lora_targets.resolve`.
        quantize: bits of the frozen weights; None does not quantize.
        recompute_every: every n-th layer recomputes its activations in the backward pass; 0 for none.
        attention: name of the attention implementation.
        plain_adapters: compute adapters as peft does.
        fp8: compute the products of frozen linear layers in 8 bits.
        share: load only this part of each weight, which is not quantized; None loads whole weights.
    """

    path: str
    train: TrainLLM
    lora_r: int
    lora_alpha: int
    lora_dropout: float
    lora_targets: str | Sequence[str] | None
    quantize: Literal[4, 8] | None
    recompute_every: int
    attention: str
    plain_adapters: bool = False
    fp8: bool = False
    share: WeightShare | None = None


def options_of(cfg: LLMConfig, attention: str, weights: Weights = "all") -> LLMOptions:
    """Return the options of a ``model`` block, with this attention implementation."""
    return LLMOptions(
        path=cfg.llama_model,
        train=cfg.train_llm,
        lora_r=cfg.lora_r,
        lora_alpha=cfg.lora_alpha,
        lora_dropout=cfg.lora_dropout,
        lora_targets=cfg.lora_target_modules,
        quantize=quantized_bits(cfg),
        recompute_every=recomputed_every(cfg.use_grad_checkpoint),
        attention=attention,
        plain_adapters=cfg.kernels == "plain",
        fp8=cfg.frozen_dtype == "fp8",
        share=weights if isinstance(weights, WeightShare) else None,
    )


def check_options(cfg: LLMConfig, config: Any) -> list[str]:
    """Check without weights whether a language model has the layers to adapt; return lines about what it cannot do.

    Args:
        cfg: the ``model`` block.
        config: the result of :func:`read_config`.

    Raises:
        UserError: If adapters cannot be added to one of the layers of ``model.lora_target_modules``.
    """
    options = options_of(cfg, "eager")
    key = json.dumps([config.to_dict(), str(options)], sort_keys=True, default=str)
    if key not in _CHECKED_OPTIONS:
        _CHECKED_OPTIONS[key] = _check_options(options, config)
    return list(_CHECKED_OPTIONS[key])


_CHECKED_OPTIONS: dict[str, list[str]] = {}


def _check_options(options: LLMOptions, config: Any) -> list[str]:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    lines = []
    if options.fp8 and not fp8_linear.layers_of(model.requires_grad_(False)):
        raise UserError(
            f"model.frozen_dtype: fp8 has no effect, because models of the type '{config.model_type}' have no linear layers with"
            f" widths that are multiples of {fp8_linear.MULTIPLE}. Set model.frozen_dtype: auto."
        )
    if options.train == "lora":
        targets = lora_targets.resolve(model, options.lora_targets)
        lines += [line for line in [lora_targets.uncovered_layers(model, targets)] if line]
        _with_adapters(model, options, targets)
    if options.recompute_every and not model.supports_gradient_checkpointing:
        lines.append(
            f"model.use_grad_checkpoint: '{config.model_type}' cannot recompute activations, so that all of them are stored,"
            " which needs more memory."
        )
    return lines


def build(options: LLMOptions, config: Any, *, dtype: torch.dtype, device: torch.device) -> Any:
    """Load the model, or build it without weights if ``device`` is meta.

    Args:
        options: see :class:`LLMOptions`.
        config: the result of :func:`read_config`.
        dtype: dtype of the frozen weights. Trained weights are float32.
        device: device of the model.

    Raises:
        UserError: If the weights cannot be read, a LoRA target does not exist, or quantization is set without bitsandbytes.
    """
    dtype = torch.float32 if options.train == "full" else dtype
    transformers_logging.disable_progress_bar()
    if getattr(config, "rescale_every", 0):
        # RWKV divides some weights in evaluation, but not their adapters.
        config.rescale_every = 0
    if device.type == "meta":
        with device:
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=options.attention)
            return _with_options(model, options)
    quantization, share = _quantization(options, dtype), options.share
    try:
        with nullcontext() if share is None else weight_parts.loading(share, device, whole=_tied_shapes(config)):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                options.path,
                config=config,
                dtype=dtype,
                attn_implementation=options.attention,
                local_files_only=True,
                quantization_config=quantization,
                device_map={"": device} if device.type == "cuda" and share is None else None,
                output_loading_info=True,
            )
    # A quantized model needs a package that may not be installed.
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise UserError(f"model.llama_model: cannot load the weights in '{options.path}': {error}") from error
    model, report = loaded
    if report["missing_keys"]:
        missing = listing(sorted(report["missing_keys"]), "tensor")
        raise UserError(f"model.llama_model: the weights in '{options.path}' lack {missing}. Download them again.")
    if share is not None:
        weight_parts.keep_parts(model, share, device)
    if quantization:
        from peft import prepare_model_for_kbit_training

        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    model = _with_options(model, options)
    if options.fp8:
        fp8_linear.use_fp8(model)
    return model


def _tied_shapes(config: Any) -> set[torch.Size]:
    """Return the shapes of weights that several modules share.

    If the files contain such a weight several times, transformers compares the values.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    return {model.get_submodule(name).weight.shape for name in lora_targets.shared_weights(model)}


def _with_options(llm: Any, options: LLMOptions) -> Any:
    """Set which weights are trained, add adapters, and enable activation checkpointing."""
    llm.requires_grad_(options.train == "full")
    if options.train == "lora":
        llm = _with_adapters(llm, options, lora_targets.resolve(llm, options.lora_targets))
    if llm.supports_gradient_checkpointing:
        # The method was renamed in transformers 5.23, where the old name still works with a warning.
        name = "activation_checkpointing_enable"
        enable = getattr(llm, name, None) or llm.gradient_checkpointing_enable
        enable({"use_reentrant": False, "context_fn": dropout.checkpoint_contexts})
        set_recomputation(llm, options.recompute_every)
    llm.config.use_cache = False
    return llm


def _with_adapters(llm: Any, options: LLMOptions, targets: list[str]) -> Any:
    # Imported here because a model without adapters does not need peft.
    from peft import LoraConfig, get_peft_model

    # peft still calls the property of transformers by its deprecated name.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
    # peft corrects the setting itself.
    warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False but the target module is `Conv1D`")
    lora = LoraConfig(
        r=options.lora_r,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules=targets,
        bias="none",
        task_type="CAUSAL_LM",
    )
    problem = ""
    try:
        llm = get_peft_model(llm, lora)
    except ValueError as error:
        problem = str(error)
    # peft also adapts the experts if one of their layers in earlier versions of transformers had the name of a target.
    if lora.target_parameters:
        problem = (
            "adapters of experts are not supported, because their weights are joint tensors. Use names of attention layers, or"
            f" null, instead of {abbreviated(targets)}."
        )
    if problem:
        raise UserError(f"{lora_targets.KEY}: {problem}")
    if not options.plain_adapters and options.quantize is None:
        # Imported here for the same reason.
        from emollama.models.lora_linear import use_lora_linear

        use_lora_linear(llm)
    return llm


def merged(llm: Any) -> Any:
    """Add the adapters of a language model to the frozen weights; return the model without adapters.

    Args:
        llm: the result of :func:`build`; its frozen weights are changed.

    Raises:
        UserError: If an adapted layer shares its weights with another module, which must not get the adapters, too.
    """
    if not hasattr(llm, "merge_and_unload"):
        return llm
    # A layer with adapters contains the original one, which has the same weight.
    shared = lora_targets.shared_weights(llm.get_base_model())
    pairs = [tuple(name.removesuffix(".base_layer") for name in pair) for pair in shared.items()]
    adapted = {name.removesuffix(".base_layer") for name in shared if name.endswith(".base_layer")}
    if tied := sorted({name for pair in pairs if len(set(pair)) > 1 for name in pair if name in adapted}):
        raise UserError(
            f"model.merge_adapters: the adapters of {listing(tied, 'layer')} cannot be merged, because the weights are tied to"
            " those of another module. Set model.merge_adapters: False."
        )
    return llm.merge_and_unload()


def _quantization(options: LLMOptions, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    if options.quantize is None:
        return None
    require_quantizer(options.quantize)
    if options.quantize == 4:
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    return BitsAndBytesConfig(load_in_8bit=True)
