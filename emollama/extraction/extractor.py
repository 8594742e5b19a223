"""The Protocol of an extractor, the component of the ``extraction`` block."""

from __future__ import annotations

from typing import Protocol

from emollama.config import RunConfig


class Extractor(Protocol):
    """What a registered extractor must provide. Its ``Config`` contains the keys of the ``extraction`` block.

    Args:
        config: the resolved configuration.
    """

    def __init__(self, config: RunConfig) -> None: ...

    def run(self) -> None:
        """Extract the features that do not exist yet."""
        ...

    def dry_run(self, processes: int) -> str:
        """Check everything that :meth:`run` checks before it encodes the first sample, and write nothing.

        Args:
            processes: number of processes that will extract.

        Returns:
            A summary for the terminal; empty on ranks other than 0.
        """
        ...
