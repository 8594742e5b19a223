"""Time continuous batching, and the scoring of labels, next to generate() of Hugging Face on the same merged weights.

    OMP_NUM_THREADS=1 MALLOC_MMAP_MAX_=0 python benchmarks/decoding.py --hidden 128 --layers 4
    OMP_NUM_THREADS=1 MALLOC_MMAP_MAX_=0 python benchmarks/decoding.py --hidden 512 --layers 8 --rounds 3

The language model is a random Llama with LoRA adapters, which are merged. Prompts have 60 to 140 tokens, answers 8 to 96: answer
lengths are drawn from a log-normal distribution, and each request has its own limit. Hugging Face gets batches of 8 requests that
are sorted by the length of their answers, which a server cannot know; each batch ends with its longest answer. The variants
alternate in one process, and their CPU time is measured. With bitsandbytes, 8-bit and 4-bit weights follow. The exit status is 1
if the token ids of an answer, or the probabilities of labels, differ.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig

from emollama.data.batch import IGNORED, Sample, collate
from emollama.decoding.likelihoods import candidate_probabilities
from emollama.decoding.running_batch import RunningBatch
from emollama.decoding.sampling_params import SamplingParams, SequenceParams
from emollama.models.attention import unused_mask
from emollama.models.minigpt_v2 import MiniGPTv2
from emollama.tensor_files import save_pretrained

CPU = torch.device("cpu")
VOCABULARY = 2000
REQUESTS, HF_BATCH, LABELS, LABEL_PROMPT = 64, 8, 9, 300
Ids = list[list[int]]


def main() -> None:
    """Print the median times, and the median ratios of the first variant to each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=128, help="hidden size, a multiple of 64 (default: 128)")
    parser.add_argument("--layers", type=int, default=4, help="number of layers (default: 4)")
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds (default: 5)")
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 16, 32, 64], help="row limits (default: 8 16 32 64)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        model = make_model(Path(folder), arguments.hidden, arguments.layers)
        model.merge_adapters()
        plain = plain_copy(model)
        say(f"hidden size {arguments.hidden}, {arguments.layers} layers, medians of {arguments.rounds} rounds")
        equal = [
            compare_generation(model, plain, arguments.rows, arguments.rounds),
            compare_single_requests(model, plain, arguments.rounds),
            compare_scoring(model, plain, arguments.rounds),
        ]
        if importlib.util.find_spec("bitsandbytes"):
            compare_quantized(Path(folder), arguments.rounds)
    raise SystemExit(0 if all(equal) else 1)


