"""The average of several checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from emollama.errors import UserError
from emollama.listing import listing


def mean(parts: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Average the tensors of several files in float64, and return them in the dtypes of the first file.

    Raises:
        UserError: If the files do not contain the same tensors.
    """
    # The files are summed one by one, so that only one of them is in memory in addition to the sums.
    rest = iter(parts)
    first = next(rest)
    sums = {name: tensor.double() for name, tensor in first.items()}
    count = 1
    for part in rest:
        count += 1
        different = sorted(part.keys() ^ sums.keys())
        if different:
            raise UserError(
                f"these checkpoints cannot be averaged, because only some of them contain {listing(different, 'tensor')}"
            )
        for name, tensor in part.items():
            sums[name] += tensor
    return {name: (sums.pop(name) / count).to(tensor.dtype) for name, tensor in first.items()}
