"""The embedded demonstration: an invented corpus in the real on-disk formats, and a tiny Llama to train on it."""
