"""The memory of a run for any recomputation, size of micro-batches and mode, computed from its configuration."""

from __future__ import annotations

import math
from functools import cached_property
from statistics import mean
from typing import Any

import torch
from torch import nn

from emollama.component_configs import quantized_bits
from emollama.config import RunConfig
from emollama.models import fp8_linear
from emollama.models.planned_gpu import planned_gpu
from emollama.parallel_modes import ParallelMode
from emollama.planning import counting, memory, parameters, samples
from emollama.planning.counting import StepMemory
from emollama.planning.memory import RunMemory, Sharding
from emollama.planning.samples import MicroBatch, SampleTokens
from emollama.planning.uses import uses_of
from emollama.precision import dtype_of_run
from emollama.recomputation import can_choose_layers, choices_for, layers_of, recomputed_every, recomputed_layers

GPUS_OF_MACHINE = 8  # assumed, for run.parallel: hsdp without run.shard_size


class Planner:
    """Builds the model of a run without weights, and computes what a step of it needs.

    Args:
        config: the resolved configuration. The folder ``model.llama_model`` must contain a config.json.
        gpus: number of GPUs, or of processes on a CPU.
        device: type of the device: cuda or cpu. A machine without a GPU can plan for one.

    Attributes:
        parameters: group -> number of parameters.
        trained_names: names of the trained tensors.
        sample: the tokens of a sample.
        every: every how many layers one is recomputed; 0 for none. ``auto`` counts as all of them.
        max_tokens: the value of ``run.max_tokens``. ``auto`` counts as the tokens of a clip, in ``run.tasks_per_clip`` samples.
        notes: assumptions and warnings.

    Raises:
        UserError: If the folder does not exist, or the configuration is inconsistent.
    """

    def __init__(self, config: RunConfig, gpus: int, device: str) -> None:
        self.config, self.gpus, self.on_gpu = config, gpus, device == "cuda"
        is_here = not self.on_gpu or torch.cuda.is_available()
        # The meta device stands for a GPU that this machine does not have.
        self._device = torch.device(device if is_here else "meta")
        self.dtype = dtype_of_run(torch.device(device), config.run.amp, config.run.amp_dtype)
        self.model = config.model_class(config.model, device=torch.device("meta"), frozen_dtype=self.dtype)
        groups = parameters.parameter_groups(self.model)
        trained = sum(parameters.parameter_groups(self.model, only_trained=True).values())
        self.parameters = groups | {"trainable": trained, "total": sum(groups.values())}
        self.trained_names = parameters.trained_names(self.model)
        prompt = samples.prompt_of(config)
        self.sample: SampleTokens = samples.tokens_of(config, self.model, prompt)
        self.every = recomputed_every(config.model.use_grad_checkpoint)
        limit = config.run.max_tokens
        self.max_tokens: int | None = limit if isinstance(limit, int | None) else config.run.tasks_per_clip * self.sample.total
        self.notes = list(self.sample.notes)
        uses = uses_of(config, training=bool(config.datasets))
        self.notes += config.model_class.check_language_model(
            config.model, prompt, device=self._device, frozen_dtype=self.dtype, uses=uses
        )
        self._steps: dict[tuple[int, MicroBatch], StepMemory] = {}
        self._countable = math.inf  # tokens of the smallest step that could not be counted
        self._prepare_weights()

    def _prepare_weights(self) -> None:
        """Give the weights the dtypes that they have in a run."""
        cfg = self.config.model
        self._bits = quantized_bits(cfg)
        if self._bits:
            parameters.prepare_quantized(self.model)
        if cfg.frozen_dtype == "fp8":
            fp8_linear.use_fp8(self.model.llama_model)

    @cached_property
    def weights(self) -> parameters.WeightBytes:
        """The bytes of the weights."""
        return parameters.weights_of(self.model, self._bits, self.dtype)

    @property
    def can_shard(self) -> bool:
        """Whether the weights have a dtype in which they can be divided among processes."""
        return self._bits != 8 and self.config.model.frozen_dtype != "fp8"

    @property
    def can_choose_layers(self) -> bool:
        """Whether a run can choose which layers are recomputed."""
        assert isinstance(self.model.llama_model, nn.Module)
        return can_choose_layers(self.model.llama_model)

    @cached_property
    def choices(self) -> tuple[int, ...]:
        """Every how many layers one can be recomputed, from the fastest to the one with the least memory."""
        assert isinstance(self.model.llama_model, nn.Module)
        return choices_for(len(layers_of(self.model.llama_model)))

    @property
    def micro_batch(self) -> MicroBatch:
        """The largest micro-batch of the configuration."""
        return samples.micro_batch_of(self.config, self.sample, self.gpus, self.max_tokens)

    def micro_batch_of(self, tokens: int) -> MicroBatch:
        """Return a micro-batch of this number of tokens, of a step with at least as many samples."""
        number = max(1, tokens // self.sample.total)
        return MicroBatch(number, tokens, max(number, self.micro_batch.of_step))

    def sharding(self, mode: ParallelMode) -> Sharding:
        """Return how a mode divides the weights."""
        largest = min(self.gpus, GPUS_OF_MACHINE)
        of_machine = next(size for size in range(largest, 0, -1) if self.gpus % size == 0)
        sizes = {"ddp": 1, "fsdp": self.gpus, "hsdp": getattr(self.config.run, "shard_size", None) or of_machine}
        return Sharding(mode, self.gpus, sizes[mode])

    def run(self, every: int, batch: MicroBatch) -> RunMemory:
        """Return what the memory is computed from, if every n-th layer is recomputed, for micro-batches of this size."""
        features = samples.feature_bytes(self.config, self.model)
        step = self._step(every, batch) if self.config.datasets else None
        sent = 2 if self.config.run.reduce_dtype == "bf16" else 4
        return RunMemory(self.weights, step, batch, features, self._cache_bytes(batch), self.on_gpu, sent)

    def needed(self, every: int, batch: MicroBatch, mode: ParallelMode) -> dict[str, float]:
        """Return component -> bytes on each GPU."""
        return memory.components(self.run(every, batch), self.sharding(mode))

    def _step(self, every: int, batch: MicroBatch) -> StepMemory:
        key = every, batch
        if key not in self._steps:
            task, run = self.config.task_class(), self.config.run
            example = samples.example_batch(self.config, self.model, self.sample, batch)
            step = counting.CountedStep(task.loss, example, self.dtype if run.amp else None, every)
            assert isinstance(self.model, nn.Module)
            try:
                # A step that cannot be counted takes long to fail, and a larger one would fail, too.
                if batch.tokens < self._countable:
                    with planned_gpu(self.on_gpu):
                        self._steps[key] = counting.count(self.model, step)
            # The code of a language model may read values of tensors, which raises exceptions of several classes.
            except Exception:
                self._countable = batch.tokens
            if key not in self._steps:
                self._steps[key] = self._estimated(every, batch)
        return self._steps[key]

    def _estimated(self, every: int, batch: MicroBatch) -> StepMemory:
        """Return an estimate for a language model whose step cannot be counted: that of plain layers like those of Llama."""
        note = (
            "activations are estimated, because the code of this language model reads values of tensors, or computes one token"
            " after the other"
        )
        if note not in self.notes:
            self.notes.append(note)
        size = self.dtype.itemsize
        llm = self.model.llm_config.get_text_config()
        hidden, layers = llm.hidden_size, llm.num_hidden_layers
        layer = batch.tokens * ((10 * hidden + 4 * _inner_width(llm, hidden)) * size + 4 * hidden * 4)
        recomputed = recomputed_layers(layers, every) if self.model.llama_model.supports_gradient_checkpointing else 0
        saved = (layers - recomputed) * layer + recomputed * batch.tokens * hidden * size
        logits = batch.samples * samples.ANSWER_TOKENS * llm.vocab_size * 4
        flops = batch.tokens * self.parameters["total"] * (6 if recomputed else 4)
        return StepMemory(round(saved), logits, round(layer + 3 * logits), flops)

    def _cache_bytes(self, batch: MicroBatch) -> float:
        """Return the bytes of the keys and values of an evaluation."""
        if self.config.datasets:
            return 0.0
        llm = self.model.llm_config.get_text_config()
        longest = max((block.task.max_new_tokens for block in self.config.evaluation_datasets.values()), default=0)
        # Models without attention heads, such as Mamba, have no keys and values; the estimate is then an upper limit.
        query_heads = mean(_per_layer(llm, "num_attention_heads") or [1])
        heads = mean(_per_layer(llm, "num_key_value_heads") or [query_heads]) / query_heads
        positions = batch.tokens + batch.samples * longest
        return float(2 * llm.num_hidden_layers * llm.hidden_size * heads * positions * self.dtype.itemsize)


def _per_layer(llm: Any, name: str) -> list[float]:
    """Return a number of a language model's configuration in a list, or its value in each layer; [] if it has none."""
    try:
        value = getattr(llm, name, None)
    except RuntimeError:
        # transformers does not return a number that differs between layers.
        value = [getattr(layer, name, None) for layer in llm.per_layer_config]
    return [number for number in (value if isinstance(value, list | tuple) else [value]) if isinstance(number, int) and number]


def _inner_width(llm: Any, hidden: int) -> float:
    """Return the inner width of the language model's layers, of which configurations have different names, or 4 hidden sizes."""
    for name in ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "decoder_ffn_dim", "moe_intermediate_size"):
        if widths := _per_layer(llm, name):
            return max(widths)
    return 4 * hidden
