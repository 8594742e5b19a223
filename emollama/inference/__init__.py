"""Inference: predictions for videos, and the evaluation of every checkpoint of a run."""
