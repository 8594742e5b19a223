"""The sound of videos and of sound files.

One library reads and resamples all of it, since features are made from every sample: another resampler gives other features.
"""

from __future__ import annotations

import os

import av
import numpy as np

from emollama.media.containers import MIN_COMPLETE, open_media, packets
from emollama.media.source import UnusableMedia


def read_audio(path: str | os.PathLike[str], rate: int = 16000) -> np.ndarray:
    """The sound of a file, (S,) float32 in [-1, 1], one channel: the mean of those that it has.

    Channels are resampled by libswresample and averaged here: its own mono is the sum of left and right over the square root of
    two, which is louder than either and can leave [-1, 1]. Where the file is damaged near its end, sound counts up to there.

    Args:
        path: a video or a sound file, of any rate.
        rate: wanted, in samples a second.

    Raises:
        UnusableMedia: the file does not open, has no audio track, is cut off (:func:`emollama.media.containers.packets`), or more
            than a tenth of its sound cannot be decoded. Sound that is shorter than the pictures is accepted.
    """
    resampler = av.AudioResampler(format="fltp", rate=rate)
    parts: list[np.ndarray] = []
    good, lost = 0, 0  # packets
    with open_media(path, "audio") as (container, stream):
        for packet in packets(container, stream):
            try:
                if not lost:
                    parts += [piece.to_ndarray().mean(0) for frame in packet.decode() for piece in resampler.resample(frame)]
            except (av.FFmpegError, ValueError):  # damaged, or another rate or number of channels from here on
                if not parts:
                    raise
                lost = 1
            else:
                good, lost = good + (not lost), lost + bool(lost)
        if good < MIN_COMPLETE * (good + lost):
            raise UnusableMedia(f"only {good} of the {good + lost} packets of its sound can be decoded: it is damaged")
        parts += [piece.to_ndarray().mean(0) for piece in resampler.resample(None)]
    sound = np.concatenate(parts) if parts else np.empty(0)
    if not len(sound):
        raise UnusableMedia("its audio track is empty")
    return np.clip(sound, -1, 1).astype(np.float32)
