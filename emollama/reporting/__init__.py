"""A run to look at: its report and its comparison with others, from the files that it wrote; without torch."""
