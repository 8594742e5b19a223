"""``--dry-run``: everything that can be checked before weights are loaded, by the functions with which a run starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from emollama import distributed, tracking
from emollama.config import RunConfig
from emollama.data.loader import Split
from emollama.distributed import World
from emollama.doctor import forecast
from emollama.errors import UserError
from emollama.logging import get_logger, set_up
from emollama.paths import require_writable
from emollama.planning import plan
from emollama.precision import Precision
from emollama.runners import recipes
from emollama.runners.build import (
    batch_size,
    build_datasets,
    checkpoint_paths,
    checkpoint_tensors,
    missing_files,
    training_blocks,
)
from emollama.runners.evaluation import build_blocks
from emollama.runners.resume import order_facts, require_job_id, resume_content, run_facts

T = TypeVar("T")


def dry_run(config: RunConfig, *, training: bool, processes: int = 1) -> str:
    """Check a run, and describe it.

    Args:
        config: the resolved configuration.
        training: whether it trains, or only evaluates.
        processes: how many it will have.

    Returns:
        A summary, one line per fact.

    Raises:
        UserError: everything that would stop the run before its first step, in one message.
    """
    world = distributed.start(config.run.device)
    set_up(is_main=False)  # only warnings: the summary says the rest
    for text in config.warnings if world.is_main else ():
        get_logger().warning("%s", text)
    checks = _Checks(config, training, world, max(processes, world.size))
    checks.files()
    checks.data()
    if not missing_files(config.model):
        checks.model()
    if checks.problems:
        count = len(checks.problems)
        text = checks.problems[0] if count == 1 else f"{count} problems:\n- " + "\n- ".join(checks.problems)
        raise UserError(text)
    lines = "".join(f"{name:<28} {text}\n" for name, text in checks.summary.items())
    return f"{lines}no problem was found; nothing was written\n" if world.is_main else ""


@dataclass
class _Checks:
    """The problems and the summary as they grow; a check that needs the result of a failed one is skipped."""

    config: RunConfig
    training: bool
    world: World
    processes: int
    problems: list[str] = field(default_factory=list)
    summary: dict[str, str] = field(default_factory=dict)
    datasets: dict[str, Any] | None = None  # label -> dataset
    features: dict[str, recipes.Facts] | None = None

    def files(self) -> None:
        """The run's folder, and the files that the model's block names."""
        run = self.config.run
        folder = Path(run.output_dir) / (run.job_id or "")
        self._result(lambda: require_writable(folder, "run.output_dir"))
        if self.training:
            self._result(lambda: require_job_id(run))
        if self.training and run.wandb_log:
            self._result(tracking.require)
        self.problems += missing_files(self.config.model)
        self.summary["run folder"] = str(folder) if run.job_id else f"a new one in {folder}"
        self.summary["processes"] = f"{self.processes} on {self.world.device.type}"

    def data(self) -> None:
        """Datasets, evaluation blocks, and how their features were made."""
        config, self.datasets = self.config, {}
        if self.training:
            blocks = training_blocks(config)
            built = self._result(lambda: build_datasets(config, blocks, training=True, check=True))
            self.datasets = built and {path.removeprefix("datasets."): dataset for path, dataset in built.items()}
            self._describe(built or {})
        answered: dict[str, Any] | None = {}
        if config.run.evaluate or not self.training:
            evaluated = self._result(lambda: build_blocks(config, check=True))
            answered = evaluated and {label: block.dataset for label, block in evaluated.items()}
            self._describe({f"evaluation: {label}": dataset for label, dataset in (answered or {}).items()})
        if self.datasets is not None and answered is not None:
            trained, others = (self.datasets, answered) if self.training else (answered, {})
            self.features = self._result(lambda: recipes.of_run(config, trained.values(), others.values()))
        if self.datasets:
            self._steps(self.datasets)

    def model(self) -> None:
        """Tokenizer, checkpoints, memory."""
        config, run = self.config, self.config.run
        precision = Precision(self.world.device, run.amp, run.amp_dtype)
        prompt = self._result(lambda: config.classes["model"].prompt(config.model, run.loss_average))
        resumed = None
        if prompt is not None and self.datasets and not self.problems:
            resumed = self._result(lambda: self._resumed(self.datasets or {}, precision, prompt))
        if self.features is not None and not self.problems:
            features = self.features
            self._result(lambda: checkpoint_tensors(config, precision, resumed, features, training=self.training))
        sources = [str(resumed["path"])] if resumed else checkpoint_paths(config.model.ckpt)
        self.summary["checkpoint"] = ", ".join(sources) or "none: projections and adapters start from random values"
        if (figures := self._result(lambda: plan(config))) is not None:
            parameters = figures.parameters
            self.summary["parameters"] = f"{parameters['trainable']:,} trainable of {parameters['total']:,}"
            self.summary["memory"] = f"about {figures.memory_gib['sum']:.2f} GiB on each device (emollama plan has the parts)"

    def _resumed(self, datasets: dict[str, Any], precision: Precision, prompt: Any) -> dict[str, Any] | None:
        config, run = self.config, self.config.run
        if run.job_id is None and run.resume_ckpt_path is None:
            return None  # a new run in a new folder
        split = Split(batch_size(datasets), run.accum_grad_iters, self.processes, self.world.rank)
        decks = [dataset.deck() for dataset in datasets.values()]
        facts = run_facts(order_facts(split, datasets, decks, self.world), precision, prompt)
        return resume_content(config, Path(run.output_dir) / (run.job_id or ""), facts, self.world)

    def _steps(self, datasets: dict[str, Any]) -> None:
        size = self._result(lambda: batch_size(datasets))
        if size is None:
            return
        training = forecast.training_of(self.config, datasets, size)
        samples = training.samples_a_step * self.processes
        self.summary["training"] = f"{training.steps:,} steps of {samples:,} samples"
        if finding := forecast.disk_finding(training):
            self.problems.append(finding.text)

    def _describe(self, datasets: dict[str, Any]) -> None:
        for label, dataset in datasets.items():
            self.summary[label] = f"{len(dataset):,} samples; tasks: {', '.join(dataset.pool.tasks)}"

    def _result(self, step: Callable[[], T]) -> T | None:
        """What a step returns; None, with its message noted, if it raises a UserError."""
        try:
            return step()
        except UserError as error:
            if str(error) not in self.problems:
                self.problems.append(str(error))
            return None
