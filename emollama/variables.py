"""Names of environment variables that several modules use."""

DATA = "EMOLLAMA_DATA"  # the data folder, which shipped configurations use as paths.root
LAUNCHER = "EMOLLAMA_LAUNCHER"  # process id of the launcher, which sets it for its workers
# The smallest number of nodes that --nnodes allows, which the launcher sets for its workers.
LEAST_NODES = "EMOLLAMA_LEAST_NODES"
# The name of the run's folder if run.job_id is null, which emollama train sets for itself and its workers.
JOB_ID = "EMOLLAMA_JOB_ID"
# Set by a command for the commands that it runs, so that only the outer command prints a message after an interrupt.
STEP = "EMOLLAMA_STEP"
# Seconds after which a download by HTTP is tried again if the server sends nothing.
HTTP_TIMEOUT = "EMOLLAMA_HTTP_TIMEOUT"
# Size of the cache of streamed files on each machine, in GiB; 0 for no cache.
STREAM_CACHE = "EMOLLAMA_STREAM_CACHE_GIB"
# Unix time at which run.stop_after_minutes ends, which the launcher sets for its workers.
STOP_AT = "EMOLLAMA_STOP_AT"
# The key of the server of --engine-url.
ENGINE_API_KEY = "EMOLLAMA_ENGINE_API_KEY"
# The key that clients of emollama serve have to send.
API_KEY = "EMOLLAMA_API_KEY"
