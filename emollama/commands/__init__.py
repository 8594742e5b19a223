"""``emollama <command>``, a file each: NAME, HELP, ``add_arguments(parser)`` and ``run(arguments)``.

Heavy imports stand inside ``run``, so that ``emollama --help`` answers at once.
"""
