"""The Protocols of models, fusion modules and tasks, and the objects that they exchange.

A class implements a Protocol without inheriting from it, and contains a dataclass ``Config`` with its keys. Other kinds of
components are defined next to the code that uses them: datasets in ``data/dataset.py``, prompt formats in
``data/prompts/prompt.py``, encoders in ``encoders/encoder.py``, extractors in ``extraction/extractor.py``, runners in
``runners/runner.py``, metrics in ``evaluation/metrics.py``, judges in ``evaluation/judges/judge.py``, and learning rate schedules
in ``lr_schedules.py``.

Shape letters: n = feature vectors of a slot in a micro-batch, D = their size, H = hidden size of the language model,
B = sequences, Q = new tokens per sequence, L = labelled tokens, V = size of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import torch
from torch import Tensor, nn

from emollama.data.batch import Batch, PackedFeatures
from emollama.data.dataset import SampleDataset
from emollama.data.fusion_layout import FusionLayout
from emollama.data.prompts.prompt import PromptFormat
from emollama.data.prompts.prompt_style import LossAverage
from emollama.data.slots import SlotShape
from emollama.decoding_state import DecodingState
from emollama.evaluation.scoring import Scoring
from emollama.run_folder import PredictionRecord
from emollama.stores.manifest import Manifest

if TYPE_CHECKING:
    # Only a type: generation is built on the Protocol of models.
    from emollama.decoding.answer_generator import AnswerGenerator


class Fusion(Protocol):
    """What a registered fusion module, a :class:`torch.nn.Module`, must provide.

    Every parameter must take part in every forward pass, also if its slot is empty, because data parallelism expects a gradient
    for each parameter on every rank. The tokens of a sample must not depend on the other samples of the micro-batch: an operation
    along time is applied to each element of :meth:`~emollama.data.batch.PackedFeatures.split`.
    ``Config`` contains the keys of ``model.fusion``, each with a docstring; without keys, it is empty.
    """

    def __init__(self, cfg: Any, slots: Mapping[str, SlotShape], hidden_size: int) -> None:
        """Build the module.

        Args:
            cfg: an instance of ``Config``.
            slots: slot -> shape of its feature vectors, in the order in which the model declares them.
            hidden_size: H.
        """
        ...

    @classmethod
    def layout(cls, cfg: Any, slots: Mapping[str, SlotShape]) -> FusionLayout:
        """Return names and numbers of the feature tokens.

        Raises:
            UserError: If the module does not accept these slots.
        """
        ...

    def __call__(self, slots: Mapping[str, PackedFeatures]) -> dict[str, Tensor]:
        """Turn feature vectors into feature tokens; a :class:`torch.nn.Module` implements ``forward``.

        Args:
            slots: slot -> feature vectors (n, D) of all samples.

        Returns:
            part of an output -> (number of feature tokens, H), the tokens of one sample after the other.
        """
        ...


class LanguageModel(Protocol):
    """A causal language model of transformers, with or without the adapters of peft.

    Attributes:
        supports_gradient_checkpointing: whether it can recompute the layers' activations in the backward pass.
    """

    supports_gradient_checkpointing: bool

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the embedding table."""
        ...

    def get_output_embeddings(self) -> nn.Linear:
        """Return the output layer."""
        ...


