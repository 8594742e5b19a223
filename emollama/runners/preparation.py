"""Prepare and check everything that needs no weights, in the same way for training, evaluation and ``--dry-run``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from emollama.checkpoint_files import require_checkpoint_file, require_language_model, require_weights
from emollama.components import Model
from emollama.config import RunConfig
from emollama.data.dataset import ClipsToPredict, SampleDataset
from emollama.data.loader import BatchLayout, TrainingSamples, first_batches
from emollama.data.prompts.prompt import PromptFormat
from emollama.data.sampling import MixtureSampler
from emollama.data.shard_properties import download_shards
from emollama.data.workers import check_shared_memory
from emollama.decoding.answer_generator import AnswerGenerator
from emollama.distributed.process_group import World
from emollama.distributed.worker_variables import integer
from emollama.errors import ErrorCollector, final_errors
from emollama.folder_lock import released_after_error
from emollama.logs import tracking
from emollama.logs.logger import get_logger
from emollama.planning.uses import uses_of
from emollama.precision import Precision
from emollama.runners import provenance
from emollama.runners.build import WeightsToLoad, build_models, checkpoint_tensors, model_without_weights
from emollama.runners.chosen_checkpoint import resume_content
from emollama.runners.datasets import (
    build_datasets,
    require_tasks,
    slot_shapes_of_run,
    training_blocks,
    warn_of_untrained_slots,
)
from emollama.runners.evaluation import EvaluationSet, build_blocks, warn_of_training_samples
from emollama.runners.folder_check import check_run_folder, lock_run_folder, require_space
from emollama.runners.longest_samples import SampleLengths
from emollama.runners.memory_choice import fit_to_memory
from emollama.runners.model_ckpt import checkpoint_paths
from emollama.runners.node_checks import compare_datasets, compare_settings, compare_weights
from emollama.runners.prediction_runner import PredictionRunner
from emollama.runners.restarts import record_attempt, require_progress
from emollama.runners.resume import require_job_id, run_fields, sampling_fields
from emollama.runners.run_checkpoints import remove_interrupted
from emollama.runners.sharding_check import require_start
from emollama.runners.step_layout import step_layout
from emollama.runners.validation import monitored_metric

NEW_RUN = "new run"  # stands for the name of a run without a name in a dry run, which creates no folder


class Preparation:
    """Builds and checks everything that a run needs and that can be checked without weights, cheap checks first.

    Args:
        config: the resolved configuration.
        world: the processes; rank 0 checks first.
        training: True to train, False to only evaluate.
        processes: number of processes of the run; None is that of ``world``.
        problems: collects the errors, so that checks that do not depend on a failed one continue, as in a dry run, which writes
            nothing; if None, the first error is raised.
        clips: new clips that replace the samples of the evaluation blocks. Nothing is written into a folder of a run then.

    Attributes:
        folder: folder of the run. For a new run without a name, it has been created, unless nothing is written.
        lock: the lock of the folder that the run writes, on rank 0, which the run must release.
        precision, prompt: precision and prompt format of the model.
        datasets: block name -> training dataset; empty for an evaluation.
        blocks: block name -> evaluation block; empty if nothing is evaluated.
        features: slot -> provenance of the run's features, for slots with a manifest.
        layout, sampler: layout of a training step and order of the samples. With ``run.max_tokens: auto``, the layout is final
            when the model is built.
        resume_fields: name -> value that must be the same in a resumed run (:func:`~emollama.runners.resume.run_fields`).
        resumed: content of the checkpoint to resume from; None for a new run.
        first_step: first training step of this process, from 0.
        tensors: stored name -> tensor, for each member of an ensemble; empty if the model starts from random values.

    Raises:
        UserError: If files, features, checkpoints or the environment have a problem, or another run writes to the folder.
            Nothing was written then, but files that interrupted saves have left may be deleted.
    """

    prompt: PromptFormat
    layout: BatchLayout
    sampler: MixtureSampler
    resume_fields: dict[str, Any]
    features: Mapping[str, provenance.ProvenanceFields]
    tensors: list[dict[str, Tensor]]

    @final_errors()
    def __init__(
        self,
        config: RunConfig,
        world: World,
        *,
        training: bool,
        processes: int | None = None,
        problems: ErrorCollector | None = None,
        clips: ClipsToPredict | None = None,
    ) -> None:
        self.config, self.world, self.training, self.clips = config, world, training, clips
        self.processes = processes or world.size
        self.datasets: dict[str, SampleDataset] = {}
        self.blocks: dict[str, EvaluationSet] = {}
        self.resumed: dict[str, Any] | None = None
        self.first_step = 0
        self._collect_errors: AbstractContextManager[None] = nullcontext() if problems is None else problems
        self.folder = Path(config.run.output_dir) / (config.run.job_id or NEW_RUN)
        self.lock: AbstractContextManager[Any] = nullcontext()
        self.precision = Precision(world.device, config.run.amp, config.run.amp_dtype)
        compare_settings(config, self.precision, world)
        if training:
            with self._collect_errors:
                world.on_rank_zero(lambda: require_job_id(config.run))
        if problems is None and clips is None:
            # On another node, run.output_dir can be another folder.
            self.folder = Path(config.run.output_dir) / world.on_rank_zero(self._lock_folder)
        with released_after_error(self.lock):
            self._check(problems)

    def _lock_folder(self) -> str:
        """Choose and lock the folder that the run writes. Return the name of the folder of the run."""
        folder, self.lock = lock_run_folder(self.config.run, training=self.training)
        return folder.name

    def _check(self, problems: ErrorCollector | None) -> None:
        """Build and check everything."""
        self._check_files()
        self._build_data()
        self._check_checkpoints()
        if problems:
            return
        if self.training:
            with self._collect_errors:
                self._prepare_steps()
                self.world.rank_zero_first(self._check_shared_memory)
        if problems:
            return
        with self._collect_errors:
            total = self.config.run.max_epoch * self.config.run.iters_per_epoch
            will_save = self.training and problems is None and self.first_step < total
            if will_save:
                remove_interrupted(self.folder, self.world, self.resumed)
            self.tensors = self.world.rank_zero_first(partial(self._checkpoint_tensors, will_save=will_save))
        if self.training and problems is None:
            self.world.on_rank_zero(lambda: record_attempt(self.folder, self.first_step))

    def build_models(self, *, embeddings_only: bool = False) -> list[Model]:
        """Build the model on this process's device with its checkpoint, or all members of an ensemble.

        Args:
            embeddings_only: load only the embedding table of the language model, which runs elsewhere.
        """
        # Requests are answered by each process alone.
        weights: WeightsToLoad = "embeddings" if embeddings_only else "all" if self.clips else "sharded"
        members = build_models(self.config, self.world, self.precision, self.tensors, self.resumed, weights=weights)
        if self.config.model.merge_adapters and not self.training and not embeddings_only:
            members[0].merge_adapters()
        if self.training and self.config.model.compile and self.world.is_main:
            get_logger().info("model.compile: the start may take minutes, because the layers are compiled.")
        if self.training and "auto" in (self.config.model.use_grad_checkpoint, self.config.run.max_tokens):
            self.layout = fit_to_memory(members[0], self)
        return members

    def prediction_runner(self, members: Sequence[Model]) -> PredictionRunner:
        """Return what runs the model, or the members of an ensemble, on evaluation blocks."""
        task, seed = self.config.task_class(), self.config.run.seed
        return PredictionRunner(task, AnswerGenerator(members, self.prompt), self.world, self.precision, seed)

    def _check_files(self) -> None:
        """Check the run's folder, Weights & Biases, and the language model."""
        run, model, on_rank_zero, nodes = self.config.run, self.config.model, self.world.on_rank_zero, self.world.nodes
        if self.training and run.wandb_log:
            with self._collect_errors:
                on_rank_zero(tracking.require)
        if self.clips is None:
            with self._collect_errors:
                on_rank_zero(lambda: check_run_folder(self.folder))
            with self._collect_errors:
                on_rank_zero(partial(require_start, self.config, self.processes, nodes, training=self.training))
            with self._collect_errors:
                self.world.rank_zero_first(partial(require_weights, model.llama_model))
        with self._collect_errors:
            self.world.rank_zero_first(lambda: require_language_model(model.llama_model))
            prompt_format = self.config.model_class.prompt_format
            self.prompt = self.world.rank_zero_first(lambda: prompt_format(model, run.loss_average))
            check, device, dtype = self.config.model_class.check_language_model, self.world.device, self.precision.frozen_dtype
            uses = uses_of(self.config, training=self.training)
            lines = self.world.rank_zero_first(lambda: check(model, self.prompt, device=device, frozen_dtype=dtype, uses=uses))
            for line in lines if self.world.is_main else ():
                get_logger().warning(line)

    def _check_checkpoints(self) -> None:
        """Check that the files of ``model.ckpt`` exist, and the weights of all nodes. A resumed run loads its own checkpoint."""
        resumes = self.training and self.config.run.resume_ckpt_path
        for path in () if resumes else checkpoint_paths(self.config.model.ckpt):
            with self._collect_errors:
                self.world.rank_zero_first(partial(require_checkpoint_file, path, "model.ckpt"))
        with self._collect_errors:
            compare_weights(self.config, self.world, resumes=bool(resumes))

    def _build_data(self) -> None:
        """Build datasets and evaluation blocks, and compare the provenance of their features."""
        run, world = self.config.run, self.world
        datasets = blocks = None
        with self._collect_errors:
            datasets = self.datasets = self._datasets()
        with self._collect_errors:
            blocks = self.blocks = self._blocks()
        if self.training and run.evaluate and blocks is not None:
            with self._collect_errors:
                world.on_rank_zero(lambda: monitored_metric(run, self.blocks))
        if datasets is None or blocks is None:
            return
        if world.is_main:
            warn_of_training_samples(blocks, datasets)
            warn_of_untrained_slots(datasets, {name: block.dataset for name, block in blocks.items()})
        evaluated = [block.dataset for block in blocks.values()]
        compare_datasets({name: block.dataset for name, block in blocks.items()}, world)
        used, compared = (list(datasets.values()), evaluated) if self.training else (evaluated, [])
        with self._collect_errors:
            self.features = world.rank_zero_first(lambda: provenance.provenance_of_run(self.config, used, compared))

    def _datasets(self) -> dict[str, SampleDataset]:
        """Build the training datasets, whose files rank 0 checks first."""
        if not self.training:
            return {}
        config, check, blocks = self.config, self.world.is_first, training_blocks(self.config)

        def build() -> dict[str, SampleDataset]:
            datasets = build_datasets(config, blocks, training=True, check=check)
            for dataset in datasets.values():
                download_shards(dataset.features)
            return datasets

        built = self.world.rank_zero_first(build)
        return {path.removeprefix("datasets."): dataset for path, dataset in built.items()}

    def _blocks(self) -> dict[str, EvaluationSet]:
        """Build the evaluation blocks, whose files rank 0 checks first."""
        if self.training and not self.config.run.evaluate:
            return {}
        check = self.world.is_first and self.clips is None  # new clips have no files yet
        return self.world.rank_zero_first(lambda: build_blocks(self.config, check=check, clips=self.clips))

    def _prepare_steps(self) -> None:
        """Prepare the layout of a step, the order of the samples, and the checkpoint to resume from."""
        run, rank, processes = self.config.run, self.world.rank, self.processes
        self.world.rank_zero_first(lambda: require_tasks(self.config.datasets, run.tasks_per_clip))
        steps = self.world.rank_zero_first(lambda: step_layout(run, self.config.datasets, processes, rank))
        pads, device, dtype = self.config.model_class.pads_samples, self.world.device, self.precision.frozen_dtype
        self.layout = replace(steps, padded=pads(self.config.model, device=device, frozen_dtype=dtype))
        if isinstance(run.max_tokens, int):
            lengths = SampleLengths(self.datasets, self.prompt, self.config.model, slot_shapes_of_run(self.config))
            self.world.on_rank_zero(partial(lengths.require_fitting, run.max_tokens))
            self.world.on_rank_zero(partial(lengths.warn_of_long_groups, run.max_tokens, run.tasks_per_clip))
        samplings = [dataset.sampling() for dataset in self.datasets.values()]
        samples_per_epoch = self.layout.global_batch * run.iters_per_epoch
        names = tuple(f"datasets.{name}" for name in self.datasets)
        order = run.seed, tuple(samplings), samples_per_epoch, names, run.tasks_per_clip
        self.sampler = self.world.rank_zero_first(lambda: MixtureSampler(*order))
        fields = sampling_fields(self.layout, self.datasets, samplings, self.world)
        layout = self.config.model_class.feature_layout(self.config.model)
        self.resume_fields = run_fields(fields, self.precision, self.prompt, layout)
        self.resumed = resume_content(self.config, self.folder, self.resume_fields, self.world, processes)
        self.first_step, total = int(self.resumed["step"]) if self.resumed else 0, run.max_epoch * run.iters_per_epoch
        self.world.on_rank_zero(lambda: require_progress(self.folder, self.first_step))
        if self.first_step > total:
            raise self.world.user_error(
                f"run.max_epoch: the checkpoint to resume from is at step {self.first_step}, but this run ends at step {total}."
                " Increase run.max_epoch."
            )

    def _check_shared_memory(self) -> None:
        """Check that /dev/shm has space for the batches of the data workers on this machine."""
        run = self.config.run
        if not run.num_workers:
            return
        samples = TrainingSamples(list(self.datasets.values()), self.prompt, self.sampler)
        processes = integer("LOCAL_WORLD_SIZE", self.processes)
        loaded = first_batches(samples, self.layout, self.first_step)
        check_shared_memory(loaded, num_workers=run.num_workers, processes=processes, loads_per_step=self.layout.loads_per_step)

    def _checkpoint_tensors(self, *, will_save: bool) -> list[dict[str, Tensor]]:
        shapes = model_without_weights(self.config, self.precision)
        if will_save:
            require_space(self.config, self.folder, shapes, self.world)
        state = self.config, shapes, self.resumed, self.features
        return checkpoint_tensors(*state, training=self.training, check_parts=self.world.is_first)
