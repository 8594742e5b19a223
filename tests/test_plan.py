"""The plan of a run, which needs no weights or data."""

from __future__ import annotations

import argparse
import json
import re
from functools import cache
from types import SimpleNamespace

import pytest
from helpers import LLAMA_2_7B
from running import GOLDEN, ROOT, golden_config

from emollama.commands import plan as command
from emollama.config import load
from emollama.errors import UserError
from emollama.planning import counting
from emollama.planning import planner as planner_module
from emollama.planning.card import MOST, Card, largest_tokens, required_bytes
from emollama.planning.estimate import Plan, _notes, plan
from emollama.planning.planner import Planner
from emollama.planning.samples import ANSWERS, SampleTokens, micro_batch_of
from emollama.recomputation import choices_for
from emollama.runners.step_layout import require_valid_steps


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    (folder / "config.json").write_text(json.dumps(LLAMA_2_7B))
    return folder


@cache
def planned(path, llama_folder, *options):
    """The plan of a shipped configuration."""
    return plan(load(str(ROOT / path), [f"model.llama_model={llama_folder}", *options]))


STAGE_1 = "train_configs/Emotion-LLaMA_finetune.yaml"


@pytest.mark.slow
def test_stage_1_at_llama_2_7b_shape_counts_the_published_parameters(llama_folder):
    counts = planned(STAGE_1, llama_folder).parameters
    assert counts["LoRA"] == 33_554_432
    assert counts["projection"] == 41_439_232
    assert counts["trainable"] == 74_993_664
    assert counts["language model, frozen"] + counts["LoRA"] == 6_771_970_048


def test_the_command_prints_the_parameter_counts(llama_folder, emollama):
    result = emollama("plan", "--cfg-path", STAGE_1, "--options", f"model.llama_model={llama_folder}")
    assert result.returncode == 0, result.stderr
    for figure in ("33,554,432", "41,439,232", "74,993,664"):
        assert figure in result.stdout


@pytest.mark.slow
def test_checkpointing_and_quantization_lower_the_estimate(llama_folder):
    base = planned(STAGE_1, llama_folder).memory_gib
    without = planned(STAGE_1, llama_folder, "model.use_grad_checkpoint=False").memory_gib
    assert without["activations"] > 3 * base["activations"]
    assert base["frozen weights"] == pytest.approx(6_738_415_616 * 2 / 2**30)


def test_token_counts_are_exact_if_the_tokenizer_exists(tmp_path):
    config = load(str(golden_config(tmp_path, model={"image_size": 112})))
    tokens = plan(config).tokens
    assert tokens["rows: image"] == 16
    expected = json.loads((GOLDEN / "expected.json").read_text())["clips"]["sample_00000104"]["emotion"]["train_path"]
    spoken = "We finally got the keys to the new house"
    assert tokens["prompt text"] == expected["prompt_len"] - 20 - tokens_of(config, spoken)


@pytest.mark.slow
def test_a_note_names_the_slots_with_any_number_of_vectors(tmp_path):
    slots = {"audio": {"dim": 1024, "length": None}}
    notes = plan(load(str(golden_config(tmp_path, model={"image_size": 112, "slots": slots})))).notes
    assert [note for note in notes if note.startswith("samples have any number of feature vectors in the slots audio;")]


# Sharding, cards, time and disk


def of_golden(folder, *, batch=4, model=None, run=None, **how):
    """The plan of a run on a GPU with the golden corpus."""
    path = golden_config(
        folder, model={"image_size": 112, **(model or {})}, run={"amp": True, **(run or {})}, data={"batch_size": batch}
    )
    return plan(load(str(path)), **how)


