"""Features of many videos: which clips are left to do, the work shared out, failures, what is written beside the arrays."""
