"""The training loop: optimizer steps, checkpoints, logs and evaluations; and the evaluation of a checkpoint.

Everything is built in ``__init__``: first everything that needs no weights (:class:`Preparation`), then the model.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from emollama import checkpoint, lr_schedules, optim
from emollama.config import RunConfig, write_yaml
from emollama.data.batch import Batch
from emollama.data.loader import TrainingSamples, WorkerOptions, mix_seed, step_batches, training_loader
from emollama.data.workers import worker_errors
from emollama.distributed import process_group
from emollama.distributed.process_group import World
from emollama.listing import listing
from emollama.logs.logger import get_logger, log_metrics, set_up
from emollama.logs.run_log import RunLog
from emollama.runners import out_of_memory, summary
from emollama.runners.build import checkpoint_paths
from emollama.runners.evaluation import Evaluation
from emollama.runners.preparation import ErrorCollector, Preparation
from emollama.runners.run_config import RunnerConfig, hang_seconds
from emollama.runners.runner import WriteReport, no_report
from emollama.runners.validation import Validation


class RunnerBase:
    """The runner of ``run.runner: runner_base``.

    Args:
        config: the resolved configuration.
        training: True to call :meth:`train`, False to call :meth:`evaluate`.

    Raises:
        UserError: If files, features, checkpoints or the environment have a problem. Nothing was written then.
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
        self.folder, self.precision, self.prompt = preparation.folder, preparation.precision, preparation.prompt
        self.datasets, self.blocks, self.features = preparation.datasets, preparation.blocks, preparation.features
        self.members = preparation.build_models()
        self.model = self.members[0]
        self.prediction_runner = preparation.prediction_runner(self.members)
        self.task = self.prediction_runner.task
        self.skipped: int = preparation.resumed["skipped"][0] if preparation.resumed else 0
        self.consecutive_skipped: int = preparation.resumed["skipped"][1] if preparation.resumed else 0
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
        """
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
            log.hyper_parameters(summary.hyper_parameters(self.config), summary.scalar_tags(self.blocks))
            with worker_errors(self.samples.reports, self.samples.description, hang_seconds(cfg)):
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
        """
        summary.show_start(self)
        for member in self.members:
            member.eval()
        source = ", ".join(checkpoint_paths(self.config.model.ckpt)) or None
        result = self.folder / "result"
        outcome = Evaluation(self.blocks, self.prediction_runner, source).run(result)
        log_metrics(outcome.metrics)
        self.world.on_rank_zero(lambda: write_yaml(self.config, result / "config.yaml"))
        report = self._report(write_report)
        if outcome.unreachable:
            reasons = "; ".join(f"{block_name}: {reason}" for block_name, reason in outcome.unreachable.items())
            raise self.world.user_error(
                f"{reasons} The answers and all other scores are in {result}; to judge the answers later, use 'emollama score'."
            )
        return [*outcome.files, report] if report else outcome.files

    def _report(self, write_report: WriteReport) -> Path | None:
        return self.world.on_rank_zero(lambda: write_report(self.folder))

    def _maybe_evaluate(self, completed_steps: int, log: RunLog, write_report: WriteReport) -> bool:
        """Evaluate if an evaluation is due. Returns whether training ends early."""
        if self.validation is None:
            return False
        if self.validation.should_evaluate(completed_steps):
            with log.paused():
                self.validation.run(completed_steps, log, lambda: self._save(checkpoint.BEST, completed_steps))
                self._report(write_report)
        if self.validation.should_stop_early and completed_steps < self.total_steps:
            text = "run.early_stop_patience: no better %s in %d evaluations; training ends early"
            get_logger().info(text, self.cfg.metric, self.cfg.early_stop_patience)
        return self.validation.should_stop_early

    def _train_steps(self, log: RunLog, write_report: WriteReport) -> None:
        """Run the remaining steps, with checkpoints and evaluations when they are due."""
        batches = self._step_batches()
        ended = self._maybe_evaluate(self.first_step, log, write_report)
        for step in range(self.first_step, self.total_steps):
            if ended:
                break
            with log.waiting():
                micro_batches = next(batches)
            with out_of_memory.reported(micro_batches, step, self.config, self.world):
                values = self._step(step, micro_batches)
            self._stop_after_skipped_steps(micro_batches)
            log.step(step, {"epoch": step // self.cfg.iters_per_epoch, **values}, samples=self.layout.global_batch)
            self._maybe_save(step + 1)
            log.maybe_end_epoch(step + 1)
            ended = self._maybe_evaluate(step + 1, log, write_report)

    def _step(self, step: int, micro_batches: list[Batch]) -> dict[str, float]:
        """Run one optimizer step: gradients of all micro-batches, clipping, update. Returns the values to log, over all ranks."""
        lr = self.learning_rate(step)
        optim.set_lr(self.optimizer, lr)
        scaler, loss = self.precision.scaler, self._gradients(step, micro_batches)
        scaler.unscale_(self.optimizer)
        norm = self.parallel.clip_grad_norm(self.cfg.max_grad_norm)
        tokens = sum(len(batch.input_ids) for batch in micro_batches)
        tokens_cut = sum(batch.tokens_cut for batch in micro_batches)
        counts = torch.tensor([tokens, tokens_cut], dtype=torch.float64, device=loss.device)
        mean_loss, tokens, tokens_cut = self.world.sum(torch.cat([loss[None], counts])).tolist()
        grad_norm = float(norm)
        # Both values are reduced over the ranks, so every rank makes the same decision.
        finite = math.isfinite(mean_loss) and math.isfinite(grad_norm)
        if finite:
            scaler.step(self.optimizer)
        scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.skipped += not finite
        self.consecutive_skipped = 0 if finite else self.consecutive_skipped + 1
        return {
            "loss": mean_loss,
            "lr": lr,
            "grad_norm": grad_norm,
            "skipped_steps": self.skipped,
            "tokens": int(tokens),
            "tokens_cut": int(tokens_cut),
        }

    def _gradients(self, step: int, micro_batches: list[Batch]) -> Tensor:
        """Accumulate the gradients of the global batch's mean loss. Returns this rank's share of that mean, float64."""
        device = self.world.device
        weights = sum(float(batch.loss_weights.sum(dtype=torch.float64)) for batch in micro_batches)
        total = self.world.sum(torch.tensor(weights, dtype=torch.float64, device=device))
        mean_loss = torch.zeros((), dtype=torch.float64, device=device)
        for micro, batch in enumerate(micro_batches):
            # The model's dropout uses the seeds of the samples. Other random operations depend only on these numbers, so a
            # checkpoint need not store the state of random generators.
            torch.manual_seed(mix_seed(self.cfg.seed, step, self.world.rank, micro))
            with self.parallel.no_sync_unless(last=micro + 1 == len(micro_batches)):
                with self.precision.autocast():
                    loss = self.task.loss(self.parallel, batch.to(device))
                # DDP averages gradients over the ranks, but the mean loss is a sum over the ranks: multiply by their number.
                self.precision.scaler.scale(loss * (self.world.size / total).float()).backward()
            mean_loss += loss.detach() / total
        return mean_loss

    def _step_batches(self) -> Iterator[list[Batch]]:
        """Return an iterator over the micro-batches of each remaining step."""
        options = WorkerOptions(self.cfg.num_workers, self.world.device.type == "cuda", hang_seconds(self.cfg))
        loader = training_loader(self.samples, self.layout, options, first_step=self.first_step, end_step=self.total_steps)
        return step_batches(loader, self.cfg.accum_grad_iters)

    def _stop_after_skipped_steps(self, micro_batches: list[Batch]) -> None:
        if self.consecutive_skipped < self.cfg.max_skipped_steps:
            return
        names = list(chain(*self.world.gather([name for batch in micro_batches for name in batch.names])))
        raise self.world.user_error(
            f"the loss or gradient was not finite in {self.consecutive_skipped} consecutive steps. Lower run.init_lr, set"
            f" run.max_grad_norm, or check the features in the last step ({listing(names, 'sample')})"
        )

    def _maybe_save(self, completed_steps: int) -> None:
        """Save checkpoint_<epoch>.pth at the end of an epoch, and checkpoint_last.pth every ``save_every_iters`` steps."""
        cfg = self.cfg
        if completed_steps % cfg.iters_per_epoch == 0:
            self._save(f"checkpoint_{completed_steps // cfg.iters_per_epoch - 1}.pth", completed_steps)
            if cfg.keep_last:
                self.world.on_rank_zero(partial(checkpoint.drop_old, self.folder, cfg.keep_last))
        elif cfg.save_every_iters and completed_steps % cfg.save_every_iters == 0:
            self._save(checkpoint.LAST, completed_steps)

    def _save(self, name: str, completed_steps: int) -> None:
        """Save a checkpoint after this number of steps. Every rank calls it."""
        content = {
            "model": {self.model.stored_name(key): value for key, value in self.parallel.trainable_state().items()},
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.precision.scaler.state_dict(),
            "step": completed_steps,
            "epoch": (completed_steps - 1) // self.cfg.iters_per_epoch,
            "skipped": [self.skipped, self.consecutive_skipped],
            checkpoint.RESUME_FIELDS_KEY: self._resume_fields,
            "features": self.features,
            "config": self.config.unresolved(),
        }
        self.world.on_rank_zero(lambda: checkpoint.save(self.folder / name, content))

    def _prepare_training(self, preparation: Preparation) -> None:
        cfg, resumed = self.cfg, preparation.resumed
        self.layout, self._resume_fields, self.first_step = preparation.layout, preparation.resume_fields, preparation.first_step
        self.total_steps = cfg.max_epoch * cfg.iters_per_epoch
        self.learning_rate = lr_schedules.learning_rate(cfg)
        self.samples = TrainingSamples(list(self.datasets.values()), self.prompt, preparation.sampler)
        self.model.train()
        # A Protocol cannot require a base class.
        assert isinstance(self.model, nn.Module)
        self.parallel = process_group.Parallel(self.model, self.world, cfg.parallel)
        named = optim.trainable(self.model).items()
        self.optimizer = optim.adamw(named, lr=cfg.init_lr, weight_decay=cfg.weight_decay, beta2=cfg.beta2)
        self.resumed_from = str(resumed["path"]) if resumed else None
        if resumed:
            self.optimizer.load_state_dict(resumed["optimizer"])
            self.precision.scaler.load_state_dict(resumed["scaler"])
        self.validation: Validation | None = None
        if cfg.evaluate:
            evaluation = Evaluation(self.blocks, self.prediction_runner, None)
            self.validation = Validation(cfg, evaluation, self.folder, self.first_step)
