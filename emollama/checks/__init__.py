"""Checks of data and configurations, before a run spends GPU time."""
