"""Prompts: ids, labels and placeholders of feature tokens are rendered together."""
