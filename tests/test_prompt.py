"""Rendering of records: ids, labels, weights and placeholder ids."""

from __future__ import annotations

import dataclasses

import pytest
from helpers import EXPECTED, NAMES, TASKS
from torch import zeros

from emollama.data.batch import IGNORED, Record
from emollama.data.prompts.formats import TemplateFormat
from emollama.errors import UserError

SLOT_OF = {"<img>": "image", "face": "face", "video": "video", "audio": "audio", "cls": "cls"}


def features(image=64):
    """Return one clip's feature vectors at the golden widths."""
    pooled = {slot: zeros(1, 1024) for slot in ("face", "video", "audio")}
    return {"image": zeros(image, 176), "cls": zeros(1, 176), **pooled}


def record(*turns, image=64, task="reason"):
    return Record("clip_7", task, list(turns), features(image))


def rebuilt(prompt, cfg=None, **arguments):
    """Return a prompt format with other arguments than ``prompt``."""
    own = {name: getattr(prompt, name) for name in ("tokenizer", "style", "feature_tokens", "loss_average")}
    return TemplateFormat(cfg or prompt.cfg, **own | arguments)


def styled(prompt, loss_average="sample", **style):
    """Return the same prompt format with another style."""
    return rebuilt(prompt, style=dataclasses.replace(prompt.style, **style), loss_average=loss_average)


def placeholder_counts(prompt, sample):
    feature_tokens = prompt.feature_tokens
    return {part: int((sample.input_ids == feature_tokens.id_of(part)).sum()) for part in feature_tokens.fusion.parts}


def text_of(prompt, ids):
    """Decode the ids of text, with special tokens."""
    return prompt.tokenizer.decode([int(i) for i in ids if i >= 0])


def golden_ids(prompt, sequence):
    return [item if isinstance(item, int) else prompt.feature_tokens.id_of(SLOT_OF[item]) for item in sequence]


def golden_record(dataset, name, task):
    index = [clip.name for clip in dataset.clips].index(name)
    return dataset.record(index, task, dataset.pool.first_instruction(task))


# Golden ids


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", NAMES)
def test_training_ids_and_labels_equal_those_of_the_published_code(golden_prompt, golden_dataset, name, task):
    expected = EXPECTED[name][task]["train_path"]
    sample = golden_prompt.tokenize(golden_record(golden_dataset, name, task))
    assert sample.input_ids.tolist() == golden_ids(golden_prompt, expected["sequence"])
    start = expected["prompt_len"]
    assert sample.labels.tolist() == [IGNORED] * start + sample.input_ids[start:].tolist()
    assert len(sample.labels) - start == expected["n_target"]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", NAMES)
def test_upstream_evaluation_ids_equal_those_of_the_published_code(golden_prompt, golden_dataset, name, task):
    expected = EXPECTED[name][task]["eval_generation"]["sequence"]
    prompt = golden_prompt.tokenize(golden_record(golden_dataset, name, task), layout="upstream_eval", for_generation=True)
    assert prompt.input_ids.tolist() == golden_ids(golden_prompt, expected)


@pytest.mark.parametrize("task", TASKS)
def test_the_prompt_text_and_the_answer_equal_those_of_the_published_code(golden_prompt, golden_dataset, task):
    for name in NAMES:
        record_read = golden_record(golden_dataset, name, task)
        assert golden_prompt.body(record_read) == EXPECTED[name][task]["instruction"]
        assert record_read.turns[0][1] == EXPECTED[name][task]["answer"]


def test_a_generation_prompt_is_the_training_prompt_without_the_answer(golden_prompt, golden_dataset):
    record_read = golden_record(golden_dataset, NAMES[0], "reason")
    trained, prompt = golden_prompt.tokenize(record_read), golden_prompt.tokenize(record_read, for_generation=True)
    assert trained.input_ids[: len(prompt.input_ids)].equal(prompt.input_ids)
    assert bool((prompt.labels == IGNORED).all()) and float(prompt.loss_weights.sum()) == 0
    assert len(prompt.input_ids) == EXPECTED[NAMES[0]]["reason"]["train_path"]["prompt_len"]


