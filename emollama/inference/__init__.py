"""Inference: answers for videos, and the evaluation of all checkpoints of a run."""
