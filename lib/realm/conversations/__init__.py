"""The record, one conversation, and everything that brings it in from files and writes it out again.

Rooms in reading order: ``conversation`` (the record), ``readers``, ``json_stream``, ``writers``, ``evidence`` (which
records continue which, by their turns), ``sessions`` (segments joined to what they were cut from), ``splits`` (train,
valid and test without leaks).
May import: ``core``.
"""
