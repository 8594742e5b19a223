"""Starter configurations: what a data folder contains, written into a copy of a shipped YAML file."""
