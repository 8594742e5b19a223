"""Keys of the ``run`` block."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Union

from emollama import lr_schedules
from emollama.data.prompts.prompt_style import LossAverage
from emollama.dtypes import AmpDtype, ReduceDtype
from emollama.errors import require_at_least
from emollama.field_texts import documented
from emollama.parallel_modes import ParallelMode
from emollama.registry import LR_SCHEDULES

TOKENS = "auto, null, or a whole number of at least 1"  # values of run.max_tokens
MAX_NAME, MAX_BYTES = 200, 255  # characters of run.job_id, and bytes of a name in most file systems


@documented
@dataclass
class RunnerConfig:
    """Keys of the ``run`` block. An iteration is one optimizer step, including all its micro-batches."""

    output_dir: str = "checkpoints/save_checkpoint"
    """Folder in which each run has its own folder."""
    job_id: str | None = None
    """Name of this run's folder in output_dir: at most 200 printable characters, without / and not starting with a dot. If null,
    the current time is used."""
    seed: int = 42
    """Random seed of initial weights, sample order, choice of tasks and instructions, and dropout."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """Device of the run. auto: a GPU if there is one, otherwise the CPU."""
    parallel: ParallelMode = "ddp"
    """Parallelism over several processes. ddp (DistributedDataParallel): each process has all weights. fsdp (FSDP2): the weights
    of the language model are divided among all processes, and gathered layer by layer. hsdp: they are divided among shard_size
    processes, and each such group has all weights."""
    shard_size: int | None = None
    """Number of processes among which hsdp divides the weights. It must divide the number of processes. If null, it is the number
    of processes of a machine, so that only gradients are exchanged between machines."""
    reduce_dtype: ReduceDtype = "fp32"
    """Data type in which processes exchange gradients. bf16 halves the bytes, for slow networks; gradients are then rounded to
    8 significant bits."""
    max_epoch: int = 1
    """Number of epochs. An epoch has iters_per_epoch iterations; it does not depend on the number of samples."""
    iters_per_epoch: int = 1000
    """Iterations per epoch."""
    accum_grad_iters: int = 1
    """Micro-batches per iteration on each process (gradient accumulation)."""
    global_batch: int | None = None
    """Samples per iteration over all processes. The number of micro-batches follows from it, batch_size and the number of
    processes, and accum_grad_iters must be 1. It must be a multiple of processes x batch_size. With max_tokens, batch_size has no
    effect, and it must be a multiple of processes x tasks_per_clip. If null, it is processes x batch_size x accum_grad_iters."""
    max_tokens: Annotated[Union[int, str, None], TOKENS] = None  # noqa: UP007
    """Maximum number of tokens of a micro-batch, with the padding if the language model pads samples (packing). If it is set, the
    samples of an iteration on a process are grouped by their lengths into as few micro-batches as possible, equally many on all
    processes; the loss of an iteration does not change. It must be at least the tokens of the longest sample. The samples of
    tasks_per_clip stay together even if they have more; the run warns of that at its start. auto: as many as fit into the free
    memory, which is measured at the start, and at most 8192; a resumed run may choose another number, which changes losses by
    rounding. If null, a micro-batch has batch_size samples."""
    tasks_per_clip: int = 1
    """Number of different tasks of task_pool that a step asks about a clip, in as many samples with the same augmentation. The
    language model processes the beginning of their prompts, which contains the features, once for all of them. batch_size must be
    a multiple, or with max_tokens the global_batch on each process, and a step has fewer clips."""
    num_workers: int = 4
    """Data loader processes for each training process; they read features and tokenize."""
    lr_sched: str = "linear_warmup_cosine_lr"
    """Name of the registered learning rate schedule."""
    init_lr: float = 1e-5
    """Peak learning rate, after the warm-up."""
    min_lr: float = 1e-6
    """Learning rate at the end of the decay."""
    warmup_lr: float | None = None
    """Learning rate at the start of the warm-up. If null, it is init_lr, and the rate is constant during the warm-up."""
    warmup_steps: int = 0
    """Iterations of the warm-up."""
    stages: list[dict[str, Any]] = field(default_factory=list)
    """Stages of the learning rate, such as [{init_lr: 1e-5, epochs: 15}, {init_lr: 5e-6, epochs: 15}]. The schedule starts again
    with each stage. A stage can also set min_lr, warmup_lr and warmup_steps; otherwise those of the run apply. max_epoch is the
    sum of all epochs. If empty, there is a single stage."""
    lr_decay_rate: float = 0.9
    """Factor per epoch of the schedule linear_warmup_step_lr."""
    weight_decay: float = 0.05
    """Weight decay of AdamW. Biases and norms have none."""
    beta2: float = 0.999
    """Decay rate of AdamW's second moment."""
    max_grad_norm: float | None = None
    """Gradients are clipped to this global L2 norm. If null, they are not clipped."""
    loss_average: LossAverage = "sample"
    """sample: mean over the answer tokens of each sample, then over samples. token: mean over all answer tokens of the global
    batch."""
    amp: bool = True
    """Use mixed precision. If False, computations are in float32."""
    amp_dtype: AmpDtype = "auto"
    """Data type of mixed precision. auto: bf16 if the device supports it, otherwise fp16."""
    max_skipped_steps: int = 25
    """The run stops if, at a log entry, the loss or gradient of at least this number of last steps was not finite."""
    log_freq: int = 10
    """Iterations between log entries."""
    wandb_log: bool = False
    """Log to Weights & Biases in addition to TensorBoard. With WANDB_MODE=offline in the environment, the data stay in the run's
    folder for wandb sync."""
    wandb_project: str = "emollama"
    """Project of Weights & Biases. The run there has the name of the run's folder."""
    save_every_iters: int | None = None
    """Iterations between saves of checkpoint_last.pth. If null, checkpoints are only saved at the end of epochs."""
    async_save: bool = True
    """Write checkpoints in the background: training only waits until their tensors are copied. The copy is in the CPU memory of
    process 0 and has the size of a checkpoint; of a sharded one, each process has its part. If False, or if there is not enough
    memory, training waits until a checkpoint is written."""
    sharded_checkpoints: bool = True
    """If the trained weights are divided among processes (model.train_llm: full with fsdp or hsdp), each process writes its part
    of a checkpoint into the folder checkpoint_parts, and checkpoint_<epoch>.pth refers to these files. If False, process 0
    gathers everything for one file, which takes 12 bytes of its memory per trained parameter. Has no effect on other runs."""
    keep_last: int | None = None
    """Number of most recent epoch checkpoints to keep. If null, all are kept."""
    stop_after_minutes: float | None = None
    """Time after which the run stops and saves a checkpoint, as after SIGTERM, so that it ends before a time limit of the batch
    system. It counts from the start of the command; with torchrun, from that of its processes. If null, there is no limit."""
    hang_minutes: float | None = 30
    """Minutes without progress after which a process prints the stacks of its threads and ends. If null, it waits forever."""
    resume_ckpt_path: str | None = None
    """Checkpoint to resume from. auto: the newest complete checkpoint in the folder of job_id."""
    allow_other_features: bool = False
    """Only warn if features have a different provenance (encoder, layers, pooling, frame) than those of other blocks, than the
    encoders section of this file describes, or than those that the checkpoint was trained on."""
    evaluate: bool = False
    """Evaluate during training: the blocks of evaluation_datasets, or, if there are none, the held-out samples of datasets."""
    evaluate_only: bool = False
    """Only evaluate, as eval_emotion_EMER.py does."""
    eval_epoch_interval: int = 1
    """Epochs between evaluations. There is always an evaluation after the last epoch."""
    metric: str | None = None
    """Metric that selects the best checkpoint, as block.metric or block.task.metric if several blocks or tasks compute it. If
    null, it is the loss. With save_best or early_stop_patience, exactly one block must compute it."""
    save_best: Annotated[Union[bool, str], "True, False, or the name of a metric"] = False  # noqa: UP007
    """Save the checkpoint with the best metric as checkpoint_best.pth. The name of a metric also sets run.metric."""
    early_stop_patience: int | None = None
    """Training ends after this number of consecutive evaluations without an improvement of the metric. If null, training never
    ends early."""
    show_clips: int = 3
    """Number of samples per block whose answers are logged after each evaluation. They are always the same samples."""

    def __post_init__(self) -> None:
        if isinstance(self.save_best, str):
            if self.metric not in (None, self.save_best):
                raise ValueError(
                    f"save_best is '{self.save_best}', but metric is '{self.metric}'. Set save_best: True, or the same metric."
                )
            self.metric, self.save_best = self.save_best, True
        if self.save_best or self.early_stop_patience:
            self.metric = self.metric or "loss"
        useless = [key for key in ("save_best", "early_stop_patience") if getattr(self, key) and not self.evaluate]
        if useless:
            keys = " and ".join(useless)
            raise ValueError(f"{keys}: this requires evaluations during training. Set run.evaluate: True, or remove {keys}.")
        LR_SCHEDULES.require(self.lr_sched, "lr_sched")
        self.max_epoch = lr_schedules.total_epochs(self.stages, self.max_epoch)
        require_at_least(1, self, "max_epoch", "iters_per_epoch", "accum_grad_iters", "tasks_per_clip", "log_freq")
        require_at_least(1, self, "max_skipped_steps", "shard_size")
        if self.shard_size is not None and self.parallel != "hsdp":
            raise ValueError(
                f"shard_size is {self.shard_size}, but parallel is {self.parallel}, for which it has no meaning. Set parallel:"
                " hsdp, or remove shard_size."
            )
        if self.global_batch is not None and self.accum_grad_iters > 1:
            raise ValueError(
                f"global_batch is {self.global_batch}, and accum_grad_iters is {self.accum_grad_iters}: the number of accumulated"
                " micro-batches follows from global_batch. Set accum_grad_iters: 1, or remove global_batch."
            )
        require_at_least(1, self, "global_batch", "keep_last", "save_every_iters", "eval_epoch_interval", "early_stop_patience")
        self._require_max_tokens()
        require_at_least(0.01, self, "hang_minutes", "stop_after_minutes")
        require_at_least(0, self, "num_workers", "warmup_steps", "seed", "show_clips")
        require_at_least(0, self, "init_lr", "min_lr", "warmup_lr", "weight_decay", "lr_decay_rate")
        if not 0 <= self.beta2 < 1 or (self.max_grad_norm is not None and not 0 < self.max_grad_norm < math.inf):
            raise ValueError(
                f"beta2 ({self.beta2}) must be in [0, 1), and max_grad_norm ({self.max_grad_norm}) must be above 0 or null"
            )
        if self.job_id is not None:
            require_folder_name(self.job_id)

    def _require_max_tokens(self) -> None:
        # An environment variable is a text.
        if isinstance(self.max_tokens, str) and self.max_tokens.isdecimal():
            self.max_tokens = int(self.max_tokens)
        limit = self.max_tokens
        if limit not in (None, "auto") and not (type(limit) is int and limit >= 1):
            raise ValueError(f"max_tokens is {limit!r}; it must be {TOKENS}")


def hang_seconds(cfg: RunnerConfig) -> float:
    """Return the time in seconds after which a process stops waiting for a batch of its data workers; 0 waits forever.

    It is shorter than ``hang_minutes``, because the error then names the sample that a worker reads.
    """
    return 0.8 * 60 * (cfg.hang_minutes or 0)


def require_folder_name(job_id: str) -> None:
    """Check that a name can be that of a run's folder.

    Raises:
        ValueError: If it is too long, has characters that are not printable, contains ``/``, or starts with ``.``.
    """
    if not job_id or "/" in job_id or job_id.startswith("."):
        raise ValueError(f"job_id {job_id!r} must be the name of a folder: without '/', and not starting with '.'")
    if not job_id.isprintable():
        raise ValueError(f"job_id {job_id!r} contains characters that cannot be printed. Remove them")
    if len(job_id) > MAX_NAME or len(os.fsencode(job_id)) > MAX_BYTES:
        raise ValueError(
            f"job_id has {len(job_id)} characters ({len(os.fsencode(job_id))} bytes). The name of a folder has at most {MAX_NAME}"
            f" characters and {MAX_BYTES} bytes. Shorten it"
        )
