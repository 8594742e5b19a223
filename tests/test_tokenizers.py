"""Tokenizers and configurations of language models: special tokens, tables of other sizes, files of other models."""

from __future__ import annotations

import copy
import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from helpers import GOLDEN, golden_tree, loaded, write
from test_prompt import rebuilt, record
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig

from emollama.data.batch import IGNORED, collate
from emollama.data.prompts.tokenizer_check import LLMVocabulary, warnings
from emollama.decoding.generate import generate
from emollama.decoding.sampling_params import SamplingParams
from emollama.errors import UserError
from emollama.models.prompt_formats import KEY as FORMAT

PROBE = "from pathlib import Path\nPath(__file__).with_name('executed').touch()\nclass Own: pass\n"


def folder_of(path, *, config=None, tokenizer=None, generation=None):
    """A copy of the golden Llama without weights, with changed entries of its JSON files; None removes an entry."""
    folder = path / "llm"
    folder.mkdir()
    changes = {"config.json": config, "tokenizer_config.json": tokenizer, "generation_config.json": generation}
    for name, entries in changes.items():
        content = json.loads((GOLDEN / "llama" / name).read_text()) | (entries or {})
        content = {key: value for key, value in content.items() if entries is None or key not in entries or value is not None}
        (folder / name).write_text(json.dumps(content))
    shutil.copy(GOLDEN / "llama/tokenizer.json", folder)
    return folder


