"""Imports of the fork server (tests/ranks.py) before it forks: nearly all modules that the tested commands import."""

from __future__ import annotations

import gc
import importlib
from pathlib import Path

MODULES = [
    "torch",
    "torch.distributed",
    "torch.nn.parallel",
    "torch.utils.serialization.config",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "pytest",
    "rich.progress",
    "rich.table",
    "sklearn.metrics",
    "tensorboard.plugins.hparams.summary_v2",
    "torch.utils.tensorboard",
    "transformers.models.llama.modeling_llama",
    "transformers.models.llama.tokenization_llama",
    "transformers.models.blip_2.modeling_blip_2",
    "iopath.common.file_io",
    "peft",
    "peft.utils.transformers_weight_conversion",
    "timm.layers",
    "omegaconf._impl",
    "openai",
    "wandb",
    "wandb.sdk.launch.inputs.internal",
    "emollama.cli",
    "emollama.commands.eval_checkpoints",
    "emollama.commands.train",
    "emollama.data.prompts.formats",
    "emollama.datasets.feature_face_caption",
    "emollama.datasets.flickr30k_caption",
    "emollama.evaluation.captions.metrics",
    "emollama.logs.bars",
    "emollama.models.attention",
    "emollama.models.llm_weights",
    "emollama.models.minigpt4",
    "emollama.models.minigpt_v2",
    "emollama.models.packing_check",
    "emollama.remote.handler",
    "emollama.reporting.report",
    "emollama.reporting.checkpoint_table",
    "emollama.runners.runner_base",
    "emollama.tasks.image_text_pretrain",
]

gc.disable()  # it would inspect all modules repeatedly
for name in MODULES:
    importlib.import_module(name)

from transformers.conversion_mapping import get_checkpoint_conversion_mapping  # noqa: E402

get_checkpoint_conversion_mapping("llama")  # compiles the patterns of all models, for peft

from helpers import golden_tree  # noqa: E402

from emollama.config import from_dict  # noqa: E402

from_dict(golden_tree(Path("unused")), "preloaded")  # builds the typed nodes of its blocks, which later configurations copy
gc.freeze()
gc.enable()
