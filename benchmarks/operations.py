"""Count the operations of a layer and the bytes that it saves for the backward pass, as on a GPU.

    python benchmarks/operations.py            # the layers of transformers and peft, those of emollama, and steps between them
    python benchmarks/operations.py --list     # also each operation

A Llama with LoRA adapters on q_proj and v_proj computes the gradients of a packed micro-batch of 8 samples under bf16 autocast.
Each operation that PyTorch dispatches is a launch of a GPU kernel, except views; without Liger, an operator of emollama for norm,
position embedding or SwiGLU is several. The operations of a layer are the difference
between models of two layers and of one. The saved bytes of a token are the difference between two lengths; all of them are
proportional to the width of the model, so that a narrow one gives those of Llama-2-7B. The attention counts as one operation, as
on a GPU, and so does each operator of emollama.

Shape letters: T = tokens of all samples, H = heads, E = width of a head.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, LlamaConfig
from transformers.initialization import no_init_weights

from emollama.models import dropout
from emollama.models.fused_layer import use_fused_layers
from emollama.models.fused_ops import PLAIN
from emollama.models.lora_linear import use_lora_linear

# name: dropout whose mask is computed again, adapters in the dtype of autocast, norm and others as one operation each
VARIANTS = {
    "hugging face": (False, False, False),
    "plain": (True, False, False),  # model.kernels: plain
    "adapters": (True, True, False),
    "layers": (True, False, True),
    "fused": (True, True, True),  # model.kernels: auto
}
SAMPLES = 8
LAYERS, HIDDEN = 32, 4096  # of Llama-2-7B, for the saved bytes
ATTENTION = "counted_attention"

# They allocate memory, or are views in disguise.
NO_KERNEL = {"empty", "empty_like", "new_empty", "empty_strided", "detach", "alias", "_unsafe_view", "_reshape_alias"}


class Counts(TorchDispatchMode):
    """Counts the operations that are dispatched, except views and those that do nothing on a device."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count and run one operation."""
        if not func.is_view and func.overloadpacket.__name__ not in NO_KERNEL:
            self.calls[str(func)] += 1
        return func(*args, **(kwargs or {}))


class Attention(torch.autograd.Function):
    """The variable-length attention: one operation each way, which saves its inputs, its output and a float32 per head."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, offsets: Tensor, longest: int) -> Tensor:
        """Compute the output, (1, T, H, E)."""
        output, sums = torch.ops.emollama_benchmark.attention(query, key, value, offsets, longest)
        ctx.save_for_backward(query, key, value, output, sums)
        ctx.offsets, ctx.longest = offsets, longest
        result: Tensor = output
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Compute the gradients."""
        query, key, value, output, sums = ctx.saved_tensors
        gradients = torch.ops.emollama_benchmark.attention_backward(
            grad, query, key, value, output, sums, ctx.offsets, ctx.longest
        )
        return *gradients, None, None


# The number and the shapes of the results count, not their values.
def _attention(query: Tensor, key: Tensor, value: Tensor, offsets: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    return query.transpose(1, 2).clone(), query.new_empty(query.shape[1:3], dtype=torch.float32)


def _attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, sums: Tensor, offsets: Tensor, longest: int
) -> tuple[Tensor, Tensor, Tensor]:
    return query.clone(), key.clone(), value.clone()


def _counted_attention(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: None, **kwargs: Any) -> tuple[Tensor, None]:
    return Attention.apply(query, key, value, kwargs["cu_seqlens"], kwargs["max_length"]), None


HEADS = "Tensor query, Tensor key, Tensor value"
torch.library.define("emollama_benchmark::attention", f"({HEADS}, Tensor offsets, int longest) -> (Tensor, Tensor)")
torch.library.define(
    "emollama_benchmark::attention_backward",
    f"(Tensor grad, {HEADS}, Tensor output, Tensor sums, Tensor offsets, int longest) -> (Tensor, Tensor, Tensor)",
)
torch.library.impl("emollama_benchmark::attention", "default", _attention)
torch.library.impl("emollama_benchmark::attention_backward", "default", _attention_backward)
AttentionInterface.register(ATTENTION, _counted_attention)
AttentionMaskInterface.register(ATTENTION, lambda *args, **kwargs: None)


