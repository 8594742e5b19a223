"""Distributed processes: ranks, data parallelism, the launcher, and errors of worker processes."""
