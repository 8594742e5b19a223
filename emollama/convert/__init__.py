"""Tools for checkpoints: inspection, comparison, averages, and conversion to other formats and back."""
