"""Registered runners: the loop."""
