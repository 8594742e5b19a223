"""Pretrained encoders: compute the feature vectors of a slot from a clip's frames, faces or sound."""
