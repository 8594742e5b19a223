"""Checkpoints: inspected, compared, averaged, and converted to other formats and back."""
