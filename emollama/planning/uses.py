"""What a run demands of its language model, besides training with packed or padded samples."""

from __future__ import annotations

from emollama.config import RunConfig


def uses_of(config: RunConfig, *, training: bool) -> list[str]:
    """Return the argument ``uses`` of a model class's check of the language model.

    Args:
        config: the resolved configuration.
        training: True to train, False to only evaluate.
    """
    evaluated = config.evaluation_datasets if config.run.evaluate or not training else {}
    demands = {
        "beam search": any(block.task.num_beams > 1 for block in evaluated.values()),
        "shared prompts": training and config.run.tasks_per_clip > 1,
        "compiled layers": training and config.model.compile,
    }
    return [name for name, demanded in demands.items() if demanded]
