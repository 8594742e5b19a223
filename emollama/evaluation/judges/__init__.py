"""Registered judges: who says how much of a description's evidence and emotion another one shares."""
