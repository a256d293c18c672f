"""The record, one conversation, and everything that brings it in from files and writes it out again.

Rooms in reading order: ``conversation`` (the record), ``readers``, ``report`` (what was skipped, noted, left out),
``sources``, ``json_stream``, ``hub``, ``layouts`` (the one table of public layouts), ``records``, ``turns``, ``trees``,
``transcripts`` (what reads by it), ``writers``, ``evidence`` (which records continue which, by their turns),
``sessions`` (segments joined to what they were cut from), ``splits`` (train, valid and test without leaks).
May import: ``core``.
"""
