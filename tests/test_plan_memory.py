"""The memory that the plan counts without weights is what a step with weights allocates, and what its process needs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from helpers import GOLDEN, golden_tree, loaded
from ranks import ROOT, environment

from emollama.data.batch import Sample
from emollama.decoding.running_batch import RunningBatch
from emollama.decoding.sampling_params import SamplingParams, SequenceParams
from emollama.models import cross_entropy, kernels
from emollama.optim import trainable
from emollama.planning import samples
from emollama.planning.estimate import plan
from emollama.planning.planner import Planner
from emollama.precision import Precision
from emollama.recomputation import set_recomputation
from emollama.runners import memory_choice
from emollama.runners.memory_choice import measured, with_labels

SHAPE = {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 5, "num_attention_heads": 4, "vocab_size": 1000}
SAMPLES = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random Llama with the tokenizer of the golden corpus."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    path = tmp_path_factory.mktemp("llama")
    AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE)).save_pretrained(path)
    for file in (GOLDEN / "llama").glob("tokenizer*"):
        shutil.copy(file, path)
    return path


def configured(path, folder, **keys):
    tree = golden_tree(path)
    tree["model"] |= {"llama_model": str(folder), "ckpt": None, "lora_dropout": 0.05}
    tree["datasets"]["golden"]["batch_size"] = SAMPLES
    tree["run"]["accum_grad_iters"] = 2
    for key, value in keys.items():
        tree["run" if key == "amp" else "model"][key] = value
    return loaded(path, tree)


@pytest.fixture
def bytes_of_tensors(monkeypatch):
    """The measurement of benchmarks/step.py."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import allocator

    return allocator.bytes_of_tensors


@pytest.fixture
def allocated_by_step(bytes_of_tensors):
    """Function: (loss, batch) -> the largest number of bytes that the tensors of two micro-batches have at a time."""

    def allocated(loss, batch):
        def run():
            for _ in range(2):
                loss(batch).backward()

        return bytes_of_tensors(run)[0]

    return allocated


@pytest.fixture
def allocated(allocated_by_step):
    """Function: (configuration, batch) -> the largest number of bytes that the tensors of two micro-batches have at a time."""

    def of_configuration(config, batch):
        model, precision, task = with_weights(config), Precision.of_run(config.run), config.task_class()

        def loss(batch):
            with precision.autocast():
                return task.loss(model, batch)

        return allocated_by_step(loss, batch)

    return of_configuration


def with_weights(config):
    dtype = Precision.of_run(config.run).frozen_dtype
    return config.model_class(config.model, device=torch.device("cpu"), frozen_dtype=dtype).train()


def with_values(batch):
    return batch.mapped(lambda tensor: torch.zeros_like(tensor, device="cpu") if tensor.is_meta else tensor)


def only_sample(batch):
    """The sample of a micro-batch of one sample."""
    slots = {slot: packed.values for slot, packed in batch.slots.items()}
    return Sample("", "", batch.input_ids, batch.labels, batch.loss_weights, slots, dropout_seed=1)


def case(train, recompute, *, amp, kernels, slow=True):
    keys = {"train_llm": train, "use_grad_checkpoint": recompute, "amp": amp, "kernels": kernels}
    return pytest.param(keys, id="-".join(map(str, keys.values())), marks=[pytest.mark.slow] * slow)


CASES = [
    case(train, recompute, amp=amp, kernels=kernels, slow=(train, recompute) != ("lora", False) or amp)
    for train in ("lora", "none", "full")
    for recompute, amp, kernels in [
        (True, False, "auto"),
        (False, False, "auto"),
        (2, False, "plain"),
        (True, True, "auto"),
        (False, True, "plain"),
        (False, True, "auto"),
    ]
]


PADDED = [
    pytest.param({"packing": "padded", "amp": amp, "use_grad_checkpoint": True, **keys}, id=name, marks=pytest.mark.slow)
    for name, amp, keys in (("padded", False, {}), ("padded-amp", True, {"train_llm": "full"}))
]


@pytest.mark.parametrize("keys", [*CASES, *PADDED])
def test_the_counted_bytes_are_those_that_a_step_allocates(keys, folder, tmp_path, allocated):
    config = configured(tmp_path, folder, **keys)
    planner = Planner(config, gpus=1, device="cpu")
    size = planner.micro_batch
    parts = planner.needed(planner.every, size, "ddp")
    batch = with_values(samples.example_batch(config, planner.model, planner.sample, size))
    names = ("gradients (float32)", "activations", "logits at the answers", "temporary tensors")
    counted = sum(parts[name] for name in names)
    assert counted == pytest.approx(allocated(config, batch), rel=0.05)


MEASURED = [pytest.param(*case, marks=pytest.mark.slow) for case in [("lora", True), ("none", False), ("full", True)]]


