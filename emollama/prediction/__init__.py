"""Answers about videos of one's own: features extracted, then asked through the code of the evaluation."""
