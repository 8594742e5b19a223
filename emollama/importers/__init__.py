"""Importers: one module for each kind of source reads files of another project and converts them to MERR's format.

A module's ``read`` fills a :class:`~emollama.importers.collector.Collector`, and ``annotation_files.write`` writes the folder.
Sources are only read.
"""
