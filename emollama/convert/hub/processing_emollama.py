"""Prompts of an emotion language model that emollama exported: feature vectors and texts become ids and placeholder ids."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin

IMAGE_TAG = "<ImageHere>"
MARKER = "<|emollama:{}|>"  # special token in place of an output while a turn is tokenized at once


class EmollamaProcessor(ProcessorMixin):
    """Turns features and texts into inputs of the model, and generated ids into answers.

    Args:
        tokenizer: the tokenizer of the language model.
        prompt: slots, outputs of the fusion module, templates and tasks, from processor_config.json.
        chat_template: not used; prompts are those of training.

    Attributes:
        prompt: the argument.
    """

    def __init__(self, tokenizer: Any = None, prompt: dict[str, Any] | None = None, chat_template: str | None = None) -> None:
        super().__init__(tokenizer, chat_template=chat_template)  # type: ignore[no-untyped-call]
        assert prompt is not None
        self.prompt = prompt
        self._text_tokenizer = tokenizer
        if prompt["tokenize"] == "whole":
            # Texts of users must not contain the markers either, so they are tokens of the copy only.
            self._text_tokenizer = copy.deepcopy(tokenizer)
            self._text_tokenizer.add_tokens([MARKER.format(output) for output in prompt["outputs"]], special_tokens=True)

    @property
    def tasks(self) -> dict[str, list[str]]:
        """Name of a task -> the texts that ask for it in training. The first one is used."""
        return dict(self.prompt["tasks"])

    @property
    def labels(self) -> list[str]:
        """The labels of the training data."""
        return list(self.prompt["labels"])

    @property
    def slots(self) -> dict[str, dict[str, Any]]:
        """Name of a slot -> ``dim``, the size D of a feature vector; ``length``, their number, or None for any number.

        An array of a slot with ``class_token`` has one more vector, which comes first and fills the slot of that name.
        """
        return dict(self.prompt["slots"])

    def __call__(
        self,
        features: Any,
        text: str | Sequence[str | None] | None = None,
        task: str | Sequence[str | None] | None = None,
        question: str | Sequence[str | None] | None = None,
        layout: str | None = None,
    ) -> BatchFeature:
        """Return ``input_ids`` and ``attention_mask`` (B, T), padded on the left, and ``features``: slot -> (n, D).

        Args:
            features: slot -> array (n, D) or (D,), as an encoder extracted it; or a list of such mappings, one for each of B
                samples. A slot that is missing gets zeros. A slot that is None has no feature tokens, which a model should only
                get if it was trained so.
            text: the spoken sentence, or B of them; "" for no speech. None is "" for tasks whose prompts have sentences in
                training. Prompts of captioned images never have one.
            task: name of a task, or B of them; by default the first task, unless there is a question.
            question: a question in place of the task's instruction, or B of them.
            layout: name of the layout of prompts; by default that of the exported evaluation.

        Raises:
            ValueError: If a slot, task or layout is unknown, an array has a different shape, or a prompt is too long.
        """
        samples = [features] if isinstance(features, Mapping) else list(features)
        rows, vectors = [], []
        for sample, *arguments in zip(samples, *(_each(item, len(samples)) for item in (text, task, question)), strict=True):
            vectors.append(self._vectors(sample))
            rows.append(self._prompt_ids(vectors[-1], self.user_text(*arguments), layout or self.prompt["layout"]))
        length = max(map(len, rows))
        return BatchFeature(
            {
                "input_ids": torch.tensor([[0] * (length - len(row)) + row for row in rows]),
                "attention_mask": torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows]),
                "features": {slot: torch.cat([sample[slot] for sample in vectors]) for slot in vectors[0]},
            }
        )

    def answers(self, ids: Any) -> list[str]:
        """Return the answers in generated ids (B, new tokens): the text up to the end symbol, without special tokens."""
        closing = self.prompt["closing"].strip()
        answers = []
        for row in ids.tolist() if isinstance(ids, Tensor) else ids:
            text = str(self.tokenizer.decode(row, skip_special_tokens=True)).split(self.prompt["end_symbol"])[0]
            answers.append((text.split(closing)[-1] if closing else text).strip())
        return answers

    def user_text(self, text: str | None, task: str | None, question: str | None) -> str:
        """Return the text of the user's turn: the sentence, the tag of the task, and the instruction or question."""
        question = question or None
        tasks, first = self.prompt["tasks"], next(iter(self.prompt["tasks"]))
        task = first if task is None and question is None else task
        if task not in tasks and question is None:
            raise ValueError(f"unknown task {task!r}. The tasks of this model are {', '.join(tasks)}.")
        # Questions without a task of this model are asked as those of the first one.
        form = self.prompt["user_texts"][task if task in tasks else first]
        if not form["is_tagged"]:
            return str(tasks[task][0] if question is None else question)
        text = "" if text is None and form["has_sentences"] else text
        spoken = "" if text is None else text.strip().replace(IMAGE_TAG, f"{IMAGE_TAG[0]} {IMAGE_TAG[1:]}")
        transcript = "" if text is None else f"The person in video says: {spoken}.  "
        asked = tasks[task][0] if question is None else f"{question} " if task is None else f"[{task}] {question} "
        return f"{transcript}{asked}"

    def _vectors(self, features: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return slot -> feature vectors (n, D) of one sample."""
        slots, vectors = self.prompt["slots"], {}
        if unknown := [slot for slot in features if slot not in slots]:
            raise ValueError(f"unknown slot {unknown[0]!r}. The slots of this model are {', '.join(slots)}.")
        for slot, shape in slots.items():
            dim, length, class_token = shape["dim"], shape["length"], shape["class_token"]
            stored = (length or 1) + (class_token is not None)
            value = features.get(slot, torch.zeros(stored, dim))
            array = torch.zeros(0, dim) if value is None else torch.as_tensor(value).float()
            is_valid = array.shape[-1:] == (dim,) and array.ndim <= 2 and (length is None or array.numel() == stored * dim)
            if not (value is None or (is_valid and array.isfinite().all())):
                expected = f"({'n' if length is None else stored}, {dim})"
                raise ValueError(f"the features of {slot} have shape {tuple(array.shape)}; expected finite values of {expected}")
            array = array.reshape(-1, dim)
            vectors[slot] = array[1:] if class_token is not None else array
            if class_token is not None:
                vectors[class_token] = array[:1]
        return vectors

    def _prompt_ids(self, vectors: Mapping[str, Tensor], user_text: str, layout: str) -> list[int]:
        prompt = self.prompt
        if layout not in prompt["layouts"]:
            raise ValueError(f"unknown layout {layout!r}. The layouts of this model are {', '.join(prompt['layouts'])}.")
        selected = prompt["layouts"][layout]
        placeholders: dict[str, list[int]] = {output: [] for output in prompt["outputs"]}
        for index, part in enumerate(prompt["parts"]):
            count = len(vectors[part["slot"]]) // part["group"]
            placeholders[part["output"]] += [prompt["first_placeholder"] + index] * count
        opening = (prompt["bos_text"] if selected["second_bos"] else "") + prompt["opening"]
        fragments = [["text", opening], *self._body(selected, placeholders, user_text), ["text", prompt["closing"]]]
        ids = [] if prompt["bos_id"] is None else [prompt["bos_id"]]
        for output, piece in self._tokenized(_segments(fragments)):
            ids += piece if output is None else placeholders[output]
        return ids

    def _body(self, layout: Mapping[str, Any], placeholders: Mapping[str, Sequence[int]], user_text: str) -> list[list[str]]:
        """Return the fragments of a turn: texts, outputs, and the user text, which is split at ``<ImageHere>``."""
        tagged, prompts = self.prompt["tagged_output"], self.prompt["prompts"]
        if prompts and not user_text.strip():
            user_text = prompts[0]
        if tagged is not None and IMAGE_TAG not in user_text:
            user_text = self.prompt["tag_prefix"] + user_text
        fragments: list[list[str]] = []
        for section in layout["sections"]:
            outputs = [value for kind, value in section["fragments"] if kind == "output"]
            if section["optional"] and not any(placeholders[output] for output in outputs):
                continue
            for kind, value in section["fragments"]:
                if kind != "user_text":
                    fragments.append([kind, value])
                elif tagged is None:
                    fragments.append([kind, self._as_text(user_text)])
                else:
                    before, _, after = user_text.partition(IMAGE_TAG)
                    fragments += [["text", self._as_text(before)], ["output", tagged], [kind, self._as_text(after)]]
        return fragments

    def _as_text(self, text: str) -> str:
        """Insert a space into every spelling of a special token, so that the tokenizer treats it as text."""
        special = sorted(filter(str.strip, self._text_tokenizer.get_added_vocab()), key=len, reverse=True)
        pattern = "|".join(map(re.escape, special))
        return re.sub(pattern, lambda match: f"{match[0][0]} {match[0][1:]}", text) if special else text

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids if text else []
        if max(ids, default=0) >= self.prompt["first_placeholder"]:
            raise ValueError(f"the text {text[:200]!r} contains a token that has no row in the embedding table")
        return ids

    def _tokenized(self, segments: list[_Segment]) -> list[tuple[str | None, list[int]]]:
        """Return the output, or None and the ids, of each segment; excess ids are cut from the start of the user text."""
        pieces = self._pieces(segments)
        excess = sum(map(len, pieces)) - self.prompt["max_context_len"]
        if excess > 0:
            index = next(index for index, segment in enumerate(segments) if segment.user_text is not None)
            before = [*segments[:index], _Segment(None, segments[index].text)]
            fixed = len(self._pieces(before)[index])
            if excess >= len(pieces[index]) - fixed - len(self._ids(segments[index].after)):
                raise ValueError(f"max_context_len {self.prompt['max_context_len']} leaves no room for the instruction")
            pieces[index] = pieces[index][:fixed] + pieces[index][fixed + excess :]
        return [(segment.output, piece) for segment, piece in zip(segments, pieces, strict=True)]

    def _pieces(self, segments: list[_Segment]) -> list[list[int]]:
        """Return the ids of each segment; those of an output are empty."""
        if self.prompt["tokenize"] != "whole":
            return [[] if segment.output else self._ids(segment.whole) for segment in segments]
        markers = {output: MARKER.format(output) for output in self.prompt["outputs"]}
        text = "".join(markers[segment.output] if segment.output else segment.whole for segment in segments)
        ends = set(self._text_tokenizer.convert_tokens_to_ids(list(markers.values())))
        pieces: list[list[int]] = [[]]
        for token in self._text_tokenizer(text, add_special_tokens=False).input_ids:
            if token in ends:
                pieces += [[], []]
            elif token >= self.prompt["first_placeholder"]:
                raise ValueError(f"the text {text[:200]!r} contains a token that has no row in the embedding table")
            else:
                pieces[-1].append(token)
        return pieces


class _Segment:
    """An output, or the text between two outputs: text, the user text (None if it is in another segment), and text after it."""

    def __init__(self, output: str | None = None, text: str = "") -> None:
        self.output, self.text, self.after = output, text, ""
        self.user_text: str | None = None

    @property
    def whole(self) -> str:
        """The whole text."""
        return self.text + (self.user_text or "") + self.after


def _segments(fragments: Sequence[Sequence[str]]) -> list[_Segment]:
    """Join consecutive texts. Texts, which may be empty, and outputs alternate."""
    segments = [_Segment()]
    for kind, value in fragments:
        if kind == "output":
            segments += [_Segment(value), _Segment()]
        elif kind == "user_text":
            segments[-1].user_text = value
        elif segments[-1].user_text is None:
            segments[-1].text += value
        else:
            segments[-1].after += value
    return segments


def _each(value: Any, count: int) -> list[Any]:
    """Return a value for each sample."""
    values = [value] * count if value is None or isinstance(value, str) else list(value)
    if len(values) != count:
        raise ValueError(f"{len(values)} texts, tasks or questions for {count} samples")
    return values
