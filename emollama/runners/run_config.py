"""Keys of the ``run`` block."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, Union

from emollama import lr_schedules
from emollama.data.prompts.prompt_style import LossAverage
from emollama.dtypes import AmpDtype
from emollama.errors import require_at_least
from emollama.registry import LR_SCHEDULES


@dataclass
class RunnerConfig:
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
    wandb_log: bool = False
    """Send what TensorBoard gets to Weights & Biases too. WANDB_MODE=offline keeps it in the run's folder, for wandb sync."""
    wandb_project: str = "emollama"
    """Project there; the run is called like its folder."""
    save_every_iters: int | None = None
    """Iterations between writes of checkpoint_last.pth. Null: only at the ends of epochs."""
    keep_last: int | None = None
    """How many epoch checkpoints to keep. Null: all."""
    resume_ckpt_path: str | None = None
    """A checkpoint to go on from, or auto: the newest complete one of this job_id's folder."""
    allow_other_features: bool = False
    """Go on, with a warning, where features were made otherwise (another encoder, layer, pooling, frame) than those of another
    block, of the encoders that this file configures, or of the checkpoint's training."""
    evaluate: bool = False
    """Answer and score evaluation_datasets while training; where there is none, the clips that datasets hold out."""
    evaluate_only: bool = False
    """Only answer and score, as eval_emotion_EMER.py does."""
    eval_epoch_interval: int = 1
    """Epochs between evaluations; the last epoch always ends with one."""
    metric: str | None = None
    """The metric that decides which checkpoint is the best; block.metric or block.task.metric if several blocks or tasks have it.
    Null: loss. save_best and early_stop_patience require that exactly one block computes it; without them, none has to."""
    save_best: Union[bool, str] = False  # noqa: UP007
    """Keep the checkpoint with the best metric as checkpoint_best.pth. A metric's name is True with that metric."""
    early_stop_patience: int | None = None
    """Evaluations in a row without a better metric after which training ends. Null: it never ends early."""
    show_clips: int = 3
    """Clips of each block whose answers are shown at every evaluation, the same ones each time."""

    def __post_init__(self) -> None:
        if isinstance(self.save_best, str):
            if self.metric not in (None, self.save_best):
                raise ValueError(f"save_best is '{self.save_best}' and metric '{self.metric}'. Name one metric.")
            self.metric, self.save_best = self.save_best, True
        if self.save_best or self.early_stop_patience:
            self.metric = self.metric or "loss"
        useless = [key for key in ("save_best", "early_stop_patience") if getattr(self, key) and not self.evaluate]
        if useless:
            named = " and ".join(useless)
            raise ValueError(f"{named}: metrics while training are needed. Set run.evaluate: True, or leave {named} out.")
        LR_SCHEDULES.require(self.lr_sched, "lr_sched")
        self.max_epoch = lr_schedules.total_epochs(self.stages, self.max_epoch)
        require_at_least(1, self, "max_epoch", "iters_per_epoch", "accum_grad_iters", "log_freq", "max_skipped_steps")
        require_at_least(1, self, "keep_last", "save_every_iters", "eval_epoch_interval", "early_stop_patience")
        require_at_least(0, self, "num_workers", "warmup_steps", "seed", "show_clips")
        require_at_least(0, self, "init_lr", "min_lr", "warmup_lr", "weight_decay", "lr_decay_rate")
        if not 0 <= self.beta2 < 1 or (self.max_grad_norm is not None and not 0 < self.max_grad_norm < math.inf):
            raise ValueError(f"beta2 {self.beta2} must be in [0, 1), max_grad_norm {self.max_grad_norm} above 0 or null")
        if self.job_id is not None and (not self.job_id or "/" in self.job_id or self.job_id.startswith(".")):
            raise ValueError(f"job_id {self.job_id!r} is the name of a folder: no '/' in it, no '.' at its start")