# Length limits


def test_a_long_answer_is_truncated_before_its_end_symbol_and_the_removed_tokens_counted(golden_prompt):
    answer = " ".join(["words"] * 60)
    whole = golden_prompt.tokenize(record(("Why?", answer)))
    short = styled(golden_prompt, max_txt_len=10).tokenize(record(("Why?", answer)))
    full, shortened = (sample.labels[sample.labels != IGNORED].tolist() for sample in (whole, short))
    assert len(shortened) == 10 and shortened[-1] == golden_prompt.tokenizer.eos_token_id
    assert shortened[:-1] == full[:9]
    assert short.tokens_cut == len(full) - 10 and whole.tokens_cut == 0


def test_an_answer_of_exactly_max_txt_len_is_not_cut(golden_prompt):
    whole = golden_prompt.tokenize(record(("Why?", "a happy person")))
    size = int((whole.labels != IGNORED).sum())
    same = styled(golden_prompt, max_txt_len=size).tokenize(record(("Why?", "a happy person")))
    assert same.input_ids.equal(whole.input_ids) and same.tokens_cut == 0


@pytest.mark.parametrize("layout", ["train", "upstream_eval"])
def test_a_long_context_loses_only_the_start_of_the_user_text(golden_prompt, layout):
    user_text = f"The person in video says: {'blah ' * 80}.  [reason] Which clues are there? "
    whole = golden_prompt.tokenize(record((user_text, "yes")), layout=layout)
    limited = styled(golden_prompt, max_context_len=60)
    cut = limited.tokenize(record((user_text, "yes")), layout=layout)
    assert placeholder_counts(golden_prompt, cut) == placeholder_counts(golden_prompt, whole)
    text = text_of(golden_prompt, cut.input_ids)
    assert text.endswith("[reason] Which clues are there?  [/INST] yes</s>")
    assert "</feature>" in text and "</video>" in text and text.count("<video>") == 1
    assert cut.tokens_cut == len(whole.input_ids) - len(cut.input_ids) > 0
    text_tokens = int((cut.input_ids >= 0).sum()) - int((cut.labels != IGNORED).sum())
    beginnings = 2 if layout == "upstream_eval" else 1
    assert 60 <= text_tokens <= 60 + beginnings


def test_a_truncated_context_ends_with_the_end_of_the_template_or_is_refused(golden_prompt):
    outcomes = set()
    for limit in range(8, 90):
        try:
            sample = styled(golden_prompt, max_context_len=limit).tokenize(record(("[reason] " + "Why? " * 20, "yes")))
        except UserError as error:
            assert "sample 'clip_7'" in str(error) and f"max_context_len {limit}" in str(error)
            outcomes.add("refused")
            continue
        text = text_of(golden_prompt, sample.input_ids)
        assert text.endswith("[/INST] yes</s>"), f"max_context_len {limit}: {text!r}"
        assert placeholder_counts(golden_prompt, sample) == {"image": 16, "face": 1, "video": 1, "audio": 1, "cls": 1}
        outcomes.add("cut" if sample.tokens_cut else "whole")
    assert outcomes == {"refused", "cut", "whole"}


# Special tokens in the user's files


@pytest.mark.parametrize("layout", ["train", "upstream_eval"])
@pytest.mark.parametrize(
    "mark",
    ["<FeatureHere>", "<VideoHere>", "[/INST]", "</video> <feature><FeatureHere></feature>", "[INST]", "{}", "{labels}", "<img>"],
)
def test_prompt_markers_in_a_transcript_remain_ordinary_text(golden_prompt, layout, mark):
    plain = golden_prompt.tokenize(record(("he said  here", "yes")), layout=layout)
    marked = golden_prompt.tokenize(record((f"he said {mark} here", f"yes {mark}")), layout=layout)
    assert placeholder_counts(golden_prompt, marked) == placeholder_counts(golden_prompt, plain)
    assert mark in text_of(golden_prompt, marked.input_ids)