def byte_level(folder, *special, **keys):
    """Replace the tokenizer of a folder by one of bytes like those of GPT-2 and Qwen, without BOS token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({text: token for token, text in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_end|>", *special])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"} | keys
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def qwen(path):
    """A folder with a tokenizer of bytes, and the id of its EOS token in its config.json."""
    return byte_level(folder_of(path, config={"eos_token_id": 257, "bos_token_id": None}, generation={"eos_token_id": 257}))


def configured(path, folder, **model):
    tree = golden_tree(path)
    tree["model"] |= {"llama_model": str(folder)} | model
    return loaded(path, tree)


def prompt_of(path, folder, **model):
    config = configured(path, folder, **model)
    return config.model_class.prompt_format(config.model)


def warnings_of(path, folder, dtype=torch.float32, **model):
    config = configured(path, folder, **model)
    model_class, cpu = config.model_class, torch.device("cpu")
    return model_class.check_language_model(config.model, model_class.prompt_format(config.model), device=cpu, frozen_dtype=dtype)


def refusal(path, folder, **model):
    with pytest.raises(UserError) as error:
        prompt_of(path, folder, **model)
    return str(error.value)


def ids_of(prompt, text):
    return prompt.tokenizer(text, add_special_tokens=False).input_ids


# BOS and EOS


def test_without_a_bos_token_training_and_generation_start_with_the_same_ids_of_the_prompt(tmp_path):
    prompt = prompt_of(tmp_path, qwen(tmp_path), end_sym="<|im_end|>")
    trained = prompt.tokenize(record(("Why?", "yes"))).input_ids.tolist()
    asked = prompt.tokenize(record(("Why?", "yes")), for_generation=True).input_ids.tolist()
    assert trained[: len(asked)] == asked and asked[:6] == ids_of(prompt, "[INST]")
    assert trained[len(asked) :] == [*ids_of(prompt, "yes"), prompt.tokenizer.eos_token_id]


@pytest.fixture
def without_eos(golden_prompt):
    """The golden prompt format with a tokenizer that has no EOS token."""
    tokenizer = copy.deepcopy(golden_prompt.tokenizer)
    tokenizer.eos_token = None
    return rebuilt(golden_prompt, tokenizer=tokenizer)


def test_without_an_eos_token_an_answer_ends_with_the_end_symbol(without_eos):
    ids = without_eos.answer_ids("happy")
    assert without_eos.tokenizer.eos_token_id is None and not without_eos.ends_with_eos
    assert without_eos.is_finished(ids) and not without_eos.is_finished(ids[:-1])


@pytest.fixture(scope="module")
def questions(golden_prompt, golden_dataset):
    instruction = golden_dataset.pool.first_instruction("emotion")
    records = [golden_dataset.record(index, "emotion", instruction) for index in range(3)]
    return collate([golden_prompt.tokenize(each, for_generation=True) for each in records])


def test_without_an_eos_token_greedy_answers_are_those_with_the_same_end_symbol(
    golden_model, golden_prompt, without_eos, questions
):
    params = SamplingParams(max_new_tokens=30)
    answers = [
        generate([golden_model], questions, params, prompt.is_finished, [0, 0, 0]) for prompt in (golden_prompt, without_eos)
    ]
    assert answers[0] == answers[1] and any(ids[-1] == 2 for ids in answers[0])


def test_without_an_eos_token_beam_search_ends_at_the_end_symbol(golden_model, golden_prompt, without_eos, questions):
    options = {"num_beams": 2, "max_new_tokens": 30, "do_sample": False}
    with_eos = golden_model.beam_search(questions, golden_prompt, options)
    answers = golden_model.beam_search(questions, without_eos, options)
    assert len({len(ids) for ids in answers}) > 1
    assert all(ids.count(2) == (len(ids) < 30) and min(ids) >= 0 for ids in answers)
    assert [without_eos.answer_text(ids) for ids in answers] == [golden_prompt.answer_text(ids) for ids in with_eos]


@pytest.mark.parametrize("template", ["<s>[INST] {} [/INST]", " <s> [INST] {} [/INST]"])
def test_a_template_that_starts_with_the_bos_token_of_the_sequence_is_refused(tmp_path, template):
    assert refusal(tmp_path, GOLDEN / "llama", prompt_template=template) == (
        f"{FORMAT}: bos: the sequence gets a BOS token, and the prompt of the layout 'train' starts with its text '<s>', too."
        " Remove it from model.prompt_template or template, or set model.prompt_format.bos: never."
    )


def test_a_format_that_starts_with_the_bos_token_only_without_its_optional_section_is_refused(tmp_path):
    template = [{"optional": "{video}"}, "<s>{feature} {text}"]
    block = {"type": "template", "template": template}
    assert "starts with its text '<s>'" in refusal(tmp_path, GOLDEN / "llama", chat_template=False, prompt_format=block)


def test_a_template_may_contain_the_bos_token_that_the_format_does_not_add(tmp_path):
    template, block = "<s>[INST] {} [/INST]", {"bos": "never", "layouts": {}}
    ids = prompt_of(tmp_path, GOLDEN / "llama", prompt_template=template, prompt_format=block).tokenize(record(("Why?", "a")))
    assert ids.input_ids.tolist().count(1) == 1 and int(ids.input_ids[0]) == 1


def test_the_text_of_a_bos_token_of_other_models_is_not_a_repeated_bos_token(tmp_path):
    assert prompt_of(tmp_path, qwen(tmp_path), end_sym="<|im_end|>", prompt_template="<s>[INST] {} [/INST]")


@pytest.mark.parametrize(("end_sym", "text"), [("</s>", "is already the"), ("###</s>", "already ends with the")])
def test_an_eos_token_after_an_end_symbol_that_ends_with_it_is_refused(tmp_path, end_sym, text):
    message = refusal(tmp_path, GOLDEN / "llama", end_sym=end_sym, prompt_format={"eos": True})
    assert message == f"{FORMAT}: eos: model.end_sym '{end_sym}' {text} EOS token. Set eos: False."


@pytest.mark.parametrize("pad", ["</s>", None])
def test_the_eos_token_of_an_answer_has_a_label_and_a_weight_also_if_it_is_the_pad_token(tmp_path, pad):
    prompt = prompt_of(tmp_path, folder_of(tmp_path, tokenizer={"pad_token": pad}))
    sample = prompt.tokenize(record(("Why?", "yes")))
    assert prompt.tokenizer.pad_token_id == (pad and 2)
    weight = 1 / int((sample.labels != IGNORED).sum())
    assert int(sample.labels[-1]) == 2 and float(sample.loss_weights[-1]) == pytest.approx(weight)


def test_generation_ends_at_an_eos_token_that_is_the_pad_token(golden_model, golden_prompt, questions):
    tokenizer = copy.deepcopy(golden_prompt.tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    padded, params = rebuilt(golden_prompt, tokenizer=tokenizer), SamplingParams(max_new_tokens=30)
    answers = generate([golden_model], questions, params, padded.is_finished, [0, 0, 0])
    assert answers == generate([golden_model], questions, params, golden_prompt.is_finished, [0, 0, 0])
    assert any(ids[-1] == 2 for ids in answers)


# Sizes of the vocabulary and of the table


def test_a_tokenizer_with_ordinary_tokens_beyond_the_table_is_refused(tmp_path):
    folder = folder_of(tmp_path, config={"vocab_size": 700})
    assert refusal(tmp_path, folder) == (
        f"model.llama_model: the tokenizer in '{folder}' is that of another model: its tokens have ids up to 799, but the"
        " embedding table of the language model has 700 rows (vocab_size in config.json). Put the tokenizer files that belong"
        " to the model into its folder."
    )


@pytest.fixture
def padded_folder(tmp_path):
    """A folder whose tokenizer has one more token than the table has rows, as that of some copies of Llama 2."""
    return folder_of(tmp_path, tokenizer={"pad_token": "<pad>"})


def test_an_added_token_beyond_the_table_does_not_change_prompts(tmp_path, padded_folder, golden_prompt):
    prompt = prompt_of(tmp_path, padded_folder)
    assert prompt.tokenizer.pad_token_id == golden_prompt.feature_tokens.embedding_rows
    turn = record(("Why <s>?", "yes"))
    assert prompt.tokenize(turn).input_ids.equal(golden_prompt.tokenize(turn).input_ids)


@pytest.mark.parametrize("text", ["<pad>", "a<pad>b", "<pad><pad>", "<<pad>pad>"])
def test_the_text_of_an_added_token_beyond_the_table_stays_text(tmp_path, padded_folder, text):
    prompt = prompt_of(tmp_path, padded_folder)
    sample, plain = (prompt.tokenize(record((words, words))) for words in (text, "x"))
    rows = prompt.feature_tokens.embedding_rows
    assert int(sample.input_ids.max()) < rows and int((sample.input_ids < 0).sum()) == int((plain.input_ids < 0).sum())


@pytest.mark.parametrize(
    ("model", "key"),
    [
        ({"end_sym": "<pad>"}, "model.end_sym"),
        ({"end_sym": "<pad>", "prompt_format": {"eos": True}}, "model.end_sym"),
        ({"prompt_template": "[INST] {} <pad>"}, "template, or model.prompt_template"),
        ({"prompt_format": {"template": "{video}<pad>{feature} {text}"}}, "template, or model.prompt_template"),
        ({"prompt_format": {"bos_token": "<pad>"}}, "bos"),
    ],
)
def test_a_configured_text_with_a_token_beyond_the_table_is_refused(tmp_path, padded_folder, model, key):
    message = refusal(tmp_path, padded_folder, **model)
    assert message.startswith(f"{FORMAT}: {key}: ")
    assert "the token '<pad>' has the id 800, but the embedding table of the language model has only 800 rows" in message


def test_an_eos_token_beyond_the_table_is_refused(tmp_path):
    folder = folder_of(tmp_path, tokenizer={"eos_token": "<end>"})
    assert refusal(tmp_path, folder).startswith(f"{FORMAT}: eos: the token '<end>' has the id 800, but the embedding table")


@pytest.mark.parametrize("tokenize", ["segments", "whole"])
def test_a_text_that_becomes_a_token_beyond_the_table_is_refused_with_the_text(tmp_path, tokenize):
    folder = folder_of(tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text())
    run = {"id": 800, "content": "    ", "special": False, "normalized": False}
    content["added_tokens"].append(run | dict.fromkeys(("single_word", "lstrip", "rstrip"), False))
    (folder / "tokenizer.json").write_text(json.dumps(content))
    prompt = prompt_of(tmp_path, folder, prompt_format={"tokenize": tokenize})
    assert prompt.tokenize(record(("Why now?", "yes")))
    with pytest.raises(UserError, match=r"the text '.*Why    now\?.*' cannot be used: the token '    ' has the id 800"):
        prompt.tokenize(record(("Why    now?", "yes")))


@pytest.mark.parametrize(("key", "value"), [("bos_token_id", 900), ("eos_token_id", 900), ("eos_token_id", [2, 900])])
def test_a_special_token_of_the_model_that_the_tokenizer_lacks_is_refused(tmp_path, key, value):
    folder = folder_of(tmp_path, config={key: value, "vocab_size": 1000})
    assert f"{key} in config.json is 900, but the ids of the tokenizer end at 799. Put" in refusal(tmp_path, folder)


@pytest.mark.parametrize("value", [None, -1, 50256, [2, 50256]])
def test_an_id_without_a_row_in_the_table_is_a_default_and_not_compared(tmp_path, value):
    assert prompt_of(tmp_path, folder_of(tmp_path, config={"eos_token_id": value}))


# Warnings


def test_a_tokenizer_that_loses_text_is_a_warning(tmp_path):
    # transformers chooses the class of Qwen's tokenizer by the type of the model, whatever the files contain.
    for name in ("right", "wrong"):
        (tmp_path / name).mkdir()
    folder = folder_of(tmp_path)
    assert not any("loses text" in line for line in warnings_of(tmp_path / "right", folder))
    config = AutoConfig.for_model("qwen2", vocab_size=832, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    config.save_pretrained(folder)
    assert any("loses text" in line and "Qwen2Tokenizer" in line for line in warnings_of(tmp_path / "wrong", folder))


@pytest.mark.parametrize(
    ("rows", "tokens", "warned"),
    [(151936, 151669, False), (51200, 50295, False), (5000, 4100, False), (32000, 29500, False), (151936, 32000, True)],
)
def test_a_table_with_far_more_rows_than_tokens_is_a_warning(golden_prompt, rows, tokens, warned):
    class Other:
        eos_token_id = unk_token_id = None

        def get_vocab(self):
            return {str(token): token for token in range(tokens)}

        def __call__(self, text, **options):
            return SimpleNamespace(input_ids=text)

        def decode(self, ids):
            return ids

    lines = warnings(Other(), LLMVocabulary("folder", rows), "###")
    assert len(lines) == warned
    assert all(f"has {tokens} tokens, but the embedding table of the language model has {rows} rows" in line for line in lines)


@pytest.mark.parametrize(
    ("config", "generation", "warned"),
    [
        ({"eos_token_id": 7}, {"eos_token_id": [8, 9]}, True),
        ({"eos_token_id": 7}, {"eos_token_id": [8, 2]}, False),
        ({"eos_token_id": [7, 2]}, {"eos_token_id": 8}, False),
        ({"eos_token_id": [7]}, {"eos_token_id": None}, True),
        ({}, None, False),
    ],
)
def test_an_eos_token_that_the_model_does_not_name_is_a_warning(tmp_path, config, generation, warned):
    lines = warnings_of(tmp_path, folder_of(tmp_path, config=config, generation=generation))
    assert len(lines) == warned
    assert all("the EOS token of the tokenizer" in line and "is 2 ('</s>'), but config.json and" in line for line in lines)


def test_a_damaged_generation_config_is_ignored(tmp_path):
    folder = folder_of(tmp_path)
    (folder / "generation_config.json").write_text("{")
    assert warnings_of(tmp_path, folder) == []


@pytest.mark.parametrize(("end_sym", "warned"), [("</s>", True), ("<|eot|>", True), ("<|im_end|>", False), ("###", False)])
def test_an_end_symbol_that_looks_like_a_special_token_but_is_none_is_a_warning(tmp_path, end_sym, warned):
    lines = warnings_of(tmp_path, qwen(tmp_path), end_sym=end_sym)
    assert len(lines) == warned
    for line in lines:
        assert line.startswith(f"model.end_sym: '{end_sym}' looks like a special token, but the tokenizer has no such token")
        assert "Set model.end_sym: '<|im_end|>', its EOS token" in line


def test_the_golden_model_has_no_warnings(tmp_path):
    assert warnings_of(tmp_path, GOLDEN / "llama", torch.float16) == []


RUNS = [("bfloat16", torch.float16), ("bfloat16", torch.bfloat16), ("bfloat16", torch.float32), ("float16", torch.float16)]


@pytest.mark.parametrize(("dtype", "run"), RUNS)
def test_a_bfloat16_model_in_a_float16_run_is_a_warning(tmp_path, dtype, run):
    lines = warnings_of(tmp_path, folder_of(tmp_path, config={"torch_dtype": dtype}), run)
    assert len(lines) == (dtype == "bfloat16" and run == torch.float16)
    assert all(line.startswith("run.amp_dtype: ") and "Set run.amp_dtype: bf16, or run.amp: False." in line for line in lines)


@pytest.mark.slow
def test_a_dry_run_prints_each_warning_once(tmp_path, emollama):
    folder = folder_of(tmp_path, config={"torch_dtype": "bfloat16", "eos_token_id": 7}, generation={"eos_token_id": 7})
    (folder / "model.safetensors").touch()
    tree = golden_tree(tmp_path)
    tree["model"]["llama_model"] = str(folder)
    tree["run"] |= {"amp": True, "amp_dtype": "fp16"}
    done = emollama("train", "--dry-run", "--cfg-path", write(tmp_path, tree))
    assert done.returncode == 0
    assert done.stderr.count("the EOS token of the tokenizer") == done.stderr.count("was trained in bfloat16") == 1


# The end symbol


def test_an_end_symbol_that_the_tokenizer_cannot_represent_is_refused(tmp_path):
    folder = qwen(tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "Lowercase"}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert refusal(tmp_path, folder, end_sym="END") == (
        f"{FORMAT}: model.end_sym: the tokenizer turns 'END' into ids that mean 'end', so the end of a generated answer could not"
        " be recognized. Use another end symbol, such as the tokenizer's EOS token '<|im_end|>'."
    )


def test_an_end_symbol_that_is_split_into_the_bytes_of_its_characters_is_recognized(tmp_path):
    prompt = prompt_of(tmp_path, qwen(tmp_path), end_sym="終")
    ids = prompt.answer_ids("yes")
    assert len(ids) == 3 + 3 and prompt.is_finished(ids) and not prompt.is_finished(ids[:-1])
    assert prompt.answer_text(ids) == "yes"


# Folders that transformers cannot read


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "'{folder}' contains no config.json. Set the folder of a Hugging Face causal language model."),
        ("{", "'{file}' cannot be read as JSON: Expecting property name"),
        ("[]", "'{file}' is not a JSON object. Download it again."),
        ("{}", "'{file}' has no model_type. Set the folder of a Hugging Face causal language model."),
        ('{"model_type": ["llama"]}', "'{file}' has no model_type."),
        ('{"model_type": "x"}', r"'{file}': transformers \S+ has no model of the type 'x'. Upgrade transformers, or use another"),
        ('{"model_type": "llama", "vocab_size": "x"}', "'{file}' cannot be used: .*vocab_size.*. Download it again."),
        ('{"model_type": "clip"}', "'{file}': models of the type 'clip' are not causal language models. Use another model."),
        ('{"model_type": "t5"}', "'{file}': models of the type 't5' are not causal language models. Use another model."),
    ],
)
def test_a_configuration_that_cannot_be_used_has_a_short_message(tmp_path, content, message):
    folder = folder_of(tmp_path)
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_text(content)
    text = refusal(tmp_path, folder)
    expected = message.replace("{folder}", re.escape(str(folder))).replace("{file}", re.escape(f"{folder}/config.json"))
    assert re.match(f"model.llama_model: {expected}", text) and len(text) < 300 + len(str(folder))


@pytest.mark.parametrize("config", [{"model_type": "own"}, {"model_type": None}, {"model_type": "t5"}])
def test_a_model_that_needs_code_of_its_folder_is_refused_without_executing_it(tmp_path, config):
    names = {"AutoConfig": "code.Own", "AutoModelForCausalLM": "code.Own"}
    folder = folder_of(tmp_path, config={"auto_map": names} | config)
    (folder / "code.py").write_text(PROBE)
    assert refusal(tmp_path, folder) == (
        f"model.llama_model: the language model in '{folder}' needs Python code from its folder (auto_map), which is never"
        " executed. Use a version of the model that transformers implements itself, or another language model."
    )
    assert not (folder / "executed").exists()


def test_a_model_with_code_that_transformers_implements_is_built_without_executing_the_code(tmp_path):
    names = {"AutoConfig": "code.Own", "AutoModelForCausalLM": "code.Own"}
    tokenizer = {"auto_map": {"AutoTokenizer": ["code.Own", None]}}
    folder = folder_of(tmp_path, config={"auto_map": names}, tokenizer=tokenizer)
    (folder / "code.py").write_text(PROBE)
    shutil.copy(GOLDEN / "llama/model.safetensors", folder)
    config = configured(tmp_path, folder)
    assert config.model_class.prompt_format(config.model).tokenize(record(("Why?", "yes")))
    config.model_class(config.model, device=torch.device("cpu"), frozen_dtype=torch.float32)
    assert not (folder / "executed").exists()


@pytest.mark.parametrize("model_type", ["llama", "bloom"])
def test_a_tokenizer_that_needs_code_of_its_folder_is_refused_without_executing_it(tmp_path, monkeypatch, model_type):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("transformers asks whether to execute the code"))
    tokenizer = {"auto_map": {"AutoTokenizer": ["code.Own", None]}, "tokenizer_class": "Own"}
    folder = folder_of(tmp_path, config={"model_type": model_type}, tokenizer=tokenizer)
    # transformers knows the tokenizer of Llama, but not that of Bloom, without the code.
    if model_type == "llama":
        (folder / "tokenizer.json").unlink()
    (folder / "code.py").write_text(PROBE)
    assert refusal(tmp_path, folder).startswith(
        f"model.llama_model: the tokenizer in '{folder}' needs Python code from its folder (auto_map), which is never executed."
    )
    assert not (folder / "executed").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "it has no vocabulary"), ("{", "Expecting property name"), ('{"model": {"type": "x"}}', "'added_tokens'")],
)
def test_tokenizer_files_that_cannot_be_used_are_refused_with_the_files_that_are_needed(tmp_path, content, reason):
    folder = folder_of(tmp_path)
    (folder / "tokenizer.json").unlink()
    if content is not None:
        (folder / "tokenizer.json").write_text(content)
    message = refusal(tmp_path, folder)
    assert message.startswith(f"model.llama_model: no usable tokenizer in '{folder}': {reason}")
    assert message.endswith(
        "Put the tokenizer files of the model there (tokenizer.json or tokenizer.model, and tokenizer_config.json)."
    )
