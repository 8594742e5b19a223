"""Judges: they score how much of the evidence and emotions of one description another one shares."""
