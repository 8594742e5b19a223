"""The encoders of a configuration, loaded once, and the features that they extract from single clips."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from emollama.config import RunConfig
from emollama.data.slots import PIXELS
from emollama.distributed.process_group import World
from emollama.encoders.decoding_worker import LoaderSettings
from emollama.encoders.encoder import Encoder
from emollama.errors import UserError
from emollama.extraction.clips import Clips
from emollama.extraction.encoding import encode_batch, reason
from emollama.extraction.jobs import Job, describe_encoders, plan_jobs
from emollama.inference.prediction_block import PredictionBlock
from emollama.inference.videos import with_encoders_for
from emollama.media.frame_pixels import FramePixels
from emollama.media.source import Source

# Reads a clip for some encoders: label -> what Encoder.load returned, or why the clip cannot be used. The last argument tests
# whether nobody wants the clip any more.
LoadClip = Callable[[Source, Sequence[str], Callable[[], bool]], Mapping[str, Tensor | Exception]]


@dataclass(frozen=True)
class LoadedClip:
    """A clip that was read, and is not encoded yet.

    Attributes:
        source: the clip.
        tensors: label of an encoder -> its input; :func:`frame_slot` -> pixels.
        failed: the same names -> why there is no input.
    """

    source: Source
    tensors: Mapping[str, Tensor]
    failed: Mapping[str, str]


@dataclass(frozen=True)
class ClipFeatures:
    """The features of one clip.

    Attributes:
        arrays: first slot of an encoder -> array, in the dtype in which an extraction stores it; :func:`frame_slot` -> pixels.
        failed: the same names -> why there is no array.
    """

    arrays: Mapping[str, np.ndarray]
    failed: Mapping[str, str]


def frame_slot(block: PredictionBlock) -> str:
    """Return the name under which the pixels of the frame that a block selects are stored."""
    return f"{PIXELS}.{block.frame_selection}"


class ClipEncoders:
    """The encoders that fill the slots of some blocks, and the frames that the model encodes itself.

    Args:
        config: a configuration, with or without ``encoders``.
        blocks: the blocks. Encoders for other slots are not loaded.
        folder: an empty folder, into which a manifest is written for each encoder.
        world: the processes. Rank 0 reads weights first.

    Attributes:
        jobs: label of an encoder -> description of its arrays.

    Raises:
        UserError: If weights are missing or do not fit the encoder or the model.
    """

    def __init__(self, config: RunConfig, blocks: Sequence[PredictionBlock], folder: Path, world: World) -> None:
        config = with_encoders_for(config, {slot for block in blocks for slot in block.slots}, folder)
        self._encoders: dict[str, Encoder] = {}
        self._frames: dict[str, FramePixels] = {}
        for block in blocks:
            if (choice := block.frame_selection) is not None:
                side = math.isqrt(config.model_class.slot_shapes(config.model)[PIXELS].dim // 3)
                self._frames[frame_slot(block)] = FramePixels(side, choice)
        self.jobs: dict[str, Job] = {}
        if not config.encoders:
            return
        for job in plan_jobs(config, describe_encoders(config), Clips({}, []), set()):
            job.arrays.open(job.manifest)
            self.jobs[job.label] = job
            key = f"encoders.{job.label}"
            encoder_class = config.encoder_class(key)
            self._encoders[job.label] = world.rank_zero_first(lambda: encoder_class(job.cfg, device=world.device, key=key))  # noqa: B023 (called at once)

    @property
    def slots(self) -> dict[str, str]:
        """First slot of each encoder -> dotted name of its block."""
        return {job.slot: f"encoders.{label}" for label, job in self.jobs.items()}

    @property
    def folders(self) -> dict[str, Path]:
        """First slot of each encoder -> folder with its manifest."""
        return {job.slot: job.arrays.folder for job in self.jobs.values()}

    @property
    def loaders(self) -> dict[str, LoaderSettings]:
        """Label of each encoder, or slot of frames -> what a decoding process needs to load its inputs."""
        return {label: (type(self._encoders[label]), job.cfg) for label, job in self.jobs.items()} | self._frames

    def load(self, source: Source, labels: Sequence[str], is_over: Callable[[], bool]) -> dict[str, Tensor | Exception]:
        """Read a clip for some encoders, or frames of it, in this process.

        Raises:
            CancelledError: If nobody wants the clip any more.
        """
        loaded: dict[str, Tensor | Exception] = {}
        for label in labels:
            if is_over():
                raise CancelledError
            loader = self._frames[label] if label in self._frames else self._encoders[label]
            try:
                loaded[label] = loader.load(source)
            except UserError:
                raise
            except Exception as error:  # a library may raise anything for a broken file
                loaded[label] = error
        return loaded

    def loaded(self, source: Source, load: LoadClip, is_over: Callable[[], bool], without: Set[str] = frozenset()) -> LoadedClip:
        """Read a clip.

        Args:
            source: the clip.
            load: :meth:`load`, or a function that does the same in another process.
            is_over: whether nobody wants the clip any more.
            without: slots whose features are not needed.

        Raises:
            CancelledError: If nobody wants the clip any more.
        """
        labels = [label for label, job in self.jobs.items() if job.slot not in without]
        results = load(source, [*labels, *self._frames], is_over)
        tensors = {label: result for label, result in results.items() if isinstance(result, Tensor)}
        failed = {label: reason(result) for label, result in results.items() if isinstance(result, Exception)}
        return LoadedClip(source, tensors, failed)

    @torch.inference_mode()
    def encode(self, clips: Sequence[LoadedClip]) -> list[ClipFeatures]:
        """Extract the features of clips. Those of a clip do not depend on the other clips.

        Raises:
            UserError: If the device has too little memory.
        """
        arrays = [{slot: clip.tensors[slot].numpy() for slot in self._frames if slot in clip.tensors} for clip in clips]
        slots = {label: job.slot for label, job in self.jobs.items()}
        failed = [{slots.get(label, label): why for label, why in clip.failed.items()} for clip in clips]
        for label, job in self.jobs.items():
            # Clips of several requests may have the same name.
            batch = [
                (dataclasses.replace(clip.source, name=str(index)), clip.tensors[label])
                for index, clip in enumerate(clips)
                if label in clip.tensors
            ]
            size = job.cfg.batch_size
            for first in range(0, len(batch), size):
                encoded, reasons = encode_batch(job, self._encoders[label], batch[first : first + size])
                for name, array in encoded.items():
                    arrays[int(name)][job.slot] = array
                for name, why in reasons.items():
                    failed[int(name)][job.slot] = why
        return [ClipFeatures(*pair) for pair in zip(arrays, failed, strict=True)]
