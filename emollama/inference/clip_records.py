"""The path from a request with features to the prompts of the language model, with the settings of an evaluation block."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emollama.config import RunConfig
from emollama.data.array_shapes import UnusableArray
from emollama.data.batch import Record
from emollama.data.dataset import ClipsToPredict, SampleDataset
from emollama.data.loader import mix_seed
from emollama.data.prompts.prompt import PromptFormat
from emollama.data.slots import PIXELS, declared_slots, without_pixels
from emollama.decoding.answer_generator import Prompt, tokenize
from emollama.decoding.sampling_params import SequenceParams
from emollama.errors import UserError
from emollama.inference.clip_encoders import ClipEncoders, ClipFeatures, frame_slot
from emollama.inference.modalities import Modalities, require_features
from emollama.inference.prediction_block import PredictionBlock, find_prediction_block
from emollama.inference.prepared import LabelQuestion, PreparedRequest
from emollama.inference.requests import Request, RequestError
from emollama.media.source import Source
from emollama.runners.datasets import slot_shapes_of_run
from emollama.runners.evaluation import build_blocks
from emollama.suggestions import did_you_mean
from emollama.tasks.image_text_pretrain import label_answers, masked


@dataclass(frozen=True)
class _Block:
    """A block of the configuration, checked for requests."""

    prediction: PredictionBlock
    has_sentences: bool
    modalities: Modalities


# The maximum of a request for a language model without a limit of positions.
MAX_NEW_TOKENS = 4096


def clips_to_predict(
    block: PredictionBlock, source: Source, sentence: str | None, folders: Mapping[str, Path], empty: Path
) -> ClipsToPredict:
    """Describe a clip for the dataset of a block.

    Args:
        block: the block.
        source: the clip.
        sentence: the spoken sentence; None for a prompt without one.
        folders: slot -> folder of arrays.
        empty: an empty folder for the other slots.
    """
    names = {slot: frame_slot(block) if slot == PIXELS else slot for slot in block.slots}
    paths = {slot: str(folders.get(name, empty)) for slot, name in names.items()}
    return ClipsToPredict([source.name], block.task, sentence, paths)


class ClipRecords:
    """Prepares requests as the evaluation blocks of a configuration would.

    Args:
        config: the resolved configuration.
        prompt_format: the prompt format of the model.
        encoders: the encoders, which define the slots with features.
        empty: an empty folder. The arrays of a request are beside it while the request is prepared.
        max_tokens: number of tokens that the language model has positions for; None without such a limit.
    """

    def __init__(
        self,
        config: RunConfig,
        prompt_format: PromptFormat,
        encoders: ClipEncoders,
        empty: Path,
        max_tokens: int | None = None,
    ) -> None:
        self._max_tokens = max_tokens
        self._config, self._prompt_format, self._encoders, self._empty = config, prompt_format, encoders, empty
        self._shapes = slot_shapes_of_run(config)
        self._blocks: dict[str | None, _Block] = {}

    def block(self, task: str | None) -> PredictionBlock:
        """Return the block that answers a task, or questions without a task.

        Raises:
            UserError: If the task is unknown, or the block cannot be used.
        """
        return self._block(task).prediction

    def prepare(self, request: Request, source: Source, features: ClipFeatures) -> PreparedRequest:
        """Prepare a request.

        Args:
            request: the request.
            source: its clip.
            features: the features of the clip.

        Raises:
            RequestError: If the request cannot be answered.
        """
        if request.question == "" and not request.history:
            request = dataclasses.replace(request, question=None)
        self._require_slots(request)
        with tempfile.TemporaryDirectory(dir=self._empty.parent) as folder:
            folders = self._write(Path(folder), source, features)
            try:
                return self._prepare(request, source, features, folders)
            except RequestError:
                raise
            except UserError as error:
                if isinstance(error, UnusableArray) and error.slot in request.features:
                    text = f"features.{error.slot}: {error.problem}. Pass the array as the encoder of the slot returns it."
                    raise RequestError(text, "features") from None
                # Messages about arrays name the temporary folder.
                text = str(error).replace(f"{folder}{os.sep}", "")
                raise RequestError(text, "features" if request.features else "video") from None

    def _prepare(self, request: Request, source: Source, features: ClipFeatures, folders: Mapping[str, Path]) -> PreparedRequest:
        block = self._block_of(request)
        cfg = self._options(request, block.prediction)
        sentence = _sentence(request, block)
        dataset = self._dataset(block.prediction, source, sentence, folders)
        modalities = block.modalities.of(
            dataset,
            source.name,
            masked=self._masked(request, block.prediction),
            failed=features.failed,
            in_request=request.features.keys(),
        )
        require_features(modalities, "this clip", "video")
        _require_maskable(dataset, cfg.mask_slots)
        record = masked(self._record(request, block.prediction, cfg, dataset), cfg.mask_slots)
        sample = tokenize(self._prompt_format, record, cfg.prompt_layout)
        if sample.tokens_cut and (request.question is not None or request.history):
            limit = f"model.max_context_len ({self._config.model.max_context_len})"
            text = f"the question is {sample.tokens_cut} tokens longer than {limit} allows. Shorten it, or the spoken sentence."
            raise RequestError(text, "question")
        if request.question is not None or request.options.max_new_tokens is not None:
            self._require_length(len(sample.input_ids), cfg.max_new_tokens)
        by_label = cfg.answer_by == "likelihood" and request.question is None and block.prediction.task == "emotion"
        labels = None
        if by_label:
            labels = LabelQuestion(sample, label_answers(dataset, cfg.aliases))
        elif request.label_probabilities:
            labels = self._label_question(request, source, sentence, folders)
        seed = self._config.run.seed if request.options.seed is None else request.options.seed
        params = SequenceParams(cfg.sampling_params(), mix_seed(seed, 0, 0))
        return PreparedRequest(
            task=None if request.task is None and request.question is not None else block.prediction.task,
            body=self._prompt_format.body(record),
            sentence=sentence,
            modalities=modalities,
            prompt=None if by_label else Prompt(sample, params),
            beam_search=cfg.beam_search_options() if cfg.num_beams > 1 else None,
            labels=labels,
            num_tokens=len(sample.input_ids),
        )

    def _require_slots(self, request: Request) -> None:
        """Check the slots that a request names. Those of its features become names of files."""
        slots = list(without_pixels(self._shapes))
        for param, named in (("features", request.features), ("mask_slots", request.mask_slots)):
            if unknown := [slot for slot in named if slot not in slots]:
                hint = did_you_mean(str(unknown[0]), slots)
                text = f"unknown slot {unknown[0]!r}.{hint} The slots of this model are {', '.join(slots)}."
                raise RequestError(text, param)
        for slot, filled in declared_slots(self._shapes).items():
            if class_tokens := [other for other in filled[1:] if other in request.features]:
                text = (
                    f"features.{class_tokens[0]}: this slot has no array of its own. The first row of features.{slot} fills it."
                )
                raise RequestError(text, "features")

    def _require_length(self, num_tokens: int, max_new_tokens: int) -> None:
        """Check that the language model has positions for a prompt and its answer."""
        if self._max_tokens is not None and num_tokens + max_new_tokens > self._max_tokens:
            raise RequestError(
                f"the conversation has {num_tokens} tokens and the answer may have {max_new_tokens}, but the language model has"
                f" positions for {self._max_tokens}. Shorten the conversation, or lower max_new_tokens.",
                "question",
            )

    def _block_of(self, request: Request) -> _Block:
        try:
            return self._block(request.task)
        except RequestError:
            raise
        except UserError as error:
            raise RequestError(str(error).removeprefix("--"), "task") from None

    def _block(self, task: str | None) -> _Block:
        if task not in self._blocks:
            config, block = self._config, find_prediction_block(self._config, task)
            clips = clips_to_predict(block, Source("clip", self._empty), None, self._encoders.folders, self._empty)
            build_blocks(block.evaluation(config), check=False, clips=clips)
            modalities = Modalities(block, list(self._shapes), self._encoders.slots)
            self._blocks[task] = _Block(block, block.has_sentences(), modalities)
        return self._blocks[task]

    def _options(self, request: Request, block: PredictionBlock) -> Any:
        """Return the task's Config of a block with the options of a request."""
        options = {
            key: value for key, value in dataclasses.asdict(request.options).items() if value is not None and key != "seed"
        }
        limit = self._max_tokens or max(MAX_NEW_TOKENS, block.block.task.max_new_tokens)
        if options.get("max_new_tokens", 0) > limit:
            raise RequestError(f"max_new_tokens is {options['max_new_tokens']}; the maximum is {limit}", "options")
        temperature = options.get("temperature", block.block.task.temperature)
        # Clients often send both, although top_p has no effect at temperature 0.
        changes = {"top_p": 1.0} if temperature == 0 else {"num_beams": 1}
        if request.options.seed is not None and request.options.seed < 0:
            raise RequestError(f"seed is {request.options.seed}; it must be at least 0", "options")
        mask_slots = list(dict.fromkeys([*block.block.task.mask_slots, *request.mask_slots]))
        try:
            return dataclasses.replace(block.block.task, **(options | changes), mask_slots=mask_slots)
        except ValueError as error:
            raise RequestError(str(error), "options") from None

    def _masked(self, request: Request, block: PredictionBlock) -> dict[str, str]:
        reasons = dict.fromkeys(request.mask_slots, "mask_slots of the request")
        return reasons | dict.fromkeys(block.block.task.mask_slots, f"{block.key}.mask_slots")

    def _dataset(
        self, block: PredictionBlock, source: Source, sentence: str | None, folders: Mapping[str, Path]
    ) -> SampleDataset:
        clips = clips_to_predict(block, source, sentence, folders, self._empty)
        return block.dataset_class.for_clips(block.block.dataset, clips, slot_shapes=self._shapes, block_path=block.key)

    def _record(self, request: Request, block: PredictionBlock, cfg: Any, dataset: SampleDataset) -> Record:
        """Return the record of a request, with all turns of its conversation."""
        pool = dataset.pool
        instruction = pool.first_instruction(block.task) if cfg.instruction == "first" else pool.fill_labels(cfg.instruction)
        record = dataset.record(0, block.task, instruction)
        if request.question is None:
            if request.history:
                raise RequestError("history needs the next question of the conversation. Set question.", "question")
            return record
        questions = [*(turn.question for turn in request.history), request.question]
        answers = [*(turn.answer for turn in request.history), None]
        first = dataset.user_text(0, request.task, questions[0]) if questions[0] else record.turns[0][0]
        return dataclasses.replace(record, turns=list(zip([first, *questions[1:]], answers, strict=True)))

    def _label_question(
        self, request: Request, source: Source, sentence: str | None, folders: Mapping[str, Path]
    ) -> LabelQuestion:
        """Return the prompt of the task emotion about a clip."""
        block = self._block("emotion").prediction
        cfg = dataclasses.replace(self._options(request, block), answer_by="likelihood")
        dataset = self._dataset(block, source, sentence, folders)
        if not dataset.cfg.labels:
            raise RequestError(
                f"{block.key} has no labels, so there are no probabilities. Set its labels.", "label_probabilities"
            )
        record = masked(self._record(Request(task="emotion"), block, cfg, dataset), cfg.mask_slots)
        sample = tokenize(self._prompt_format, record, cfg.prompt_layout)
        return LabelQuestion(sample, label_answers(dataset, cfg.aliases))

    def _write(self, folder: Path, source: Source, features: ClipFeatures) -> dict[str, Path]:
        """Write the arrays of a clip. Return slot -> folder."""
        for slot, array in features.arrays.items():
            path = folder / slot / f"{source.name}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                np.save(file, array)
        return {slot: folder / slot for slot in features.arrays}


def _require_maskable(dataset: SampleDataset, mask_slots: Sequence[str]) -> None:
    """Check that no slot is masked whose features the model computes itself."""
    computed = {slot for source in dataset.features if source.slots == (PIXELS,) for slot in source.filled_slots}
    if masked_slots := [slot for slot in mask_slots if slot in computed]:
        text = f"{masked_slots[0]} cannot be masked, because the model computes its features from frames"
        raise RequestError(text, "mask_slots")


def _sentence(request: Request, block: _Block) -> str | None:
    """Return the sentence of the prompt, or None for a prompt without a sentence."""
    if request.text is not None:
        return request.text.strip()
    return "" if block.has_sentences else None
