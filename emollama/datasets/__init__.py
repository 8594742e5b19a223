"""Registered datasets, a file each."""
