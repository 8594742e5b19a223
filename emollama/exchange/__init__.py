"""Checkpoints in and out: ``weights`` reads them, ``describe`` inspects and compares, ``convert`` averages and converts."""
