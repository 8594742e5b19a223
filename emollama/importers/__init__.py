"""Importers: convert annotations of other projects to MERR's format. Each kind of source has one module.

The ``read`` function of a module fills a :class:`~emollama.importers.collector.Collector`; ``annotation_files.write`` writes
the output folder. Source files are never changed.
"""
