"""Registries: the names of components in a YAML file, and the classes that they stand for.

A registry returns a class, and the caller builds it with ``cls(cfg, **runtime)``. The tables below list built-in components as
"module:Class"; a look-up imports only that module. The Config of a class that needs torch is in a separate module without torch
(:class:`BuiltIn`), so that a configuration can be checked without importing torch. A user's modules are named under ``imports:``
in the YAML file, and register their classes with a decorator.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from emollama.registration import BuiltIn, Registry

if TYPE_CHECKING:
    # Only types: a look-up imports the module of one component, and nothing else.
    from emollama.components import Fusion, Model, Task
    from emollama.data.dataset import SampleDataset
    from emollama.data.prompts.prompt import PromptFormat
    from emollama.encoders.encoder import Encoder
    from emollama.evaluation.judges.judge import Judge
    from emollama.evaluation.metrics import Metric, MetricInput
    from emollama.extraction.extractor import Extractor
    from emollama.lr_schedules import LRSchedule
    from emollama.runners.runner import Runner


def _with_config(package: str, classes: Mapping[str, str]) -> dict[str, str | BuiltIn]:
    """Return built-in components of a package, whose Config is ``<Class>Config`` in the package's module ``configs``."""
    return {
        name: BuiltIn(f"{package}.{location}", {"Config": f"{package}.configs:{location.partition(':')[2]}Config"})
        for name, location in classes.items()
    }


MODELS: Registry[type[Model]] = Registry(
    "model",
    _with_config("emollama.models", {"minigpt_v2": "minigpt_v2:MiniGPTv2", "minigpt4": "minigpt4:MiniGPT4"}),
    interface="emollama.components:Model",
    config_interface="emollama.component_configs:ModelConfig",
)
_FUSIONS = {"linear": "linear:LinearFusion", "image_projection": "linear:ImageProjection"}
FUSIONS: Registry[type[Fusion]] = Registry(
    "fusion",
    _with_config("emollama.models.fusion", _FUSIONS),
    interface="emollama.components:Fusion",
)
_DATASETS = {
    "feature_face_caption": "feature_face_caption:FeatureFaceCaption",
    "mer2024_caption": "mer2024_caption:MER2024Caption",
    "dfew": "dfew:DFEW",
    "emer": "emer:EMER",
    "custom": "custom:Custom",
    "flickr30k_caption": "flickr30k_caption:Flickr30kCaption",
    "image_text_tars": "image_text_tars:ImageTextTars",
}
DATASETS: Registry[type[SampleDataset]] = Registry(
    "dataset",
    _with_config("emollama.datasets", _DATASETS),
    interface="emollama.data.dataset:SampleDataset",
    config_interface="emollama.data.dataset:DatasetConfig",
)
_IMAGE_TEXT = {
    "Config": "emollama.tasks.configs:ImageTextPretrainConfig",
    "scoring": "emollama.evaluation.scoring:Scoring",
}
TASKS: Registry[type[Task]] = Registry(
    "task",
    {"image_text_pretrain": BuiltIn("emollama.tasks.image_text_pretrain:ImageTextPretrain", _IMAGE_TEXT)},
    interface="emollama.components:Task",
    config_interface="emollama.component_configs:TaskConfig",
)
_RUN_CONFIG = {"Config": "emollama.runners.run_config:RunnerConfig"}
RUNNERS: Registry[type[Runner]] = Registry(
    "runner",
    {"runner_base": BuiltIn("emollama.runners.runner_base:RunnerBase", _RUN_CONFIG)},
    interface="emollama.runners.runner:Runner",
    config_interface="emollama.runners.run_config:RunnerConfig",
)
_PROMPT_FORMATS = {
    "emotion_llama": "formats:EmotionLlamaFormat",
    "minigpt4": "formats:MiniGPT4Format",
    "template": "formats:TemplateFormat",
}
PROMPT_FORMATS: Registry[type[PromptFormat]] = Registry(
    "prompt format",
    _with_config("emollama.data.prompts", _PROMPT_FORMATS),
    interface="emollama.data.prompts.prompt:PromptFormat",
    config_interface="emollama.component_configs:PromptFormatConfig",
)
_LR_SCHEDULES = ("linear_warmup_cosine_lr", "linear_warmup_step_lr")
LR_SCHEDULES: Registry[LRSchedule] = Registry(
    "LR schedule",
    {name: f"emollama.lr_schedules:{name}" for name in _LR_SCHEDULES},
    needs_config=False,
    interface="emollama.lr_schedules:LRSchedule",
)
_ENCODERS = {"eva": "eva:Eva", "mae": "mae:Mae", "videomae": "videomae:VideoMae", "hubert": "hubert:Hubert"}
ENCODERS: Registry[type[Encoder]] = Registry(
    "encoder",
    _with_config("emollama.encoders", _ENCODERS),
    interface="emollama.encoders.encoder:Encoder",
    config_interface="emollama.encoders.configs:EncoderConfig",
)
EXTRACTORS: Registry[type[Extractor]] = Registry(
    "extractor",
    _with_config("emollama.extraction", {"videos": "videos:VideoExtraction"}),
    interface="emollama.extraction.extractor:Extractor",
    config_interface="emollama.component_configs:ExtractorConfig",
)
_METRICS = {
    "loss": "losses:LOSS",
    "war": "recognition:WAR",
    "waf": "recognition:WAF",
    "uar": "recognition:UAR",
    "macro_f1": "recognition:MACRO_F1",
    "precision": "recognition:PRECISION",
    "recall": "recognition:RECALL",
    "hit_rate": "recognition:HIT_RATE",
    "invalid_rate": "recognition:INVALID_RATE",
    "ov_precision": "openset:OV_PRECISION",
    "ov_recall": "openset:OV_RECALL",
    "ov": "openset:OV",
    "ew_precision": "wheels:EW_PRECISION",
    "ew_recall": "wheels:EW_RECALL",
    "ew": "wheels:EW",
    "clue_overlap": "emer:CLUE_OVERLAP",
    "label_overlap": "emer:LABEL_OVERLAP",
    "bleu_1": "captions.metrics:BLEU_1",
    "bleu_2": "captions.metrics:BLEU_2",
    "bleu_3": "captions.metrics:BLEU_3",
    "bleu_4": "captions.metrics:BLEU_4",
    "rouge_l": "captions.metrics:ROUGE_L",
    "cider_d": "captions.metrics:CIDER_D",
    "meteor": "captions.metrics:METEOR",
    "spice": "captions.metrics:SPICE",
}
METRICS: Registry[Metric] = Registry(
    "metric",
    {name: f"emollama.evaluation.{location}" for name, location in _METRICS.items()},
    needs_config=False,
    interface="emollama.evaluation.metrics:Metric",
)
# Tables show metrics in the order of their inputs.
_METRIC_INPUTS = {
    "labels": "recognition:Labels",
    "clue_overlaps": "emer:ClueOverlaps",
    "label_overlaps": "emer:LabelOverlaps",
    "open_sets": "openset:OpenSets",
    "wheel_sets": "wheels:WheelSets",
    "ngrams": "captions.metric_inputs:NGrams",
    "subsequences": "captions.metric_inputs:Subsequences",
    "consensus": "captions.metric_inputs:Consensus",
    "alignments": "captions.metric_inputs:Alignments",
    "propositions": "captions.metric_inputs:Propositions",
    "losses": "losses:Losses",
    "answers": "answer_texts:AnswerTexts",
}
METRIC_INPUTS: Registry[type[MetricInput]] = Registry(
    "metric input", {name: f"emollama.evaluation.{location}" for name, location in _METRIC_INPUTS.items()}
)
_JUDGES = {"lexical": "lexical:LexicalJudge", "openai": "openai:OpenAIJudge"}
JUDGES: Registry[type[Judge]] = Registry(
    "judge",
    {name: f"emollama.evaluation.judges.{location}" for name, location in _JUDGES.items()},
    interface="emollama.evaluation.judges.judge:Judge",
    # A secret key that was written into the configuration by mistake is not printed.
    shows_values=False,
)

