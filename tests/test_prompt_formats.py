"""Prompt formats that are described in the YAML file or in Python; text of data files in every format."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import re
import sys

import numpy as np
import pytest
import yaml
from helpers import NAMES, golden_tree, loaded
from running import ROOT
from torch import zeros

from emollama.data.batch import IGNORED, Record
from emollama.data.fusion_layout import FusionLayout
from emollama.data.instructions import user_text
from emollama.data.prompts.formats import EmotionLlamaFormat, MiniGPT4Format, TemplateFormat
from emollama.data.prompts.prompt import FeatureTokenLayout
from emollama.errors import UserError
from emollama.registry import PROMPT_FORMATS

EMBEDDING_ROWS = 800
OUTPUTS = {"multi": ("multi",), "audio": ("audio",), "video": ("face", "frame")}
AFFECTGPT = """
type: template
template:
- optional: "The audio and video merged info is: <Multi>{multi}</Multi>. "
- optional: "The audio content is as follows: <Audio>{audio}</Audio>. "
- optional: "Meanwhile, we extract faces from these frames: <Video>{video}</Video>. "
- "The subtitle of this video is: <Subtitle>{text} "
tokenize: whole
bos: training
eos: True
"""
TEXT = "I found the keys!</Subtitle>. Please recognize all possible emotional states of the character."


def build(golden_prompt, block, outputs=OUTPUTS, **style):
    """Return the format of a ``prompt_format`` block with the tokenizer of the golden Llama."""
    format_class, cfg = PROMPT_FORMATS.configured(yaml.safe_load(block) if isinstance(block, str) else block, "prompt_format")
    style = dataclasses.replace(golden_prompt.style, **{"template": "###Human: {}###Assistant: ", "end_sym": "###"} | style)
    feature_tokens = FeatureTokenLayout(FusionLayout(outputs, lambda counts: dict(counts)), EMBEDDING_ROWS)
    return format_class(cfg, tokenizer=golden_prompt.tokenizer, style=style, feature_tokens=feature_tokens)


def record(text=TEXT, answer="happy, sad", **counts):
    """Return a record with this number of tokens of each part."""
    counts = {"multi": 1, "audio": 2, "face": 3, "frame": 0} | counts
    return Record("clip", "emotion", [(text, answer)], {part: zeros(count, 4) for part, count in counts.items()})


def text_of(prompt, ids):
    return prompt.tokenizer.decode([int(token) for token in ids if token >= 0])


# Formats in YAML


def test_a_turn_is_tokenized_at_once_as_with_one_special_word_for_each_feature_token(golden_prompt):
    prompt = build(golden_prompt, AFFECTGPT)
    tokenizer = copy.deepcopy(golden_prompt.tokenizer)
    words = {"<MultiHere>": -1, "<AudioHere>": -2, "<FaceHere>": -3}
    tokenizer.add_tokens(list(words), special_tokens=True)
    turn = (
        "###Human: The audio and video merged info is: <Multi><MultiHere></Multi>. The audio content is as follows:"
        " <Audio><AudioHere><AudioHere></Audio>. Meanwhile, we extract faces from these frames:"
        f" <Video><FaceHere><FaceHere><FaceHere></Video>. The subtitle of this video is: <Subtitle>{TEXT} ###Assistant: "
    )
    ids = tokenizer(turn, add_special_tokens=False).input_ids
    ids = [words.get(tokenizer.convert_ids_to_tokens(token), token) for token in ids]
    target = [*tokenizer("happy, sad###", add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    sample = prompt.tokenize(record())
    assert sample.input_ids.tolist() == [tokenizer.bos_token_id, *ids, *target]
    assert sample.labels.tolist() == [IGNORED] * (len(ids) + 1) + target
    assert prompt.tokenize(record(), for_generation=True).input_ids.tolist() == ids
    assert len(golden_prompt.tokenizer) < len(tokenizer)


def test_optional_sections_are_left_out_if_their_outputs_have_no_tokens(golden_prompt):
    prompt = build(golden_prompt, AFFECTGPT)
    sample = prompt.tokenize(record(multi=0, face=0), for_generation=True)
    assert text_of(prompt, sample.input_ids).startswith("###Human: The audio content is as follows: <Audio></Audio>. The sub")
    assert (sample.input_ids == -2).sum() == (sample.input_ids < 0).sum() == 2
    assert prompt.body(record(multi=0, face=0)) == (
        f"The audio content is as follows: <Audio><AudioHere></Audio>. The subtitle of this video is: <Subtitle>{TEXT} "
    )
    assert "<Video></Video>" in text_of(prompt, prompt.tokenize(record(face=0, frame=2)).input_ids)


def test_a_long_prompt_tokenized_at_once_loses_only_the_start_of_its_user_text(golden_prompt):
    whole = build(golden_prompt, AFFECTGPT)
    long = record("word " * 60 + "Which emotion?")
    full = whole.tokenize(long, for_generation=True)
    (length,) = whole.prompt_lengths([long.turns[0][0]])
    assert length == len(full.input_ids) - 6
    cut = build(golden_prompt, AFFECTGPT, max_context_len=length - 40).tokenize(long, for_generation=True)
    assert len(cut.input_ids) == len(full.input_ids) - 40 and cut.tokens_cut == 40
    before, after = (text_of(whole, sample.input_ids).partition("<Subtitle>") for sample in (full, cut))
    assert after[0] == before[0] and after[2].endswith("word Which emotion? ###Assistant: ")
    with pytest.raises(UserError, match="sample 'clip': model.max_context_len 20 leaves no room"):
        build(golden_prompt, AFFECTGPT, max_context_len=20).tokenize(long)


def test_a_template_with_the_text_of_a_registered_format_gives_its_ids(golden_prompt, golden_dataset):
    published = EmotionLlamaFormat.Config()
    own = TemplateFormat.Config(template=published.template, layouts=published.layouts)
    arguments = {name: getattr(golden_prompt, name) for name in ("tokenizer", "style", "feature_tokens")}
    prompt = TemplateFormat(own, **arguments)
    index = [clip.name for clip in golden_dataset.clips].index(NAMES[0])
    sample = golden_dataset.record(index, "reason", golden_dataset.pool.first_instruction("reason"))
    for layout in ("train", "upstream_eval"):
        expected = golden_prompt.tokenize(sample, layout=layout)
        assert prompt.tokenize(sample, layout=layout).input_ids.equal(expected.input_ids)


def test_text_may_follow_the_user_text_and_braces_are_doubled(golden_prompt):
    block = {"type": "template", "template": "{multi}{audio} a {{b}} {text} c {video} d", "bos": "never"}
    prompt = build(golden_prompt, block, template="[{}]")
    sample = prompt.tokenize(record("Why?"), for_generation=True)
    tokenizer = golden_prompt.tokenizer
    texts = [tokenizer(text, add_special_tokens=False).input_ids for text in ("[", " a {b} Why? c ", " d]")]
    assert sample.input_ids.tolist() == [*texts[0], -1, -2, -2, *texts[1], -3, -3, -3, *texts[2]]
    assert prompt.body(record("Why?")) == "<MultiHere><AudioHere> a {b} Why? c <VideoHere> d"


def test_an_output_can_be_inserted_at_the_tag_of_the_user_text(golden_prompt):
    block = {"type": "template", "template": "{multi}{video}{text}", "tagged_output": "audio", "prompts": ["Hear <ImageHere>?"]}
    prompt = build(golden_prompt, block)
    assert prompt.body(record("")) == "<MultiHere><VideoHere>Hear <ImageHere>?"
    ids = prompt.tokenize(record(""), for_generation=True).input_ids.tolist()
    before, after = (golden_prompt.tokenizer(text, add_special_tokens=False).input_ids for text in ("Hear ", "?###Assistant: "))
    assert ids[-len(before + after) - 2 :] == [*before, -2, -2, *after]
    assert prompt.apply_instruction("What?", np.random.default_rng(0)) == "<ImageHere>What?"


def test_the_bos_token_of_a_tokenizer_without_one_is_configurable(golden_prompt):
    block = {"type": "template", "template": "{multi}{audio}{video}{text}", "bos_token": "</s>"}
    assert build(golden_prompt, block).tokenize(record()).input_ids[0] == golden_prompt.tokenizer.eos_token_id


def test_an_option_changes_one_key_of_the_configured_format_or_replaces_the_format(tmp_path):
    tree = golden_tree(tmp_path)
    key = "model.prompt_format"
    default = loaded(tmp_path, tree, f"{key}.bos=never")
    assert default.model.prompt_format == {"type": "emotion_llama", "bos": "never"}
    assert default.sources[f"{key}.bos"] == "--options"
    layout = {"template": "{feature}{video} {text}"}
    own = {"type": "template", "template": "{video}{feature}{text}", "layouts": {"a": layout}}
    tree["model"]["prompt_format"] = own
    changed = loaded(tmp_path, tree, f"{key}.template=See {{video}}{{feature}} {{text}}", f"{key}.layouts.a.second_bos=True")
    assert changed.model.prompt_format == own | {
        "template": "See {video}{feature} {text}",
        "layouts": {"a": layout | {"second_bos": True}},
    }
    assert loaded(tmp_path, tree, f"{key}={{type: minigpt4}}").model.prompt_format == {"type": "minigpt4"}
    assert loaded(tmp_path, tree, f"{key}=emotion_llama").model.prompt_format == "emotion_llama"


# The stored hash


def test_the_hash_changes_with_everything_that_changes_prompts_and_is_that_of_earlier_versions_without_changes(golden_prompt):
    defaults = MiniGPT4Format.Config()
    earlier = hashlib.sha256("\n".join(defaults.prompts).encode()).hexdigest()[:16]
    image = {"image": ("image",)}
    assert golden_prompt.digest() is None
    assert build(golden_prompt, {"type": "minigpt4"}, image).digest() == earlier
    keys = {"template": "{multi}{audio}{video}{text}"}
    changes = [{}, {"template": "{multi}{audio}{video} {text}"}, {"tokenize": "whole"}, {"bos": "never"}, {"prompts": ["a"]}]
    digests = {build(golden_prompt, {"type": "template"} | keys | change).digest() for change in changes}
    digests |= {
        build(golden_prompt, {"type": "minigpt4"} | change, image).digest() for change in ({"eos": True}, {"prompts": ["a"]})
    }
    assert len(digests | {earlier}) == 8


# Text of data files

STRUCTURE = (
    "{video} {text} {{ }} {optional} <ImageHere> <VideoHere> <video> </Video> <s> </s> <unk> ### ###Human: {} \x00 < > | : \n \t"
    " <|emollama:video|> <|emollama:multi|> <|emollama: a é 漢 🙂"
).split(" ")
FORMATS = {
    "emotion_llama": ({"type": "template", "template": "<v>{video}{multi}</v> <a>{audio}</a> {text}"}, {}),
    "whole": (AFFECTGPT, {}),
    "question first": ({"type": "template", "template": "{multi}{text} <v>{video}</v>{audio}", "tokenize": "whole"}, {}),
    "no chat template": (AFFECTGPT, {"chat_template": False}),
}


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("name", FORMATS)
def test_no_text_of_a_data_file_becomes_structure(golden_prompt, name, seed):
    rng = np.random.default_rng(seed)
    block, style = FORMATS[name]
    prompt = build(golden_prompt, block, **style)
    text, answer = ("".join(rng.choice(STRUCTURE, size=rng.integers(1, 9))) for _ in range(2))
    sample = prompt.tokenize(record(text, answer))
    plain = prompt.tokenize(record("x", "x"))
    structural = [*range(-4, 0), *golden_prompt.tokenizer.all_special_ids]
    for token in structural:
        assert (sample.input_ids == token).sum() == (plain.input_ids == token).sum(), (text, answer, token)
    assert int(sample.input_ids.min()) >= -4 and int(sample.input_ids.max()) < EMBEDDING_ROWS
    shown = text_of(prompt, sample.input_ids)
    for part in (text, answer):
        assert re.sub(r"\s", "", part) in re.sub(r"\s", "", shown)


def test_an_image_tag_in_a_transcript_is_not_the_position_of_the_image(golden_prompt):
    prompt = build(golden_prompt, {"type": "minigpt4"}, {"image": ("image",)})
    text = user_text("emotion", "Look at <ImageHere>. Which?", "She says <ImageHere>")
    sample = prompt.tokenize(Record("clip", "emotion", [(text, None)], {"image": zeros(2, 4)}))
    first = sample.input_ids.tolist().index(-1)
    assert text_of(prompt, sample.input_ids[:first]).endswith("She says < ImageHere>.  [emotion] Look at ")


# Bad input


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("tempalte", "Unknown prompt format 'tempalte'. Did you mean 'template'? Registered: emotion_llama, minigpt4, template"),
        ("template", "'template' is missing, which template requires"),
        ({"type": "template", "template": "x"}, "template contains {text} 0 times. Write it once"),
        ({"type": "template", "template": ["{text}", "{text}"]}, "template contains {text} 2 times. Write it once"),
        (
            {"type": "template", "template": "{video {text}"},
            "template: the brace at character 1 of '{video {text}' has no counterpart",
        ),
        (
            {"type": "template", "template": "{text} }"},
            "the brace at character 8 of '{text} }' has no counterpart. Write {{ or }}",
        ),
        ({"type": "template", "template": "{video} {video} {text}"}, "template contains {video} more than once"),
        ({"type": "template", "template": ["{text}", {"optional": "a"}]}, "the optional section 'a' contains no output"),
        ({"type": "template", "template": [{"optional": "{video} {text}"}]}, "contains {text}, which every prompt needs"),
        ({"type": "template", "template": ["{text}", {"optionla": "a"}]}, "{'optionla': 'a'} is not a section"),
        ({"type": "template", "template": 3}, "template: 3 is not a text. Write the template in quotes"),
        ({"type": "template", "template": "{text}", "tokenise": "whole"}, "unknown key 'tokenise'. Did you mean 'tokenize'?"),
        (
            {"type": "template", "template": "{text}", "tokenize": "hole"},
            "tokenize: expected one of segments, whole, got 'hole'. Did you mean 'whole'?",
        ),
        ({"type": "template", "template": "{text}", "bos": True}, "bos: expected one of always, training, never, got True."),
        ({"type": "template", "template": "{text}", "eos": "maybe"}, "eos: expected True or False, got 'maybe'."),
        ({"type": "template", "template": "{text}", "bos_token": []}, "bos_token: expected a text or null, got []."),
        ({"type": "template", "template": "{text}", "prompts": "a"}, "prompts: expected a list of texts, got 'a'."),
        ({"type": "template", "template": "{text}", "prompts": [[]]}, "prompts: expected a list of texts, got [[]]."),
        (
            {"type": "template", "template": "{text}", "prompts": ["<imagehere>"]},
            "prompts: '<imagehere>' must contain <ImageHere>",
        ),
        ({"type": "template", "template": "{text}", "tag_prefix": "x"}, "tag_prefix 'x' must contain <ImageHere> exactly once"),
        ({"type": "emotion_llama", "layouts": {"a": "{text}"}}, "layouts.a: 'template' is missing"),
        ({"type": "emotion_llama", "layouts": {"a": {"template": "x"}}}, "layouts.a.template contains {text} 0 times"),
        ({"type": "emotion_llama", "layouts": {"a": {"template": "{text}", "bos": 1}}}, "layouts.a: unknown key 'bos'"),
        ({"type": "emotion_llama", "layouts": {"train": {"template": "{text}"}}}, "layouts: 'train' is the layout of training"),
        ({"type": "emotion_llama", "layouts": {"a": {"template": "{text}", "second_bos": 2}}}, "layouts.a.second_bos is 2"),
    ],
)
def test_an_invalid_format_is_refused_when_the_configuration_is_loaded(tmp_path, block, message):
    tree = golden_tree(tmp_path)
    tree["model"]["prompt_format"] = block
    with pytest.raises(UserError) as error:
        loaded(tmp_path, tree)
    assert str(error.value).startswith(f"{tmp_path}/config.yaml: model: prompt_format: ") and message in str(error.value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"template": "{vidoe} {feature} {text}"},
            r"model\.prompt_format: template: unknown output {vidoe}\. Did you mean 'video'\? The fusion module has {video}, "
            r"{feature}; {text} is the user text",
        ),
        (
            {"template": "{video} {text}"},
            r"model\.prompt_format: template has no {feature}, so these feature tokens would never reach the language model\.",
        ),
        ({"template": "{video}{feature}{text}", "layouts": {"a": {"template": "{video}{text}"}}}, r"layouts\.a\.template has no"),
        ({"template": "{video}{feature}{text}", "tagged_output": "video"}, "{video} is already inserted at the tag"),
        ({"template": "{video}{feature}{text}", "tagged_output": "vid"}, "tagged_output: the fusion module has no output 'vid'"),
        ({"template": "{video}{feature}{text}", "bos_token": "<bos>"}, "bos_token: '<bos>' is not a token of the language model"),
        ({"template": "{video}{feature}{text}", "eos": True}, "eos: model.end_sym '</s>' is already the EOS token"),
    ],
)
def test_a_format_that_does_not_fit_the_model_is_refused_before_weights_are_read(tmp_path, keys, message):
    tree = golden_tree(tmp_path)
    tree["model"] |= {"prompt_format": {"type": "template"} | keys, "ckpt": "nowhere.pth"}
    config = loaded(tmp_path, tree)
    with pytest.raises(UserError, match=message):
        config.runner_class(config)
    assert not (tmp_path / "out").exists()


def test_an_unknown_layout_of_an_evaluation_block_is_refused_with_the_layouts_of_the_format(tmp_path):
    tree = golden_tree(tmp_path)
    tree["model"]["ckpt"] = "nowhere.pth"
    tree["evaluation_datasets"]["answers"]["prompt_layout"] = "upstream"
    config = loaded(tmp_path, tree)
    with pytest.raises(UserError) as error:
        config.runner_class(config, training=False)
    assert str(error.value) == (
        "evaluation_datasets.answers.prompt_layout: unknown layout 'upstream'. Did you mean 'upstream_eval'?"
        " The layouts of model.prompt_format are train, upstream_eval."
    )


def test_a_registered_format_that_does_not_fit_the_fusion_module_names_the_key_to_set(golden_prompt):
    message = r"template: unknown output {video}.*"
    with pytest.raises(UserError, match=message + r"set model\.prompt_format: {type: template, template: \.\.\.}"):
        build(golden_prompt, "type: emotion_llama", {"gaze": ("gaze",)})


def test_prompts_from_two_sources_are_refused(tmp_path):
    tree = golden_tree(tmp_path)
    model = {"arch": "minigpt4", "llama_model": tree["model"]["llama_model"], "prompt_path": "prompts.txt"}
    tree["model"] = model | {"prompt_format": {"type": "minigpt4", "prompts": ["a"]}}
    with pytest.raises(UserError, match=r"prompt_path and prompt_format\.prompts are both set\. Remove one of them"):
        loaded(tmp_path, tree)


# The documentation

PAGE = (ROOT / "docs/prompt_formats.md").read_text()
YAML = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


def test_the_yaml_example_of_the_documentation_works_as_written(tmp_path, golden_dataset):
    tree = golden_tree(tmp_path)
    tree["model"] |= yaml.safe_load(YAML[0])["model"]
    tree["evaluation_datasets"]["answers"]["prompt_layout"] = "features_first"
    config = loaded(tmp_path, tree)
    prompt = config.model_class.prompt_format(config.model)
    sample = golden_dataset.record(0, "emotion", "Which?")
    text = text_of(prompt, prompt.tokenize(sample).input_ids)
    assert re.match(r"<s> ?###Human: We uniformly sample raw frames from the video: <Video></Video>\. These are", text)
    assert text.endswith("###</s>")
    other = prompt.tokenize(sample, layout="features_first", for_generation=True)
    assert text_of(prompt, other.input_ids).startswith("###Human: <Feature></Feature> <Video></Video> ")


def test_the_python_example_of_the_documentation_works_as_written(tmp_path, monkeypatch, golden_dataset):
    (tmp_path / "my_formats.py").write_text(re.search(r"```python\n(# my_formats.py.*?)```", PAGE, re.DOTALL)[1])
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(PROMPT_FORMATS, "_entries", {})
    tree, example = golden_tree(tmp_path), yaml.safe_load(YAML[1])
    tree["model"] |= example["model"]
    config = loaded(tmp_path, tree | {"imports": example["imports"]})
    prompt = config.model_class.prompt_format(config.model)
    sample = golden_dataset.record(0, "emotion", "Which?")
    trained = [text_of(prompt, prompt.tokenize(sample, rng=np.random.default_rng(seed)).input_ids) for seed in range(20)]
    assert 2 < sum("says" in text for text in trained) < 18
    assert "</feature> [emotion] Which?" in min(trained, key=len)
    assert "says" in text_of(prompt, prompt.tokenize(sample).input_ids)
    sys.modules.pop("my_formats")


def test_the_documentation_describes_every_key():
    keys = re.findall(r"^\| `(\w+)` \| (?!that|your)", PAGE, re.MULTILINE)
    assert keys == [item.name for item in dataclasses.fields(TemplateFormat.Config)]
    names = re.findall(r"^\| `(?:\{type: )?(\w+)\b.*\| (?:that|your)", PAGE, re.MULTILINE)
    assert names == PROMPT_FORMATS.names()
