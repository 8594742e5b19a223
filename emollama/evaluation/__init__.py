"""Scoring of answers: metrics, judges and statistics. The functions take plain Python values and do not import torch."""
