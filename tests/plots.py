"""Rendering of plots, which takes most of the time of a short training run or of a report.

Tests build every plot but write a single white pixel instead of rendering it. Tests of images use the fixture ``rendered_plots``.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from emollama.reporting import plotting

WHITE_PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4//8/AAX+Av4N70a4AAAAAElFTkSuQmCC")
RENDERED = plotting.rendered


@contextmanager
def plots(render: Callable[..., bytes]) -> Iterator[None]:
    """Inside ``with``, a function of a figure renders plots: :data:`RENDERED` or :func:`white_pixel`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plotting, "rendered", render)
        yield


def white_pixel(figure: object) -> bytes:
    """The smallest PNG, used instead of a figure."""
    return WHITE_PIXEL