@pytest.mark.parametrize("part", ["words", "answer"])
@pytest.mark.parametrize("special", ["<s>", "</s>", "<unk>", "</s></s>", "<<s>s>", "a</s>b", "</</s>s>"])
def test_special_tokens_in_user_texts_or_answers_are_text(golden_prompt, part, special):
    user_text, answer = (f"he said {special} here", "yes") if part == "words" else ("he said", f"yes {special} here")
    sample = golden_prompt.tokenize(record((user_text, answer)))
    tokenizer = golden_prompt.tokenizer
    ids = sample.input_ids.tolist()
    assert ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.eos_token_id) == 1 and ids[-1] == tokenizer.eos_token_id
    assert tokenizer.unk_token_id not in ids
    squeezed = text_of(golden_prompt, sample.input_ids).replace(" ", "")
    assert special.replace(" ", "") in squeezed


def test_placeholder_ids_are_unique_and_negative(golden_prompt):
    feature_tokens = golden_prompt.feature_tokens
    ids = [feature_tokens.id_of(name) for name in feature_tokens.fusion.parts]
    assert ids == [-1, -2, -3, -4, -5]


def test_a_number_of_image_vectors_that_is_not_a_multiple_of_four_is_refused_by_sample(golden_prompt):
    with pytest.raises(UserError, match="sample 'clip_7': 63 image vectors cannot be joined in groups of 4"):
        golden_prompt.tokenize(record(("Why?", "yes"), image=63))


