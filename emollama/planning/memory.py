"""The memory of a run on each GPU, by component, and what the GPUs send each other in a step."""

from __future__ import annotations

from dataclasses import dataclass

from emollama.memory import GIB
from emollama.parallel_modes import ParallelMode
from emollama.planning.counting import StepMemory
from emollama.planning.parameters import WeightBytes
from emollama.planning.samples import MicroBatch

# Assumptions: what CUDA and its libraries allocate outside of PyTorch's allocator.
CUDA_CONTEXT, NCCL = GIB // 2, GIB // 2
GRADIENT, MOMENTS = 4, 8  # bytes of a trained parameter: its gradient, and the two moments of AdamW
COPIES_OF_FEATURES = 2  # a GPU copies the features of the next step while it computes
OVERHEAD = ("CUDA context (assumed)", "NCCL (assumed)")
OF_TOKENS = ("activations", "logits at the answers", "temporary tensors")  # components that grow with the tokens


@dataclass(frozen=True)
class Sharding:
    """How the weights are divided.

    Attributes:
        mode: the value of ``run.parallel``.
        gpus: number of GPUs, or of processes on a CPU.
        shards: number of GPUs among which a weight is divided; 1 if each has all weights.
    """

    mode: ParallelMode
    gpus: int
    shards: int


@dataclass(frozen=True)
class RunMemory:
    """What the memory of a run is computed from.

    Attributes:
        weights: the weights of the model.
        step: the largest micro-batch of a training step; None for an evaluation.
        batch: its size.
        features: bytes of the features of a sample.
        cache: bytes of the key-value cache of an evaluation.
        on_gpu: whether the run uses GPUs.
        sent_gradient: bytes of a trained parameter's gradient when GPUs exchange it.
    """

    weights: WeightBytes
    step: StepMemory | None
    batch: MicroBatch
    features: int
    cache: float
    on_gpu: bool
    sent_gradient: int = GRADIENT


def components(run: RunMemory, sharding: Sharding) -> dict[str, float]:
    """Return component -> bytes on each GPU, without those that are 0."""
    weights, step, shards = run.weights, run.step, sharding.shards
    trained_shards = shards if weights.shards_trained else 1
    whole = weights.frozen - (0 if weights.shards_trained else weights.sharded * (1 - 1 / shards))
    parts: dict[str, float] = {
        "frozen weights": whole,
        "trained weights (float32)": 4 * weights.trained / trained_shards,
        "frozen encoders": weights.encoders,
    }
    if shards > 1:
        parts["gathered weights"] = weights.gathered if step is not None else weights.gathered_in_evaluation
    if step is not None:
        parts |= {
            "gradients (float32)": GRADIENT * weights.trained / trained_shards,
            "AdamW moments (float32)": MOMENTS * weights.trained / trained_shards,
            "features of a batch": run.features * run.batch.of_step * (COPIES_OF_FEATURES if run.on_gpu else 1),
            "activations": step.activations,
            "logits at the answers": step.logits,
            "temporary tensors": step.temporary + weights.dequantized,
        }
    else:
        parts |= {"key-value cache": run.cache, "temporary tensors": weights.dequantized}
    if run.on_gpu:
        parts[OVERHEAD[0]] = CUDA_CONTEXT
        parts[OVERHEAD[1]] = NCCL if sharding.gpus > 1 else 0
    return {name: size for name, size in parts.items() if size or name == "frozen weights"}


def received_bytes(run: RunMemory, sharding: Sharding) -> float:
    """Return the bytes that a GPU receives from the others in a training step, with ring algorithms."""
    weights, shards = run.weights, sharding.shards
    gradients = run.sent_gradient * weights.trained
    replicas = sharding.gpus // shards
    # Each micro-batch gathers the weights once in the forward and once in the backward pass.
    gathered = 2 * run.batch.number * weights.sharded * (1 - 1 / shards)
    if not weights.shards_trained:
        return gathered + _all_reduced(run.sent_gradient * weights.trained, sharding.gpus)
    # Each micro-batch divides its gradients. Where gradients are sent in bfloat16, the groups then exchange theirs each time.
    reductions = 1 if run.sent_gradient == GRADIENT else run.batch.number
    divided = run.batch.number * gradients * (1 - 1 / shards)
    return gathered + divided + reductions * _all_reduced(gradients / shards, replicas)


def _all_reduced(size: float, processes: int) -> float:
    return 2 * size * (1 - 1 / processes)
