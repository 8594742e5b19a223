"""The doctor: what a run would read, looked at before it costs time on a GPU."""