# A step with few labels needs the most memory in its layers, and one with many at its logits.
@pytest.mark.parametrize(("train", "amp"), [("lora", False), *MEASURED])
@pytest.mark.parametrize("labels", [1, pytest.param(100, marks=pytest.mark.slow)])
def test_the_bytes_that_a_run_measures_at_its_start_are_those_that_a_step_allocates(
    train, amp, labels, folder, tmp_path, allocated_by_step, monkeypatch
):
    # As with many labels, the logits of a part are small.
    monkeypatch.setattr(cross_entropy, "PART", 2**12)
    monkeypatch.setattr(memory_choice, "BYTES_OF_PART", 2 * 4 * 2**12)
    config = configured(tmp_path, folder, train_llm=train, use_grad_checkpoint=True, amp=amp)
    planner, model, task = Planner(config, gpus=1, device="cpu"), with_weights(config), config.task_class()
    size = planner.micro_batch_of(planner.sample.total)
    sample = only_sample(with_values(samples.example_batch(config, planner.model, planner.sample, size)))

    def loss(batch):
        with Precision.of_run(config.run).autocast():
            return task.loss(model, batch)

    activations = measured(model, model.llama_model, loss, sample)
    batch = with_labels(sample, labels, samples=SAMPLES)
    gradients = 4 * sum(parameter.numel() for parameter in trainable(model).values())
    for every in (0, 2, 1):
        set_recomputation(model.llama_model, every)
        model.zero_grad(set_to_none=True)
        expected = activations.bytes_of_step(every, len(batch.input_ids), len(batch.label_positions))
        assert expected + gradients == pytest.approx(allocated_by_step(loss, batch), rel=0.15), every


@pytest.mark.slow
@pytest.mark.parametrize("train", ["lora", "full"])
def test_a_process_grows_by_the_sum_of_the_plan(train, folder, tmp_path):
    from transformers import AutoModelForCausalLM, LlamaConfig

    small, large = tmp_path / "small", tmp_path / "large"
    wide = {**SHAPE, "hidden_size": 512, "intermediate_size": 1376, "num_attention_heads": 8}
    shutil.copytree(folder, large / "llama")
    AutoModelForCausalLM.from_config(LlamaConfig(**wide)).save_pretrained(large / "llama")
    small.mkdir()
    keys = {"train_llm": train, "amp": False, "use_grad_checkpoint": False}
    configured(small, folder, **keys)
    config = configured(large, large / "llama", **keys)
    paths = [str(path / "config.yaml") for path in (small, large)]
    worker = Path(__file__).parent / "workers/planned_process.py"
    # Memory that is freed then goes back to the system at once.
    malloc = dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), "65536")
    variables = {name: value for name, value in environment().items() if not name.startswith("MALLOC_")} | malloc
    result = subprocess.run(
        [sys.executable, str(worker), *paths], capture_output=True, text=True, check=True, timeout=300, env=variables
    )
    planned = plan(config, device="cpu").memory_gib["sum"] * 2**30
    assert int(result.stdout.split()[-1]) == pytest.approx(planned, rel=0.05)


def gradients(config, batch):
    """Name -> gradient of a micro-batch with mixed precision."""
    torch.manual_seed(0)
    model = with_weights(config)
    with Precision.of_run(config.run).autocast():
        loss = config.task_class().loss(model, batch)
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.slow
def test_autocast_keeps_no_copies_of_trained_weights_and_gradients_stay_equal(folder, tmp_path, monkeypatch, allocated):
    config = configured(tmp_path, folder, train_llm="full", use_grad_checkpoint=True, amp=True, lora_dropout=0.0)
    planner = Planner(config, gpus=1, device="cpu")
    batch = with_values(samples.example_batch(config, planner.model, planner.sample, planner.micro_batch))
    needed, own = allocated(config, batch), gradients(config, batch)
    monkeypatch.setattr(kernels, "uncached_autocast", lambda *_: nullcontext())
    expected = gradients(config, batch)
    assert own.keys() == expected.keys() and all(own[name].equal(gradient) for name, gradient in expected.items())
    copies = 2 * sum(parameter.numel() for layer in planner.model.llama_model.model.layers for parameter in layer.parameters())
    assert allocated(config, batch) - needed > copies / 2


@pytest.mark.slow
def test_decoding_under_autocast_keeps_no_copies_of_trained_weights(folder, tmp_path, bytes_of_tensors):
    config = configured(tmp_path, folder, train_llm="full", amp=True)
    planner = Planner(config, gpus=1, device="cpu")
    batch = with_values(samples.example_batch(config, planner.model, planner.sample, planner.micro_batch))
    model = with_weights(config).eval()

    def answer():
        running = RunningBatch([model], lambda ids: False)
        running.add(batch, [SequenceParams(SamplingParams(max_new_tokens=4), seed=0)] * len(batch.lengths))
        running.step()

    with Precision.of_run(config.run).autocast():
        _, left = bytes_of_tensors(answer)
    copies = 2 * sum(parameter.numel() for layer in planner.model.llama_model.model.layers for parameter in layer.parameters())
    # The keys and values of the prompts are freed with the batch; copies would stay until the end of autocast.
    assert left < copies / 10
