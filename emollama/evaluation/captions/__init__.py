"""Metrics that compare captions with several references, as in the COCO caption evaluation (pycocoevalcap)."""
