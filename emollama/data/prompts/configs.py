"""Keys of the registered prompt formats, under ``model.prompt_format``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal

from emollama.data.prompts.image_tag import IMAGE_TAG, check_instruction
from emollama.data.prompts.template import USER_TEXT, PromptTemplate
from emollama.field_texts import documented
from emollama.suggestions import did_you_mean

TRAIN = "train"  # name of the layout of training
Tokenization = Literal["segments", "whole"]
BosRule = Literal["always", "training", "never"]


@dataclass(frozen=True)
class PromptLayout:
    """The positions of outputs and user text in a first turn.

    Attributes:
        template: the text of the turn, which goes into ``{}`` of ``model.prompt_template``.
        second_bos: whether the turn starts with the text of a BOS token, in addition to the BOS token of the sequence.
    """

    template: PromptTemplate
    second_bos: bool = False


@documented
@dataclass
class TemplateFormatConfig:
    """Keys of a prompt format that is described by a template."""

    template: Any
    """Text of the first user turn, which goes into {} of model.prompt_template. {text} is the user text (sentence, task and
    instruction); {video}, or the name of another output of the fusion module, is the position of its feature tokens. A list
    consists of such texts and of mappings {optional: text}, which are left out if their outputs have no tokens for a sample."""
    layouts: dict[str, Any] = field(default_factory=dict)
    """Further layouts, which an evaluation block selects with prompt_layout: name -> {template: ..., second_bos: False}. With
    second_bos, the turn starts with the text of a BOS token, in addition to the BOS token of the sequence."""
    tokenize: Tokenization = "segments"
    """segments: the texts between outputs are tokenized separately, as in MiniGPT-4. whole: the turn is tokenized at once, with
    one special token at the position of each output, as in AffectGPT."""
    bos: BosRule = "always"
    """When the sequence starts with a BOS token: always, training (targets with a loss, but not generation), or never."""
    bos_token: str | None = None
    """Text of the BOS token. If null, it is the tokenizer's; a tokenizer without a BOS token adds none."""
    eos: bool = False
    """Whether the tokenizer's EOS token follows model.end_sym in the targets of training."""
    tagged_output: str | None = None
    """Output that is inserted at <ImageHere> in the user text, instead of at a position in the template."""
    tag_prefix: str = IMAGE_TAG
    """Text with <ImageHere> in front of a user text that has no <ImageHere>."""
    prompts: list[str] = field(default_factory=list)
    """User texts for samples whose dataset has none. Training chooses one at random, evaluation uses the first."""

    def __post_init__(self) -> None:
        for prompt in self.prompts:
            try:
                check_instruction(prompt)
            except ValueError as error:
                raise ValueError(f"prompts: {error}") from None
        if self.tag_prefix.count(IMAGE_TAG) != 1:
            raise ValueError(f"tag_prefix {self.tag_prefix!r} must contain {IMAGE_TAG} exactly once")
        _ = self.parsed_layouts

    @property
    def layout_names(self) -> tuple[str, ...]:
        """The values that ``prompt_layout`` of an evaluation block can have."""
        return tuple(self.parsed_layouts)

    @cached_property
    def parsed_layouts(self) -> Mapping[str, PromptLayout]:
        """The layouts by name, that of training first.

        Raises:
            ValueError: If a template or a layout is invalid. The message starts with the key.
        """
        parsed = {TRAIN: PromptLayout(PromptTemplate.parse(self.template, "template"))}
        for name, keys in self.layouts.items():
            if name == TRAIN:
                raise ValueError(f"layouts: '{TRAIN}' is the layout of training, which the key template sets")
            if not isinstance(keys, dict) or "template" not in keys:
                raise ValueError(f"layouts.{name}: 'template' is missing. Write {name}: {{template: ...}}")
            for key in keys:
                if key not in ("template", "second_bos"):
                    hint = did_you_mean(str(key), ["template", "second_bos"])
                    raise ValueError(f"layouts.{name}: unknown key '{key}'.{hint} Keys: template, second_bos")
            second_bos = keys.get("second_bos", False)
            if not isinstance(second_bos, bool):
                raise ValueError(f"layouts.{name}.second_bos is {second_bos!r}; expected True or False")
            parsed[name] = PromptLayout(PromptTemplate.parse(keys["template"], f"layouts.{name}.template"), second_bos)
        return parsed

    def changed(self) -> dict[str, Any]:
        """Return the keys, except ``prompts``, whose values differ from their defaults. A key without a default differs."""
        others = [item for item in fields(self) if item.name != "prompts"]
        defaults = {item.name: item.default_factory() if callable(item.default_factory) else item.default for item in others}
        return {key: getattr(self, key) for key, default in defaults.items() if getattr(self, key) != default}


@documented
@dataclass
class EmotionLlamaFormatConfig(TemplateFormatConfig):
    """Keys of the prompt format of MiniGPT-v2 and Emotion-LLaMA."""

    template: Any = "<video>{video}</video> <feature>{feature}</feature> {text}"
    """Text of the first user turn, as published."""
    layouts: dict[str, Any] = field(
        default_factory=lambda: {
            # In the published evaluation code, the prompt contains the text <s>, and the features are inserted at the first tag.
            "upstream_eval": {
                "template": "<video>{video}{feature}</video> <feature><FeatureHere></feature> {text}",
                "second_bos": True,
            }
        }
    )
    """The layout in which the published code evaluates."""


@documented
@dataclass
class MiniGPT4FormatConfig(TemplateFormatConfig):
    """Keys of the prompt format of MiniGPT-4."""

    template: Any = f"{{{USER_TEXT}}}"
    """Text of the first user turn: only the user text, which contains <ImageHere>."""
    layouts: dict[str, Any] = field(default_factory=lambda: {"upstream_eval": {"template": f"{{{USER_TEXT}}}"}})
    """upstream_eval equals the layout of training, because the published code evaluates with it."""
    tagged_output: str | None = "image"
    """Output that is inserted at <ImageHere> in the user text."""
    tag_prefix: str = f"<Img>{IMAGE_TAG}</Img> "
    """Text with <ImageHere> in front of a user text that has no <ImageHere>."""
    prompts: list[str] = field(
        default_factory=lambda: [
            f"<Img>{IMAGE_TAG}</Img> Describe this picture.",
            f"<Img>{IMAGE_TAG}</Img> What does this picture show?",
            f"<Img>{IMAGE_TAG}</Img> Tell what can be seen in this image.",
            f"<Img>{IMAGE_TAG}</Img> Write a caption for this image.",
        ]
    )
    """User texts for samples whose dataset has none."""
