"""Registered tasks: they define the loss of a batch, and the questions and answers of an evaluation."""
