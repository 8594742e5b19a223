"""The model: fusion of features, the language model, losses and generated answers."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys

import pytest
import torch
import torch.nn.functional as F
from helpers import GOLDEN, TASKS, golden_tree, loaded
from torch import zeros

from emollama.data.batch import IGNORED, PackedFeatures, Record, Sample, collate
from emollama.data.slots import SlotShape
from emollama.decoding.generate import generate
from emollama.decoding.sampling_params import SamplingParams
from emollama.errors import UserError
from emollama.models import llm
from emollama.models.fusion.feature_tokens import joined_feature_tokens
from emollama.models.fusion.linear import LinearFusion
from emollama.optim import trainable

CPU = torch.device("cpu")
GREEDY = SamplingParams(max_new_tokens=12)


@pytest.fixture(scope="module")
def samples(golden_dataset, golden_prompt):
    """Eighteen samples: each clip with each task."""
    pairs = [(clip, task) for clip in range(6) for task in TASKS]
    return [
        golden_prompt.tokenize(golden_dataset.record(clip, task, golden_dataset.pool.first_instruction(task)))
        for clip, task in pairs
    ]


@pytest.fixture(scope="module")
def questions(golden_dataset, golden_prompt):
    """The same prompts without their answers."""
    pairs = [(clip, task) for clip in range(6) for task in TASKS]
    records = [golden_dataset.record(clip, task, golden_dataset.pool.first_instruction(task)) for clip, task in pairs]
    return [golden_prompt.tokenize(record, for_generation=True) for record in records]


@pytest.fixture
def build(tmp_path):
    """A function that builds a tiny model with other keys; weights of adapters and fusion are random but seeded."""

    def build_model(device=CPU, dtype=torch.float32, **keys):
        tree = golden_tree(tmp_path)
        tree["model"] |= {"ckpt": None, **keys}
        config = loaded(tmp_path, tree)
        torch.manual_seed(0)
        model = config.model_class(config.model, device=device, frozen_dtype=dtype)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name and device == CPU:
                    parameter.normal_(std=0.3)
        return model

    return build_model


def losses(model, *samples):
    with torch.no_grad():
        return model(collate(list(samples)))


# Fusion


def packed_features(values, *offsets):
    return PackedFeatures(values, offsets or (0, len(values)))


def fusion_inputs(clips=2, image=8):
    generator = torch.Generator().manual_seed(1)
    widths = {"image": (image, 6), "cls": (1, 6), "face": (1, 3), "video": (1, 4), "audio": (1, 5)}
    return {
        slot: packed_features(torch.randn(clips * count, width, generator=generator), *range(0, clips * count + 1, max(count, 1)))
        for slot, (count, width) in widths.items()
    }


SLOTS = {
    "image": SlotShape(16, 6, class_token="cls"),
    "cls": SlotShape(1, 6),
    **{slot: SlotShape(1, dim) for slot, dim in (("face", 3), ("video", 4), ("audio", 5))},
}
LAYOUT = LinearFusion.layout(LinearFusion.Config(), SLOTS)


@pytest.fixture
def fusion():
    torch.manual_seed(0)
    return LinearFusion(LinearFusion.Config(), SLOTS, hidden_size=7)


def test_image_vectors_are_grouped_by_four_in_raster_order(fusion):
    slots = fusion_inputs()
    image = slots["image"].values
    emitted = fusion(slots)["image"]
    assert emitted.shape == (4, 7)
    for group in range(4):
        joined = torch.cat(list(image[4 * group : 4 * group + 4]))
        torch.testing.assert_close(emitted[group], fusion.llama_proj.weight @ joined + fusion.llama_proj.bias)


def test_each_slot_uses_the_projection_with_its_published_name(fusion):
    slots = fusion_inputs()
    emitted = fusion(slots)
    layers = {"face": "feats_llama_proj1", "video": "feats_llama_proj2", "audio": "feats_llama_proj3", "cls": "cls_tk_llama_proj"}
    for slot, layer in layers.items():
        module = getattr(fusion, layer)
        torch.testing.assert_close(emitted[slot], slots[slot].values @ module.weight.T + module.bias)


def test_the_fusion_returns_as_many_feature_tokens_as_num_tokens_states(fusion):
    slots = fusion_inputs(clips=1, image=12)
    expected = LAYOUT.num_feature_tokens({slot: len(features.values) for slot, features in slots.items()})
    assert (
        {name: len(value) for name, value in fusion(slots).items()}
        == expected
        == {
            "image": 3,
            "face": 1,
            "video": 1,
            "audio": 1,
            "cls": 1,
        }
    )


@pytest.mark.parametrize("count", [1, 63, 1025])
def test_a_number_of_image_vectors_that_is_not_a_multiple_of_four_is_refused(count):
    with pytest.raises(ValueError, match=f"{count} image vectors cannot be joined in groups of 4"):
        LAYOUT.num_feature_tokens({"image": count, "cls": 1})


def test_feature_tokens_replace_their_placeholders():
    ids = torch.tensor([1, -2, -1, 2, -2])
    batch = collate([Sample("clip", "emotion", ids, ids, zeros(5), {})])
    features = {"a": torch.full((1, 2), 5.0), "b": torch.tensor([[6.0, 6.0], [7.0, 7.0]])}
    joined = joined_feature_tokens(features, batch.feature_counts)
    assert zeros(5, 2).index_copy(0, batch.feature_positions, joined)[:, 0].tolist() == [0, 6, 5, 0, 7]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_differing_numbers_of_feature_tokens_and_placeholders_are_refused(count):
    with pytest.raises(ValueError, match=f"2 placeholders for 'a', but the fusion module returned {count} feature tokens"):
        joined_feature_tokens({"a": zeros(count, 2)}, (2,))


def test_a_batch_with_a_missing_feature_vector_is_refused_with_both_numbers(golden_model, samples):
    batch = collate(samples[:2])
    batch.slots["face"] = PackedFeatures(batch.slots["face"].values[:1], (0, 1, 1))
    with pytest.raises(ValueError, match="2 placeholders for 'face', but the fusion module returned 1 feature tokens"):
        golden_model(batch)


def test_a_further_slot_gets_a_layer_of_its_own_and_tokens_after_the_published_ones():
    slots = SLOTS | {"gaze": SlotShape(2, 8), "pulse": SlotShape(None, 1)}
    fusion, layout = LinearFusion(LinearFusion.Config(), slots, hidden_size=7), LinearFusion.layout(LinearFusion.Config(), slots)
    assert layout.outputs["feature"] == ("face", "video", "audio", "cls", "gaze", "pulse")
    assert fusion.feats_llama_proj_gaze.weight.shape == (7, 8) and fusion.feats_llama_proj_pulse.weight.shape == (7, 1)


@pytest.mark.parametrize(("slots", "message"), [({"gaze": {"dim": 0}}, "slots.gaze.dim is 0"), ({"a b": {"dim": 1}}, "'a b'")])
def test_slots_with_an_invalid_name_or_size_raise_a_user_error(build, slots, message):
    with pytest.raises(UserError, match=message):
        build(slots=slots)


def test_an_unknown_fusion_is_reported_with_the_registered_names(build):
    with pytest.raises(UserError, match=r"Unknown fusion 'liner'. Did you mean 'linear'\? Registered: image_projection, linear"):
        build(fusion="liner")


# Packing


def test_losses_of_a_packed_batch_equal_those_of_its_samples_alone(golden_model, samples):
    packed = losses(golden_model, *samples)
    alone = torch.cat([losses(golden_model, sample) for sample in samples])
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=0)


def test_the_order_of_samples_in_a_batch_changes_no_loss(golden_model, samples):
    counts = [int((sample.labels != IGNORED).sum()) for sample in samples[:5]]
    forward = losses(golden_model, *samples[:5]).split(counts)
    backward = losses(golden_model, *samples[:5][::-1]).split(counts[::-1])
    for one, other in zip(forward, backward[::-1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_changing_one_sample_leaves_the_others_losses_bit_equal(golden_model, samples):
    first, second, third = samples[1], samples[5], samples[9]
    counts = [int((sample.labels != IGNORED).sum()) for sample in (first, second, third)]
    ids = second.input_ids.clone()
    ids[-10:-1] = 300
    slots = {slot: features + 1 for slot, features in second.slots.items()}
    changed = dataclasses.replace(second, input_ids=ids, slots=slots)
    before = losses(golden_model, first, second, third).split(counts)
    after = losses(golden_model, first, changed, third).split(counts)
    assert after[0].equal(before[0]) and after[2].equal(before[2])
    assert not after[1].equal(before[1])


def test_every_slot_reaches_the_loss(golden_model, samples):
    sample = samples[1]
    before = losses(golden_model, sample)
    for slot in sample.slots:
        changed = dataclasses.replace(sample, slots=sample.slots | {slot: sample.slots[slot] + 1})
        assert not losses(golden_model, changed).allclose(before), slot


def test_losses_of_labelled_tokens_equal_those_of_full_shifted_logits(golden_model, samples):
    sample = samples[2]
    batch = collate([sample])
    with torch.no_grad():
        logits = golden_model.llama_model(inputs_embeds=golden_model._embed(batch)[None], use_cache=False).logits[0]
    full = F.cross_entropy(logits[:-1], sample.labels[1:], ignore_index=IGNORED, reduction="none")
    torch.testing.assert_close(losses(golden_model, sample), full[sample.labels[1:] != IGNORED], atol=1e-5, rtol=0)


def test_there_is_one_float32_loss_for_each_labelled_token(golden_model, samples):
    computed = losses(golden_model, *samples[:4])
    assert computed.dtype == torch.float32
    assert len(computed) == sum(int((sample.labels != IGNORED).sum()) for sample in samples[:4])


# Gradients


def gradients(model, *samples):
    model.zero_grad()
    batch = collate(list(samples))
    (model(batch) * batch.loss_weights[batch.labels != IGNORED]).sum().backward()
    return {name: parameter.grad for name, parameter in trainable(model).items()}


def empty_record(record):
    return Record(record.name, record.task, record.turns, {slot: features[:0] for slot, features in record.features.items()})


def test_every_trained_tensor_has_a_gradient_although_no_sample_has_feature_vectors(build, golden_dataset, golden_prompt):
    model = build()
    sample = golden_prompt.tokenize(empty_record(golden_dataset.record(0, "emotion", "Which?")))
    grads = gradients(model, sample)
    assert all(grad is not None for grad in grads.values())
    fusion = {name: float(grad.abs().sum()) for name, grad in grads.items() if name.startswith("fusion.")}
    assert len(fusion) == 10 and set(fusion.values()) == {0.0}
    assert all(float(grad.abs().sum()) > 0 for name, grad in grads.items() if "lora_A" in name)


def test_every_trained_tensor_has_a_gradient_that_is_not_zero(build, samples):
    assert all(float(grad.abs().sum()) > 0 for grad in gradients(build(), *samples[:3]).values())


@pytest.mark.parametrize("layers", [True, 2])
def test_gradient_checkpointing_does_not_change_a_gradient(build, samples, layers):
    with_it, without = (gradients(build(use_grad_checkpoint=on).train(), *samples[:2]) for on in (layers, False))
    assert set(with_it) == set(without)
    for name, grad in with_it.items():
        torch.testing.assert_close(grad, without[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("key", "expected"), [(True, [True, True]), (2, [True, False]), (False, [False, False])])
def test_the_layers_that_the_key_names_recompute_their_activations(build, key, expected):
    layers = build(use_grad_checkpoint=key).llama_model.get_base_model().model.layers
    assert [layer.gradient_checkpointing for layer in layers] == expected


# Trained tensors


PROJECTIONS = {
    f"fusion.{layer}.{kind}"
    for layer in ("llama_proj", "feats_llama_proj1", "feats_llama_proj2", "feats_llama_proj3", "cls_tk_llama_proj")
    for kind in ("weight", "bias")
}


def test_a_frozen_llm_trains_the_projections_alone(build):
    assert set(trainable(build(train_llm="none"))) == PROJECTIONS


def test_lora_trains_the_projections_and_both_factors_of_the_targets(build):
    layer = "llama_model.base_model.model.model.layers.{}.self_attn.{}.lora_{}.default.weight"
    adapters = {layer.format(index, target, side) for index in (0, 1) for target in ("q_proj", "v_proj") for side in "AB"}
    assert set(trainable(build(train_llm="lora"))) == PROJECTIONS | adapters


def test_other_lora_targets_and_ranks_are_used(build):
    adapters = {
        name: tuple(parameter.shape)
        for name, parameter in trainable(build(lora_target_modules=["o_proj"], lora_r=3)).items()
        if "lora" in name
    }
    assert len(adapters) == 4 and all("o_proj" in name for name in adapters)
    assert set(adapters.values()) == {(3, 64), (64, 3)}


def test_full_training_trains_every_weight_of_the_llm(build):
    model = build(train_llm="full", dtype=torch.bfloat16)
    names = set(trainable(model))
    assert names == {name for name, _ in model.named_parameters()} >= PROJECTIONS
    assert "llama_model.model.embed_tokens.weight" in names and "llama_model.lm_head.weight" in names
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_trained_weights_are_float32_although_frozen_weights_are_bfloat16(build):
    model = build(dtype=torch.bfloat16)
    dtypes = {trained: {p.dtype for p in model.parameters() if p.requires_grad == trained} for trained in (True, False)}
    assert dtypes == {True: {torch.float32}, False: {torch.bfloat16}}


def test_the_scale_of_the_adapters_is_alpha_over_rank(build, samples):
    one = losses(build(lora_alpha=4), samples[0])
    assert not losses(build(lora_alpha=16), samples[0]).allclose(one)
    doubled = build(lora_alpha=2)
    with torch.no_grad():
        for name, parameter in doubled.named_parameters():
            if "lora_B" in name:
                parameter *= 2
    torch.testing.assert_close(losses(doubled, samples[0]), one, atol=1e-5, rtol=0)


def test_unknown_lora_targets_are_a_user_error(build):
    with pytest.raises(UserError, match="model.lora_target_modules"):
        build(lora_target_modules=["query_projection"])


def test_a_model_on_the_meta_device_has_names_and_shapes_without_weights(build):
    real, laid_out = build(), build(device=torch.device("meta"))
    shapes = [{name: tuple(p.shape) for name, p in trainable(model).items()} for model in (real, laid_out)]
    assert shapes[0] == shapes[1]
    assert all(parameter.is_meta for parameter in laid_out.parameters())


# Dropout


@pytest.mark.parametrize("key", ["dropout", "lora_dropout"])
def test_dropout_acts_in_training_and_not_in_evaluation(build, samples, key):
    model = build(**{key: 0.5})

    def loss(seed):
        torch.manual_seed(seed)
        return losses(model, samples[0])

    model.eval()
    assert loss(1).equal(loss(2))
    model.train()
    assert not loss(1).equal(loss(2))
    assert loss(1).equal(loss(1))


# Generation


def generated(model, prompt, questions, size, **options):
    out, choice = [], dataclasses.replace(GREEDY, **options)
    for first in range(0, len(questions), size):
        part = questions[first : first + size]
        out += generate([model], collate(part), choice, prompt.is_finished, range(len(part)))
    return out


def test_greedy_answers_do_not_depend_on_the_batch_size(golden_model, golden_prompt, questions):
    alone = generated(golden_model, golden_prompt, questions[:9], 1)
    assert generated(golden_model, golden_prompt, questions[:9], 9) == alone
    assert generated(golden_model, golden_prompt, questions[:9], 4) == alone
    assert len({tuple(ids) for ids in alone}) > 4


def test_each_generated_token_is_the_most_likely_one_after_the_preceding_tokens(golden_model, golden_prompt, golden_dataset):
    record = golden_dataset.record(0, "reason", golden_dataset.pool.first_instruction("reason"))
    sample = golden_prompt.tokenize(record, for_generation=True)
    token_ids = generated(golden_model, golden_prompt, [sample], 1)[0]
    ids = sample.input_ids
    for token in token_ids[:6]:
        batch = collate([dataclasses.replace(sample, input_ids=ids, labels=ids, loss_weights=ids.float())])
        with torch.no_grad():
            logits = golden_model.llama_model(inputs_embeds=golden_model._embed(batch)[None], use_cache=False).logits[0, -1]
        assert int(logits.argmax()) == token
        ids = torch.cat([ids, torch.tensor([token])])


def test_generation_ends_at_the_end_of_sequence_token(golden_model, golden_prompt, questions):
    end = golden_prompt.tokenizer.eos_token_id
    answers = generated(golden_model, golden_prompt, questions, 6, max_new_tokens=20)
    assert any(end in ids for ids in answers)
    for ids in answers:
        assert end not in ids[:-1] and (ids[-1] == end or len(ids) == 20)


def test_generation_stops_at_an_end_symbol_of_ordinary_text(golden_model, golden_prompt, questions, monkeypatch):
    free = golden_prompt.answer_text(generated(golden_model, golden_prompt, questions[:1], 1, max_new_tokens=20)[0])
    words = [match[0] for match in re.finditer(r"[a-z]{3,}", free[5:])]
    symbol = words[len(words) // 2]
    assert 0 < free.index(symbol) < len(free) - len(symbol)
    monkeypatch.setattr(golden_model, "cfg", dataclasses.replace(golden_model.cfg, end_sym=symbol))
    prompt = golden_model.prompt_format(golden_model.cfg)
    for size in (1, 3):
        token_ids = generated(golden_model, prompt, questions[:3], size, max_new_tokens=20)[0]
        whole = str(golden_prompt.tokenizer.decode(token_ids, skip_special_tokens=True))
        assert symbol in whole and len(whole.split(symbol, 1)[1]) < 6
        assert prompt.answer_text(token_ids) == free.split(symbol)[0].strip()


def test_training_and_generation_work_with_an_end_symbol_of_hashes(build, golden_dataset, tmp_path):
    model = build(end_sym="###").eval()
    prompt = model.prompt_format(model.cfg)
    record = golden_dataset.record(0, "emotion", "Which?")
    batch = collate([prompt.tokenize(record)])
    labels = batch.labels[batch.labels != IGNORED].tolist()
    assert prompt.tokenizer.decode(labels) == "happy###"
    assert torch.isfinite(losses(model, prompt.tokenize(record))).all()
    answer = generated(model, prompt, [prompt.tokenize(record, for_generation=True)], 1, max_new_tokens=3)[0]
    assert 1 <= len(answer) <= 3


def test_generation_does_not_change_a_later_loss(golden_model, golden_prompt, samples, questions):
    before = losses(golden_model, samples[0])
    generated(golden_model, golden_prompt, questions[:2], 2)
    assert losses(golden_model, samples[0]).equal(before)


# Folders of language models


@pytest.fixture
def llama(tmp_path):
    """A copy of the tiny Llama's folder, which tests may damage."""
    return shutil.copytree(GOLDEN / "llama", tmp_path / "llama")