def make_model(folder: Path, hidden: int, layers: int) -> MiniGPTv2:
    """Write a random Llama, and build a model with it and random adapters."""
    torch.manual_seed(1)
    heads = hidden // 64
    shapes = {"hidden_size": hidden, "intermediate_size": 11 * hidden // 4, "num_hidden_layers": layers}
    config = LlamaConfig(vocab_size=VOCABULARY, num_attention_heads=heads, num_key_value_heads=heads, **shapes)
    llm = AutoModelForCausalLM.from_config(config)
    # With larger weights than usual initial ones, the most likely token is seldom almost as likely as another one.
    randomize(llm)
    save_pretrained(llm, folder)
    return with_adapters(folder)


def with_adapters(folder: Path, **keys: bool) -> MiniGPTv2:
    """Build a model with the Llama in a folder and random adapters."""
    torch.manual_seed(2)
    cfg = MiniGPTv2.Config(llama_model=str(folder), lora_r=8, **keys)
    model = MiniGPTv2(cfg, device=CPU, frozen_dtype=torch.float32).eval()
    randomize(model, "lora_")
    return model


def randomize(module: torch.nn.Module, part: str = "") -> None:
    """Draw the weight matrices with this part in their names."""
    for name, parameter in module.named_parameters():
        if parameter.ndim == 2 and part in name:
            parameter.data.normal_(std=parameter.shape[1] ** -0.5)


def plain_copy(model: MiniGPTv2) -> Any:
    """Return the merged language model as an object of transformers, with its sdpa attention."""
    llm = model.llama_model
    plain = AutoModelForCausalLM.from_config(LlamaConfig.from_dict(llm.config.to_dict()), attn_implementation="sdpa")
    plain.load_state_dict(llm.state_dict())
    return plain.eval()


def prompts(model: MiniGPTv2, lengths: Sequence[int]) -> list[Sample]:
    """Return prompts of random tokens."""
    generator = torch.Generator().manual_seed(2)
    slots = {slot: torch.zeros(0, shape.dim) for slot, shape in model.slot_shapes(model.cfg).items()}
    ids = [torch.randint(3, VOCABULARY, (length,), generator=generator) for length in lengths]
    return [Sample("", "", one, one, torch.ones(len(one)), slots) for one in ids]


def compare_generation(model: MiniGPTv2, plain: Any, limits: Sequence[int], rounds: int) -> bool:
    """Compare the answers to all requests."""
    random = np.random.default_rng(3)
    lengths = np.exp(random.normal(np.log(32), 0.7, REQUESTS)).clip(8, 96).astype(int).tolist()
    samples = prompts(model, random.integers(60, 141, REQUESTS).tolist())
    variants: dict[str, Callable[[], Ids]] = {"Hugging Face": lambda: hugging_face(plain, samples, lengths, HF_BATCH)}
    variants |= {f"{rows} rows": lambda rows=rows: continuous(model, samples, lengths, rows) for rows in limits}
    say(f"{REQUESTS} requests, {sum(lengths)} new tokens; answers of {min(lengths)} to {max(lengths)} tokens")
    return report(variants, rounds)


def compare_single_requests(model: MiniGPTv2, plain: Any, rounds: int) -> bool:
    """Compare one request after the other."""
    lengths = [32, 64]
    samples = prompts(model, [80, 120])
    say("one request after the other")
    return report(
        {
            "Hugging Face": lambda: hugging_face(plain, samples, lengths, 1),
            "1 row": lambda: continuous(model, samples, lengths, 1),
        },
        2 * rounds,
    )


def hugging_face(plain: Any, samples: Sequence[Sample], lengths: Sequence[int], size: int) -> Ids:
    """Answer in batches of requests with answers of similar lengths."""
    order = sorted(range(len(samples)), key=lengths.__getitem__)
    answers: dict[int, list[int]] = {}
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        ids = [samples[row].input_ids for row in rows]
        mask = pad_sequence([torch.ones_like(one) for one in ids], batch_first=True, padding_side="left")
        padded = pad_sequence(ids, batch_first=True, padding_side="left")
        new = max(lengths[row] for row in rows)
        options = {"max_new_tokens": new, "do_sample": False, "eos_token_id": None, "pad_token_id": 0, "use_cache": True}
        out = plain.generate(padded, attention_mask=mask, **options)[:, padded.shape[1] :]
        answers |= {row: answer[: lengths[row]] for row, answer in zip(rows, out.tolist(), strict=True)}
    return [answers[row] for row in range(len(samples))]


def continuous(model: MiniGPTv2, samples: Sequence[Sample], lengths: Sequence[int], limit: int) -> Ids:
    """Answer in the order of arrival; a request joins as soon as there is a free row."""
    running = RunningBatch([model], lambda ids: False)
    answers: Ids = []
    while len(answers) < len(samples) or len(running):
        free = range(len(answers), min(len(samples), len(answers) + limit - len(running)))
        if free:
            params = [SequenceParams(SamplingParams(lengths[index]), 0) for index in free]
            running.add(collate([samples[index] for index in free]), params)
            answers += [[] for _ in free]
        for new in running.step():
            answers[new.sequence].append(new.token)
    return answers


def compare_scoring(model: MiniGPTv2, plain: Any, rounds: int) -> bool:
    """Compare the probabilities of labels of two to four tokens after one prompt."""
    generator = torch.Generator().manual_seed(4)
    labels = [torch.randint(3, VOCABULARY, (2 + index % 3,), generator=generator).tolist() for index in range(LABELS)]
    (sample,) = prompts(model, [LABEL_PROMPT])
    variants = {
        "full passes": lambda: full_passes(plain, sample, labels),
        "a pass per label": lambda: pass_per_label(model, sample, labels),
        "shared prompt": lambda: shared_prompt(model, sample, labels),
        "emollama": lambda: candidate_probabilities([model], collate([sample]), labels)[0],
    }
    say(f"{LABELS} labels of 2 to 4 tokens after a prompt of {LABEL_PROMPT} tokens")
    return report(variants, 4 * rounds)


def full_passes(plain: Any, sample: Sample, labels: Ids) -> Tensor:
    """Run prompt and label in one pass for each label."""
    totals = []
    for label in labels:
        ids = torch.cat([sample.input_ids, torch.tensor(label)])
        logits = plain(ids[None], logits_to_keep=len(label) + 1, use_cache=False).logits[0, :-1]
        totals.append(logits.double().log_softmax(-1).gather(1, ids[-len(label) :, None]).sum())
    return torch.stack(totals).softmax(0)


def pass_per_label(model: MiniGPTv2, sample: Sample, labels: Ids) -> Tensor:
    """Run the prompt, and then each label with a concatenated cache, as earlier versions of emollama did."""
    llm, batch, cache = model.llama_model, collate([sample]), DynamicCache()
    embeddings = model._embed(batch)[None]
    first = llm(
        inputs_embeds=embeddings,
        attention_mask=unused_mask(embeddings),
        position_ids=batch.position_ids[None],
        cu_seqlens=batch.cu_seqlens,
        max_length=batch.max_length,
        lengths=batch.lengths,
        logits_to_keep=torch.full((4,), len(sample.input_ids) - 1),
        past_key_values=cache,
        use_cache=True,
    ).logits[0, :1]
    padded, totals = DynamicCache(), []
    for index, layer in enumerate(cache.layers):
        rows = (pad_sequence([states[0].transpose(0, 1)], batch_first=True, padding_side="left").transpose(1, 2)
                for states in (layer.keys, layer.values))  # fmt: skip
        padded.update(*rows, index)
    for label in labels:
        ids, tokens = torch.tensor(label), len(label) - 1
        following = llm(
            inputs_embeds=llm.get_input_embeddings()(ids[None, :-1]),
            attention_mask=torch.ones(1, len(sample.input_ids) + tokens, dtype=torch.long),
            position_ids=len(sample.input_ids) + torch.arange(tokens)[None],
            past_key_values=padded,
            use_cache=True,
        ).logits[0]
        padded.crop(-tokens)
        totals.append(torch.cat([first, following]).double().log_softmax(-1).gather(1, ids[:, None]).sum())
    return torch.stack(totals).softmax(0)


def compare_quantized(folder: Path, rounds: int) -> None:
    """Compare time, memory and answers of quantized weights with those of float32 weights, all with unmerged adapters."""
    models = {"float32": with_adapters(folder)}
    models |= {"int8": with_adapters(folder, low_resource=True), "nf4": with_adapters(folder, load_in_4bit=True)}
    lengths = [32] * 8
    samples = prompts(models["float32"], range(60, 140, 10))
    say("8 requests with quantized weights of the language model")
    report({name: lambda model=model: continuous(model, samples, lengths, 8) for name, model in models.items()}, rounds)
    expected = continuous(models["float32"], samples, lengths, 8)
    answered = [
        Sample("", "", *with_answer(sample.input_ids, ids), sample.slots) for sample, ids in zip(samples, expected, strict=True)
    ]
    for name, model in models.items():
        tensors = [*model.llama_model.parameters(), *model.llama_model.buffers()]
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 2**20
        say(f"  {name:18}{size:9.1f} MiB  loss of the float32 answers {float(model(collate(answered)).mean()):.3f}")


@torch.inference_mode()
def shared_prompt(model: MiniGPTv2, sample: Sample, labels: Ids) -> Tensor:
    """Run the prompt and all labels in one pass without a cache, as samples that share the prompt (run.tasks_per_clip)."""
    prompt = len(sample.input_ids)
    rest = [
        dataclasses.replace(sample, input_ids=ids, labels=ids, loss_weights=torch.ones(len(ids)), shared_tokens=prompt)
        for ids in (torch.tensor(label[:-1]) for label in labels)
    ]
    batch = collate([sample, *rest])
    logits = model._packed_logits(batch, torch.arange(prompt - 1, len(batch.input_ids)), use_cache=False)
    first, *following = logits.double().log_softmax(-1).split([1, *(len(label) - 1 for label in labels)])
    return torch.stack(
        [
            torch.cat([first, rows]).gather(1, torch.tensor(label)[:, None]).sum()
            for label, rows in zip(labels, following, strict=True)
        ]
    ).softmax(0)


def with_answer(prompt: Tensor, ids: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the tokens of a prompt and its answer, their labels and the weights of the loss."""
    answer = torch.tensor(ids)
    labels = torch.cat([torch.full_like(prompt, IGNORED), answer])
    return torch.cat([prompt, answer]), labels, torch.ones(len(labels))


def report(variants: dict[str, Callable[[], Any]], rounds: int) -> bool:
    """Time the variants alternately; return whether their results are equal."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    results = {}
    for _ in range(rounds + 1):
        for name, run in variants.items():
            start = time.process_time()
            results[name] = run()
            seconds[name].append(time.process_time() - start)
    first, *others = results
    for name, times in seconds.items():
        # The first round is a warm-up. A ratio is that of one round, because the speed of a shared machine changes.
        ratio = median(base / value for base, value in zip(seconds[first][1:], times[1:], strict=True))
        say(f"  {name:18}{1000 * median(times[1:]):9.1f} ms   ratio {ratio:5.2f}")
    equal = all(same(results[first], results[name]) for name in others)
    say(f"  equal results: {equal}")
    return equal


def same(one: Any, other: Any) -> bool:
    """Return whether ids are equal, or probabilities up to rounding."""
    return torch.allclose(one, other, atol=1e-5) if isinstance(one, Tensor) else one == other


def say(line: str) -> None:
    """Print a line."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
