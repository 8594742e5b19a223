"""The summaries at the start and at the end of a run, and the hyper-parameters that it logs."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from emollama.components import Model
from emollama.config import RunConfig
from emollama.config.layers import leaves
from emollama.config.reading import option_of
from emollama.data.dataset import SampleDataset
from emollama.data.loader import BatchLayout
from emollama.distributed.process_group import World
from emollama.distributed.worker_variables import integer
from emollama.listing import counted
from emollama.logs.console import aligned, duration
from emollama.logs.logger import get_logger
from emollama.parallel_modes import ParallelMode
from emollama.paths import PACKAGE, SHIPPED, packaged_copy, read_text
from emollama.planning.parameters import group_title, parameter_groups
from emollama.precision import Precision
from emollama.recomputation import recomputation_of
from emollama.runners.evaluation import EvaluationSet
from emollama.runners.model_ckpt import checkpoint_paths

# The next step after training with a shipped configuration: a command and its configuration.
NEXT = {
    "Emotion-LLaMA_finetune.yaml": ("train", "train_configs/minigptv2_tuning_stage_2.yaml"),
    "minigptv2_tuning_stage_2.yaml": ("eval", "eval_configs/eval_emotion_EMER.yaml"),
    "custom.yaml": ("eval", "eval_configs/eval_emotion.yaml"),
    "minigpt4_flickr_finetune.yaml": ("eval", "eval_configs/eval_flickr30k.yaml"),
    "demo_stage_1.yaml": ("train", "train_configs/demo_stage_2.yaml"),
    "demo_stage_2.yaml": ("eval", "eval_configs/demo_EMER.yaml"),
    "demo_flickr.yaml": ("eval", "eval_configs/demo_flickr.yaml"),
}
# The next step after training with a configuration of `emollama init`: a command and the kind of its configuration.
NEXT_KIND = {"stage1": ("train", "stage2"), "stage2": ("eval", "emer"), "custom": ("eval", "recognition")}
Rows = list[tuple[str, str]]  # a table of names and values


class Run(Protocol):
    """The attributes of a runner that a summary shows."""

    config: RunConfig
    folder: Path
    world: World
    precision: Precision
    model: Model
    datasets: dict[str, SampleDataset]
    blocks: dict[str, EvaluationSet]


def show_start(run: Run, resumed: str | None = None, steps: Rows | None = None) -> None:
    """Log a table with the devices, weights, samples and steps of a run.

    Args:
        run: the runner.
        resumed: the checkpoint from which a training run resumes.
        steps: rows about the training steps (:func:`training_steps`); None for an evaluation.
    """
    if not get_logger().isEnabledFor(logging.INFO):
        return
    rows = _environment(run.folder, run.world, run.precision, run.config.run.parallel) + _weights(run.model, run.config, resumed)
    if steps and isinstance(llm := run.model.llama_model, nn.Module) and (recomputed := recomputation_of(llm)):
        rows.append(("recomputation", f"{recomputed} in the backward pass (model.use_grad_checkpoint)"))
    _show(rows + _samples(run.datasets, run.blocks) + (steps or []))
    if steps and run.config.evaluation_datasets and not run.blocks:
        get_logger().info("evaluation_datasets are not evaluated during training: run.evaluate is False")


def show_end(run: Run, seconds: float, report: Path | None, best: tuple[str, float, int] | None) -> None:
    """Log a table with training time, best metric and checkpoint, report, and the next commands.

    Args:
        run: the runner.
        seconds: duration of the training in seconds.
        report: path of the report; None if there is none.
        best: key, value and epoch of the best evaluation; None if no evaluation has a value.
    """
    if not get_logger().isEnabledFor(logging.INFO):
        return
    rows, folder = [("training time", duration(seconds))], run.folder
    checkpoint = _last_checkpoint(folder)
    if best:
        key, value, epoch = best
        paths = (folder / "checkpoint_best.pth", folder / f"checkpoint_{epoch}.pth")
        checkpoint = next((path for path in paths if path.is_file()), checkpoint)
        rows.append(("best metric", f"{key} {value:.4f} after epoch {epoch}"))
    if checkpoint:
        rows.append(("best checkpoint" if best else "last checkpoint", str(checkpoint)))
    if report:
        rows.append(("report", str(report)))
    if checkpoint:
        rows.append(("next command", _next_command(folder, run.config, checkpoint, _processes_here(run.world))))
    _show([*rows, ("TensorBoard", f"tensorboard --logdir {shlex.quote(str(folder))}")])


def _show(rows: Rows) -> None:
    for line in aligned(rows, left=(0, 1)):
        get_logger().info("%s", line)


def _environment(folder: Path, world: World, precision: Precision, mode: ParallelMode) -> Rows:
    """Return rows with the run's folder, devices and precision."""
    device = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else world.device.type
    kind = f"{_name(precision.frozen_dtype)} with float32 trained weights" if precision.amp else "float32"
    sharded = f", {mode}" if world.size > 1 and mode != "ddp" else ""
    return [("run folder", str(folder)), ("devices", f"{_processes(world.size)} on {device}{sharded}"), ("precision", kind)]


