"""Templates of prompts: text with the positions of the fusion module's outputs and of the user text."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from emollama.suggestions import did_you_mean

USER_TEXT = "text"  # the user text is at {text}; every other {name} is an output
OPTIONAL = "optional"
_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


@dataclass(frozen=True)
class Fragment:
    """A piece of a template.

    Attributes:
        kind: ``text`` of the template, an ``output`` of the fusion module, or the ``user_text``.
        value: the text, or the name of the output; "" for the user text.
    """

    kind: Literal["text", "output", "user_text"]
    value: str = ""


@dataclass(frozen=True)
class Section:
    """Consecutive fragments of a template; those of an optional section are left out together."""

    optional: bool
    fragments: tuple[Fragment, ...]

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs in this section."""
        return tuple(fragment.value for fragment in self.fragments if fragment.kind == "output")


@dataclass(frozen=True)
class PromptTemplate:
    """A parsed template."""

    sections: tuple[Section, ...]

    @classmethod
    def parse(cls, value: Any, key: str) -> PromptTemplate:
        """Parse a template.

        Args:
            value: a text with ``{text}`` and ``{output}``, or a list of such texts and of ``{optional: text}`` mappings.
            key: the configuration key of the template, for messages.

        Raises:
            ValueError: If the braces do not match, ``{text}`` is missing or repeated, an output is repeated, or an optional
                section has no output. The message contains the key.
        """
        items = value if isinstance(value, list) else [value]
        template = cls(tuple(_section(item, key) for item in items))
        kinds = [fragment.kind for section in template.sections for fragment in section.fragments]
        if kinds.count("user_text") != 1:
            count = kinds.count("user_text")
            raise ValueError(f"{key} contains {{text}} {count} times. Write it once, at the position of the user text.")
        repeated = next((name for name in template.outputs if template.outputs.count(name) > 1), None)
        if repeated is not None:
            raise ValueError(f"{key} contains {{{repeated}}} more than once. The tokens of an output have one position.")
        return template

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""
        return tuple(name for section in self.sections for name in section.outputs)

    def fragments(self, counts: Mapping[str, int]) -> Iterator[Fragment]:
        """Yield the fragments of a sample's turn, without optional sections whose outputs are empty.

        Args:
            counts: output -> number of its feature tokens; a missing output is treated as not empty.
        """
        for section in self.sections:
            if not section.optional or any(counts.get(name, 1) for name in section.outputs):
                yield from section.fragments

    def check_outputs(self, outputs: Mapping[str, Collection[str]], key: str, placed_elsewhere: Collection[str] = ()) -> None:
        """Check that the template has every output of the fusion module, and no other. An output without parts may be missing.

        Args:
            outputs: name of an output of the fusion module -> names of its parts.
            key: the configuration key of the template, for messages.
            placed_elsewhere: outputs that the format inserts at another position.

        Raises:
            ValueError: If an output is unknown, missing, or placed twice. The message contains the key.
        """
        names = ", ".join(f"{{{name}}}" for name in outputs)
        for name in self.outputs:
            if name not in outputs:
                hint = did_you_mean(name, [*outputs, USER_TEXT])
                raise ValueError(
                    f"{key}: unknown output {{{name}}}.{hint} The fusion module has {names}; {{text}} is the user text."
                )
            if name in placed_elsewhere:
                raise ValueError(f"{key}: {{{name}}} is already inserted at the tag in the user text. Remove one of the two.")
        missing = [name for name, parts in outputs.items() if parts and name not in {*self.outputs, *placed_elsewhere}]
        if missing:
            raise ValueError(
                f"{key} has no {{{missing[0]}}}, so these feature tokens would never reach the language model. The fusion module"
                f" has {names}. Add the missing ones to the template."
            )


def _section(item: Any, key: str) -> Section:
    optional = isinstance(item, dict)
    if optional and list(item) != [OPTIONAL]:
        raise ValueError(f"{key}: {item!r} is not a section. Write a text, or {{{OPTIONAL}: text}}.")
    text = item[OPTIONAL] if optional else item
    if not isinstance(text, str):
        raise ValueError(f"{key}: {text!r} is not a text. Write the template in quotes.")
    section = Section(optional, tuple(_fragments(text, key)))
    if optional and any(fragment.kind == "user_text" for fragment in section.fragments):
        raise ValueError(f"{key}: the optional section {text!r} contains {{text}}, which every prompt needs. Move it outside.")
    if optional and not section.outputs:
        raise ValueError(
            f"{key}: the optional section {text!r} contains no output, so it would never be left out. Write it as plain text."
        )
    return section


def _fragments(text: str, key: str) -> Iterator[Fragment]:
    """Yield the fragments of a text; ``{{`` and ``}}`` are braces."""
    literal, position = "", 0
    for match in _TOKEN.finditer(text):
        literal += text[position : match.start()]
        position = match.end()
        if match[0] in ("{{", "}}"):
            literal += match[0][0]
            continue
        if match[1] is None:
            raise ValueError(
                f"{key}: the brace at character {match.start() + 1} of {text!r} has no counterpart. Write {{{{ or }}}} for a"
                " brace in the text."
            )
        if literal:
            yield Fragment("text", literal)
        literal = ""
        yield Fragment("user_text") if match[1] == USER_TEXT else Fragment("output", match[1])
    if literal + text[position:]:
        yield Fragment("text", literal + text[position:])
