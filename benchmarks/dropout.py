"""The cost of dropout masks that do not depend on the split of the global batch, compared with torch's dropout.

A random Llama with LoRA adapters computes the gradients of one packed micro-batch, alternately with both kinds of dropout.
The output is the ratio of the median CPU times (of the median times on a GPU).

    python benchmarks/dropout.py --hidden-size 1024 --layers 4 --tokens 1000
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from emollama.models import attention, dropout


def build(args: argparse.Namespace, checkpointing: bool) -> Any:
    """Return a language model with adapters on q_proj and v_proj, in training mode."""
    config = LlamaConfig(
        hidden_size=args.hidden_size,
        intermediate_size=args.hidden_size * 11 // 4,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden_size // 64,
        vocab_size=1000,
        attn_implementation=attention.NAME,  # type: ignore[call-arg]  # a keyword of the base class
        use_cache=False,
    )
    llm: Any = LlamaForCausalLM(config).to(args.device, torch.bfloat16 if args.device == "cuda" else torch.float32)
    lora = LoraConfig(r=64, lora_alpha=16, lora_dropout=0.05, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    llm = get_peft_model(llm, lora)
    if checkpointing:
        llm.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": dropout.checkpoint_contexts})
    dropout.replace_dropout(llm)
    return llm.train()


def step_time(llm: Any, args: argparse.Namespace, keys: torch.Tensor | None) -> float:
    """Return the time in seconds of a forward and backward pass. Without keys, the modules use torch's dropout."""
    tokens = torch.arange(args.tokens, device=args.device)
    lengths = [args.tokens // 2, args.tokens - args.tokens // 2]
    offsets = torch.tensor([0, lengths[0], args.tokens], dtype=torch.int32, device=args.device)
    embeddings = llm.get_input_embeddings()(tokens[None] % 1000)
    clock = time.perf_counter if args.device == "cuda" else time.process_time
    synchronize = torch.cuda.synchronize if args.device == "cuda" else lambda: None
    synchronize()
    start = clock()
    with dropout.use_keys(keys):
        logits = llm(
            inputs_embeds=embeddings,
            position_ids=tokens[None] % (args.tokens // 2),
            cu_seqlens=offsets,
            max_length=max(lengths),
            lengths=lengths,
            logits_to_keep=tokens[-50:],
        ).logits
    logits.float().logsumexp(-1).sum().backward()
    synchronize()
    return clock() - start


def main() -> None:
    """Print one line for each setting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden-size", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    keys = torch.randint(-(2**31), 2**31, (args.tokens,), device=args.device).int()
    for checkpointing in (True, False):
        llm = build(args, checkpointing)
        times = [(step_time(llm, args, keys), step_time(llm, args, None)) for _ in range(args.rounds + 1)][1:]
        own, torchs = (statistics.median(column) for column in zip(*times, strict=True))
        line = f"checkpointing {checkpointing}: {own:.3f} s, torch's dropout {torchs:.3f} s, ratio {own / torchs:.3f}\n"
        sys.stdout.write(line)


if __name__ == "__main__":
    main()
