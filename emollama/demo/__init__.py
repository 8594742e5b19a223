"""The demo (``emollama demo``): synthetic data in the real file formats, and tiny models that train on it on a CPU."""