def _weights(model: Model, config: RunConfig, resumed: str | None) -> Rows:
    """Return rows with the trainable parameters by group, and the checkpoint that was loaded."""
    total = sum(parameter.numel() for parameter in model.parameters())
    groups = parameter_groups(model, only_trained=True)
    trained = sum(groups.values())
    shares = [
        (f"  {group_title(name).removesuffix(', trained')}", f"{count:,} ({count / total:.2%})") for name, count in groups.items()
    ]
    sources = [resumed] if resumed else checkpoint_paths(config.model.ckpt)
    source = ", ".join(sources) or "none"
    parameters = ("trainable parameters", f"{trained:,} of {total:,} ({trained / total:.2%})")
    return [("checkpoint", source), parameters, *shares]


def _samples(datasets: Mapping[str, SampleDataset], blocks: Mapping[str, EvaluationSet]) -> Rows:
    """Return rows with the size of each training dataset and evaluation block."""
    rows = [(f"training set {block_name}", _size(dataset)) for block_name, dataset in datasets.items()]
    for block_name, block in blocks.items():
        held_out = ", held out of training" if block.dataset.cfg.held_out else ""
        rows.append((f"evaluation set {block_name}", _size(block.dataset) + held_out))
    return rows + feature_rows({**datasets, **{block_name: block.dataset for block_name, block in blocks.items()}})


def feature_rows(datasets: Mapping[str, SampleDataset]) -> Rows:
    """Return rows with the slots that the datasets fill, from which features, and the slots that are empty on purpose.

    Args:
        datasets: block -> dataset. Datasets with the same features share a row.
    """
    blocks: dict[str, list[str]] = {}
    for block_name, dataset in datasets.items():
        filled = [f"{slot} ({source})" for slot, source in dataset.slot_sources.items() if source is not None]
        empty = [slot for slot, source in dataset.slot_sources.items() if source is None]
        text = (", ".join(filled) or "none") + (f"; no {', '.join(empty)}" if filled and empty else "")
        blocks.setdefault(text, []).append(block_name)
    return [("features" if len(blocks) == 1 else f"features of {', '.join(names)}", text) for text, names in blocks.items()]


def training_steps(cfg: Any, layout: BatchLayout, first_step: int, *, has_memory: bool = True) -> Rows:
    """Return rows with the number of steps, the samples of a step, and the step from which a run resumes.

    Args:
        cfg: the ``run`` block.
        layout: layout of a step.
        first_step: the first step of this process.
        has_memory: whether ``run.max_tokens: auto`` has been chosen from the free memory.
    """
    total = cfg.max_epoch * cfg.iters_per_epoch
    epochs, iterations = counted(cfg.max_epoch, "epoch"), counted(cfg.iters_per_epoch, "iteration")
    parts = f"{_processes(layout.world)} x {layout.accumulate} accumulated x micro-batch of {layout.batch_size}"
    if layout.max_tokens is not None:
        samples = layout.batch_size * layout.accumulate
        maximum = f"up to {layout.max_tokens:,} tokens"
        if cfg.max_tokens == "auto" and not has_memory:
            maximum = f"as many tokens as fit into the free memory, at most {layout.max_tokens:,}"
        parts = f"{_processes(layout.world)} x {samples}, in micro-batches of {maximum}"
    rows = [("steps", f"{total:,} ({epochs} x {iterations})"), ("samples per step", f"{layout.global_batch} ({parts})")]
    if (tasks := layout.tasks_per_clip) > 1:
        rows.append(("clips per step", f"{layout.global_batch // tasks:,}, each with {tasks} tasks (run.tasks_per_clip)"))
    if first_step:
        finished = "" if first_step < total else " (all steps are done)"
        rows.append(("resuming", f"at step {first_step:,} of {total:,}{finished}"))
    return rows


