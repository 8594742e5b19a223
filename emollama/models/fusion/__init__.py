"""Fusion modules: they turn the feature vectors of each slot into feature tokens of the language model's hidden size."""
