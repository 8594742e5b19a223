"""Data between the files on disk and the model: annotations, features, prompts, sampling and batches."""
