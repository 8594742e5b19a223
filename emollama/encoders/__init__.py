"""Pretrained encoders: a clip's video, faces or sound -> the rows of a slot."""
