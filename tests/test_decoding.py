"""Batched decoding: the same ids as one at a time, as the search of transformers, and as full forward passes."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from helpers import NINE, TASKS
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from emollama.data.batch import Record, collate
from emollama.decoding.answer_generator import AnswerGenerator, Prompt, tokenize
from emollama.decoding.generate import generate
from emollama.decoding.likelihoods import candidate_probabilities
from emollama.decoding.running_batch import RunningBatch
from emollama.decoding.sampling_params import SamplingParams, SequenceParams
from emollama.models import padded

GREEDY = SamplingParams(max_new_tokens=20)


@pytest.fixture(scope="module")
def samples(golden_dataset, golden_prompt):
    """Eighteen prompts of different lengths without their answers."""
    places = [(clip, task) for clip in range(6) for task in TASKS]
    records = [golden_dataset.record(clip, task, golden_dataset.pool.first_instruction(task)) for clip, task in places]
    return [golden_prompt.tokenize(record, for_generation=True) for record in records]


@pytest.fixture(scope="module")
def other(golden_model):
    """A model with the same frozen weights and other adapters."""
    frozen = {id(value): value for value in golden_model.parameters() if not value.requires_grad}
    perturbed = copy.deepcopy(golden_model, frozen)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in perturbed.parameters():
            if parameter.requires_grad:
                parameter += 0.03 * torch.randn(parameter.shape, generator=generator)
    return perturbed


def answers(members, prompt, samples, choice=GREEDY, seeds=None):
    return generate(members, collate(samples), choice, prompt.is_finished, seeds or range(len(samples)))


def transformers_own(model, prompt, samples, **options):
    plain = {"max_new_tokens": 20, "do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    return model.beam_search(collate(samples), prompt, plain | {"num_beams": 1} | options)


def test_greedy_answers_equal_those_of_transformers(golden_model, golden_prompt, samples):
    assert answers([golden_model], golden_prompt, samples) == transformers_own(golden_model, golden_prompt, samples)


@pytest.mark.slow
def test_a_repetition_penalty_acts_as_in_transformers(golden_model, golden_prompt, samples):
    penalised = answers([golden_model], golden_prompt, samples, SamplingParams(20, repetition_penalty=1.7))
    # One prompt at a time: with padded embeddings, transformers does not penalise as many new tokens as there is padding.
    alone = [transformers_own(golden_model, golden_prompt, [sample], repetition_penalty=1.7)[0] for sample in samples]
    assert penalised == alone
    assert penalised != answers([golden_model], golden_prompt, samples)


def test_a_sampled_answer_depends_on_its_own_seed_alone(golden_model, golden_prompt, samples):
    choice = SamplingParams(12, temperature=1.3, top_p=0.9)
    together = answers([golden_model], golden_prompt, samples[:6], choice, range(6))
    alone = [answers([golden_model], golden_prompt, [samples[i]], choice, [i])[0] for i in range(6)]
    assert together == alone
    assert answers([golden_model], golden_prompt, samples[:6], choice, range(10, 16)) != together


def test_top_p_restricts_sampling_to_the_most_likely_tokens(golden_model, golden_prompt, samples):
    greedy = answers([golden_model], golden_prompt, samples[:6])
    assert answers([golden_model], golden_prompt, samples[:6], SamplingParams(20, temperature=1.5, top_p=1e-6)) == greedy
    assert answers([golden_model], golden_prompt, samples[:6], SamplingParams(20, temperature=1.5)) != greedy


def test_an_ensemble_of_the_same_model_twice_answers_like_the_model(golden_model, golden_prompt, samples):
    assert answers([golden_model, golden_model], golden_prompt, samples) == answers([golden_model], golden_prompt, samples)


def next_distribution(model, sample, ids):
    """Probabilities of the next token from one full forward pass over prompt and ids."""
    tokens = torch.cat([sample.input_ids, torch.tensor(ids, dtype=torch.long)])
    batch = collate([type(sample)(sample.name, sample.task, tokens, tokens, tokens.float(), sample.slots)])
    with torch.inference_mode():
        logits = model.llama_model(inputs_embeds=model._embed(batch)[None], use_cache=False).logits[0, -1]
    return logits.double().softmax(-1)


def test_an_ensemble_selects_the_most_likely_token_of_the_mean_distribution(golden_model, other, golden_prompt, samples):
    ensemble = answers([golden_model, other], golden_prompt, samples[:4])
    single = [answers([model], golden_prompt, samples[:4]) for model in (golden_model, other)]
    assert ensemble not in single and single[0] != single[1]
    for sample, ids in zip(samples[:4], ensemble, strict=True):
        for length in range(min(5, len(ids))):
            mean = sum(next_distribution(model, sample, ids[:length]) for model in (golden_model, other)) / 2
            assert int(mean.argmax()) == ids[length]


def test_label_likelihoods_follow_from_the_losses_of_the_answers(golden_model, golden_prompt, golden_dataset, samples):
    shares = candidate_probabilities([golden_model], collate(samples[:3]), [golden_prompt.answer_ids(label) for label in NINE])
    assert shares.shape == (3, 9)
    record = golden_dataset.record(0, TASKS[1], golden_dataset.pool.first_instruction(TASKS[1]))
    user_text = record.turns[0][0]
    totals = []
    for label in NINE:
        answered = golden_prompt.tokenize(Record(record.name, record.task, [(user_text, label)], record.features))
        with torch.inference_mode():
            totals.append(-golden_model(collate([answered])).double().sum())
    assert shares[1].allclose(torch.stack(totals).softmax(0), atol=1e-5)
    assert shares[1].max() > 0.3 and shares.sum(1).allclose(torch.ones(3, dtype=torch.float64))


def test_likelihoods_of_an_ensemble_are_the_mean_of_its_members(golden_model, other, golden_prompt, samples):
    labels = [golden_prompt.answer_ids(label) for label in NINE]
    both = candidate_probabilities([golden_model, other], collate(samples[:3]), labels)
    each = [candidate_probabilities([model], collate(samples[:3]), labels) for model in (golden_model, other)]
    assert both.allclose(sum(each) / 2)
    assert not each[0].allclose(each[1], atol=1e-3)


def test_label_likelihoods_do_not_depend_on_the_order_of_the_labels(golden_model, golden_prompt, samples):
    labels = [golden_prompt.answer_ids(label) for label in NINE]
    forward = candidate_probabilities([golden_model], collate(samples[:2]), labels)
    assert candidate_probabilities([golden_model], collate(samples[:2]), labels[::-1]).flip(1).allclose(forward, atol=1e-6)


def run_until(running, answers, steps):
    """Run some steps, and add their tokens to the lists of the sequences; return the reasons why sequences finished."""
    reasons = {}
    for new in (new for _ in range(steps) for new in running.step()):
        answers.setdefault(new.sequence, []).append(new.token)
        reasons |= {new.sequence: new.finish_reason} if new.finish_reason else {}
    return reasons


@pytest.mark.parametrize("members", [1, 2])
def test_prompts_that_are_added_to_running_sequences_get_the_same_answers(golden_model, other, golden_prompt, samples, members):
    models = [golden_model, other][:members]
    running, collected, order = RunningBatch(models, golden_prompt.is_finished), {}, []
    for group in (samples[:5], samples[5:6], samples[6:18]):
        order += running.add(collate(group), [SequenceParams(GREEDY, 0)] * len(group))
        run_until(running, collected, 3)
    reasons = run_until(running, collected, GREEDY.max_new_tokens)
    expected = answers(models, golden_prompt, samples)
    assert [collected[sequence] for sequence in order] == expected
    assert len(running) == 0 and running.step() == [] and len(set(order)) == len(samples)
    unfinished = {sequence for sequence, ids in collected.items() if not golden_prompt.is_finished(ids)}
    assert {sequence for sequence, reason in reasons.items() if reason == "length"} == unfinished


def never(ids):
    return False


def test_removing_a_sequence_leaves_the_others_as_they_are(golden_model, golden_prompt, samples):
    expected = generate([golden_model], collate(samples[:4]), GREEDY, never, range(4))
    running, collected = RunningBatch([golden_model], never), {}
    first, *others = running.add(collate(samples[:4]), [SequenceParams(GREEDY, 0)] * 4)
    run_until(running, collected, 1)
    running.remove(first)
    assert len(running) == 3
    running.remove(first)  # has no effect
    run_until(running, collected, GREEDY.max_new_tokens)
    assert [collected[sequence] for sequence in others] == expected[1:]
    assert collected[first] == expected[0][:1]


def test_each_sequence_has_its_own_parameters(golden_model, golden_prompt, samples):
    choices = [
        GREEDY,
        SamplingParams(5),
        SamplingParams(12, temperature=1.3, top_p=0.9),
        SamplingParams(20, repetition_penalty=1.7),
    ]
    running, collected = RunningBatch([golden_model], golden_prompt.is_finished), {}
    order = running.add(collate(samples[:4]), [SequenceParams(choice, seed) for seed, choice in enumerate(choices)])
    run_until(running, collected, 20)
    alone = [answers([golden_model], golden_prompt, [samples[i]], choices[i], [i])[0] for i in range(4)]
    assert [collected[sequence] for sequence in order] == alone


def test_merged_adapters_change_an_answer_only_where_two_tokens_are_almost_equally_likely(golden_model, golden_prompt, samples):
    merged = copy.deepcopy(golden_model)
    merged.merge_adapters()
    assert not [name for name, _ in merged.named_parameters() if "lora" in name]
    plain, other_answers = (answers([model], golden_prompt, samples) for model in (golden_model, merged))
    for sample, ids, others in zip(samples, plain, other_answers, strict=True):
        if ids != others:
            place = next(i for i, (one, other) in enumerate(zip(ids, others, strict=False)) if one != other)
            best = next_distribution(golden_model, sample, ids[:place]).log().topk(2).values
            assert best[0] - best[1] < 1e-4
    kept = golden_model.llama_model.get_base_model().state_dict()
    assert not merged.llama_model.state_dict()["model.layers.0.self_attn.q_proj.weight"].equal(
        kept["model.layers.0.self_attn.q_proj.base_layer.weight"]
    )


WAITS = ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "nonzero", "equal", "allclose")
WAITING_OPERATORS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "unique_dim")


class Calls(TorchFunctionMode):
    """Counts the calls in Python by which the host waits for the device."""

    def __init__(self):
        super().__init__()
        self.waits = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.waits += [function.__name__] if getattr(function, "__name__", "") in WAITS else []
        return function(*args, **(kwargs or {}))


class Operators(TorchDispatchMode):
    """Counts the operators that wait for the device, also inside of others."""

    def __init__(self):
        super().__init__()
        self.waits = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        self.waits += [name] if name in WAITING_OPERATORS else []
        return function(*args, **(kwargs or {}))


def test_the_host_waits_for_the_device_once_per_token(golden_model, golden_prompt, samples):
    running = RunningBatch([golden_model], never)
    running.add(collate(samples[:4]), [SequenceParams(SamplingParams(limit), 0) for limit in (3, 9, 9, 5)])
    with Calls() as calls, Operators() as operators:
        while len(running):
            running.step()
    assert calls.waits == ["tolist"] * 9 and operators.waits == []


def test_all_candidate_answers_take_one_forward_pass_after_the_prompt(golden_model, golden_prompt, samples, monkeypatch):
    widths = []
    decode_answers = padded.decode_answers

    def counted(llm, given, state):
        widths.append(sum(len(answer) - 1 for answer in given))
        return decode_answers(llm, given, state)

    monkeypatch.setattr(padded, "decode_answers", counted)
    labels = [golden_prompt.answer_ids(label) for label in NINE]
    together = candidate_probabilities([golden_model], collate(samples[:3]), labels)
    assert widths == [sum(len(label) - 1 for label in labels)]
    monkeypatch.setattr(golden_model, "packing", replace(golden_model.packing, joint_answers=False))
    assert candidate_probabilities([golden_model], collate(samples[:3]), labels).allclose(together, atol=1e-6)
    first = [label[:1] for label in labels]
    single = candidate_probabilities([golden_model], collate(samples[:3]), first)
    assert len(widths) == 1 and single.shape == (3, 9)


def test_the_next_turn_of_a_conversation_continues_from_the_state_of_the_last_one(golden_model, golden_prompt, golden_dataset):
    def prompts(turns):
        records = [golden_dataset.record(clip, "reason", "Why?") for clip in range(3)]
        records = [replace(record, turns=[(record.turns[0][0], None)]) for record in records]
        records = [replace(record, turns=turns(record)) for record in records]
        return [Prompt(tokenize(golden_prompt, record, "train"), SequenceParams(GREEDY, 0)) for record in records]

    generator = AnswerGenerator([golden_model], golden_prompt, num_prefixes=3)
    first = generator.generate(prompts(lambda record: record.turns))
    texts = iter([answer.text for answer in first] * 2)
    follow_up = lambda record: [(record.turns[0][0], next(texts)), ("And what else?", None)]  # noqa: E731
    continued = prompts(follow_up)
    answered = generator.generate(continued)
    plain = AnswerGenerator([golden_model], golden_prompt).generate(continued)
    assert [answer.text for answer in answered] == [answer.text for answer in plain]
    lengths = [len(prompt.sample.input_ids) for prompt in continued]
    assert all(length - 40 < answer.num_cached_tokens < length for answer, length in zip(answered, lengths, strict=True))
    assert [answer.num_cached_tokens for answer in plain] == [0, 0, 0]


def test_streamed_pieces_are_the_answer_whatever_bytes_the_model_writes(golden_prompt):
    from emollama.inference.pending import StreamedText

    tokenizer = golden_prompt.tokenizer
    ids = tokenizer("so é", add_special_tokens=False).input_ids
    for tokens in (["<0x2B>", "<0xC3>", "<0xA9>"], ["<0x2B>", "<0xC3>"], ["<0x2B>", "<0xFF>", "<0x2B>"]):
        answer = [*ids, *tokenizer.convert_tokens_to_ids(tokens), *ids]
        pieces: list[str] = []
        stream = StreamedText(golden_prompt, "</s>", pieces.append)
        for end in range(1, len(answer) + 1):
            stream.update(answer[:end])
        stream.finish(golden_prompt.answer_text(answer))
        assert "".join(pieces) == golden_prompt.answer_text(answer) and len(pieces) > 1


def test_a_sequence_whose_probabilities_are_not_finite_fails_alone(golden_model, golden_prompt, samples):
    running = RunningBatch([golden_model], golden_prompt.is_finished)
    params = [SequenceParams(GREEDY, 0), SequenceParams(SamplingParams(20, temperature=1e-320), 0), SequenceParams(GREEDY, 0)]
    first, broken, last = running.add(collate(samples[:3]), params)
    new = {token.sequence: token for token in running.step()}
    assert new[broken].error is not None and new[first].error is None and new[last].error is None
    assert len(running) == sum(token.error is None and token.finish_reason is None for token in new.values())
