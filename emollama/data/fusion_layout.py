"""What a fusion module returns for a sample, as far as it is known without its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class FusionLayout:
    """Names and numbers of the feature tokens of a fusion module. Data workers and ``emollama plan`` need nothing else of it.

    Attributes:
        outputs: name of an output, which a prompt format places in a prompt (``{video}``) -> names of its parts, in order.
            Several parts in one output come from different slots, such as face and audio.
        num_feature_tokens: function from the number of a sample's feature vectors by slot to the number of feature tokens by
            part. It raises a ValueError if the module cannot process these numbers.
        optional_tensors: glob patterns of the module's parameters that a checkpoint may lack, because they belong to slots that
            were added after its training. They keep their initial values then.
    """

    outputs: Mapping[str, tuple[str, ...]]
    num_feature_tokens: Callable[[Mapping[str, int]], dict[str, int]]
    optional_tensors: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of all outputs, in order."""
        return tuple(part for parts in self.outputs.values() for part in parts)
