"""Audio of videos and audio files.

A single library reads and resamples all files, because another resampler would change the features.
"""

from __future__ import annotations

import os

import av
import numpy as np

from emollama.media.containers import MIN_COMPLETE, open_media, packets, require_seconds
from emollama.media.source import DEFAULT_LIMITS, MediaLimits, UnusableMedia


def read_audio(path: str | os.PathLike[str], rate: int = 16000, limits: MediaLimits = DEFAULT_LIMITS) -> np.ndarray:
    """Read the audio of a file as one channel, (S,) float32 in [-1, 1], the mean of its channels.

    If a file is damaged near its end, the audio before the damage is returned.

    Args:
        path: a video or audio file with any sampling rate.
        rate: sampling rate of the result, in Hz.
        limits: the longest audio that is decoded.

    Raises:
        UnusableMedia: If the file cannot be opened (:func:`emollama.media.containers.open_media`), has no audio track, is cut off
            (:func:`emollama.media.containers.packets`), is too long, or more than a tenth of its audio cannot be decoded. Audio
            that is shorter than the video is accepted.
    """
    # libswresample only resamples. Its own conversion to mono is the sum of left and right divided by the square root of two,
    # which is louder than either channel and can exceed [-1, 1].
    resampler = av.AudioResampler(format="fltp", rate=rate)
    parts: list[np.ndarray] = []
    decoded_packets, lost_packets, seconds = 0, 0, 0.0
    with open_media(path, "audio", limits) as (container, stream):
        for packet in packets(container, stream, limits.max_seconds):
            try:
                for frame in packet.decode() if not lost_packets else ():
                    # Before resampling, because that multiplies the samples of a very low rate.
                    seconds += frame.samples / frame.sample_rate
                    require_seconds(seconds, limits.max_seconds)
                    parts += [piece.to_ndarray().mean(0) for piece in resampler.resample(frame)]
            except UnusableMedia:
                raise
            except (av.FFmpegError, ValueError):
                # The packet is damaged, or rate or number of channels change here. Later packets are counted as lost.
                if not parts:
                    raise
                lost_packets = 1
            else:
                decoded_packets, lost_packets = decoded_packets + (not lost_packets), lost_packets + bool(lost_packets)
        packet_count = decoded_packets + lost_packets
        if decoded_packets < MIN_COMPLETE * packet_count:
            raise UnusableMedia(f"only {decoded_packets} of {packet_count} audio packets can be decoded: the file is damaged")
        parts += [piece.to_ndarray().mean(0) for piece in resampler.resample(None)]
    audio = np.concatenate(parts) if parts else np.empty(0)
    if not len(audio):
        raise UnusableMedia("its audio track is empty")
    return np.clip(audio, -1, 1).astype(np.float32)
