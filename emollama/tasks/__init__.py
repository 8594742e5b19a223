"""Registered tasks: what a batch means."""