@pytest.mark.slow
def test_sharding_divides_the_frozen_weights_and_sends_them(tmp_path):
    planned = of_golden(tmp_path, gpus=4, tflops=0.5)
    ddp, fsdp = planned.modes["ddp"], planned.modes["fsdp"]
    # The norm after the layers is not divided.
    assert fsdp["frozen weights"] == pytest.approx(ddp["frozen weights"] / 4, rel=0.01)
    assert fsdp["trained weights (float32)"] == ddp["trained weights (float32)"]
    assert planned.received_gib["fsdp"] > planned.received_gib["ddp"] > 0
    assert planned.seconds == pytest.approx(8 * planned.step_tflop / 0.5)


@pytest.mark.slow
def test_full_training_divides_all_trained_tensors_and_their_gradients(tmp_path):
    full = of_golden(tmp_path, gpus=4, model={"train_llm": "full"}, run={"accum_grad_iters": 2})
    for name in ("trained weights (float32)", "gradients (float32)", "AdamW moments (float32)"):
        assert full.modes["fsdp"][name] == full.modes["ddp"][name] / 4


@pytest.mark.slow
def test_weights_of_4_bits_can_be_sharded_and_those_of_8_bits_cannot(tmp_path):
    modes = [list(of_golden(tmp_path, gpus=2, model={key: True}).modes) for key in ("load_in_4bit", "low_resource")]
    assert modes == [["ddp", "fsdp"], ["ddp"]]


@pytest.mark.slow
def test_hsdp_divides_the_weights_among_the_largest_equal_groups_of_a_machine(tmp_path):
    planner = Planner(load(str(golden_config(tmp_path, model={"image_size": 112}))), 12, "cuda")
    assert planner.sharding("hsdp").shards == 6
    assert [note for note in _notes(planner, None) if note.startswith("run.parallel: hsdp is planned for 2 x 6 GPUs: 2 groups")]


@pytest.mark.slow
def test_the_largest_micro_batch_of_a_card_fits_and_a_tenth_more_does_not(tmp_path):
    gib = 0.54
    planner = Planner(load(str(golden_config(tmp_path, model={"image_size": 112}, run={"amp": True}))), 1, "cuda")
    largest = [largest_tokens(planner, every, gib, "ddp") for every in (0, 1)]
    assert largest[0] < largest[1]
    for factor, fits in ((1, True), (1.1, False)):
        parts = planner.needed(1, planner.micro_batch_of(int(factor * largest[1])), "ddp")
        assert (required_bytes(parts) <= gib * 2**30) == fits


@pytest.mark.slow
def test_no_micro_batch_above_the_limit_is_tried(tmp_path, monkeypatch):
    monkeypatch.setattr("emollama.planning.card.MOST", 2048)
    planner = Planner(load(str(golden_config(tmp_path, model={"image_size": 112}))), 1, "cuda")
    assert largest_tokens(planner, 1, 1e6, "ddp") == 2048 and max(batch.tokens for _, batch in planner._steps) == 2048


@pytest.fixture
def counts(monkeypatch):
    """The steps that are counted: list of (every how many layers one is recomputed, tokens)."""
    counted, count = [], counting.count

    def recorded(model, step):
        counted.append((step.every, int(step.batch.cu_seqlens[-1])))
        return count(model, step)

    monkeypatch.setattr(counting, "count", recorded)
    return counted


@pytest.mark.slow
def test_a_model_with_one_switch_for_all_layers_is_planned_as_it_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(planner_module, "can_choose_layers", lambda llm: False)
    auto = {"model": {"use_grad_checkpoint": "auto"}, "run": {"max_tokens": "auto"}}
    planned = of_golden(tmp_path, gpu_gib=1000, **auto)
    assert planned.card.verdict.startswith("fits: ")
    assert any("auto is planned as recomputing all layers" in note for note in planned.notes)


@pytest.mark.slow
def test_at_most_five_steps_are_counted_for_each_recomputation(tmp_path, counts):
    card = of_golden(tmp_path, gpu_gib=0.6).card
    assert all(1000 < tokens < MOST for tokens in card.recomputation.values())
    assert len(counts) <= 5 * len(card.recomputation)


