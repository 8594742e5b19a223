"""Names of the keys of a scoring block in messages: keys of a configuration, or options of a command."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class KeySpelling:
    """The names of a block's keys in messages.

    Attributes:
        block: path of the block in the configuration, such as ``evaluation_datasets.dev``; "" if the keys come from options.
        options: key -> the option that sets it; a key without an option keeps its name.
    """

    block: str = ""
    options: Mapping[str, str] = field(default_factory=dict)

    def name(self, key: str) -> str:
        """Return the key without its block, ``synonyms_path``, or its option, ``--synonyms``."""
        return self.options.get(key, key)

    def path(self, key: str) -> str:
        """Return the key with the path of its block, ``evaluation_datasets.dev.synonyms_path``, or its option."""
        return f"{self.block}.{key}" if self.block and key not in self.options else self.name(key)

    def setting(self, key: str, value: str) -> str:
        """Return the text that sets a key to a value: ``wheel_level: 2`` or ``--wheel-level 2``."""
        return f"{self.options[key]} {value}" if key in self.options else f"{key}: {value}"

    def component(self, key: str, name: str) -> str:
        """Return the text that selects a registered component: ``judge: {type: lexical}`` or ``--judge lexical``."""
        return self.setting(key, name if key in self.options else f"{{type: {name}}}")

    def in_block(self, text: object) -> str:
        """Return the text with the path of the block in front."""
        return f"{self.block}: {text}" if self.block else str(text)


KEYS = KeySpelling()  # plain key names, without the path of a block
