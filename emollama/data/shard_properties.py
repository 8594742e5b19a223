"""Shards of features as a whole: their downloads, the members of tars that are not read, and digests of values."""

from __future__ import annotations

from collections.abc import Iterable

from emollama.data.dataset import FeatureSource
from emollama.data.features import Features
from emollama.remote.manager import local_copy
from emollama.remote.streaming import cache_gib
from emollama.stores.store import DigestedStore
from emollama.stores.streamed_tars import StreamedTarStore
from emollama.stores.tar_index import skipped_note
from emollama.stores.tars import TarStore
from emollama.variables import STREAM_CACHE


def skipped_members(features: Iterable[Features]) -> str:
    """Return a sentence about the members of tar shards that are not read; "" if there are none."""
    stores = (source.store for source in features)
    # Several slots may be read from the same shards.
    by_shard = {shard: counts for store in stores if isinstance(store, TarStore) for shard, counts in store.skipped.items()}
    return skipped_note(by_shard.values())


def download_shards(features: Iterable[FeatureSource]) -> None:
    """Download remote tars to this machine before a data worker needs them: a long download would look like a hanging worker.

    Raises:
        UserError: If a tar cannot be downloaded. The message names the configuration key.
    """
    for source in features:
        if isinstance(source, Features) and isinstance(source.store, TarStore):
            for shard in source.store.shards_to_download:
                local_copy(shard, source.key)


def cache_note(features: Iterable[FeatureSource], window: int) -> str:
    """Return a sentence about a cache that is too small for the streamed tars of a window; "" if there is none.

    Args:
        features: the features of a dataset.
        window: number of tars whose clips are shuffled together.
    """
    stores = (source.store for source in features if isinstance(source, Features))
    sizes = [store.shard_bytes for store in stores if isinstance(store, StreamedTarStore) and store.shard_bytes]
    limit = cache_gib()
    # The tars of the first slot determine the order; those of others have the arrays of the same clips.
    needed = sum(map(sum, sizes)) * min(1, window / len(sizes[0])) / 2**30 if sizes else 0.0
    if not 0 < limit < needed:
        return ""
    return (
        f"the streamed tars that are shuffled together have {needed:.3g} GiB, more than the cache of {limit:.3g} GiB, so that"
        f" parts are requested repeatedly. Increase {STREAM_CACHE}, or lower shuffle_window"
    )


def values_digests(features: Iterable[FeatureSource]) -> dict[str, str]:
    """Return slots -> hash of the values, for sources whose stores know it."""
    stores = {" + ".join(source.slots): source.store for source in features if isinstance(source, Features)}
    digests = {slots: store.values_digest for slots, store in stores.items() if isinstance(store, DigestedStore)}
    return {slots: digest for slots, digest in digests.items() if digest is not None}
