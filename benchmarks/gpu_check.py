"""Training throughput, memory, host waits and decoding speed on one GPU, next to plain Hugging Face code.

    python benchmarks/gpu_check.py --out OUT                            # on a machine with a GPU
    python benchmarks/gpu_check.py --tiny --seconds 1 --skip-tests      # without a GPU: runs the same code on tiny shapes

The script runs in a clone, whether or not the package is installed. It runs the tests marked ``gpu`` first. Then it times
`RunnerBase._step` on batches of the training data loader, with the shipped configuration of stage 1. It needs no downloads: the
language model has the shapes of Llama-2-7B and random weights, the samples are random features and texts, and the tokenizer is
that of the tests. All of it takes less than eight minutes on an H200 (estimated). It writes these files to the folder OUT:

    gpu_check.txt, gpu_check.json   the table of the variants, and the other measurements
    profile_*.txt                   the operators of one step, as torch.profiler lists them
    pytest.txt                      the output of the tests

Each row of the table is a variant: "emollama" is the project's step; H1, H2 and H3 are steps on padded batches with the layers
and adapters of Hugging Face. H2 has all that such code can have: sdpa, samples of similar length, logits only at answers, no
checkpointing. Padding does not count as tokens, and with several questions about a clip, nor does what they share. MFU 4N is
relative to the matrix product measured in the same run and counts 4 operations per token and frozen weight: a frozen weight
takes part in the forward pass and in the gradient of its input, but has no gradient of its own. "wait" is the share of time
spent waiting for data.
"""

from __future__ import annotations

import argparse
import collections
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
# Libraries read these variables when they are imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from gpu_check_files import DEVICE, FULL, ON_GPU, ROOT, SAMPLES, TINY, Sizes, make_runner, write_files
from gpu_check_steps import (
    Step,
    StepCounts,
    Timing,
    Variant,
    compare,
    measure,
    own_step,
    synchronize,
    time_attention,
    time_decoding,
    time_variant,
)
from step_variants import BEST, PLAIN

from emollama.errors import UserError
from emollama.runners.runner_base import RunnerBase

STARTED = time.perf_counter()
TEST_TIMEOUT = 180  # seconds
ONE = Variant("emollama batch 1, ckpt", 1, recompute=True)
FOUR = Variant("emollama batch 4", 4)
BASELINE = Variant("H1 eager padded ckpt, batch 8", 8, hf=PLAIN)
HF_LAYERS = ("model.kernels=plain",)  # the layers of transformers and the adapters of peft
TASKS = ("run.tasks_per_clip=3", "datasets.feature_face_caption.task_pool=[emotion,reason,reason_v2]")


def variants_of(sizes: Sizes, *, compiled: bool = False) -> list[Variant]:
    """Return all variants in the order of the table."""
    return [
        ONE,
        Variant("emollama batch 4, ckpt", 4, recompute=True),
        *(Variant(f"emollama batch {batch_size}", batch_size) for batch_size in sizes.batch_sizes),
        Variant(f"emollama batch 36, {sizes.max_tokens} tokens", 36, max_tokens=sizes.max_tokens),
        Variant("emollama batch 9, kernels: plain", 9, options=HF_LAYERS),
        BASELINE,
        Variant("H2 best effort, batch 8", 8, hf=BEST),
        Variant("H3 eager, batch 1", 1, hf=replace(PLAIN, recompute=False)),
        Variant("emollama batch 9, fp8", 9, options=("model.frozen_dtype=fp8",)),
        Variant("emollama batch 9, tasks_per_clip", 9, options=(*TASKS, "datasets.feature_face_caption.batch_size=9")),
        *([Variant("emollama batch 9, compiled", 9, options=("model.compile=True",))] if compiled else []),
    ]


