"""The memory of tensors, as PyTorch's allocator for CPUs reports it."""

from __future__ import annotations

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def bytes_of_tensors(call: Callable[[], object]) -> tuple[int, int]:
    """Run ``call``. Return the largest number of bytes of its tensors, and of those that still exist at its end."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    used = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        used += event.nbytes()
        peak = max(peak, used)
    del result
    return peak, used