if TYPE_CHECKING:
    # mypy checks here that the built-in components implement the interfaces of their kinds.
    from emollama.component_configs import ExtractorConfig, ModelConfig, PromptFormatConfig, TaskConfig
    from emollama.data.prompts.configs import TemplateFormatConfig
    from emollama.data.prompts.formats import EmotionLlamaFormat, MiniGPT4Format, TemplateFormat
    from emollama.datasets.custom import Custom
    from emollama.datasets.dfew import DFEW
    from emollama.datasets.emer import EMER
    from emollama.datasets.feature_face_caption import FeatureFaceCaption
    from emollama.datasets.flickr30k_caption import Flickr30kCaption
    from emollama.datasets.image_text_tars import ImageTextTars
    from emollama.datasets.mer2024_caption import MER2024Caption
    from emollama.evaluation.judges.lexical import LexicalJudge
    from emollama.evaluation.judges.openai import OpenAIJudge
    from emollama.extraction.configs import VideoExtractionConfig
    from emollama.extraction.videos import VideoExtraction
    from emollama.lr_schedules import linear_warmup_cosine_lr, linear_warmup_step_lr
    from emollama.models.configs import LLMConfig
    from emollama.models.fusion.linear import ImageProjection, LinearFusion
    from emollama.models.minigpt4 import MiniGPT4
    from emollama.models.minigpt_v2 import MiniGPTv2
    from emollama.runners.runner_base import RunnerBase
    from emollama.tasks.configs import ImageTextPretrainConfig
    from emollama.tasks.image_text_pretrain import ImageTextPretrain

    _models: tuple[type[Model], ...] = (MiniGPTv2, MiniGPT4)
    _fusions: tuple[type[Fusion], ...] = (LinearFusion, ImageProjection)
    _prompt_formats: tuple[type[PromptFormat], ...] = (EmotionLlamaFormat, MiniGPT4Format, TemplateFormat)
    _clip_datasets: tuple[type[SampleDataset], ...] = (FeatureFaceCaption, MER2024Caption, DFEW, EMER, Custom)
    _caption_datasets: tuple[type[SampleDataset], ...] = (Flickr30kCaption, ImageTextTars)
    _task: type[Task] = ImageTextPretrain
    _runner: type[Runner] = RunnerBase
    _lr_schedules: tuple[LRSchedule, ...] = (linear_warmup_cosine_lr, linear_warmup_step_lr)
    _extractor: type[Extractor] = VideoExtraction
    _judges: tuple[type[Judge], ...] = (LexicalJudge, OpenAIJudge)
    _model_config: type[ModelConfig] = LLMConfig
    _prompt_format_config: type[PromptFormatConfig] = TemplateFormatConfig
    _task_config: type[TaskConfig] = ImageTextPretrainConfig
    _extractor_config: type[ExtractorConfig] = VideoExtractionConfig
