"""The training loop: optimizer steps, checkpoints, logs and evaluations; and the evaluation of a checkpoint.

Everything is built in ``__init__``: first everything that needs no weights (:class:`Preparation`), then the model.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from emollama import checkpoint, lr_schedules, optim
from emollama.config import RunConfig, write_yaml
from emollama.data.batch import Batch
from emollama.data.device_copy import DeviceCopy
from emollama.data.loader import TrainingSamples, WorkerOptions, mix_seed, step_batches, training_loader
from emollama.data.workers import worker_errors
from emollama.distributed import process_group
from emollama.distributed.parallel import Parallel
from emollama.distributed.process_group import World
from emollama.distributed.stop_requests import STOP_REQUESTS
from emollama.errors import ErrorCollector, Stopped
from emollama.folder_lock import released_after_error
from emollama.heartbeat import beat
from emollama.logs.logger import get_logger, log_metrics, set_up
from emollama.logs.run_log import RunLog
from emollama.runners import out_of_memory, summary
from emollama.runners.checkpoints import resume_optimizer
from emollama.runners.evaluation import Evaluation, answer_settings
from emollama.runners.model_ckpt import checkpoint_paths
from emollama.runners.preparation import Preparation
from emollama.runners.run_checkpoints import RunCheckpoints
from emollama.runners.run_config import RunnerConfig, hang_seconds
from emollama.runners.runner import WriteReport, no_report
from emollama.runners.skipped_steps import SkippedSteps
from emollama.runners.validation import Validation


class RunnerBase:
    """The runner of ``run.runner: runner_base``.

    Args:
        config: the resolved configuration.
        training: True to call :meth:`train`, False to call :meth:`evaluate`.

    Raises:
        UserError: If a check of :class:`Preparation` fails. Nothing was written then.
    """

    Config = RunnerConfig

    def __init__(self, config: RunConfig, *, training: bool = True) -> None:
        cfg = self.cfg = config.run
        self.config = config
        self.world = process_group.start(cfg.device)
        set_up(self.world.is_main)
        for text in config.warnings if self.world.is_main else ():
            get_logger().warning("%s", text)
        preparation = self.prepare(config, self.world, training=training)
        self.lock = preparation.lock
        with released_after_error(self.lock):
            self._build(preparation, training=training)

    def _build(self, preparation: Preparation, *, training: bool) -> None:
        """Build the model, and everything else that training needs."""
        self.folder, self.precision, self.prompt = preparation.folder, preparation.precision, preparation.prompt
        self.datasets, self.blocks, self.features = preparation.datasets, preparation.blocks, preparation.features
        self.members = preparation.build_models()
        self.model = self.members[0]
        self.prediction_runner = preparation.prediction_runner(self.members)
        self.task = self.prediction_runner.task
        self.skipped = SkippedSteps(self.world.device, *(preparation.resumed["skipped"] if preparation.resumed else ()))
        if training:
            self._prepare_training(preparation)

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
        return Preparation(config, world, training=training, processes=processes, problems=problems)

    def train(self, write_report: WriteReport = no_report) -> Path:
        """Run the remaining steps of the training.

        Args:
            write_report: writes the report, on rank 0 after every evaluation and at the end.

        Returns:
            The run's folder.

        Raises:
            Stopped: If a process was asked to stop. A checkpoint of the last step was saved.
        """
        with self.lock, STOP_REQUESTS.deferred():
            return self._train(write_report)

    def _train(self, write_report: WriteReport) -> Path:
        cfg, start_time = self.cfg, time.monotonic()
        self.world.on_rank_zero(lambda: write_yaml(self.config, self.folder / "config.yaml"))
        summary.show_start(self, self.resumed_from, summary.training_steps(cfg, self.layout, self.first_step))
        log = RunLog(
            self.folder,
            first_step=self.first_step,
            total_steps=self.total_steps,
            epoch_steps=cfg.iters_per_epoch,
            log_freq=cfg.log_freq,
            enabled=self.world.is_main,
        )
        with log:
            if cfg.wandb_log:
                self.world.on_rank_zero(lambda: log.track(cfg.wandb_project, self.config.unresolved()))
            log.hyper_parameters(summary.hyper_parameters(self.config, self.layout), summary.scalar_tags(self.blocks))
            with worker_errors(self.samples.reports, self.samples.description, hang_seconds(cfg)), self.checkpoints:
                self._train_steps(log, write_report)
        best = self.validation.best() if self.validation else None
        summary.show_end(self, time.monotonic() - start_time, self._report(write_report), best)
        return self.folder

    def evaluate(self, write_report: WriteReport = no_report) -> list[Path]:
        """Evaluate every block under ``evaluation_datasets``.

        Args:
            write_report: writes the report, on rank 0 after the evaluation.

        Returns:
            The files written.

        Raises:
            UserError: If a judge could not be reached. All answers and other scores were written.
            Stopped: If a process was asked to stop. The answers were kept, and the same evaluation continues from them.
        """
        with self.lock, STOP_REQUESTS.deferred():
            return self._evaluate(write_report)

    def _evaluate(self, write_report: WriteReport) -> list[Path]:
        summary.show_start(self)
        for member in self.members:
            member.eval()
        source = ", ".join(checkpoint_paths(self.config.model.ckpt)) or None
        result = self.folder / "result"
        outcome = Evaluation(self.blocks, self.prediction_runner, source, answer_settings(self.config)).run(result)
        log_metrics(outcome.metrics)
        self.world.on_rank_zero(lambda: write_yaml(self.config, result / "config.yaml"))
        report = self._report(write_report)
        outcome.require_judges(self.world, result)
        return [*outcome.files, report] if report else outcome.files

    def _report(self, write_report: WriteReport) -> Path | None:
        return self.world.on_rank_zero(lambda: write_report(self.folder))

    def _maybe_evaluate(self, completed_steps: int, log: RunLog, write_report: WriteReport) -> bool:
        """Evaluate if an evaluation is due. Returns whether training ends early."""
        if self.validation is None:
            return False
        if self.validation.should_evaluate(completed_steps):
            self.checkpoints.finish_if_sharded()
            with log.paused():
                self.validation.run(completed_steps, log, lambda: self.checkpoints.save_best(completed_steps))
                self._report(write_report)
        if self.validation.should_stop_early and completed_steps < self.total_steps:
            text = "run.early_stop_patience: no better %s in %d evaluations; training ends early"
            get_logger().info(text, self.cfg.metric, self.cfg.early_stop_patience)
        return self.validation.should_stop_early

    def _train_steps(self, log: RunLog, write_report: WriteReport) -> None:
        """Run the remaining steps, with checkpoints and evaluations when they are due."""
        batches = self._step_batches()
        self._maybe_stop(self.first_step)
        ended = self._maybe_evaluate(self.first_step, log, write_report)
        for step in range(self.first_step, self.total_steps):
            if ended:
                break
            with log.waiting():
                micro_batches = next(batches)
            with out_of_memory.reported(micro_batches, step, self.config, self.layout, self.world):
                values = self._step(step, micro_batches)
            if log.is_due(step):
                self.skipped.require_below(self.cfg.max_skipped_steps, self.world, micro_batches)
            log.step(step, {"epoch": step // self.cfg.iters_per_epoch, **values}, samples=self.layout.global_batch)
            self.checkpoints.maybe_save(step + 1)
            log.maybe_end_epoch(step + 1)
            self._maybe_stop(step + 1)
            ended = self._maybe_evaluate(step + 1, log, write_report)

    def _step(self, step: int, micro_batches: list[Batch]) -> dict[str, float | Tensor]:
        """Run one optimizer step: gradients of all micro-batches, clipping, update. Returns the values to log, over all ranks.

        The process only queues the step on a GPU and does not wait for it: what the GPU computes is returned as scalar tensors.
        """
        lr, scaler = self.learning_rate(step), self.precision.scaler
        optim.set_lr(self.optimizer, lr)
        counts = [(len(batch.input_ids), batch.tokens_cut, batch.total_weight) for batch in micro_batches]
        tokens, tokens_cut, weight = self.world.totals(*map(sum, zip(*counts, strict=True)))
        loss = self.world.sum(self._gradients(step, micro_batches, weight))
        scaler.unscale_(self.optimizer)
        norm = self.parallel.clip_grad_norm(self.cfg.max_grad_norm)
        # Both values are those of all ranks, so every rank makes the same decision.
        skipped = ~(loss.isfinite() & norm.isfinite())
        optim.step_unless(self.optimizer, skipped)
        scaler.update()
        self.parallel.zero_grad(self.optimizer)
        self.skipped.count(skipped)
        return {
            "loss": loss,
            "lr": lr,
            "grad_norm": norm,
            "skipped_steps": self.skipped.total,
            "tokens": int(tokens),
            "tokens_cut": int(tokens_cut),
        }

    def _gradients(self, step: int, micro_batches: list[Batch], weight: float) -> Tensor:
        """Accumulate the gradients of the global batch's mean loss; ``weight`` is the sum of the batch's loss weights.

        Returns:
            This rank's share of the mean loss, float64.
        """
        mean_loss = torch.zeros((), dtype=torch.float64, device=self.world.device)
        for micro, batch in enumerate(self.copy_to_device(micro_batches)):
            # The model's dropout uses the seeds of the samples. Other random operations depend only on these numbers, so a
            # checkpoint need not store the state of random generators.
            torch.manual_seed(mix_seed(self.cfg.seed, step, self.world.rank, micro))
            with self.parallel.no_sync_unless(last=micro + 1 == len(micro_batches)):
                with self.precision.autocast():
                    loss = self.task.loss(self.parallel, batch)
                # DDP averages gradients over the ranks, but the mean loss is a sum over the ranks: multiply by their number.
                self.precision.scaler.scale(loss * (self.world.size / weight)).backward()
            mean_loss += loss.detach() / weight
            beat()
        return mean_loss

    def _step_batches(self) -> Iterator[list[Batch]]:
        """Return an iterator over the micro-batches of each remaining step."""
        options = WorkerOptions(self.cfg.num_workers, self.world.device.type == "cuda", hang_seconds(self.cfg))
        loader = training_loader(self.samples, self.layout, options, first_step=self.first_step, end_step=self.total_steps)
        steps = step_batches(loader, self.layout.loads_per_step)
        split, most = self.layout.split_into, self.world.max
        return (split(batches, *most(len(batches))) for batches in steps) if self.layout.max_tokens else steps

    def _maybe_stop(self, completed_steps: int) -> None:
        """Save a checkpoint and stop if a process was asked to stop before the run is complete."""
        is_complete = completed_steps == self.total_steps and self.validation is None
        if is_complete or not self.world.any(bool(STOP_REQUESTS.reason)):  # all ranks stop after the same step
            return
        self.checkpoints.save_if_new(completed_steps)
        raise Stopped(f"{STOP_REQUESTS.agreed_reason(self.world)} after {completed_steps} of {self.total_steps} steps")

    def _checkpoint_content(self, completed_steps: int) -> dict[str, Any]:
        """Return the content of a checkpoint after this number of steps. Every rank calls it."""
        gathered, is_main = not self.cfg.sharded_checkpoints, self.world.is_main
        return {
            "model": {self.model.stored_name(key): value for key, value in self.parallel.trainable_state(gathered).items()},
            "optimizer": optim.whole_state(self.optimizer, is_rank_zero=is_main) if gathered else self.optimizer.state_dict(),
            "scaler": self.precision.scaler.state_dict(),
            "step": completed_steps,
            "epoch": (completed_steps - 1) // self.cfg.iters_per_epoch,
            "skipped": self.skipped.numbers(),
            checkpoint.RESUME_FIELDS_KEY: self._resume_fields,
            "features": self.features,
            "config": self.config.unresolved(),
        }

    def _prepare_training(self, preparation: Preparation) -> None:
        cfg, resumed = self.cfg, preparation.resumed
        self.layout, self._resume_fields, self.first_step = preparation.layout, preparation.resume_fields, preparation.first_step
        self.total_steps = cfg.max_epoch * cfg.iters_per_epoch
        self.learning_rate = lr_schedules.learning_rate(cfg)
        self.samples = TrainingSamples(list(self.datasets.values()), self.prompt, preparation.sampler)
        self.model.train()
        assert isinstance(self.model, nn.Module)  # a Protocol cannot require a base class
        self.copy_to_device = DeviceCopy(self.world.device)
        self.parallel = Parallel(self.model, self.world, cfg.reduce_dtype)
        trained = optim.trainable(self.model).items()
        self.optimizer = optim.adamw(trained, lr=cfg.init_lr, weight_decay=cfg.weight_decay, beta2=cfg.beta2)
        self.resumed_from = str(resumed["path"]) if resumed else None
        self.checkpoints = RunCheckpoints(cfg, self.folder, self.world, self._checkpoint_content, resumed)
        if resumed:
            resume_optimizer(self.optimizer, resumed)
            self.precision.scaler.load_state_dict(resumed["scaler"])
        evaluation = Evaluation(self.blocks, self.prediction_runner, None, answer_settings(self.config))
        self.validation = Validation(cfg, evaluation, self.folder, self.first_step) if cfg.evaluate else None