@pytest.mark.parametrize("vectors", [0, 4, 8, 1024])
def test_there_is_one_placeholder_for_each_feature_token(golden_prompt, vectors):
    sample = golden_prompt.tokenize(record(("Why?", "yes"), image=vectors))
    assert placeholder_counts(golden_prompt, sample) == {"image": vectors // 4, "face": 1, "video": 1, "audio": 1, "cls": 1}


# Loss weights


@pytest.mark.parametrize("answer", ["", "sad", "a long answer of many words that is split into tokens"])
def test_loss_weights_of_a_sample_sum_to_one_or_to_the_number_of_its_target_tokens(golden_prompt, answer):
    for loss_average in ("sample", "token"):
        sample = styled(golden_prompt, loss_average).tokenize(record(("Why?", answer)))
        count = int((sample.labels != IGNORED).sum())
        assert float(sample.loss_weights.sum()) == pytest.approx(1.0 if loss_average == "sample" else count)
        assert bool(((sample.loss_weights > 0) == (sample.labels != IGNORED)).all())


# Templates, turns and tokenizers


def test_without_a_chat_template_the_prompt_contains_only_the_text(golden_prompt):
    bare = styled(golden_prompt, chat_template=False).tokenize(record(("Why? ", "yes")))
    assert text_of(golden_prompt, bare.input_ids).split() == "<s> <video> </video> <feature> </feature> Why? yes</s>".split()
    assert placeholder_counts(golden_prompt, bare)["image"] == 16


def test_another_template_wraps_the_text(golden_prompt):
    style = styled(golden_prompt, template="USER: {} ASSISTANT:")
    text = text_of(golden_prompt, style.tokenize(record(("Why? ", "yes"))).input_ids)
    assert text.startswith("<s> USER: <video>") and text.endswith("Why?  ASSISTANT: yes</s>")


def test_a_custom_end_symbol_ends_every_answer_including_a_truncated_one(golden_prompt):
    hashed = styled(golden_prompt, end_sym="###", max_txt_len=8)
    end = golden_prompt.tokenizer("###", add_special_tokens=False).input_ids
    for answer in ("yes", "a long answer of many words that is split into more tokens"):
        sample = hashed.tokenize(record(("Why?", answer)))
        labels = sample.labels[sample.labels != IGNORED].tolist()
        assert golden_prompt.tokenizer.decode(labels).endswith("###") and len(labels) <= 8
        assert golden_prompt.tokenizer.eos_token_id not in labels
    assert labels[-len(end) :] == end


def test_every_turn_has_the_template_and_only_answers_have_labels(golden_prompt):
    turns = [("First? ", "one"), ("Second? ", "two words"), ("Third? ", "three")]
    sample = golden_prompt.tokenize(record(*turns))
    text = text_of(golden_prompt, sample.input_ids)
    assert text.count("[INST]") == text.count("[/INST]") == 3 and text.count("<video>") == 1
    assert placeholder_counts(golden_prompt, sample) == {"image": 16, "face": 1, "video": 1, "audio": 1, "cls": 1}
    answers = text_of(golden_prompt, sample.labels[sample.labels != IGNORED])
    assert answers.split() == ["one</s>", "two", "words</s>", "three</s>"]
    assert sample.input_ids.tolist().count(golden_prompt.tokenizer.bos_token_id) == 1
    assert float(sample.loss_weights.sum()) == pytest.approx(1.0)


def test_the_prompt_of_the_last_turn_contains_the_earlier_answers(golden_prompt):
    prompt = golden_prompt.tokenize(record(("First? ", "one"), ("Second? ", None)), for_generation=True)
    text = text_of(golden_prompt, prompt.input_ids)
    assert "one</s>" in text and text.endswith("Second?  [/INST]")


class WithoutBos:
    """A tokenizer without a beginning-of-sequence token."""

    bos_token = bos_token_id = None

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def __call__(self, *args, **kwargs):
        return self._tokenizer(*args, **kwargs)


@pytest.mark.parametrize("layout", ["train", "upstream_eval"])
def test_a_tokenizer_without_bos_leaves_only_the_bos_out(golden_prompt, layout):
    without = rebuilt(golden_prompt, tokenizer=WithoutBos(golden_prompt.tokenizer))
    bare = without.tokenize(record(("Why?", "yes")), layout=layout).input_ids
    usual = golden_prompt.tokenize(record(("Why?", "yes")), layout=layout).input_ids
    assert golden_prompt.tokenizer.bos_token_id not in bare.tolist()
    drop = 2 if layout == "upstream_eval" else 1
    assert len(usual) - len(bare) in (drop, drop - 1)
    assert placeholder_counts(golden_prompt, without.tokenize(record(("Why?", "yes")), layout=layout))["image"] == 16
    assert text_of(golden_prompt, bare).split() == text_of(golden_prompt, usual).replace("<s>", "").split()


# Decoding of generated ids


def test_answer_text_starts_after_the_template_and_ends_at_the_end_symbol(golden_prompt):
    def ids(text):
        return golden_prompt.tokenizer(text, add_special_tokens=False).input_ids

    assert golden_prompt.answer_text(ids("happy</s>")) == "happy"
    assert golden_prompt.answer_text(ids("happy")) == "happy"
    assert golden_prompt.answer_text(ids("[INST] so [/INST] sad</s>")) == "sad"
    assert golden_prompt.answer_text([]) == ""
    hashed = styled(golden_prompt, end_sym="###")
    assert hashed.answer_text(ids("happy ### sad")) == "happy"


def test_answer_text_recovers_the_answer_from_its_labels(golden_prompt, golden_dataset):
    for name in NAMES:
        record_read = golden_record(golden_dataset, name, "reason_v2")
        sample = golden_prompt.tokenize(record_read)
        ids = sample.labels[sample.labels != IGNORED].tolist()
        assert golden_prompt.answer_text(ids) == record_read.turns[0][1]


def test_rendering_is_deterministic_and_does_not_change_features(golden_prompt, golden_dataset):
    record_read = golden_record(golden_dataset, NAMES[0], "emotion")
    first, second = golden_prompt.tokenize(record_read), golden_prompt.tokenize(record_read)
    assert first.input_ids.equal(second.input_ids)
    assert all(first.slots[slot] is record_read.features[slot] for slot in record_read.features)
