"""Language models that cannot process packed samples: the check at the start, padded micro-batches, and rejections."""

from __future__ import annotations

import functools
import math
import shutil
from dataclasses import replace

import pytest
import torch
from running import GOLDEN, golden_config
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.cache_utils import LinearAttentionLayer

from emollama.config import load
from emollama.data.batch import IGNORED, Sample, collate
from emollama.data.validation_cache import ValidationCache
from emollama.decoding.generate import generate
from emollama.decoding.likelihoods import candidate_probabilities
from emollama.decoding.sampling_params import SamplingParams
from emollama.errors import UserError
from emollama.models import attention, packing_check, packing_comparisons, padded, random_copy
from emollama.models.shrinking import shrunken_configs
from emollama.planning.estimate import plan

VOCABULARY = 832  # larger than the tokenizer's vocabulary
COMMON = {"vocab_size": VOCABULARY, "hidden_size": 32, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LAYERS = {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
GPT = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 512, "n_ctx": 512}
FAMILIES = {
    "llama": COMMON | LAYERS,
    "gemma3_text": COMMON | LAYERS | {"head_dim": 8, "sliding_window": 300, "sliding_window_pattern": 2},
    "bloom": {**COMMON, "n_layer": 2, "n_head": 4},
    "nemotron": COMMON | LAYERS,
    "codegen": GPT | {"bos_token_id": 1, "eos_token_id": 2},
    "gemma2": COMMON | LAYERS | {"head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8},
    "gpt_oss": COMMON | LAYERS | {"head_dim": 8, "sliding_window": 16, "num_local_experts": 4, "num_experts_per_tok": 2},
    "falcon": COMMON | {"num_hidden_layers": 2, "num_attention_heads": 4},
    "mamba": COMMON | {"num_hidden_layers": 2, "state_size": 4},
    "bamba": COMMON
    | LAYERS
    | {"attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_chunk_size": 16},
    "gemma4_text": COMMON | LAYERS | {"head_dim": 8, "global_head_dim": 8, "hidden_size_per_layer_input": 8},
    "bert": COMMON | LAYERS,
}
RESULTS = dict.fromkeys(FAMILIES, "padded") | {"llama": "packed", "gemma3_text": "packed"}
RESULTS |= {"gemma4_text": "rejected", "bert": "rejected"}


def config_of(family):
    return AutoConfig.for_model(family, **FAMILIES[family])


def folder_of(family, path):
    """A random model of a family, with the golden tokenizer."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(family))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
    model.save_pretrained(path / family)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(GOLDEN / "llama" / name, path / family)
    return path / family


def run_config(family, path, **model):
    keys = {"llama_model": str(folder_of(family, path)), "ckpt": None, "train_llm": "none"}
    return load(str(golden_config(path, model=keys | model)))


def build(config):
    return config.model_class(config.model, device=torch.device("cpu"), frozen_dtype=torch.float32).eval()


def sample(model, config, length):
    ids = torch.randint(3, VOCABULARY, (length,), generator=torch.Generator().manual_seed(length))
    labels = ids.where(torch.arange(length) >= length // 2, IGNORED)
    slots = {slot: torch.zeros(0, shape.dim) for slot, shape in model.slot_shapes(config.model).items()}
    return Sample("", "", ids, labels, (labels != IGNORED).float(), slots)


# One family of each result and reason. The others are in make test-models, too.
FAST = ("llama", "gemma3_text", "bloom", "mamba", "gemma4_text", "bert")


@pytest.mark.parametrize(
    "family", [family if family in FAST else pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES]
)
def test_the_check_tells_models_that_can_be_packed_from_those_that_cannot(family):
    packing = packing_check.check(config_of(family))
    assert packing.result == RESULTS[family], packing.reason
    assert bool(packing.reason) == (packing.result != "packed")


@pytest.mark.slow
def test_a_model_that_is_wrong_even_alone_is_rejected_with_its_first_wrong_layer():
    reason = packing_check.check(AutoConfig.for_model("gemma3n_text")).reason
    assert reason.endswith("first in model.layers.0 (Gemma3nTextDecoderLayer))")


LIMIT = 120
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
POSITIONS = {
    "phi3": {"max_position_embeddings": 512, "original_max_position_embeddings": LIMIT, "rope_parameters": LONGROPE},
    "opt": COMMON
    | {"max_position_embeddings": LIMIT, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48, "dropout": 0.0},
    "llama": {"max_position_embeddings": LIMIT, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}},
}


@pytest.mark.slow
@pytest.mark.parametrize("family", POSITIONS)
def test_sequences_are_limited_to_the_positions_of_a_table_and_to_those_that_do_not_change_other_samples(
    tmp_path, monkeypatch, family
):
    keys = POSITIONS[family] if family == "opt" else COMMON | LAYERS | POSITIONS[family]
    monkeypatch.setitem(FAMILIES, family, keys)
    config = run_config(family, tmp_path, max_context_len=100, max_txt_len=50)
    with pytest.raises(UserError, match=rf"max_context_len 100 .* exceed {LIMIT} tokens.*Decrease"):
        plan(config)
    model = build(config)
    assert model(collate([sample(model, config, LIMIT)])).isfinite().all()
    with pytest.raises(UserError, match=f"a sequence has {LIMIT + 1} tokens"):
        model(collate([sample(model, config, 20), sample(model, config, LIMIT + 1)]))
    _, state = model.prefill(collate([sample(model, config, LIMIT)]))
    with pytest.raises(UserError, match=f"a sequence has {LIMIT + 1} tokens"):
        model.decode(torch.tensor([[5]]), state)


def test_beams_of_a_packed_model_with_a_window_do_not_depend_on_the_other_prompts(tmp_path, monkeypatch):
    monkeypatch.setitem(FAMILIES, "mistral", COMMON | LAYERS | {"sliding_window": 8})
    config = run_config("mistral", tmp_path)
    model = build(config)
    assert model.packing.is_packed
    prompts, prompt = [sample(model, config, length) for length in (30, 22)], model.prompt_format(config.model)
    options = {"num_beams": 3, "max_new_tokens": 6, "do_sample": False}
    together = model.beam_search(collate(prompts), prompt, options)
    assert together == [answer for one in prompts for answer in model.beam_search(collate([one]), prompt, options)]


def test_an_exception_that_says_nothing_about_the_model_ends_the_check(monkeypatch):
    def out_of_memory(*args):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(packing_comparisons, "packed", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        packing_check.check(config_of("llama"))


def test_a_cached_result_of_another_version_is_not_used(monkeypatch):
    monkeypatch.setattr(packing_check, "_CHECKED", {})
    monkeypatch.setattr(ValidationCache, "get", lambda *args: '{"result": "padded", "another_field": 1}')
    assert packing_check.resolve("auto", config_of("llama")).is_packed


def test_the_reason_names_the_layers_that_do_not_receive_the_boundaries_of_samples():
    assert "NemotronAttention 0, NemotronAttention 1" in packing_check.check(config_of("nemotron")).reason


def test_a_copy_has_layers_of_each_type_of_a_large_model():
    config = AutoConfig.for_model("llama4_text")
    small = next(shrunken_configs(config))
    types = list(zip(small.layer_types, small.no_rope_layers, strict=True))
    assert sorted(types) == [("chunked_attention", 1)] * 2 + [("full_attention", 0)] * 2
    assert small.num_attention_heads / small.num_key_value_heads == config.num_attention_heads / config.num_key_value_heads


def test_a_text_model_is_checked_alone_if_the_encoder_of_images_cannot_be_shrunk(monkeypatch):
    config = AutoConfig.for_model("gemma3", text_config=FAMILIES["gemma3_text"])
    monkeypatch.setattr(random_copy, "MAX_PARAMETERS", 300_000)
    assert packing_check.check(config).result == "packed"


def test_a_list_of_layer_numbers_is_shrunk_with_the_layers():
    config = AutoConfig.for_model("bamba", num_hidden_layers=12, attn_layer_indices=[3, 7])
    assert next(shrunken_configs(config)).attn_layer_indices == [2, 3]


def test_the_check_does_not_change_the_random_state():
    state = torch.get_rng_state()
    packing_check.check(config_of("llama"))
    assert torch.get_rng_state().equal(state)


def test_a_model_that_transformers_cannot_shrink_runs_unchecked_one_sample_at_a_time(monkeypatch):
    monkeypatch.setattr(random_copy, "MAX_PARAMETERS", 10)
    packing = packing_check.check(config_of("llama"))
    assert (packing.result, packing.batched, packing.cache) == ("padded", False, "none")
    (notice,) = packing.notices("llama")
    assert "could not be checked" in notice and "one at a time" in notice


@pytest.mark.parametrize(
    ("family", "key", "cache"),
    [
        ("llama", "auto", "batch"),
        ("llama", "off", "sequence"),
        ("nemotron", "auto", "batch"),
        ("mamba", "auto", "sequence"),
        ("bamba", "auto", "sequence"),
    ],
)
def test_generation_uses_the_cache_of_the_batch_or_those_of_each_sequence(family, key, cache):
    packing = packing_check.check(config_of(family), key)
    assert packing.cache == cache
    assert any("generation runs one sequence at a time" in line for line in packing.notices(family)) == (cache == "sequence")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:a layer of the language model with dropout")
@pytest.mark.parametrize("family", ["openai-gpt", "recurrent_gemma"])
def test_generation_recomputes_sequences_if_the_model_has_no_cache_for_each_of_them(family):
    # RecurrentGemma stores the recurrent state in its modules, so that the next sequence overwrites it.
    packing = packing_check.check(AutoConfig.for_model(family))
    assert (packing.result, packing.cache) == ("padded", "none")
    assert packing.beam_problem
    assert "recomputes" in packing.notices(family)[0]


def test_a_cache_with_wrong_values_is_not_used(monkeypatch):
    right = LinearAttentionLayer.update_recurrent_state

    def wrong(layer, states, *args, **kwargs):
        return right(layer, 0.5 * states, *args, **kwargs)

    monkeypatch.setattr(LinearAttentionLayer, "update_recurrent_state", wrong)
    assert packing_check.check(config_of("mamba")).cache == "none"


@pytest.mark.slow
def test_a_cache_that_fails_in_the_precision_of_the_run_is_not_used(monkeypatch):
    assert packing_check.check(config_of("mamba"), dtype=torch.bfloat16).cache == "sequence"
    right = padded._continued

    def wrong_in_half_precision(llm, embeddings, arguments):
        logits, cache = right(llm, embeddings, arguments)
        return (logits if embeddings.dtype == torch.float32 else 0.5 * logits), cache

    monkeypatch.setattr(padded, "_continued", wrong_in_half_precision)
    assert packing_check.check(config_of("mamba"), dtype=torch.bfloat16).cache == "none"
    assert packing_check.check(config_of("mamba")).cache == "sequence"


# "auto" pads all of these families but llama, so that "padded" differs from it only for llama.
PATHS = [("llama", "auto"), ("llama", "padded"), ("gemma2", "auto"), ("mamba", "auto"), ("nemotron", "off")]
SLOW_PATHS = [("nemotron", "auto"), ("bamba", "auto"), *((family, "off") for family in ("llama", "gemma2", "mamba", "bamba"))]
PATHS += [pytest.param(*path, marks=pytest.mark.slow) for path in SLOW_PATHS]


@pytest.mark.parametrize(("family", "packing"), PATHS)
def test_losses_and_greedy_answers_equal_those_of_transformers_for_each_sample_alone(tmp_path, family, packing):
    config = run_config(family, tmp_path, packing=packing)
    model = build(config)
    plain = AutoModelForCausalLM.from_pretrained(config.model.llama_model, attn_implementation="eager").eval()
    samples = [sample(model, config, length) for length in (30, 22)]
    batch = collate(samples)
    expected, answers = [], []
    with torch.no_grad():
        for one in samples:
            ids = one.input_ids[None]
            logits = plain(input_ids=ids).logits[0, :-1]
            losses = torch.nn.functional.cross_entropy(logits, one.input_ids[1:], reduction="none")
            expected.append(losses[one.labels[1:] != IGNORED])
            answer = plain.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False, eos_token_id=None
            )
            answers.append(answer[0, ids.shape[1] :].tolist())
        torch.testing.assert_close(model(batch), torch.cat(expected), atol=1e-4, rtol=0)
    params = SamplingParams(max_new_tokens=4)
    assert generate([model], batch, params, lambda ids: False, [0, 0]) == answers
    assert generate([model, model], batch, params, lambda ids: False, [0, 0]) == answers
    # The first answer ends before the second.
    ended = generate([model], batch, params, lambda ids: ids == answers[0][:2], [0, 0])
    assert ended == [answers[0][:2], answers[1]]
    # The probabilities of candidates use the prompt's state several times.
    both = candidate_probabilities([model], batch, [answers[0][:3], answers[1][:2]])
    alone = [candidate_probabilities([model], collate([one]), [answers[0][:3], answers[1][:2]]) for one in samples]
    torch.testing.assert_close(both, torch.cat(alone), atol=1e-4, rtol=0)


def tokens_of_calls(model, monkeypatch):
    """The list to which each forward pass of the language model adds its number of tokens, including padding."""
    counts = []
    forward = model.llama_model.forward

    @functools.wraps(forward)
    def counted(input_ids=None, *, inputs_embeds=None, **kwargs):
        counts.append((input_ids if inputs_embeds is None else inputs_embeds[..., 0]).numel())
        return forward(input_ids, inputs_embeds=inputs_embeds, **kwargs)

    monkeypatch.setattr(model.llama_model, "forward", counted)
    return counts


@pytest.mark.parametrize(
    ("family", "calls"),
    [("nemotron", [60, 2, 2, 2]), ("mamba", [30, 22, 1, 1, 1, 1, 1, 1]), ("bamba", [30, 22, 1, 1, 1, 1, 1, 1])],
)
def test_with_a_cache_each_new_token_is_computed_once(tmp_path, monkeypatch, family, calls):
    config = run_config(family, tmp_path)
    model = build(config)
    batch = collate([sample(model, config, length) for length in (30, 22)])
    counts = tokens_of_calls(model, monkeypatch)
    generate([model], batch, SamplingParams(max_new_tokens=4), lambda ids: False, [0, 0])
    assert counts == calls


def test_a_beam_search_that_does_not_move_the_cache_with_a_beam_is_rejected(tmp_path, monkeypatch):
    assert packing_check.check(config_of("mamba")).beam_problem == ""
    monkeypatch.setattr(LinearAttentionLayer, "reorder_cache", lambda layer, rows: None)
    packing = packing_check.check(config_of("mamba"))
    assert packing.cache == "sequence" and "in beam search" in packing.beam_problem
    config = run_config("mamba", tmp_path)
    monkeypatch.setattr(packing_check, "cached_check", lambda *args: packing)
    config.run.evaluate, config.evaluation_datasets["train_layout"].task.num_beams = True, 2
    with pytest.raises(UserError, match=r"num_beams: .*'mamba'.*Set num_beams: 1"):
        plan(config)
    model = build(config)
    with pytest.raises(UserError, match=r"num_beams: .*'mamba'.*Set num_beams: 1"):
        model.beam_search(collate([sample(model, config, 30)]), model.prompt_format(config.model), {"num_beams": 2})


def test_a_padded_model_trains_with_recomputed_activations(tmp_path):
    config = run_config("nemotron", tmp_path, train_llm="lora", use_grad_checkpoint=True)
    model = build(config).train()
    loss = model(collate([sample(model, config, length) for length in (9, 6)])).mean()
    loss.backward()
    gradients = [parameter.grad for name, parameter in model.named_parameters() if "lora_B" in name]
    assert gradients and all(math.isfinite(grad.sum()) and grad.abs().sum() > 0 for grad in gradients)


@pytest.mark.parametrize("family", ["nemotron", "mamba"])
def test_dropout_of_a_padded_model_does_not_depend_on_the_micro_batch(tmp_path, family):
    target = "v_proj" if family == "nemotron" else "x_proj"
    config = run_config(family, tmp_path, train_llm="lora", lora_dropout=0.5, lora_target_modules=[target])
    model = build(config).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    samples = [sample(model, config, length) for length in (9, 6)]
    seeds = torch.tensor([3, 4], dtype=torch.int32)
    together = model(replace(collate(samples), dropout_seeds=seeds))
    alone = [model(replace(collate([one]), dropout_seeds=seeds[index : index + 1])) for index, one in enumerate(samples)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)
    assert not together.allclose(model.eval()(collate(samples)), atol=1e-3)


@pytest.mark.parametrize("value", ["off", "'off'"])
def test_off_runs_one_sample_after_the_other_although_yaml_reads_the_word_as_false(tmp_path, value):
    config = load(str(golden_config(tmp_path)), [f"model.packing={value}"])
    packing = packing_check.resolve(config.model.packing, config_of("llama"))
    assert (config.model.packing, packing.result, packing.batched) == ("off", "padded", False)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_check_also_compares_in_the_precision_of_the_run(monkeypatch, dtype):
    assert packing_check.check(config_of("llama"), dtype=dtype).result == "packed"
    right = attention._causal

    def wrong_in_half_precision(query, *args, **kwargs):
        return right(query if query.dtype == torch.float32 else 0.5 * query, *args, **kwargs)

    monkeypatch.setattr(attention, "_causal", wrong_in_half_precision)
    packing = packing_check.check(config_of("llama"), dtype=dtype)
    assert packing.result == "padded" and str(dtype).removeprefix("torch.") in packing.reason
    assert packing_check.check(config_of("llama")).result == "packed"


@pytest.mark.parametrize(("family", "depends"), [("llama", False), ("gpt2", False), ("opt", True), ("phimoe", True)])
def test_random_numbers_that_depend_on_the_micro_batch_are_reported(family, depends):
    # GPT-2 has dropout modules, OPT calls the function, and PhiMoE has noise in its router.
    packing = packing_check.check(AutoConfig.for_model(family))
    assert packing.random_training == depends
    assert any("draws random numbers in training" in line for line in packing.notices(family)) == depends


def test_packed_is_rejected_for_a_model_that_mixes_the_samples_of_a_row(tmp_path):
    with pytest.raises(UserError, match=r"(?s)model\.packing is packed.*'nemotron'.*Set model\.packing: auto"):
        plan(run_config("nemotron", tmp_path, packing="packed"))


def test_a_model_that_is_not_causal_is_rejected_before_its_weights_are_read(tmp_path):
    config = run_config("bert", tmp_path)
    (tmp_path / "bert/model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"'bert' do not work here: it is not causal"):
        config.runner_class(config, training=True)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bloom", "falcon", "gpt_oss", "mamba", "codegen"])
def test_the_plan_of_a_padded_model_has_a_note_about_the_cost(tmp_path, family):
    numbers = plan(run_config(family, tmp_path, max_context_len=200, max_txt_len=100))
    assert numbers.memory_gib["sum"] > 0
    assert any(note.startswith(f"model.packing: '{family}' runs samples") for note in numbers.notes)
