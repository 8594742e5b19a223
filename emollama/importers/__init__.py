"""From the forms in which others publish clips to the written form that the datasets read: a file a kind.

A kind's ``read`` fills an :class:`~emollama.importers.intake.Intake`; ``written.write`` makes the folder. Sources are only read.
"""