def hyper_parameters(config: RunConfig, layout: BatchLayout) -> dict[str, bool | int | float | str]:
    """Return dotted key -> value for the blocks model, datasets and run, with the chosen value of ``run.max_tokens: auto``."""
    # Interpolations stay unresolved, so that secrets from environment variables are not written to a file.
    tree = config.unresolved()
    values = {key: value for name in ("model", "datasets", "run") for key, value in leaves(tree.get(name, {}), name)}
    if config.run.max_tokens == "auto":
        values["run.max_tokens"] = layout.max_tokens
    return {
        key: value if isinstance(value, bool | int | float | str) else json.dumps(value, default=str)
        for key, value in values.items()
        if value is not None
    }


def scalar_tags(blocks: Mapping[str, EvaluationSet]) -> list[str]:
    """Return the tags of the scalars that TensorBoard shows with the hyper-parameters."""
    tasks = [(block_name, task, names) for block_name, block in blocks.items() for task, names in block.scoring.metrics.items()]
    return ["train/loss", *(f"eval/{block_name}/{task}/{name}" for block_name, task, names in tasks for name in names)]


def _processes(number: int) -> str:
    return counted(number, "process", "processes")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _size(dataset: SampleDataset) -> str:
    return f"{len(dataset):,} samples, tasks {', '.join(dataset.pool.tasks)}"


def _last_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint of the last epoch, or None."""
    paths = folder.glob("checkpoint_*.pth")
    numbered = {int(number): path for path in paths if (number := path.stem.removeprefix("checkpoint_")).isdecimal()}
    return numbered[max(numbered)] if numbered else None


def _next_command(folder: Path, config: RunConfig, checkpoint: Path, processes: int = 1) -> str:
    """Return the command that a user probably wants to run next.

    A shipped configuration has a fixed next step. After any other configuration, it is the evaluation of the run's blocks, or,
    without blocks and after a configuration of ``emollama init``, the next kind of configuration, from the same folder if it
    exists there.
    """

    def line(command: str, path: str, options: list[str]) -> str:
        number = ["--nproc", str(processes)] if processes > 1 else []
        return shlex.join(
            ["emollama", command, "--cfg-path", path, *number, "--options", option_of("model.ckpt", str(checkpoint)), *options]
        )

    files = dict.fromkeys(source for source in config.sources.values() if source not in ("default", "--options"))
    options = _path_options(config)
    shipped = next((NEXT[name] for path in files if (name := os.path.basename(path)) in NEXT and _is_shipped(path)), None)
    if shipped:
        return line(*shipped, options)
    if config.evaluation_datasets or any(cfg.held_out for cfg in config.datasets.values()):
        return line("eval", str(folder / "config.yaml"), options)
    initial = next(((path, NEXT_KIND[kind]) for path in files if (kind := _init_kind(path)) in NEXT_KIND), None)
    if initial:
        path, (command, kind) = initial
        candidates = (str(Path(path).with_name(f"{kind}.yaml")), f"{kind}.yaml")
        if following := next((path for path in candidates if _init_kind(path) == kind), None):
            return line(command, following, [])
        if root := config.resolved().get("paths", {}).get("root"):
            return f"{shlex.join(['emollama', 'init', kind, '--data', str(root)])} && {line(command, f'{kind}.yaml', [])}"
    return shlex.join(["emollama", "checkpoint", "inspect", str(checkpoint)])


def _processes_here(world: World) -> int:
    """Return the number of processes for the next command.

    It is 1 after a run on several machines, because ``--nproc`` starts processes on one machine only.
    """
    return world.size if integer("LOCAL_WORLD_SIZE", world.size) == world.size else 1


def _is_shipped(path: str) -> bool:
    """Return whether a path is one of the package's configurations, or is resolved to one because no such file exists."""
    if Path(path).is_file():
        return any(Path(path).resolve().is_relative_to((PACKAGE / folder).resolve()) for folder in SHIPPED)
    copy = packaged_copy(path)
    return copy is not None and copy.is_file()


def _init_kind(path: str) -> str:
    """Return the kind of configuration that ``emollama init`` wrote in the file's first comments; "" for any other file."""
    if not os.path.isfile(path):
        return ""
    lines = takewhile(lambda line: line.startswith("#"), read_text(path).splitlines())
    matches = (re.match(r"# Written by `emollama init (\w+)`", line) for line in lines)
    return next((match[1] for match in matches if match), "")


def _path_options(config: RunConfig) -> list[str]:
    """Return options for paths that this run got from ``--options`` or an environment variable."""
    resolved = config.resolved().get("paths", {})
    options = []
    for key, value in config.unresolved().get("paths", {}).items():
        variables = re.findall(r"\$\{oc\.env:(\w+)", str(value))
        if config.sources.get(f"paths.{key}") == "--options" or any(name in os.environ for name in variables):
            value = resolved[key]
            options.append(f"paths.{key}=null" if value is None else option_of(f"paths.{key}", str(value)))
    return options