def test_a_missing_llm_folder_is_reported_with_the_key_and_the_remedy(build):
    with pytest.raises(UserError, match=r"model.llama_model: no folder 'nowhere'.*Download"):
        build(llama_model="nowhere")


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_an_llm_folder_without_config_or_weights_is_reported_with_the_key(build, llama, file):
    (llama / file).unlink()
    with pytest.raises(UserError, match="model.llama_model: "):
        build(llama_model=str(llama))


def test_truncated_weights_name_the_key(build, llama):
    path = llama / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match="model.llama_model: cannot load the weights"):
        build(llama_model=str(llama))


def test_weights_of_another_shape_name_the_key(build, llama):
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps(config | {"intermediate_size": 180}))
    with pytest.raises(UserError, match="model.llama_model: "):
        build(llama_model=str(llama))


def test_weights_with_a_missing_tensor_are_refused_with_its_name(build, llama):
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(UserError, match=r"model.llama_model: .*layers\.2"):
        build(llama_model=str(llama))


@pytest.mark.parametrize("content", [None, "{", "{}"])
def test_an_llm_folder_without_a_usable_tokenizer_is_reported_with_the_key(llama, content):
    for file in ("tokenizer.model", "tokenizer_config.json"):
        (llama / file).unlink()
    (llama / "tokenizer.json").unlink()
    if content is not None:
        (llama / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match="model.llama_model: no usable tokenizer"):
        llm.load_tokenizer(str(llama))


def test_quantization_without_bitsandbytes_names_the_key_and_the_package(build, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"model.load_in_4bit needs the package bitsandbytes: pip install"):
        build(load_in_4bit=True)
