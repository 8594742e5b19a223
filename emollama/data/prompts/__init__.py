"""Prompt formats, which turn a record into token ids, labels and placeholders of feature tokens."""
