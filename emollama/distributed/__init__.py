"""Processes: ranks, data parallelism, the launcher, and the errors of workers."""
