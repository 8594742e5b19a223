"""Names of environment variables that several modules read."""

DATA = "EMOLLAMA_DATA"  # names the folder that the shipped configurations call paths.root
LAUNCHER = "EMOLLAMA_LAUNCHER"  # set by our launcher for its workers: the launcher's process id
JOB_ID = "EMOLLAMA_JOB_ID"  # set by emollama train for itself and its workers: the name of the run's folder without run.job_id
STEP = "EMOLLAMA_STEP"  # set by a command for those that it runs: after an interrupt, it prints the message itself