def main(argv: list[str] | None = None) -> None:
    """Run the tests, then all measurements; print the results and write them to files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu_check_out"), help="folder of the results (default: gpu_check_out)")
    parser.add_argument("--tiny", action="store_true", help="use tiny shapes, for a CPU")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long to time each variant (default: 5)")
    parser.add_argument("--skip-tests", action="store_true", help="do not run the tests marked gpu")
    parser.add_argument("--compile", action="store_true", help="also time compiled layers")
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    tests = "skipped" if arguments.skip_tests else run_tests(arguments.out)
    say(f"pytest -m gpu: {tests}")
    memory = Path("/dev/shm")
    in_memory = memory.is_dir() and shutil.disk_usage(memory).free > 20e9
    with tempfile.TemporaryDirectory(dir=memory if in_memory else None) as folder:
        check(arguments, Path(folder), tests)


def check(arguments: argparse.Namespace, folder: Path, tests: str) -> None:
    """Measure everything.

    Args:
        arguments: the parsed command line.
        folder: folder for the language model and the samples.
        tests: summary of the tests.
    """
    sizes = TINY if arguments.tiny else FULL
    write_files(folder, sizes)
    say("random LLM and samples written")
    start = time.perf_counter()
    runner = make_runner(folder, sizes)
    plain = make_runner(folder, sizes, *HF_LAYERS)
    start_up = time.perf_counter() - start
    say(f"two runners built in {start_up:.1f} s")

    samples = [runner.samples[index] for index in range(SAMPLES)]
    lengths = [len(sample.input_ids) for sample in samples]
    notes = [f"tokens of a sample: mean {np.mean(lengths):.0f}, {min(lengths)} to {max(lengths)}"]
    notes.append(compare(runner, plain, samples[:4]))
    matmul_rate = measure_matmul(min(1.0, arguments.seconds))

    timings: dict[str, Timing | str] = {}
    for variant in variants_of(sizes, compiled=arguments.compile):
        own = plain if variant.hf or variant.options == HF_LAYERS else runner if not variant.options else None
        try:
            # One with its own options is freed with its last reference.
            one = own or make_runner(folder, sizes, *variant.options)
            timing = time_variant(one, variant, samples, arguments.seconds, sizes.warmup_steps)
        except UserError as error:
            timing = str(error)
        one = None
        gc.collect()
        timings[variant.name] = timing
        result = timing if isinstance(timing, str) else f"{timing.tok_s:.0f} tok/s, peak {timing.peak:.1f} GiB"
        say(f"{variant.name}: {result}")
    notes += time_attention()
    notes += profile_steps(runner, arguments.out)
    notes += [f"host waits: {line}" for line in host_waits(runner)]
    runner.model.eval()
    for batch_size in (1, 16):
        for is_hf in (False, True):
            notes.append(time_decoding(runner, batch_size, sizes.new_tokens, is_hf=is_hf))
    runner.model.train()
    device = torch.cuda.get_device_name() if ON_GPU else "CPU"
    heading = f"{device}, torch {torch.__version__}, bf16 matmul {matmul_rate / 1e12:.1f} TF/s, start-up {start_up:.1f} s"
    peak_tokens = matmul_rate / (4 * frozen_weights(runner))
    lines = [f"{heading}, tests: {tests.splitlines()[-1]}", *table_of(timings, peak_tokens), *notes]
    rows = {name: timing if isinstance(timing, str) else asdict(timing) for name, timing in timings.items()}
    results = {"rows": rows, "peak": matmul_rate, "start_up": start_up, "notes": notes}
    (arguments.out / "gpu_check.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    (arguments.out / "gpu_check.txt").write_text("\n".join(lines), encoding="utf-8")
    say("\n".join(["done", *lines]))


def say(text: str) -> None:
    """Print a line with the seconds since the start."""
    sys.stdout.write(f"[{time.perf_counter() - STARTED:6.1f} s] {text}\n")
    sys.stdout.flush()


def run_tests(out: Path) -> str:
    """Run the tests that need a GPU; returns the failed ones and pytest's last line."""
    # Only their files, because collecting all tests takes longer than running these.
    files = [str(path) for path in sorted(ROOT.glob("tests/test_*.py")) if "mark.gpu" in path.read_text(encoding="utf-8")]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-rfEs", "-p", "no:cacheprovider", *files]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    try:
        process = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TEST_TIMEOUT, check=False
        )
        output = process.stdout + process.stderr
    except subprocess.TimeoutExpired as error:
        # The exception contains bytes, even with text=True.
        output = f"{(error.stdout or b'').decode()}\nTIMEOUT after {TEST_TIMEOUT} s"
    (out / "pytest.txt").write_text(output, encoding="utf-8")
    failures = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return "\n".join(failures[:12] + output.strip().splitlines()[-1:])