def build(hidden: int, layers: int, kernels: str) -> Any:
    """Return a language model in bf16 with the ratios of Llama-2-7B and with adapters in float32."""
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 43 // 16,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 128),
        vocab_size=64,
        attn_implementation=ATTENTION,  # type: ignore[call-arg]  # a keyword of the base class
        use_cache=False,
    )
    torch.manual_seed(0)
    with no_init_weights():
        llm: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    llm.requires_grad_(False)
    for weight in llm.parameters():
        weight.data.normal_(std=hidden**-0.5) if weight.ndim > 1 else weight.data.fill_(1.0)
    lora = LoraConfig(
        r=hidden // 64, lora_alpha=16, lora_dropout=0.05, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    # peft still calls the property of transformers by its deprecated name.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
    llm = get_peft_model(llm, lora)
    own_dropout, own_adapters, own_layers = VARIANTS[kernels]
    if own_dropout:
        dropout.replace_dropout(llm)
    if own_adapters:
        use_lora_linear(llm)
    if own_layers:
        use_fused_layers(llm.get_base_model(), PLAIN)
    return llm.train()


def gradients(llm: Any, tokens: int) -> Callable[[], None]:
    """Return a function that computes the gradients for samples of this many tokens."""
    total = SAMPLES * tokens
    offsets = torch.arange(SAMPLES + 1, dtype=torch.int32) * tokens
    ids = torch.arange(total) % 64
    keys = torch.arange(total, dtype=torch.int32) * 40503

    def run() -> None:
        embeddings = llm.get_input_embeddings()(ids)[None].requires_grad_()
        with torch.autocast("cpu", torch.bfloat16), dropout.use_keys(keys):
            logits = llm.get_base_model()(
                inputs_embeds=embeddings,
                position_ids=(torch.arange(total) % tokens)[None],
                cu_seqlens=offsets,
                max_length=tokens,
                logits_to_keep=torch.arange(4),
            ).logits
        logits.float().square().mean().backward()

    return run


def calls_per_layer(hidden: int, tokens: int, kernels: str) -> Counter[str]:
    """Return the operations of a forward and backward pass of one layer."""
    counts = []
    for layers in (1, 2):
        run = gradients(build(hidden, layers, kernels), tokens)
        run()
        with Counts() as counter:
            run()
        counts.append(counter.calls)
    counts[1].subtract(counts[0])
    return +counts[1]


def saved_bytes_per_token(hidden: int, tokens: int, kernels: str) -> float:
    """Return the bytes that 32 layers of Llama-2-7B save for the backward pass, per token."""
    saved = []
    for layers in (1, 2):
        llm = build(hidden, layers, kernels)
        saved += [_saved_bytes(llm, length) for length in (tokens, 2 * tokens)]
    return ((saved[3] - saved[2]) - (saved[1] - saved[0])) / (SAMPLES * tokens) * LAYERS * HIDDEN / hidden


def _saved_bytes(llm: Any, tokens: int) -> int:
    weights = {weight.untyped_storage()._cdata for weight in llm.parameters()}
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            storages[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        gradients(llm, tokens)()
    return sum(storages.values())


def main() -> None:
    """Print the counts of all variants."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=512, help="hidden size (default: 512)")
    parser.add_argument("--tokens", type=int, default=4, help="tokens of each of the 8 samples (default: 4)")
    parser.add_argument("--list", action="store_true", help="also list the operations of a layer")
    arguments = parser.parse_args()
    for kernels in VARIANTS:
        calls = calls_per_layer(arguments.hidden, arguments.tokens, kernels)
        saved = saved_bytes_per_token(arguments.hidden, arguments.tokens, kernels)
        sys.stdout.write(
            f"{kernels:14s}{calls.total():5d} operations per layer and step, {saved / 1e6:6.2f} MB saved per token\n"
        )
        if arguments.list:
            sys.stdout.write("".join(f"    {count:4d} {name}\n" for name, count in calls.most_common()))


if __name__ == "__main__":
    main()
