"""Registered models and their parts: the LLM, the fusion of features, attention over packed sequences."""
