"""The ground that everyone stands on: what a run is told, what it writes, and what it must never show.

Rooms in reading order: ``profile`` (typed values of a run, each part a ``block``; ``endpoint``, ``asker``,
``fine_tunes``, ``simulator_realism`` and ``cluster`` have rooms of their own; what is wrong with values says
``profile_errors``, that a key stands twice ``keys_once``), ``files`` (whole or not there), ``set_aside`` (what no
longer fits), ``locks`` (one writer), ``stopping`` (when somebody asks for it), ``secrets``, ``errors`` (one line for
the reader), ``metrics``, ``manifest``, ``seeds``, ``cards``, ``progress`` (what long work says), ``quiet`` (noise of
libraries).
Imports nothing else of the library.
"""
