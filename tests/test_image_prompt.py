"""Prompts that contain an image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import GOLDEN

from emollama.data.batch import IGNORED, Record
from emollama.data.prompts.formats import MiniGPT4Format
from emollama.data.prompts.image_tag import read_prompts
from emollama.data.prompts.prompt import FeatureTokenLayout
from emollama.data.prompts.prompt_style import PromptStyle
from emollama.data.slots import SlotShape
from emollama.errors import UserError
from emollama.models.fusion.linear import ImageProjection
from emollama.models.llm import load_tokenizer

ROWS = 5
EMBEDDING_ROWS = 800
PROMPTS = ("<Img><ImageHere></Img> Describe it.", "See <ImageHere> and tell.", "<ImageHere>")


def make_prompt(template="[INST] {} [/INST] ", end="</s>", *, prompts=PROMPTS, max_txt_len=160, max_context_len=3800):
    style = PromptStyle(template, True, end, max_txt_len, max_context_len)
    layout = ImageProjection.layout(ImageProjection.Config(), {"image": SlotShape(4, 8)})
    feature_tokens = FeatureTokenLayout(layout, EMBEDDING_ROWS)
    cfg = MiniGPT4Format.Config(prompts=list(prompts))
    return MiniGPT4Format(cfg, tokenizer=load_tokenizer(str(GOLDEN / "llama")), style=style, feature_tokens=feature_tokens)


def record(user_text="", answer="two dogs run"):
    return Record("clip", "caption", [(user_text, answer)], {"image": torch.zeros(ROWS, 4)}, cache_key="aa/bb.npy")


def ids(prompt, text):
    return prompt.tokenizer(text, add_special_tokens=False).input_ids


def test_the_feature_tokens_are_between_the_texts_before_and_after_the_mark():
    prompt = make_prompt()
    sample = prompt.tokenize(record())
    begin = [prompt.tokenizer.bos_token_id, *ids(prompt, "[INST] <Img>"), *[-1] * ROWS]
    prompt_ids = begin + ids(prompt, "</Img> Describe it. [/INST] ")
    answer = ids(prompt, "two dogs run</s>")
    assert sample.input_ids.tolist() == prompt_ids + answer
    assert sample.labels.tolist() == [IGNORED] * len(prompt_ids) + answer


def test_a_prompt_of_the_placeholder_alone_without_a_template_has_no_text():
    prompt = make_prompt("{}")
    sample = prompt.tokenize(record("<ImageHere>"), for_generation=True)
    assert sample.input_ids.tolist() == [prompt.tokenizer.bos_token_id, *[-1] * ROWS]


def test_a_sample_contains_the_vicuna_template_and_its_end_symbol():
    prompt = make_prompt("###Human: {} ###Assistant: ", "###")
    sample = prompt.tokenize(record())
    answer = sample.labels[sample.labels != IGNORED].tolist()
    assert answer == ids(prompt, "two dogs run###")
    prompt_ids = sample.input_ids[: -len(answer)].tolist()
    assert prompt_ids[-len(ids(prompt, "</Img> Describe it. ###Assistant: ")) :] == ids(
        prompt, "</Img> Describe it. ###Assistant: "
    )
    assert prompt.is_finished(answer) and not prompt.is_finished(answer[:-1])
    assert prompt.answer_text(answer) == "two dogs run"


def test_without_a_user_text_training_draws_a_prompt_and_evaluation_uses_the_first():
    prompt = make_prompt()
    instructions = [prompt.apply_instruction("", np.random.default_rng(seed)) for seed in range(40)]
    assert set(instructions) == set(PROMPTS)
    assert prompt.apply_instruction("", None) == PROMPTS[0] == prompt.body(record())


def test_the_same_generator_gives_the_same_prompt():
    one, other = (make_prompt().tokenize(record(), rng=np.random.default_rng(3)).input_ids for _ in range(2))
    assert one.equal(other)


def test_instructions_of_a_dataset_replace_the_models_prompts_and_get_the_mark_if_they_have_none():
    prompt = make_prompt()
    rng = np.random.default_rng(0)
    assert prompt.apply_instruction("Look at <ImageHere>.", rng) == "Look at <ImageHere>."
    assert prompt.apply_instruction("What is it?", rng) == "<Img><ImageHere></Img> What is it?"


def test_a_prompt_without_the_placeholder_has_the_image_first():
    assert make_prompt(prompts=("What is it?",)).apply_instruction("", None) == "<Img><ImageHere></Img> What is it?"


def test_prompt_lengths_are_those_of_samples_without_image_tokens():
    prompt = make_prompt()
    texts = ["", "What is it?", "See <ImageHere> now, and tell me about it."]
    samples = [prompt.tokenize(record(text), for_generation=True) for text in texts]
    assert prompt.prompt_lengths(texts) == [len(sample.input_ids) - ROWS - 1 for sample in samples]


def test_the_upstream_eval_layout_does_not_change_an_image_prompt():
    prompt = make_prompt()
    assert prompt.tokenize(record()).input_ids.equal(prompt.tokenize(record(), layout="upstream_eval").input_ids)


def test_a_long_answer_is_cut_but_retains_its_end_token():
    prompt = make_prompt(max_txt_len=8)
    sample = prompt.tokenize(record(answer="dogs " * 40))
    answer = sample.labels[sample.labels != IGNORED].tolist()
    assert len(answer) == 8 and answer[-1] == prompt.tokenizer.eos_token_id
    assert sample.tokens_cut == len(ids(prompt, "dogs " * 40 + "</s>")) - 8


def test_special_tokens_in_user_texts_are_text():
    prompt = make_prompt()
    sample = prompt.tokenize(record("</s> <ImageHere> What? </s>"), for_generation=True)
    assert prompt.tokenizer.eos_token_id not in sample.input_ids.tolist()


def test_a_sample_has_the_cache_key_of_its_record():
    assert make_prompt().tokenize(record()).cache_key == "aa/bb.npy"


def test_every_built_in_prompt_contains_the_image_tag_once():
    built_in = MiniGPT4Format.Config().prompts
    assert all(text.count("<ImageHere>") == 1 for text in built_in) and len(built_in) == 4


def test_a_file_of_prompts_is_read_without_its_blank_lines(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("﻿<ImageHere> one\r\n\n  \ntwo <ImageHere>\n", encoding="utf-8")
    assert read_prompts(str(path), "model.prompt_path") == ["<ImageHere> one", "two <ImageHere>"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "<ImageHere> a\nno mark\n<ImageHere> <ImageHere>\n",
            r"line 3: '<ImageHere> <ImageHere>' must contain <ImageHere> .with this spelling. once",
        ),
        ("<ImageHere> a\n\nsee <Imagehere>\n", r"line 3: 'see <Imagehere>' must contain <ImageHere> .with this spelling. once"),
        ("\n\n", "contains no prompt. Expected lines such as <Img><ImageHere>"),
    ],
)
def test_a_file_without_usable_prompts_is_refused(tmp_path, text, message):
    path = tmp_path / "prompts.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=f"^model.prompt_path: .*{message}"):
        read_prompts(str(path), "model.prompt_path")


def test_a_missing_file_of_prompts_is_reported_with_its_key(tmp_path):
    with pytest.raises(UserError, match="^model.prompt_path: no file"):
        read_prompts(str(tmp_path / "nowhere.txt"), "model.prompt_path")
