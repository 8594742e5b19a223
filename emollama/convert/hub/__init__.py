"""Code that ``--to transformers`` copies into a folder, where transformers runs it. It must not import emollama."""
