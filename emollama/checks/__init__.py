"""Checks of the data and of a configuration before GPU time is spent."""
