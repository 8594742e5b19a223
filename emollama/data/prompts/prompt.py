"""What the loader, the tasks and the models use of a prompt format, which renders records into token ids.

The registered formats are described by templates (:mod:`emollama.data.prompts.formats`). Only this package tokenizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from emollama.data.batch import IGNORED, Record, Sample
from emollama.data.fusion_layout import FusionLayout
from emollama.data.prompts.configs import TRAIN
from emollama.data.prompts.prompt_style import LossAverage, PromptStyle
from emollama.errors import UserError


@dataclass(frozen=True)
class FeatureTokenLayout:
    """The outputs of a fusion module, and the placeholder ids of their feature tokens.

    There is a placeholder id for each feature token, which replaces it in the model. Placeholder ids are negative, so that none
    of them is the id of a token: -1 is that of the first part of all outputs, -2 that of the second one.

    Attributes:
        fusion: names and numbers of the feature tokens.
        embedding_rows: number of rows of the LLM's embedding table. Ids of text are below it.
    """

    fusion: FusionLayout
    embedding_rows: int

    @property
    def outputs(self) -> Mapping[str, tuple[str, ...]]:
        """Name of an output, which a prompt format places in a prompt -> names of its parts, in order."""
        return self.fusion.outputs

    def id_of(self, part: str) -> int:
        """Return the placeholder id of the feature tokens of a part."""
        return -1 - self.fusion.parts.index(part)

    def placeholder_ids(self, record: Record) -> dict[str, list[int]]:
        """Return the placeholder ids of a record's feature tokens by output.

        Raises:
            UserError: If the fusion module cannot process this number of feature vectors. The message names the sample.
        """
        try:
            counts = self.fusion.num_feature_tokens({slot: len(vectors) for slot, vectors in record.features.items()})
        except ValueError as error:
            raise UserError(f"sample '{record.name}': {error}") from None
        ids = {part: [-1 - index] * counts[part] for index, part in enumerate(self.fusion.parts)}
        return {output: [token for part in parts for token in ids[part]] for output, parts in self.outputs.items()}


class TokenizedTurns:
    """Token ids and labels of one sample, which are appended together, so that they always agree."""

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._labels: list[int] = []
        self._answer_tokens = 0

    def append_prompt(self, ids: Sequence[int]) -> None:
        """Append ids without a label."""
        self._ids += ids
        self._labels += [IGNORED] * len(ids)

    def append_answer(self, ids: Sequence[int]) -> None:
        """Append the ids of an answer, which are also its labels."""
        self._ids += ids
        self._labels += ids
        self._answer_tokens += len(ids)

    def sample(self, record: Record, loss_average: LossAverage, tokens_cut: int = 0) -> Sample:
        """Return the sample.

        Args:
            record: the tokenized record.
            loss_average: ``sample`` gives each of the n answer tokens the weight 1 / n, ``token`` the weight 1.
            tokens_cut: number of text tokens that exceeded the length limits.
        """
        labels = torch.tensor(self._labels)
        total = self._answer_tokens if loss_average == "sample" else 1
        weights = (labels != IGNORED).float() / max(total, 1)
        ids = torch.tensor(self._ids)
        return Sample(record.name, record.task, ids, labels, weights, record.features, tokens_cut, record.cache_key)


class PromptFormat(Protocol):
    """What a registered prompt format must provide.

    Its ``Config`` has the property ``layout_names``, the values that ``prompt_layout`` of an evaluation block can have.

    Args:
        cfg: its Config.
        tokenizer: the Hugging Face tokenizer of the language model.
        style: the model's template of a turn, end symbol and length limits.
        feature_tokens: the outputs of the fusion module and their placeholder ids.
        loss_average: how the loss of a sample is averaged; see :meth:`TokenizedTurns.sample`.

    Attributes:
        tokenizer: the Hugging Face tokenizer of the language model.
        feature_tokens: the outputs of the fusion module and their placeholder ids.

    Raises:
        UserError: If the tokenizer or the outputs do not fit. The message starts with the key.
    """

    tokenizer: Any
    feature_tokens: FeatureTokenLayout

    def __init__(
        self,
        cfg: Any,
        *,
        tokenizer: Any,
        style: PromptStyle,
        feature_tokens: FeatureTokenLayout,
        loss_average: LossAverage,
    ) -> None: ...

    @property
    def ends_with_eos(self) -> bool:
        """Whether the end symbol is exactly the tokenizer's EOS token."""
        ...

    def tokenize(
        self, record: Record, *, layout: str = TRAIN, for_generation: bool = False, rng: np.random.Generator | None = None
    ) -> Sample:
        """Tokenize a record.

        Args:
            record: the texts and features of the sample.
            layout: name of the layout.
            for_generation: leave out the last turn's answer.
            rng: the sample's generator in training; None in evaluation.

        Raises:
            UserError: If the record cannot be tokenized within the limits. The message names the sample.
        """
        ...

    def body(self, record: Record) -> str:
        """Return the text of the first turn with tags at the positions of features, as shown next to a prediction."""
        ...

    def digest(self) -> str | None:
        """Return a hash of everything that a resumed run must have in common besides the configuration; None if there is none."""
        ...

    def prompt_lengths(self, user_texts: Sequence[str], layout: str = TRAIN) -> list[int]:
        """Return the number of text tokens of a first turn with each user text, before it is cut to ``max_context_len``."""
        ...

    def answer_lengths(self, answers: Sequence[str]) -> list[int]:
        """Return the number of tokens of each answer with its end symbol, before it is cut to ``max_txt_len``."""
        ...

    def answer_ids(self, answer: str) -> list[int]:
        """Return the ids of an answer with its end symbol, as in training."""
        ...

    def answer_text(self, ids: list[int]) -> str:
        """Decode generated ids to the answer."""
        ...

    def is_finished(self, ids: list[int]) -> bool:
        """Return whether a generated answer is complete."""
        ...
