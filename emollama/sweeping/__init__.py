"""Sweeps: all checkpoints of a training run, evaluated alike."""
