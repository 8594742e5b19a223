"""Decoding token by token: generation with a running batch of sequences, and likelihoods of candidate answers."""
