"""The Protocol of a runner, which commands and the evaluation of checkpoints use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from emollama.components import Model
from emollama.config import RunConfig
from emollama.distributed.process_group import World
from emollama.errors import ErrorCollector
from emollama.runners.evaluation import EvaluationSet
from emollama.runners.preparation import Preparation
from emollama.runners.provenance import ProvenanceFields

# Writes the report of the run in a folder, and returns its path; None if there is no report.
WriteReport = Callable[[Path], Path | None]


def no_report(folder: Path) -> None:
    """Write no report."""


class Runner(Protocol):
    """What a registered runner must provide. Its ``Config`` contains the keys of the ``run`` block.

    Everything is built in ``__init__``.

    Args:
        config: the resolved configuration.
        training: True to call :meth:`train`, False to call :meth:`evaluate`.

    Attributes:
        config: the resolved configuration.
        folder: folder of the run.
        members: the model, or the members of an ensemble.
        blocks: block name -> evaluation block.
        features: slot -> provenance of the run's features.
    """

    config: RunConfig
    folder: Path
    members: list[Model]
    blocks: dict[str, EvaluationSet]
    features: Mapping[str, ProvenanceFields]

    def __init__(self, config: RunConfig, *, training: bool = True) -> None: ...

    @classmethod
    def prepare(
        cls,
        config: RunConfig,
        world: World,
        *,
        training: bool,
        processes: int | None = None,
        problems: ErrorCollector | None = None,
    ) -> Preparation:
        """Build and check everything that needs no weights: the first part of ``__init__``, and all of ``--dry-run``.

        Args:
            config: the resolved configuration.
            world: the processes.
            training: True to train, False to only evaluate.
            processes: number of processes of the run; None is that of ``world``.
            problems: collects the errors of independent checks; if None, the first error is raised.
        """
        ...

    def train(self, write_report: WriteReport = no_report) -> Path:
        """Run the remaining steps of the training.

        Args:
            write_report: writes the report, on rank 0 after every evaluation and at the end.

        Returns:
            The run's folder.
        """
        ...

    def evaluate(self, write_report: WriteReport = no_report) -> list[Path]:
        """Evaluate every block under ``evaluation_datasets``.

        Args:
            write_report: writes the report, on rank 0 after the evaluation.

        Returns:
            The files written.
        """
        ...
