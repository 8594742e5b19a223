"""Registered runners: the training loop, evaluation, and everything that they prepare and check."""
