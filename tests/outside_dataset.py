"""A dataset class that inherits from no class of the package: interviews in a JSON file, with features of the face."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

import torch

from emollama.data.batch import Record
from emollama.data.dataset import DatasetContent
from emollama.data.features import Features
from emollama.data.instructions import TaskPool
from emollama.data.problems import Problem
from emollama.data.sampling import DatasetSampling
from emollama.registry import DATASETS

QUESTIONS = {"mood": ["What is the mood of {labels}?", "Name the mood."]}


@DATASETS.register("interviews")
class Interviews:
    """Interviews, each with a mood and perhaps what is said."""

    @dataclass
    class Config:
        """Keys of an ``interviews`` block."""

        file: str = "interviews.json"
        """JSON: name -> {said, mood}; both are optional."""
        faces: str = "faces"
        """Folder of the features of the faces."""
        batch_size: int = 1
        """Samples per micro-batch in one process."""
        held_out: float = 0.0
        """Not supported; 0."""
        labels: list[str] = field(default_factory=lambda: ["calm", "tense"])
        """All moods."""

        def pool(self):
            return TaskPool("mood", {}, self.labels, QUESTIONS)

        def turns(self):
            return self.pool().instructions["mood"]

    def __init__(self, cfg, *, slot_shapes, block_path, training, interviews=None):
        self.cfg, self.pool, self.notes = cfg, cfg.pool(), []
        self.interviews = json.loads(Path(cfg.file).read_text()) if interviews is None else interviews
        self.features = [Features.open(cfg.faces, ("face",), slot_shapes["face"], f"{block_path}.faces")]
        # None: interviews have no such features.
        self.slot_sources = dict.fromkeys(slot_shapes) | {"face": cfg.faces}
        self.absent = {slot: torch.zeros(0, shape.dim) for slot, shape in slot_shapes.items()}

    def __len__(self):
        return len(self.interviews)

    def names(self):
        return list(self.interviews)

    def digest(self):
        return json.dumps(self.interviews)

    def inspect(self):
        moods = {name: interview.get("mood") for name, interview in self.interviews.items()}
        return DatasetContent(
            listed=self.names(),
            answers={"mood": moods},
            list_file=self.cfg.file,
            labels={name: mood for name, mood in moods.items() if mood},
            sentences={name: interview["said"] for name, interview in self.interviews.items() if "said" in interview},
            notes=[Problem("short", "interviews with a single word", tuple(n for n in moods if len(self.said(n).split()) == 1))],
        )

    def problems(self):
        return [problem for source in self.features for problem in source.problems(self.names())]

    def sampling(self):
        return DatasetSampling(len(self))

    def has_reference(self, task):
        return any("mood" in interview for interview in self.interviews.values())

    def process_answer(self, text):
        return text

    def said(self, name):
        return self.interviews[name].get("said", "")

    def user_text(self, index, task, instruction):
        return f'"{self.said(self.names()[index])}" {instruction}'

    def record(self, index, task, instruction, rng=None):
        name, (face,) = self.names()[index], self.features
        features = self.absent | (face.read(name) if name in face else {})
        mood = self.interviews[name].get("mood")
        return Record(name, task, [(self.user_text(index, task, instruction), mood)], features, mood)

    @classmethod
    def clip_slots(cls, cfg):
        return {"face"}

    @classmethod
    def has_sentences(cls, cfg, *, block_path):
        return True

    @classmethod
    def for_clips(cls, cfg, clips, *, slot_shapes, block_path):
        cfg = dataclasses.replace(cfg, faces=clips.features["face"])
        interviews = {name: {"said": clips.sentence} for name in clips.names}
        return cls(cfg, slot_shapes=slot_shapes, block_path=block_path, training=False, interviews=interviews)