@pytest.mark.slow
def test_a_step_that_cannot_be_counted_is_tried_once(tmp_path, counts, monkeypatch):
    monkeypatch.setattr(counting, "MAX_OPERATIONS", 10)
    assert of_golden(tmp_path, gpu_gib=1.5).card.recomputation["True"]
    assert len(counts) == 1


def test_the_plan_of_a_card_shows_its_progress(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("emollama.logs.console.LINE_SECONDS", 0.0)
    monkeypatch.setattr(counting, "MAX_OPERATIONS", 10)
    of_golden(tmp_path, gpu_gib=1.5)
    # The first step includes the choices that a model with two layers does not have.
    assert re.findall(r"plan: (\d) of 7", capsys.readouterr().err) == list("34567")


@pytest.mark.slow
def test_a_run_that_does_not_fit_says_what_to_change(tmp_path):
    run = {"global_batch": 200, "max_tokens": 20_000}
    card = of_golden(tmp_path, run=run, gpu_gib=0.54).card
    assert not card.fits
    assert card.verdict.startswith("does not fit: it needs ")
    assert f"run.max_tokens: {card.recomputation['True']}" in card.verdict
    assert of_golden(tmp_path, gpu_gib=0.54).card.verdict.startswith("fits: ")


@pytest.fixture
def few_choices(monkeypatch):
    """Fewer sizes and choices than are planned, which takes less time."""
    monkeypatch.setattr("emollama.recomputation.CHOICES", (0, 1))
    monkeypatch.setattr("emollama.planning.card.MOST", 8192)


@pytest.mark.slow
def test_the_plan_for_a_gpu_has_the_maximum_of_tokens_and_the_recomputation_that_a_run_chooses(tmp_path, few_choices):
    keys = {"model": {"use_grad_checkpoint": "auto"}, "run": {"global_batch": 200, "max_tokens": "auto"}}
    least, ample, scarce = (of_golden(tmp_path, **keys, gpu_gib=gib) for gib in (None, 80, 0.54))
    tokens = sum(least.tokens.values())
    assert f"run.max_tokens: auto is planned as {tokens}, which needs the least memory; see --gpu" in least.notes
    assert ample.card.verdict.startswith(
        "fits with run.max_tokens: auto, which is 8192, and model.use_grad_checkpoint: auto, which recomputes no layers: "
    )
    assert "run.max_tokens: auto is planned as 8192, as a run chooses on a GPU with 80 GiB" in ample.notes
    largest = scarce.card.recomputation["True"]
    assert scarce.card.fits and scarce.card.recomputation["False"] < 2048
    assert f"auto, which is {largest}, and model.use_grad_checkpoint: auto, which recomputes all layers: " in scarce.card.verdict
    # The memory is for these micro-batches, too.
    assert least.memory_gib["activations"] < scarce.memory_gib["activations"] < ample.memory_gib["activations"]


@pytest.mark.slow
def test_the_plan_for_a_gpu_on_which_no_sample_fits_says_so(tmp_path, few_choices):
    planned = of_golden(tmp_path, run={"global_batch": 200, "max_tokens": "auto"}, gpu_gib=0.51)
    assert not planned.card.fits and planned.card.verdict.startswith("does not fit: it needs ")


@pytest.mark.slow
def test_weights_of_8_bits_are_planned_without_a_gpu_that_has_them(tmp_path):
    keys = {"use_grad_checkpoint": True}
    fp8, bf16 = (of_golden(tmp_path, model=keys | {"frozen_dtype": key}, run={"device": "cuda"}) for key in ("fp8", "auto"))
    # Two copies in 8 bits are as large as one in 16, besides the factors of their rows, which are many in narrow layers.
    assert bf16.memory_gib["frozen weights"] < fp8.memory_gib["frozen weights"] < 1.2 * bf16.memory_gib["frozen weights"]
    assert not [note for note in fp8.notes if note.startswith("activations are estimated")]


def test_the_plan_rejects_steps_that_the_run_rejects(tmp_path):
    for run, message in (
        ({"tasks_per_clip": 2}, "run.tasks_per_clip is 2, but the number of tasks"),
        ({"global_batch": 6}, "run.global_batch 6 is not a multiple"),
    ):
        config = load(str(golden_config(tmp_path, run=run, data={"batch_size": 4})))
        with pytest.raises(UserError, match=message):
            require_valid_steps(config, 1)


@pytest.mark.parametrize(
    ("model", "run", "gpus", "message"),
    [
        (
            {"packing": "off"},
            {"parallel": "fsdp", "max_tokens": 500},
            2,
            "run.max_tokens does not work with run.parallel: fsdp",
        ),
        ({"packing": "padded", "compile": True}, {}, 1, "model.compile: True does not work with models of the type 'llama'"),
        ({"packing": "padded", "kernels": "liger"}, {}, 1, "model.kernels: liger does not work with models of the type 'llama'"),
        ({"frozen_dtype": "fp8"}, {"amp_dtype": "fp16"}, 1, "model.frozen_dtype: fp8 needs a run in bfloat16"),
        ({"frozen_dtype": "fp8"}, {"parallel": "fsdp"}, 2, "model.frozen_dtype: fp8 does not work with run.parallel: fsdp"),
    ],
)
def test_the_command_rejects_keys_that_the_run_rejects(tmp_path, model, run, gpus, message):
    keys = {"amp": True, "amp_dtype": "bf16", "device": "cuda"} | run
    path = str(golden_config(tmp_path, model={"image_size": 112, **model}, run=keys, data={"batch_size": 4}))
    arguments = argparse.Namespace(cfg_path=path, options=None, gpus=gpus, gpu=None, tflops=None, json=False)
    with pytest.raises(UserError, match=message):
        command.run(arguments)


def test_the_plan_rejects_a_limit_below_the_tokens_of_every_sample(tmp_path):
    with pytest.raises(UserError, match="run.max_tokens is 30, but every sample has at least"):
        of_golden(tmp_path, run={"max_tokens": 30})


def tokens_of(config, spoken):
    prompt = config.model_class.prompt_format(config.model)
    text = "</feature> The person in video says: {}.  [emotion] "
    return len(prompt.tokenizer(text.format(spoken)).input_ids) - len(prompt.tokenizer(text.format("")).input_ids)


# MiniGPT-4


def flickr(llama_folder, *options):
    return planned("train_configs/minigpt4_flickr_finetune.yaml", llama_folder, *options)


@pytest.mark.slow
def test_minigpt4_at_llama_2_7b_shape_trains_exactly_the_published_projection(llama_folder):
    flickr_plan = flickr(llama_folder)
    assert flickr_plan.parameters["trainable"] == flickr_plan.parameters["projection"] == 768 * 4096 + 4096 == 3_149_824
    assert "trained tensors: llama_proj.weight, llama_proj.bias" in flickr_plan.notes


@pytest.mark.slow
def test_the_frozen_modules_of_minigpt4_have_the_published_sizes(llama_folder):
    counts = flickr(llama_folder).parameters
    assert counts["image encoder, frozen"] == 985_897_344  # EVA ViT-g at 224 pixels, 39 layers, with ln_vision
    assert counts["Q-Former, frozen"] == 105_162_240
    assert counts["language model, frozen"] == 6_738_415_616


@pytest.mark.slow
def test_without_a_q_former_minigpt4_projects_four_joined_image_vectors(llama_folder):
    flickr_plan = flickr(llama_folder, "model.has_qformer=False")
    assert flickr_plan.parameters["trainable"] == 4 * 1408 * 4096 + 4096
    assert flickr_plan.tokens["rows: image"] == 64 and "Q-Former, frozen" not in flickr_plan.parameters


@pytest.mark.slow
def test_the_command_prints_the_size_and_the_tensor_names_of_the_projection(llama_folder, emollama):
    path = "train_configs/minigpt4_flickr_finetune.yaml"
    result = emollama("plan", "--cfg-path", path, "--options", f"model.llama_model={llama_folder}")
    assert result.returncode == 0, result.stderr
    assert "3,149,824" in result.stdout and "trained tensors: llama_proj.weight, llama_proj.bias\n" in result.stdout


@pytest.mark.slow
def test_the_tables_of_the_page_about_scale_are_those_of_the_plan(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import scale

    rows = scale.runs(tmp_path, ["7B", "70B"])
    lines = scale.PAGE.read_text(encoding="utf-8").splitlines()
    tables = (scale.memory_table, scale.cards_table, scale.communication_table)
    assert [row for table in tables for row in table(rows) if row not in lines] == []
    tokens = f"{scale.mib_of_token(rows['7B', 'LoRA'][0]):.3f} MiB for each token"
    assert [line for line in lines if tokens in line]


@pytest.mark.slow
def test_a_step_of_compiled_layers_is_counted_without_the_compilation(tmp_path):
    notes = of_golden(tmp_path, model={"compile": True}).notes
    assert [note for note in notes if note.startswith("the step is counted without")]
    assert not [note for note in notes if note.startswith("activations are estimated")]


@pytest.mark.slow
def test_a_note_says_that_the_run_rejects_samples_as_long_as_the_planned_one(tmp_path):
    limit = "run.max_tokens is 199, less than the 200 tokens of a sample with a sentence of 20 tokens"
    assert [note for note in of_golden(tmp_path, run={"max_tokens": 199}).notes if note.startswith(limit)]


def test_a_maximum_below_every_sample_is_rejected_with_numbers_that_add_up():
    sample = SampleTokens({"rows: face": 5, "prompt text": 50, ANSWERS: 120}, {"face": 5}, [])
    block = SimpleNamespace(batch_size=1)
    config = SimpleNamespace(datasets={"a": block}, run=SimpleNamespace(global_batch=None, accum_grad_iters=1))
    with pytest.raises(UserError, match="at least 56 tokens: 5 of features, 50 of its prompt and 1 of an answer"):
        micro_batch_of(config, sample, 1, 55)
    assert micro_batch_of(config, sample, 1, 56).samples == 1


@pytest.mark.parametrize(
    ("layers", "choices"),
    [(0, (0, 1)), (1, (0, 1)), (2, (0, 2, 1)), (3, (0, 3, 2, 1)), (4, (0, 4, 3, 2, 1)), (32, (0, 4, 3, 2, 1))],
)
def test_choices_that_recompute_the_same_layers_are_planned_once(layers, choices):
    assert choices_for(layers) == choices


def test_the_limit_of_the_search_is_not_shown_as_the_largest_maximum():
    fitting = Card(80.0, 1.0, True, {"False": MOST, "2": MOST - 64, "True": None}, "fits")
    text = Plan({}, {"sum": 1.0}, {"prompt text": 50, ANSWERS: 120}, [], card=fitting).text()
    assert re.search(r"False +65,536 or more\n.*: 2 +65,472\n.*: True +-\n", text)
    assert re.search(r"prompt text +50\n +sentence, answer +120\n +sum +170\n", text)


def test_a_note_says_that_too_many_operations_are_estimated(tmp_path, monkeypatch):
    monkeypatch.setattr(counting, "MAX_OPERATIONS", 10)
    assert [note for note in of_golden(tmp_path).notes if note.startswith("activations are estimated")]


def test_trained_tensors_are_listed_once_for_all_layers(llama_folder):
    (note,) = [note for note in planned(STAGE_1, llama_folder).notes if note.startswith("trained")]
    assert note.count("lora_A") == 2 and "layers.*.self_attn.q_proj.lora_A.weight" in note
