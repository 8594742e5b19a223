"""The registered datasets, one file each."""
