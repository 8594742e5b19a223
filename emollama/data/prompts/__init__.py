"""Prompt formats, which turn a record into token ids, labels and placeholder ids of feature tokens."""
