"""The memory, time and disk space of a run, computed from its configuration without weights or data."""
