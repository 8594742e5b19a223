"""The pixels of a frame that the model encodes itself."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from emollama.data.slots import FrameSelection
from emollama.media.frame_selection import choose_frame
from emollama.media.frames import read_frames
from emollama.media.image_transforms import blip2_image
from emollama.media.source import Source


@dataclass(frozen=True)
class FramePixels:
    """Reads one frame of a clip.

    Attributes:
        side: width and height to which the frame is resized, in pixels.
        choice: which frame is read.
    """

    side: int
    choice: FrameSelection

    def load(self, source: Source) -> Tensor:
        """Read the frame as normalized pixels, (1, 3 x side x side) float32.

        Raises:
            UnusableMedia: If the frame cannot be read.
        """
        (frame,) = read_frames(source.video, lambda count: [choose_frame(self.choice, count, source)], source.limits)
        return blip2_image(frame, self.side).reshape(1, -1)
