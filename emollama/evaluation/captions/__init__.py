"""Scores of captions against several true ones each, as the COCO caption evaluation defines them (pycocoevalcap)."""
