"""Logging: the package logger, the console, the log of a run, TensorBoard and Weights & Biases."""
