"""The way from files on disk to batches: annotations, features, prompts, sampling, batches."""