class Model(Protocol):
    """What a registered model, a :class:`torch.nn.Module`, must provide.

    Args:
        cfg: the ``model`` block, an object of the class ``Config``.
        device: device of the model; on the meta device it has shapes but no weights.
        frozen_dtype: dtype of frozen weights; trained weights are float32.

    Attributes:
        ignored_tensors: glob patterns of checkpoint tensors that the model does not use.
        optional_tensor_group: trained tensors that may be missing from a checkpoint if all of them are.
        optional_tensors: glob patterns of further trained tensors that may be missing from a checkpoint.
        shape_keys: keys of the ``model`` block that determine tensor shapes, for messages.
        architecture: the value of ``model.arch``, for messages.
        llm_config: the configuration of the language model, an object of transformers.
    """

    ignored_tensors: tuple[str, ...]
    optional_tensor_group: tuple[str, ...]
    optional_tensors: tuple[str, ...]
    shape_keys: tuple[str, ...]
    architecture: str
    llm_config: Any

    def __init__(self, cfg: Any, *, device: torch.device, frozen_dtype: torch.dtype) -> None: ...

    @staticmethod
    def slot_shapes(cfg: Any) -> dict[str, SlotShape]:
        """Return the expected shape of a sample's features for each slot."""
        ...

    @classmethod
    def check_language_model(
        cls, cfg: Any, prompt: PromptFormat | None, *, device: torch.device, frozen_dtype: torch.dtype, uses: Collection[str] = ()
    ) -> list[str]:
        """Check the language model without its weights; return lines about costs and probable mistakes.

        Args:
            cfg: the ``model`` block.
            prompt: the prompt format; None if the folder of the language model has no tokenizer.
            device: device of the run.
            frozen_dtype: dtype of frozen weights.
            uses: of "beam search" and "shared prompts" (``run.tasks_per_clip``), those that the run uses.

        Raises:
            UserError: If the language model cannot be run correctly with this configuration.
        """
        ...

    @classmethod
    def pads_samples(cls, cfg: Any, *, device: torch.device, frozen_dtype: torch.dtype) -> bool:
        """Return whether the samples of a micro-batch are padded to the longest one, so that the padding needs memory, too."""
        ...

    @classmethod
    def feature_layout(cls, cfg: Any) -> FusionLayout:
        """Return names and numbers of a sample's feature tokens, without building the fusion module.

        Raises:
            UserError: If the fusion module is unknown, or does not accept the slots of the model.
        """
        ...

    @staticmethod
    def frame_manifest(cfg: Any, choice: Any) -> Manifest:
        """Return the manifest of the features that the model computes from frames.

        Args:
            cfg: the ``model`` block.
            choice: which frame of a video the dataset reads (its key ``frame_selection``).

        Raises:
            UserError: If weights do not exist, or are not those of the configured encoder.
        """
        ...

    @classmethod
    def prompt_format(cls, cfg: Any, loss_average: LossAverage = "sample") -> PromptFormat:
        """Return the prompt format of this model. It reads the language model's folder, but not its weights."""
        ...

    def stored_name(self, name: str, /) -> str:
        """Return the name in a checkpoint of the parameter with this name."""
        ...

    @property
    def device(self) -> torch.device:
        """Device on which the model expects its inputs."""
        ...

    @property
    def llama_model(self) -> LanguageModel:
        """The language model."""
        ...

    def __call__(self, batch: Batch) -> Tensor:
        """Return the cross-entropy of each labelled token, (L,) float32, in the batch's order."""
        ...

    def prefill(self, batch: Batch) -> tuple[Tensor, DecodingState]:
        """Process B prompts; return next-token logits (B, V) float32 and the decoding state."""
        ...

    def decode(self, ids: Tensor, state: DecodingState) -> Tensor:
        """Return the logits after each of the next tokens (B, Q), (B, Q, V) float32, and append the tokens to the state."""
        ...

    def decode_answers(self, answers: Sequence[Sequence[int]], state: DecodingState) -> list[Tensor]:
        """Return the logits after each token but the last of several answers to each of B sequences.

        Args:
            answers: the tokens of each answer, at least two.
            state: the state of the sequences, which is afterwards as it was before.

        Returns:
            For each answer the logits (B, its tokens - 1, V), float32.
        """
        ...

    def merge_adapters(self) -> None:
        """Add the adapters to the frozen weights and remove them, for inference only.

        Raises:
            UserError: If they cannot be added.
        """
        ...

    def beam_search(self, batch: Batch, prompt: PromptFormat, options: Mapping[str, Any]) -> list[list[int]]:
        """Generate a continuation of each of B prompts; ``options`` are keyword arguments of transformers' ``generate``."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return the parameters, as a :class:`torch.nn.Module` does."""
        ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Return name and parameter, as a :class:`torch.nn.Module` does."""
        ...

    def buffers(self) -> Iterator[Tensor]:
        """Return the buffers, as a :class:`torch.nn.Module` does."""
        ...

    def train(self) -> Self:
        """Enable dropout."""
        ...

    def eval(self) -> Self:
        """Disable dropout."""
        ...


@dataclass(frozen=True)
class EvaluationItem:
    """One task of one sample, for which evaluation makes a prediction.

    Attributes:
        index: index of the sample in the dataset.
        task: name of the task.
        instruction: text of the instruction.
    """

    index: int
    task: str
    instruction: str


class Task(Protocol):
    """What a registered task (``run.task``) must provide: the loss of a batch, and predictions.

    ``Config`` contains the keys of evaluation blocks that define how samples are answered.

    Attributes:
        scoring: the class that computes metrics from predictions. Its ``Config`` adds keys to evaluation blocks, too.
    """

    scoring: ClassVar[type[Scoring]]

    def __init__(self) -> None: ...

    def loss(self, model: Callable[[Batch], Tensor], batch: Batch) -> Tensor:
        """Return the weighted sum of the answer tokens' cross-entropies, a scalar to be divided by the step's total weight."""
        ...

    def evaluation_items(self, dataset: SampleDataset, cfg: Any) -> list[EvaluationItem]:
        """Return the items for which an evaluation makes predictions; ``cfg`` is an object of the class ``Config``."""
        ...

    def predict(
        self, generator: AnswerGenerator, dataset: SampleDataset, cfg: Any, items: Sequence[EvaluationItem], seed: int
    ) -> list[PredictionRecord]:
        """Make a prediction for each item of a batch.

        Args:
            generator: the model in eval mode, or an ensemble, with its prompt format.
            dataset: the dataset of the samples.
            cfg: an object of the class ``Config``.
            items: items of one batch.
            seed: random seed of sampling.
        """
        ...