# Measurements


def measure_matmul(seconds: float) -> float:
    """Return the operations per second of a large matrix product in bf16."""
    size = 8192 if ON_GPU else 256
    matrix = torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16)

    def multiply(number: int) -> StepCounts:
        torch.mm(matrix, matrix)
        return StepCounts(0, 0, 0.0)

    return 2e3 * size**3 / measure(multiply, seconds, warmup=3).ms


def frozen_weights(runner: RunnerBase) -> int:
    """Return the number of weights in the frozen linear layers of the language model, without its head."""
    named = cast(nn.Module, runner.model.llama_model).named_parameters()
    return sum(value.numel() for name, value in named if not value.requires_grad and "_proj" in name)


def profile_steps(runner: RunnerBase, out: Path) -> list[str]:
    """Profile batch 1 with checkpointing and batch 4 without it; return lines about kernels and GPU utilization."""
    lines = []
    for variant, name in ((ONE, "batch_1_ckpt"), (FOUR, "batch_4")):
        lines.append(profile_step(own_step(runner, variant), name, out))
    return lines


def profile_step(step: Step, name: str, out: Path) -> str:
    """Profile one step and write its operators to a file."""
    elapsed = measure(step, seconds=0.0, warmup=1).ms
    activities = [ProfilerActivity.CPU]
    if ON_GPU:
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        step(9)
        synchronize()
    kernels = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]  # type: ignore[attr-defined]
    busy = sum(event.time_range.elapsed_us() for event in kernels) / 1e3
    order = "self_device_time_total" if kernels else "self_cpu_time_total"
    operators = profiler.key_averages().table(sort_by=order, row_limit=40)
    (out / f"profile_{name}.txt").write_text(operators, encoding="utf-8")
    share = busy / elapsed
    return f"{name}: {len(kernels)} kernels, {busy:.1f} ms of GPU work in a step of {elapsed:.1f} ms ({share:.0%})"


def host_waits(runner: RunnerBase) -> list[str]:
    """Return lines about the source lines where a step of batch 4 waits for the GPU, as PyTorch reports them."""
    step = own_step(runner, FOUR)
    step(0)
    with warnings.catch_warnings(record=True) as records:
        warnings.simplefilter("always")
        if ON_GPU:
            torch.cuda.set_sync_debug_mode("warn")
        step(1)
        if ON_GPU:
            torch.cuda.set_sync_debug_mode("default")
    waits = [record for record in records if "synchroniz" in str(record.message)]
    lines = collections.Counter(f"{'/'.join(Path(wait.filename).parts[-3:])}:{wait.lineno}" for wait in waits)
    return [f"{len(waits)} in a step", *(f"{count} x {line}" for line, count in lines.most_common(14))]


# Results


def table_of(timings: dict[str, Timing | str], peak_tokens: float) -> list[str]:
    """Return the lines of the table of variants.

    Args:
        timings: name of a variant -> its timing, or why there is none.
        peak_tokens: tokens per second at which MFU would be 100 %.
    """
    rates = f"{'tok/step':>9s}{'ms/step':>9s}{'samples/s':>10s}{'tok/s':>8s}{'MFU 4N':>8s}"
    lines = [f"{'variant':32s}{rates}{'GiB':>7s}{'wait':>6s}{'x H1':>6s}"]
    baseline = timings[BASELINE.name]
    for name, timing in timings.items():
        if isinstance(timing, str):
            lines.append(f"{name:32s} {timing}")
            continue
        mfu = timing.tok_s / peak_tokens
        speed_up = timing.tok_s / baseline.tok_s if isinstance(baseline, Timing) else 0
        rates = f"{timing.tokens:9.0f}{timing.ms:9.1f}{timing.samples_s:10.2f}{timing.tok_s:8.0f}{mfu:8.1%}"
        lines.append(f"{name:32s}{rates}{timing.peak:7.1f}{timing.wait:6.1%}{speed_up:6.2f}")
    return lines


if __name__ == "__main__":
    main()
