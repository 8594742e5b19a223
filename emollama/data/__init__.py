"""From files on disk to batches: annotation lists, features, prompts, and the order of the draw."""
