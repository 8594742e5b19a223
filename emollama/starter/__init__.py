"""Starter configurations: shipped YAML files with the paths and sizes of a data folder filled in (``emollama init``)."""
