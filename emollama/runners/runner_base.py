"""The loop: optimizer steps over epochs, checkpoints and logs when due; evaluation of the configured blocks.

Everything is built in ``__init__``, in the order in which things go wrong most cheaply: files first, weights last.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from emollama import checkpoint, distributed, optim
from emollama.config import RunConfig, write_yaml
from emollama.data.batch import Batch
from emollama.data.loader import Split, TrainingSamples, seed_of, step_batches, training_loader
from emollama.data.order import Order
from emollama.data.prompt import LossAverage
from emollama.errors import EchoedError, UserError, listing, require_at_least
from emollama.evaluation.files import write_predictions
from emollama.logging import RunLog, get_logger, set_up
from emollama.paths import require_writable
from emollama.precision import AmpDtype, Precision
from emollama.registry import LR_SCHEDULES, RUNNERS
from emollama.runners.answering import Answering
from emollama.runners.build import batch_size, build_datasets, build_model
from emollama.runners.resume import order_facts, resume_content


@RUNNERS.register("runner_base")
class RunnerBase:
    """The runner behind ``run.runner: runner_base``.

    Args:
        config: the resolved configuration.
        training: True builds what :meth:`train` needs, False what :meth:`evaluate` needs.

    Raises:
        UserError: anything wrong with files, features, checkpoints or the environment, before anything is written.
    """

    @dataclass
    class Config:
        """Keys of the ``run`` block. An iteration is one optimizer step with all its micro-batches."""

        output_dir: str = "checkpoints/save_checkpoint"
        """Folder of all runs."""
        job_id: str | None = None
        """Name of this run's folder in output_dir. Null: the time."""
        seed: int = 42
        """Of weights, order, tasks, wordings and dropout."""
        device: Literal["auto", "cuda", "cpu"] = "auto"
        """Where to compute."""
        parallel: Literal["ddp"] = "ddp"
        """How several processes share the work."""
        max_epoch: int = 1
        """Epochs; an epoch is iters_per_epoch iterations, whatever the number of clips."""
        iters_per_epoch: int = 1000
        """Iterations of an epoch."""
        accum_grad_iters: int = 1
        """Micro-batches of an iteration, on each process."""
        num_workers: int = 4
        """Processes that read and tokenize, for each training process."""
        lr_sched: str = "linear_warmup_cosine_lr"
        """Registered schedule of the learning rate."""
        init_lr: float = 1e-5
        """Learning rate where the decay begins."""
        min_lr: float = 1e-6
        """Learning rate where the decay ends."""
        warmup_lr: float | None = None
        """Learning rate where the warm-up begins. Null: init_lr."""
        warmup_steps: int = 0
        """Iterations of the warm-up."""
        stages: list[dict[str, Any]] = field(default_factory=list)
        """Stages of the learning rate, [{init_lr: 1e-5, epochs: 15}, {init_lr: 5e-6, epochs: 15}]: each runs the schedule anew,
        with min_lr, warmup_lr and warmup_steps of its own or the run's. max_epoch is their sum. Empty: one stage."""
        lr_decay_rate: float = 0.9
        """Factor per epoch of linear_warmup_step_lr."""
        weight_decay: float = 0.05
        """Of AdamW, as a share of the learning rate; biases and norms have none."""
        beta2: float = 0.999
        """AdamW's decay of the second moment."""
        max_grad_norm: float | None = None
        """Largest L2 norm of all gradients. Null: no clipping."""
        loss_average: LossAverage = "sample"
        """sample: mean over each sample's tokens, then over samples. token: mean over all tokens of the global batch."""
        amp: bool = True
        """Mixed precision; False is float32 throughout."""
        amp_dtype: AmpDtype = "auto"
        """auto: bf16 where the device has it, else fp16."""
        max_skipped_steps: int = 25
        """Steps in a row with a loss or gradient that is not finite before the run stops."""
        log_freq: int = 10
        """Iterations between logged ones."""
        save_every_iters: int | None = None
        """Iterations between writes of checkpoint_last.pth. Null: only at the ends of epochs."""
        keep_last: int | None = None
        """How many epoch checkpoints to keep. Null: all."""
        resume_ckpt_path: str | None = None
        """A checkpoint to go on from, or auto: the newest complete one of this job_id's folder."""

        def __post_init__(self) -> None:
            LR_SCHEDULES.get(self.lr_sched, "lr_sched")
            self.max_epoch = optim.total_epochs(self.stages, self.max_epoch)
            require_at_least(1, self, "max_epoch", "iters_per_epoch", "accum_grad_iters", "log_freq", "max_skipped_steps")
            require_at_least(1, self, "keep_last", "save_every_iters")
            require_at_least(0, self, "num_workers", "warmup_steps", "seed")
            require_at_least(0, self, "init_lr", "min_lr", "warmup_lr", "weight_decay", "lr_decay_rate")
            if not 0 <= self.beta2 < 1 or (self.max_grad_norm is not None and not 0 < self.max_grad_norm < math.inf):
                raise ValueError(f"beta2 {self.beta2} must be in [0, 1), max_grad_norm {self.max_grad_norm} above 0 or null")
            if self.job_id is not None and (not self.job_id or "/" in self.job_id or self.job_id.startswith(".")):
                raise ValueError(f"job_id {self.job_id!r} is the name of a folder: no '/' in it, no '.' at its start")

    def __init__(self, config: RunConfig, *, training: bool = True) -> None:
        if training:
            config.require_training()
        cfg = self.cfg = config.run
        self.config = config
        self.world = distributed.start(cfg.device)
        set_up(self.world.is_main)
        for text in config.warnings if self.world.is_main else ():
            get_logger().warning("%s", text)
        if training and cfg.resume_ckpt_path == "auto" and cfg.job_id is None:
            raise UserError("run.resume_ckpt_path: auto needs run.job_id, the name of the run's folder to look in")
        job_id = cfg.job_id or self.world.on_main(lambda: datetime.now().strftime("%Y%m%d%H%M%S"))
        self.folder = Path(cfg.output_dir) / job_id
        self.world.on_main(lambda: require_writable(self.folder, "run.output_dir"))
        self.precision = Precision(self.world.device, cfg.amp, cfg.amp_dtype)
        self.task = config.classes["run.task"]()
        self.prompt = self.world.main_first(lambda: config.classes["model"].prompt(config.model, cfg.loss_average))
        self.datasets = self.world.main_first(lambda: build_datasets(config, training=training, check=self.world.is_main))
        resumed = None
        if training:
            self.split = Split(batch_size(self.datasets), cfg.accum_grad_iters, self.world.size, self.world.rank)
            self.decks = [dataset.deck() for dataset in self.datasets.values()]
            facts = order_facts(self.split, self.datasets, self.decks, self.world)
            self._facts = facts | {"dtype": str(self.precision.frozen_dtype)}
            resumed = resume_content(config, self.folder, self._facts, self.world)
        self.model = build_model(config, self.world, self.precision, resumed, training=training)
        self.skipped: int = resumed["skipped"][0] if resumed else 0
        self.skipped_in_row: int = resumed["skipped"][1] if resumed else 0
        if training:
            self._prepare_training(resumed)

    def train(self) -> Path:
        """Run the steps that are left to do. Returns the run's folder."""
        cfg = self.cfg
        self.world.on_main(lambda: write_yaml(self.config, self.folder / "config.yaml"))
        get_logger().info("run folder: %s", self.folder)
        log = RunLog(
            self.folder,
            first_step=self.first_step,
            total_steps=self.total_steps,
            log_freq=cfg.log_freq,
            enabled=self.world.is_main,
        )
        batches = self._step_batches()
        for step in range(self.first_step, self.total_steps):
            with log.waiting():
                micro_batches = next(batches)
            values = self._step(step, micro_batches)
            self._stop_if_stuck(micro_batches)
            log.step(step, {"epoch": step // cfg.iters_per_epoch, **values}, samples=self.split.global_batch)
            self._save_when_due(step + 1)
        log.close()
        return self.folder

    def evaluate(self) -> list[Path]:
        """Answer every block under ``evaluation_datasets``, each clip once over all ranks. Returns the files written."""
        self.model.eval()
        answering = Answering(self.task, self.model, self.prompt, self.world, self.precision, self.cfg.seed)
        files = []
        for label, dataset in self.datasets.items():
            rows = answering.rows(label, dataset, self.config.evaluation_datasets[label].task)
            files += self.world.on_main(partial(write_predictions, self.folder / "result", label, rows))
        self.world.on_main(lambda: write_yaml(self.config, self.folder / "result" / "config.yaml"))
        return files

    def _step(self, step: int, micro_batches: list[Batch]) -> dict[str, float]:
        """One optimizer step: every micro-batch's gradients, clipping, the update. Returns what to log, over all ranks."""
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
        finite = math.isfinite(mean_loss) and math.isfinite(grad_norm)  # the same on every rank: both are reduced
        if finite:
            scaler.step(self.optimizer)
        scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.skipped += not finite
        self.skipped_in_row = 0 if finite else self.skipped_in_row + 1
        return {
            "loss": mean_loss,
            "lr": lr,
            "grad_norm": grad_norm,
            "skipped_steps": self.skipped,
            "tokens": int(tokens),
            "tokens_cut": int(tokens_cut),
        }

    def _gradients(self, step: int, micro_batches: list[Batch]) -> Tensor:
        """Accumulate the gradients of the global batch's mean loss. Returns this rank's part of that mean, float64."""
        device = self.world.device
        weights = sum(float(batch.loss_weights.sum(dtype=torch.float64)) for batch in micro_batches)
        total = self.world.sum(torch.tensor(weights, dtype=torch.float64, device=device))
        mean_loss = torch.zeros((), dtype=torch.float64, device=device)
        for micro, batch in enumerate(micro_batches):
            torch.manual_seed(seed_of(self.cfg.seed, step, self.world.rank, micro))
            with self.parallel.synchronised(last=micro + 1 == len(micro_batches)):
                with self.precision.autocast():
                    loss = self.task.loss(self.parallel, batch.to(device))
                # Gradients are averaged over the ranks, but each rank's sum counts in full.
                self.precision.scaler.scale(loss * (self.world.size / total).float()).backward()
            mean_loss += loss.detach() / total
        return mean_loss

    def _step_batches(self) -> Iterator[list[Batch]]:
        """The micro-batches of each step that is left, in order."""
        loader = training_loader(
            self.samples,
            self.split,
            first_step=self.first_step,
            end_step=self.total_steps,
            num_workers=self.cfg.num_workers,
            pin_memory=self.world.device.type == "cuda",
        )
        return step_batches(loader, self.cfg.accum_grad_iters)

    def _stop_if_stuck(self, micro_batches: list[Batch]) -> None:
        if self.skipped_in_row < self.cfg.max_skipped_steps:
            return
        names = list(chain(*self.world.gather([name for batch in micro_batches for name in batch.names])))
        kind = UserError if self.world.is_main else EchoedError
        raise kind(
            f"{self.skipped_in_row} steps in a row gave a loss or gradient that is not finite; the last one's clips"
            f" {listing(names)}. Lower run.init_lr, set run.max_grad_norm, or look at these clips' features."
        )

    def _save_when_due(self, done: int) -> None:
        """Write checkpoint_<epoch>.pth at an epoch's end, checkpoint_last.pth every ``save_every_iters`` steps."""
        epoch = (done - 1) // self.cfg.iters_per_epoch
        ends = done % self.cfg.iters_per_epoch == 0
        if ends:
            name = f"checkpoint_{epoch}.pth"
        elif self.cfg.save_every_iters and done % self.cfg.save_every_iters == 0:
            name = checkpoint.LAST
        else:
            return
        content = {
            "model": {self.model.stored_name(key): value for key, value in self.parallel.trainable_state().items()},
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.precision.scaler.state_dict(),
            "step": done,
            "epoch": epoch,
            "skipped": [self.skipped, self.skipped_in_row],
            "facts": self._facts,
            "config": self.config.plain(),
        }
        self.world.on_main(lambda: checkpoint.save(self.folder / name, content))
        if ends and self.cfg.keep_last:
            self.world.on_main(lambda: checkpoint.drop_old(self.folder, self.cfg.keep_last))

    def _prepare_training(self, resumed: dict[str, Any] | None) -> None:
        cfg = self.cfg
        self.learning_rate = optim.learning_rate(cfg)
        datasets = list(self.datasets.values())
        epoch_draws = self.split.global_batch * cfg.iters_per_epoch
        order = Order(cfg.seed, tuple(self.decks), epoch_draws)
        self.samples = TrainingSamples(datasets, self.prompt, order)
        self.model.train()
        self.parallel = distributed.Parallel(self.model, self.world, cfg.parallel)
        named = optim.trainable(self.model).items()
        self.optimizer = optim.adamw(named, lr=cfg.init_lr, weight_decay=cfg.weight_decay, beta2=cfg.beta2)
        self.total_steps = cfg.max_epoch * cfg.iters_per_epoch
        self.first_step = 0
        if resumed:
            self.optimizer.load_state_dict(resumed["optimizer"])
            self.precision.scaler.load_state_dict(resumed["scaler"])
            self.first_step = int(resumed["step"])
            if self.first_step > self.total_steps:
                raise UserError(
                    f"run.max_epoch: the stored run is at step {self.first_step}, beyond {self.total_steps}. Raise it."
                )
            left = "" if self.first_step < self.total_steps else ": nothing is left to do"
            get_logger().info("resuming at step %d of %d%s", self.first_step, self.total_steps, left)
