"""emollama: config-driven training of multimodal emotion language models."""

__version__ = "0.1.0"
